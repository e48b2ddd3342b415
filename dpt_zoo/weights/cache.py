"""Where this machine keeps the zoo's weights, and what it remembers of them. Imports no torch."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from ..utils.files import open_atomic


def cache_dir() -> Path:
    """The folder of cached weights: `$DPT_ZOO_CACHE`, else `dpt_zoo` in the user's cache folder."""
    chosen = os.environ.get("DPT_ZOO_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dpt_zoo"


@dataclass(frozen=True)
class Provenance:
    """What was measured when a model's weights were first accepted here; every later file is held against it.

    Attributes:
        source: where they came from.
        recorded: the day, in UTC.
        sha256, num_bytes: of the authors' file; None where another form of the weights was fetched.
        tensors_sha256: digest of the weights, whatever file they are in.
        stamp: size and times of the cached file (see `CacheEntry.stamp`) when it was last checked.
    """

    source: str
    recorded: str
    sha256: str | None
    num_bytes: int | None
    tensors_sha256: str
    stamp: tuple[int, ...]


@dataclass(frozen=True)
class CacheEntry:
    """One model's place in a cache folder."""

    folder: Path
    name: str

    @property
    def weights(self) -> Path:
        """The weights, checked and converted."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def original(self) -> Path:
        """The authors' file, where it was kept."""
        return self.folder / f"{self.name}.pth"

    @property
    def provenance_file(self) -> Path:
        """The `Provenance`; they stay when the weights are removed."""
        return self.folder / f"{self.name}.json"

    @property
    def part(self) -> Path:
        """What has come so far of a file that is being fetched."""
        return self.folder / ".incoming" / self.name

    @property
    def staging(self) -> Path:
        """The folder for what else is in the making; of a killed process, anything may be left in it."""
        return self.folder / ".incoming" / f"{self.name}.staging"

    @property
    def lock(self) -> Path:
        """Held by the process that fetches."""
        return self.folder / ".locks" / f"{self.name}.lock"

    @property
    def quarantine(self) -> Path:
        """The last file that was refused."""
        return self.folder / "quarantine" / self.name

    def partials(self) -> list[Path]:
        """What runs that were killed left of files beside the weights."""
        finals = (self.original, self.provenance_file)
        return [path for final in finals for path in self.folder.glob(f".{final.name}.*.partial")]

    def stamp(self) -> tuple[int, ...]:
        """Size and times of the weights' file: as long as they stand, so does what was checked."""
        stat = self.weights.stat()
        return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns

    def read_provenance(self) -> Provenance | None:
        """What is remembered; None if nothing is, or nothing readable."""
        try:
            record = json.loads(self.provenance_file.read_text(encoding="utf-8"))
            return Provenance(**{**record, "stamp": tuple(record["stamp"])})
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def write_provenance(self, facts: Provenance) -> None:
        """Remember."""
        with open_atomic(self.provenance_file) as file:
            file.write(json.dumps(asdict(facts), indent=2).encode())

    def is_unchanged(self) -> bool:
        """Whether the weights are here and are the file that was last checked."""
        facts = self.read_provenance()
        return facts is not None and self.weights.is_file() and self.stamp() == facts.stamp

    def put_aside(self, path: Path) -> Path:
        """Move a refused file, link or folder into quarantine, in place of the one before; return where it is."""
        self.quarantine.parent.mkdir(parents=True, exist_ok=True)
        remove(self.quarantine)
        return path.rename(self.quarantine)


def list_entries(folder: Path) -> list[CacheEntry]:
    """All models that a cache folder has something of, by name."""
    names = {path.stem for suffix in ("safetensors", "json") for path in folder.glob(f"[!.]*.{suffix}")}
    names |= {path.name for path in folder.glob("quarantine/*")}
    names |= {path.stem for path in folder.glob(".incoming/*.json")}
    return [CacheEntry(folder, name) for name in sorted(names)]


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
