"""The plan of a run: parts with fixed names and inputs, which any machine can take in any order.

`_run.json` has the settings and the digest of all inputs, and `_plan.arrow` the inputs: a record batch for each part.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import InputError
from ..utils.json_files import DAMAGE
from ..utils.progress import ProgressCallback
from ..utils.text import describe_changes, plural
from ..utils.urls import redact
from .sources import Entry, Shard
from .storage import Folder, is_local

RUN, PLAN = "_run.json", "_plan.arrow"
"""The files of a plan. Readers of Parquet folders skip names that begin with an underscore."""
SCHEMA = pa.schema([("address", pa.string()), ("start", pa.int32()), ("stop", pa.int32())])
"""An image, or a shard with its `start` and `stop`, see `Shard`; they are null for an image."""
KEY_BYTES = 16


@dataclass(frozen=True)
class Settings:
    """The settings that the results of a run depend on.

    Attributes:
        model: the model's name.
        weights: the SHA-256 of the model's tensors, see `Detector.weights_sha256`.
        graph: for an exported file, its format and what it says about itself, see `Detector.metadata`.
        classes: the names of all classes.
        has_masks: whether objects have masks.
        options: the options of `Detector` that change detections.
        rows: "images" or "objects": what a row of the results is.
        column: the column of the images in tables, if it was given.
        images_per_part: the number of images in a part; a shard is a part of its own.
    """

    model: str
    weights: str
    graph: Mapping[str, Any] | None
    classes: tuple[str, ...]
    has_masks: bool
    options: Mapping[str, Any]
    rows: str
    column: str | None
    images_per_part: int

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Settings":
        """Return the settings that were written as JSON, which has lists for tuples."""
        return cls(**{**values, "classes": tuple(values["classes"])})


@dataclass(frozen=True)
class Plan:
    """A run's settings and parts.

    Attributes:
        settings: the run's settings.
        digest: the SHA-256 of the settings and of all inputs in their order.
        num_parts: the number of parts.
        num_images: the number of images; None if there are shards, whose images are not counted in advance.
    """

    settings: Settings
    digest: str
    num_parts: int
    num_images: int | None

    def part_name(self, index: int) -> str:
        """Return the file name of a part's results."""
        return f"part-{index:06d}-{self.digest[:12]}.parquet"

    def to_json(self) -> bytes:
        """Return the content of the plan's file."""
        return json.dumps(asdict(self), indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes) -> "Plan":
        """Return the plan that `to_json` was called on."""
        values = json.loads(content)
        return cls(Settings.from_json(values.pop("settings")), **values)


def make_plan(
    folder: Folder, settings: Settings, entries: Iterable[Entry], progress: ProgressCallback = lambda done, total: None
) -> Plan:
    """Plan a run, or check that the inputs and the settings are those of the run in `folder`.

    Args:
        folder: the folder of the results.
        settings: the run's settings.
        entries: the images, see `find_entries`. One that occurs again is left out.
        progress: called with the number of images so far.

    Raises:
        InputError: An input cannot be used, or the folder holds another run or other files.
        OutputError: The plan cannot be written.
    """
    earlier = read_plan(folder)
    if earlier:
        check_settings(folder, earlier.settings, settings)
    elif any(name.endswith(".parquet") for name in folder.names()):
        raise InputError(f"{redact(folder.address)} holds Parquet files, but no run: use another output folder")
    packer = _Packer(settings, progress)
    with ExitStack() as stack:
        if earlier:
            for _ in packer.pack(entries):
                pass
        else:
            path = stack.enter_context(folder.create(PLAN, private=True))
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            writer = stack.enter_context(pa.ipc.new_file(str(path), SCHEMA, options=options))
            for batch in packer.pack(entries):
                writer.write_batch(batch)
    plan = packer.finish()
    if earlier and earlier.digest != plan.digest:
        raise InputError(
            f"{redact(folder.address)} holds a run with other inputs ({plural(earlier.num_parts, 'part')}, now "
            f"{plural(plan.num_parts, 'part')}): use the same inputs, or another output folder"
        )
    if not earlier:
        with folder.create(RUN) as path:
            path.write_bytes(plan.to_json())
        if not packer.has_secrets:
            folder.share(PLAN, like=RUN)
    return plan


def read_plan(folder: Folder) -> Plan | None:
    """Return the plan in a folder, or None if there is none.

    Raises:
        InputError: The plan cannot be read.
    """
    if not folder.has(RUN):
        return None
    with folder.open(RUN) as file:
        content = file.read()
    try:
        return Plan.from_json(content)
    except DAMAGE as error:
        text = "is damaged, or of another version of DPT Zoo: use another output folder"
        raise InputError(f"{redact(folder.address)}/{RUN} {text}") from error


def wait_for_plan(folder: Folder, settings: Mapping[str, Any], seconds: float) -> Plan:
    """Return the plan that another process makes, as soon as it is there.

    Args:
        folder: the folder of the results.
        settings: what is known of the run's settings.
        seconds: the longest time to wait.

    Raises:
        InputError: The plan is not there in time, or has other settings.
    """
    end = time.monotonic() + seconds
    while (plan := read_plan(folder)) is None:
        if time.monotonic() > end:
            raise InputError(
                f"{redact(folder.address)}: there is no plan after {seconds:.0f} s: the process of rank 0 makes it, "
                "and all processes need to see the same output folder"
            )
        time.sleep(2)
    check_settings(folder, plan.settings, settings)
    return plan


