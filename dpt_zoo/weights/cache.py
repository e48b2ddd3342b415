"""The cache folder of weights, and the provenance of its files. Imports no torch."""

import contextlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..manifest.records import read_manifest
from ..utils.files import expand_user, open_atomic, remove
from ..utils.json_files import DAMAGE

logger = logging.getLogger(__name__)

FORMAT = 2  # version of the provenance file; other versions are not read


def default_cache_dir() -> Path:
    """Return the folder of cached weights: `$DPT_ZOO_CACHE`, or else `dpt_zoo` in the user's cache folder."""
    chosen = os.environ.get("DPT_ZOO_CACHE")
    if chosen:
        return expand_user(chosen)
    folder = expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dpt_zoo"
    # A user without a home, as in some containers, has no cache: a download fails, and names DPT_ZOO_CACHE.
    return folder if folder.parts[0] != "~" else Path("/nonexistent", *folder.parts[1:])


@dataclass(frozen=True)
class Provenance:
    """Hashes and origin of the weights of one model that this machine accepted first. Later files must match them."""

    location: str
    recorded: str  # the day (UTC)
    sha256: str | None  # of the authors' file; None if another form of the weights was fetched
    num_bytes: int | None  # of the same file
    tensors_sha256: str
    stamp: tuple[int, ...]  # `CacheEntry.stamp` at the last check

    def __post_init__(self) -> None:
        texts = (self.location, self.recorded, self.tensors_sha256, self.sha256 or "")
        if not all(isinstance(each, str) for each in texts):
            raise TypeError("a location, a date or a hash is not text")
        if not all(isinstance(each, int) for each in (self.num_bytes or 0, *self.stamp)):
            raise TypeError("a size or a time is not a number")


class CacheEntry:
    """The files of one model in a cache folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.weights = folder / f"{name}.safetensors"  # checked and converted
        self.original = folder / f"{name}.pth"  # the authors' file, if it was kept
        self.provenance_file = folder / f"{name}.json"  # stays when the weights are removed
        self.part = folder / ".incoming" / name  # an unfinished download
        self.staging = folder / ".incoming" / f"{name}.staging"  # a folder; a killed process may leave anything in it
        self.lock = folder / ".locks" / f"{name}.lock"  # held by the process that fetches
        self.quarantine = folder / "quarantine" / name  # the last refused file

    def stamp(self) -> tuple[int, ...]:
        """Return the size and the times of the weights file. While they do not change, the last check is valid."""
        stat = self.weights.stat()
        return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns

    def read_provenance(self) -> Provenance | None:
        """Return the provenance, or None if this version cannot read it."""
        try:
            content = self._read_record()
            if content.pop("format") != FORMAT:
                return None
            return Provenance(**{**content, "stamp": tuple(content["stamp"])})
        except DAMAGE:
            return None

    def has_record(self) -> bool:
        """Return whether there is a provenance file, of this or another version."""
        return {"recorded", "tensors_sha256", "stamp"} <= self._read_record().keys()

    def is_ours(self) -> bool:
        """Return whether the cache wrote files of this name: it left a record or a lock."""
        return self.has_record() or self.lock.is_file()

    def _read_record(self) -> dict[str, Any]:
        """Return the content of the provenance file, which may be of another version or another program."""
        try:
            content = json.loads(self.provenance_file.read_bytes()) if self.provenance_file.is_file() else {}
        except (OSError, *DAMAGE):
            content = {}
        return content if isinstance(content, dict) else {}

    def write_provenance(self, provenance: Provenance) -> None:
        """Write the provenance file. Log a warning if it replaces a file that this version cannot read."""
        if self.provenance_file.exists() and not self.read_provenance():
            reason = "damaged, or written by another version of DPT Zoo"
            logger.warning("%s: %s: the weights were checked again without it", self.provenance_file, reason)
        with open_atomic(self.provenance_file) as file:
            file.write(json.dumps({"format": FORMAT, **asdict(provenance)}, indent=2).encode())

    def is_unchanged(self) -> bool:
        """Return whether the weights are in the cache and did not change since the last check."""
        provenance = self.read_provenance()
        return provenance is not None and self.weights.is_file() and self.stamp() == provenance.stamp

    def put_aside(self, path: Path) -> Path:
        """Move a refused file, link or folder to the quarantine, replacing the previous one; return its new path."""
        self.quarantine.parent.mkdir(parents=True, exist_ok=True)
        remove(self.quarantine)
        return path.rename(self.quarantine)


def list_entries(folder: Path) -> list[CacheEntry]:
    """Return the entries of all models with files in a cache folder, sorted by name.

    Files of others are left out: an entry has a record or a lock, or is weights of a model of the manifest.
    """
    with contextlib.suppress(FileNotFoundError):
        folder.stat()  # from Python 3.14 on, glob() does not raise for a name that is too long
    names = {path.stem for suffix in ("safetensors", "json") for path in folder.glob(f"[!.]*.{suffix}")}
    names |= {path.name for path in folder.glob("quarantine/*")}
    names |= {path.stem for path in folder.glob(".incoming/*.json")}
    entries = [CacheEntry(folder, name) for name in sorted(names)]
    return [entry for entry in entries if entry.is_ours() or entry.name in read_manifest().records]
