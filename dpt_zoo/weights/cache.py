"""The cache folder of weights, and the provenance of its files. Imports no torch."""

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from ..utils.files import open_atomic

logger = logging.getLogger(__name__)

FORMAT = 2  # version of the provenance file; other versions are not read


def default_cache_dir() -> Path:
    """Return the folder of cached weights: `$DPT_ZOO_CACHE`, or else `dpt_zoo` in the user's cache folder."""
    chosen = os.environ.get("DPT_ZOO_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dpt_zoo"


@dataclass(frozen=True)
class Provenance:
    """Hashes and origin of the weights of one model that this machine accepted first. Later files must match them."""

    location: str
    recorded: str  # the day (UTC)
    sha256: str | None  # of the authors' file; None if another form of the weights was fetched
    num_bytes: int | None  # of the same file
    tensors_sha256: str
    stamp: tuple[int, ...]  # `CacheEntry.stamp` at the last check


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
            content = json.loads(self.provenance_file.read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                return None
            return Provenance(**{**content, "stamp": tuple(content["stamp"])})
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

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
    """Return the entries of all models with files in a cache folder, sorted by name."""
    names = {path.stem for suffix in ("safetensors", "json") for path in folder.glob(f"[!.]*.{suffix}")}
    names |= {path.name for path in folder.glob("quarantine/*")}
    names |= {path.stem for path in folder.glob(".incoming/*.json")}
    return [CacheEntry(folder, name) for name in sorted(names)]


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with its content. A missing one is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
