"""What a run over many images has found so far: a line of JSON for each image, on disk from the moment it is done."""

import errno
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import InputError, OutputError
from ..inference.detections import Detections
from ..utils.files import open_atomic

JOURNAL = "detections.jsonl"
SETTINGS = "run.json"

_LONGEST_NAME = 160
"""Bytes of a file's or folder's name that is made from an image's; file systems allow 255."""


@dataclass(frozen=True)
class RunSettings:
    """What the results of a run depend on.

    Attributes:
        model: its name.
        weights: the SHA-256 of its tensors, see `tensors_sha256`.
        classes: the names of all classes that it knows.
        kept: the names of those that are kept.
        score_threshold: the least score of an object.
        size: what images are resized to (longer and shorter side), or None for the config's own.
        amp: whether it computed in half precision.
    """

    model: str
    weights: str
    classes: tuple[str, ...]
    kept: tuple[str, ...]
    score_threshold: float
    size: tuple[int, int] | None = None
    amp: bool = False


@dataclass(frozen=True)
class ImageResult:
    """One image of a run, and what was found in it.

    Attributes:
        name: a relative POSIX path; of a video's frame that of the video and the frame's number.
        stem: the same for the files that are written of it, without suffix; no two of a run have the same.
        found: the objects.
        frame: the number of a video's frame, from 0; None for an image.
        time: the frame's, in seconds from the first.
        is_last: whether the video is whole with this frame.
    """

    name: str
    stem: str
    found: Detections
    frame: int | None = None
    time: float | None = None
    is_last: bool = False

    def to_json(self) -> dict[str, Any]:
        """What stands in its line."""
        record: dict[str, Any] = {"name": self.name, "stem": self.stem}
        if self.frame is not None:
            record |= {"frame": self.frame, "time": self.time, "last": self.is_last}
        return {**record, **self.found.to_json()}


class Journal:
    """The lines of a run, `detections.jsonl`, beside its settings, `run.json`.

    A line counts when it is whole. A video's lines count when all of them are there.

    Args:
        folder: the run's; it is there.
        settings: the run's.
        resume: go on with what the folder holds, if it holds anything.

    Raises:
        InputError: the folder holds a run with other settings, or what cannot be read.
        OutputError: the files cannot be written.
    """

    def __init__(self, folder: Path, settings: RunSettings, *, resume: bool = False) -> None:
        self.settings = settings
        self._path = folder / JOURNAL
        self._done: set[tuple[str, str | None]] = set()
        self._stems: set[str] = set()
        if resume and has_run(folder):
            _compare(folder, settings)
            size = self._read_done()
        else:
            size = 0
            with open_atomic(folder / SETTINGS) as file:
                file.write(json.dumps(asdict(settings), indent=2).encode() + b"\n")
        try:
            self._file = self._path.open("ab", buffering=0)
            self._file.truncate(size)
        except OSError as error:
            raise OutputError(f"{self._path} cannot be written: {error.strerror}") from error

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def has(self, name: str, origin: str) -> bool:
        """Whether an image, or a whole video, was done when the run was resumed."""
        return (name, origin) in self._done

    def new_stem(self, name: str) -> str:
        """The stem of an image's files: "photo" for "photo.jpg"; if that is taken, "photo.jpg", then "photo.jpg-2"."""
        parts = (part.encode("utf-8", "ignore")[:_LONGEST_NAME].decode("utf-8", "ignore") for part in name.split("/"))
        path = PurePosixPath(*(part for part in parts if part not in ("", ".", "..")))
        numbered = (f"{path}-{number}" for number in itertools.count(2))
        candidates = itertools.chain([path.with_suffix("").as_posix(), path.as_posix()], numbered)
        stem = next(stem for stem in candidates if stem.casefold() not in self._stems)  # not all disks tell A from a
        self._stems.add(stem.casefold())
        return stem

    def append(self, entry: ImageResult) -> None:
        """Write an image's line.

        Raises:
            OutputError: it cannot be written; the lines before it stand.
        """
        line = json.dumps(entry.to_json()).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._file.truncate(end)
            raise OutputError(
                f"{self._path} cannot be written: {error.strerror}: make room, and go on with --resume"
            ) from error

    def __iter__(self) -> Iterator[ImageResult]:
        """All images so far, from the disk.

        Raises:
            InputError: the file was changed by somebody else, and cannot be read.
        """
        for record, _ in _read_lines(self._path):
            yield ImageResult(
                name=record["name"],
                stem=record["stem"],
                found=Detections.from_json(record, self.settings.classes),
                frame=record.get("frame"),
                time=record.get("time"),
                is_last=record.get("last", False),
            )

    def _read_done(self) -> int:
        """Note what is done, and return where the lines end that count."""
        end = 0
        for record, after in _read_lines(self._path):
            if record.get("last", True):
                name = record["name"] if "frame" not in record else record["name"].rpartition("/")[0]
                self._done.add((name, record["path"]))
                end = after
            if "frame" not in record:
                self._stems.add(record["stem"].casefold())
        return end


def has_run(folder: Path) -> bool:
    """Whether a run was begun in a folder."""
    return (folder / SETTINGS).exists()


def _compare(folder: Path, settings: RunSettings) -> None:
    path = folder / SETTINGS
    try:
        earlier = json.loads(path.read_bytes())
        ours = json.loads(json.dumps(asdict(settings)))
        changed = [field.name for field in fields(settings) if earlier[field.name] != ours[field.name]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} cannot be read: name another folder") from error
    if not changed:
        return
    if "model" in changed:
        what = f"of {earlier['model']}, not {settings.model}"
    elif {"weights", "classes"} & set(changed):
        what = "with other weights"
    else:
        what = ", ".join(f"with {_words(name, earlier[name])}, not {_words(name, ours[name])}" for name in changed)
    raise InputError(f"{folder} holds a run {what}: resume it with the same settings, or name another folder")


def _words(name: str, value: Any) -> str:
    if isinstance(value, list):
        value = " ".join(map(str, value))
    return f"{name.replace('_', ' ')} {value}"


def _read_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The whole lines of a journal, and where each ends."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        end = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):  # its writer was stopped
                return
            end += len(line)
            try:
                record = json.loads(line)
                record["name"], record["stem"], record["path"], record["objects"]
            except (ValueError, LookupError, TypeError) as error:
                raise InputError(f"{path}, line {number}: this is no image's line: name another folder") from error
            yield record, end
