"""The manifest, `weights_manifest.json`: which checkpoints there are, as frozen records. Imports no torch."""

import difflib
import fnmatch
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .errors import ManifestError, UnknownModelError

Architecture = Literal["retinanet", "mask_rcnn"]
Size = Literal["tiny", "small", "medium"]

ARCHITECTURE_TITLES: dict[Architecture, str] = {"retinanet": "RetinaNet", "mask_rcnn": "Mask R-CNN"}
SCHEDULE_TITLES = {"1x": "1x", "ms3x": "MS+3x"}


@dataclass(frozen=True)
class Source:
    """A place that has a checkpoint: for `kind` "gdrive", `id` is the file's id on Google Drive."""

    kind: Literal["gdrive"]
    id: str

    @property
    def url(self) -> str:
        """The page where a person can fetch the file."""
        return f"https://drive.google.com/file/d/{self.id}/view"


@dataclass(frozen=True)
class Checkpoint:
    """One of the twelve detectors.

    Attributes:
        name: the zoo's name, such as "mrcnn_dpt_t_1x".
        architecture: "retinanet" or "mask_rcnn".
        size: the backbone's, "tiny", "small" or "medium".
        schedule: "1x" (12 epochs) or "ms3x" (36 epochs, multi-scale).
        config: the recipe's path, relative to the project's data (see `data_path`).
        num_params: parameters of the whole detector.
        num_classes: object classes it was trained for.
        published: the paper's COCO val2017 figures in percent, by "bbox" and "segm", then "mAP", "AP50", ...
        sources: where the authors' file is, in order of preference.
        sha256: hash of the authors' file; None until somebody recorded it.
        num_bytes: size of the authors' file; None until somebody recorded it.
    """

    name: str
    architecture: Architecture
    size: Size
    schedule: str
    config: str
    num_params: int
    num_classes: int
    published: dict[str, dict[str, float]]
    sources: tuple[Source, ...]
    sha256: str | None
    num_bytes: int | None

    @property
    def title(self) -> str:
        """What the model is, in words: "Mask R-CNN DPT-Tiny 1x"."""
        schedule = SCHEDULE_TITLES[self.schedule]
        return f"{ARCHITECTURE_TITLES[self.architecture]} DPT-{self.size.capitalize()} {schedule}"

    @property
    def summary(self) -> str:
        """The title with its published figures, in one line."""
        figures = [
            f"{self.published[task]['mAP']} {noun} AP"
            for task, noun in (("bbox", "box"), ("segm", "mask"))
            if task in self.published
        ]
        return f"{self.title}: {', '.join(figures)} (COCO val2017)."

    @property
    def config_path(self) -> Path:
        """Where the recipe lies on this machine."""
        return data_path(self.config)


def data_path(relative: str) -> Path:
    """Find a data file (`configs/...`, `weights_manifest.json`) in a checkout or in an installed wheel.

    A wheel carries the data inside the package, in `_data`; a checkout has it beside the package.
    """
    package = Path(__file__).resolve().parent
    packed = package / "_data"
    return (packed if packed.is_dir() else package.parent) / relative


def list_models(pattern: str = "*") -> list[str]:
    """Names of the zoo's detectors that match a shell-style `pattern`, in the paper's order."""
    return [name for name in _read_manifest() if fnmatch.fnmatchcase(name, pattern)]


def get_checkpoint(name: str) -> Checkpoint:
    """The manifest's record of a detector.

    Raises:
        UnknownModelError: no detector has this name; the text suggests the nearest.
        ManifestError: the manifest cannot be read.
    """
    checkpoints = _read_manifest()
    if name in checkpoints:
        return checkpoints[name]
    near = difflib.get_close_matches(name.lower(), checkpoints, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(checkpoints)}"
    raise UnknownModelError(f"there is no model {name!r}: {hint}")


@functools.cache
def _read_manifest() -> dict[str, Checkpoint]:
    path = data_path("weights_manifest.json")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))["detectors"]
        checkpoints = [_parse_checkpoint(record) for record in records]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ManifestError(f"{path} cannot be used ({error}): reinstall the package, or restore the file") from error
    return {checkpoint.name: checkpoint for checkpoint in checkpoints}


def _parse_checkpoint(record: dict[str, Any]) -> Checkpoint:
    return Checkpoint(**{**record, "sources": tuple(Source(**source) for source in record["sources"])})
