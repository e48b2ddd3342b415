"""The journal of a detection run: one line of JSON for each image, written as soon as the image is done."""

import contextlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from ..errors import InputError, OutputError
from ..inference.detections import Detections
from ..inference.inputs import RUN_FILES, Input, input_key, make_unique
from ..utils.files import lock_folder, open_atomic
from ..utils.json_files import DAMAGE, JsonLinesWriter, read_json_lines
from ..utils.text import describe_changes

SETTINGS, RESULTS = RUN_FILES


@dataclass(frozen=True)
class RunSettings:
    """The settings that the results of a run depend on.

    Attributes:
        model: the model's name.
        weights: the SHA-256 of the model's tensors, see `tensors_sha256`.
        classes: the names of all classes.
        kept_classes: the names of the classes to keep.
        score_threshold: the lowest score of an object, or that of each class.
        max_detections, nms_iou, class_agnostic_nms: those of `Detector`.
        scale: the longer and the shorter side that images are resized to fit, pixels; None for the config's own.
        amp: whether the model computes in half precision.
        slice_size, slice_overlap, whole_image, tta: those of `Views`.
        tracker: follows the objects of videos, a name of `TRACKERS`; None if they are not tracked.
    """

    model: str
    weights: str
    classes: tuple[str, ...]
    kept_classes: tuple[str, ...]
    score_threshold: float | tuple[float, ...]
    max_detections: int | None = None
    nms_iou: float | None = None
    class_agnostic_nms: bool = False
    scale: tuple[int, int] | None = None
    amp: bool = False
    slice_size: int | None = None
    slice_overlap: float = 0.2
    whole_image: bool = False
    tta: bool = False
    tracker: str | None = None


@dataclass(frozen=True)
class ImageResult:
    """One image of a run, and the objects detected in it.

    Attributes:
        name: a relative POSIX path. For a frame of a video: the video's name and the frame's number, "clip.mp4/000012".
        stem: the path without suffix of the files written for the image; unique in a run.
        detections: the objects.
        frame: the number of a video's frame, from 0; None for an image.
        time: seconds from the first frame to this one; None for an image.
        is_last: whether this frame is the video's last one.
        key: identifies the image or the whole video, see `NamedInput.key`; empty in results of earlier versions.
    """

    name: str
    stem: str
    detections: Detections
    frame: int | None = None
    time: float | None = None
    is_last: bool = False
    key: str = ""

    @classmethod
    def from_json(cls, content: Mapping[str, Any], classes: Sequence[str]) -> "ImageResult":
        """Return the result whose `to_json` is `content`, given the names of all `classes` of the model.

        Raises:
            ValueError: The content has another form; also LookupError, TypeError, AttributeError and ArithmeticError.
        """
        result = cls(
            content["name"],
            content["stem"],
            Detections.from_json(content, classes),
            frame=content.get("frame"),
            time=content.get("time"),
            is_last=content.get("last", False),
            key=content.get("key", ""),
        )
        is_valid = all(isinstance(each, str) for each in (result.name, result.stem, result.key))
        is_valid &= isinstance(result.frame, int | None) and isinstance(result.time, int | float | None)
        path = PurePosixPath(result.stem)
        if not is_valid or path.is_absolute() or ".." in path.parts or "\0" in result.stem:
            raise ValueError("a name, a stem, a key or the place in a video is wrong")
        os.fsencode(result.stem)  # a ValueError if no file can have this name
        return result

    def to_json(self) -> dict[str, Any]:
        """Return the content of the image's line in the journal."""
        video = {} if self.frame is None else {"frame": self.frame, "time": self.time, "last": self.is_last}
        key = {"key": self.key} if self.key else {}
        return {"name": self.name, "stem": self.stem, **key, **video, **self.detections.to_json()}


class RunResults(Protocol):
    """The results of a run, which each iteration reads anew.

    Attributes:
        settings: the run's settings.
    """

    settings: RunSettings

    def __iter__(self) -> Iterator[ImageResult]:
        """Return the results of the images."""