def check_settings(folder: Folder, earlier: Settings, ours: Settings | Mapping[str, Any]) -> None:
    """Check that the settings `earlier`, of the run in a folder, are `ours`, or those of ours that are known.

    Raises:
        InputError: A setting differs.
    """
    there = json.loads(json.dumps(asdict(earlier)))  # tuples become lists
    here = json.loads(json.dumps(asdict(ours) if isinstance(ours, Settings) else ours))
    if changes := describe_changes(there, here):
        address = redact(folder.address)
        raise InputError(f"{address} holds a run with {changes}: use the same settings, or another output")


class PlanReader:
    """Reads the inputs of parts. Memory holds the index of the parts, and the part that is read."""

    def __init__(self, folder: Folder) -> None:
        if is_local(folder.address):
            self._reader = pa.ipc.open_file(pa.memory_map(str(Path(folder.address, PLAN))))
        else:
            self._reader = pa.ipc.open_file(folder.open(PLAN))

    def read(self, index: int) -> list[str | Shard]:
        """Return the images of a part, or its shard."""
        rows = zip(*(column.to_pylist() for column in self._reader.get_batch(index)), strict=True)
        return [address if start is None else Shard(address, start, stop) for address, start, stop in rows]


def image_key(address: str) -> bytes:
    """Return the first bytes of the SHA-256 of an image's address. In hexadecimal, it is the image's `key`.

    Raises:
        InputError: The address is no text in UTF-8.
    """
    try:
        return hashlib.sha256(address.encode()).digest()[:KEY_BYTES]
    except UnicodeEncodeError as error:
        raise InputError(f"{address!r}: Parquet files hold only text in UTF-8: rename the file") from error


class SeenKeys:
    """A set of keys of 16 bytes, which needs little more memory than the keys themselves."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []  # each (2, N) and sorted; each is longer than the next one

    def add(self, keys: list[bytes]) -> NDArray[np.bool_]:
        """Add keys, and return for each whether it is new: not in the set, and not before it in `keys`."""
        pairs = np.frombuffer(b"".join(keys), np.uint64).reshape(-1, 2).T
        order = np.lexsort(pairs[::-1])  # stable
        ordered = pairs[:, order]
        is_new = np.ones(len(keys), bool)
        is_new[order[1:][(ordered[:, 1:] == ordered[:, :-1]).all(axis=0)]] = False
        for run in self._runs:
            places = np.minimum(np.searchsorted(run[0], ordered[0]), run.shape[1] - 1)
            is_new[order[(run[:, places] == ordered).all(axis=0)]] = False
        added = ordered[:, is_new[order]]
        while self._runs and self._runs[-1].shape[1] <= added.shape[1]:
            both = np.concatenate([self._runs.pop(), added], axis=1)
            added = both[:, np.argsort(both[0], kind="stable")]
        if added.shape[1]:
            self._runs.append(added)
        return is_new


class _Packer:
    """Packs the images of a data set into parts, each image once.

    Attributes:
        has_secrets: whether an address contains a password or a token.
    """

    def __init__(self, settings: Settings, progress: ProgressCallback) -> None:
        self.has_secrets = False
        self._settings = settings
        self._progress = progress
        self._digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
        self._num_parts = self._num_images = self._num_shards = 0

    def pack(self, entries: Iterable[Entry]) -> Iterator[pa.RecordBatch]:
        """Yield the parts. Raise `InputError` if there are none."""
        seen = SeenKeys()
        waiting: list[str] = []
        size = self._settings.images_per_part
        for entry in entries:
            addresses = [entry.address] if isinstance(entry, Shard) else entry
            self.has_secrets = self.has_secrets or any(map(_has_secret, addresses))
            keys = [image_key(f"{entry}")] if isinstance(entry, Shard) else list(map(image_key, entry))
            is_new = seen.add(keys).tolist()
            self._digest.update(b"".join(compress(keys, is_new)))
            if isinstance(entry, Shard):
                if is_new[0]:
                    self._num_shards += 1
                    yield self._make_part([entry.address], [entry.start], [entry.stop])
                continue
            waiting += compress(entry, is_new)
            while len(waiting) >= size:
                yield self._make_part(waiting[:size])
                del waiting[:size]
            self._progress(self._num_images, None)
        if waiting:
            yield self._make_part(waiting)
        if not self._num_parts:
            raise InputError("inputs: there are no images in them")

    def finish(self) -> Plan:
        """Return the plan, when all parts have been packed."""
        num_images = None if self._num_shards else self._num_images
        return Plan(self._settings, self._digest.hexdigest(), self._num_parts, num_images)

    def _make_part(
        self, addresses: list[str], starts: list[int] | None = None, stops: list[int] | None = None
    ) -> pa.RecordBatch:
        self._num_parts += 1
        if starts is None:
            self._num_images += len(addresses)
        nulls = [None] * len(addresses)
        return pa.record_batch([addresses, starts or nulls, stops or nulls], schema=SCHEMA)


def _has_secret(address: str) -> bool:
    return any(mark in address for mark in "?#@") and redact(address) != address