class Stems:
    """The stems of a run's files, each for one image; file systems that ignore case keep them apart, too."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._numbers = Counter[str]()

    def add(self, stem: str) -> None:
        """Note that a stem is taken."""
        self._taken.add(stem.casefold())

    def new(self, name: str) -> str:
        """Return an unused stem: "photo" for "photo.jpg"; if it is taken, "photo.jpg", then "photo.jpg-2", ..."""
        # File systems allow names of 255 bytes: 160 leave room for what is added.
        parts = (part.encode("utf-8", "ignore")[:160].decode("utf-8", "ignore") for part in name.split("/"))
        path = PurePosixPath(*(part for part in parts if part not in ("", ".", "..")))
        start = self._numbers[path.as_posix()] or 2
        numbered = ((f"{path}-{number}", number) for number in itertools.count(start))
        candidates = itertools.chain([(path.with_suffix("").as_posix(), 0), (path.as_posix(), 0)], numbered)
        stem, number = next(each for each in candidates if each[0].casefold() not in self._taken)
        self._numbers[path.as_posix()] = number
        self.add(stem)
        return stem


class Journal:
    """The results of a run, `detections.jsonl`, and its settings, `run.json`. Iteration reads all results from disk.

    When a run is resumed, incomplete lines and the frames of incomplete videos are removed. While the journal is open,
    no other process can open one in the same folder.

    Args:
        folder: the run's folder; it must exist.
        settings: the run's settings.
        resume: continue the run in the folder, if there is one.

    Raises:
        InputError: The folder holds a run with other settings or of another version, or another process uses it.
        OutputError: The files cannot be written.
    """

    def __init__(self, folder: Path, settings: RunSettings, *, resume: bool = False) -> None:
        self.settings = settings
        self._path = folder / RESULTS
        self._done: set[str] = set()
        self._names: set[str] = set()
        self.stems = Stems()
        size = 0  # bytes of the file to keep
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock_folder(folder))
            if resume and has_run(folder):
                _check_settings(folder, settings)
                for result, end in self._read():
                    if result.frame is None:
                        self.stems.add(result.stem)
                    if result.frame is None or result.is_last:
                        self._names.add(result.name if result.frame is None else result.name.rpartition("/")[0])
                        path = result.detections.path or result.name
                        self._done.add(result.key or input_key(path))  # earlier versions wrote no key
                        size = end
            else:
                with open_atomic(folder / SETTINGS) as file:
                    file.write(json.dumps(asdict(settings), indent=2).encode() + b"\n")
            self._writer = JsonLinesWriter(self._path, size)
            stack.callback(self._writer.close)
            self._inode = self._path.stat().st_ino
            self._closing = stack.pop_all()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    def __iter__(self) -> Iterator[ImageResult]:
        self._check_place()
        return (result for result, _ in self._read())

    def select(self, inputs: Iterable[Input]) -> list[Input]:
        """Return the inputs that were not done before the run was resumed, each once, with names that no other has."""
        left: dict[str, Input] = {}
        for input in inputs:
            if input.key not in self._done:
                left.setdefault(input.key, input)
        return list(make_unique(left.values(), self._names))

    def append(self, result: ImageResult) -> None:
        """Write an image's line. If this fails, `OutputError` is raised, and the lines before it are unchanged."""
        self._writer.append(result.to_json())
        self._check_place()

    def _check_place(self) -> None:
        """Raise `OutputError` if the file was removed or replaced: what is written to it would be lost."""
        try:
            is_same = self._path.stat().st_ino == self._inode
        except OSError:
            is_same = False
        if not is_same:
            raise OutputError(f"{self._path} was removed during the run, and its results are lost: detect again")

    def _read(self) -> Iterator[tuple[ImageResult, int]]:
        """Yield each result, and the byte offset of its line's end."""
        number = 1
        try:
            for content, end in read_json_lines(self._path):
                result = ImageResult.from_json(content, self.settings.classes)
                has_tracks = result.frame is not None and result.detections.track_ids is not None
                if has_tracks != (self.settings.tracker is not None):
                    raise ValueError("either the run or this frame is without tracks")
                yield result, end
                number += 1
        except FileNotFoundError:  # the run was stopped before its first image
            return
        except DAMAGE as error:
            raise InputError(f"{self._path}, line {number}: this is no image's result: use another folder") from error


def has_run(folder: Path) -> bool:
    """Return whether a run was started in a folder."""
    return os.path.lexists(folder / SETTINGS)  # unlike Path.exists, it accepts impossible names


def _check_settings(folder: Path, settings: RunSettings) -> None:
    path = folder / SETTINGS
    ours = json.loads(json.dumps(asdict(settings)))  # tuples become lists
    try:
        earlier = asdict(RunSettings(**json.loads(path.read_bytes())))  # a setting that it lacks has its default
        changes = describe_changes(earlier, ours)
    except (OSError, *DAMAGE) as error:
        raise InputError(f"{path} is damaged, or of another version of DPT Zoo: use another folder") from error
    if changes:
        raise InputError(f"{folder} holds a run with {changes}: use the same settings, or another folder")
