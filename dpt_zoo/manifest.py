"""The manifest, `weights_manifest.json`: which weights there are, as frozen records. Imports no torch."""

import difflib
import fnmatch
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .errors import ManifestError, UnknownModelError
from .files import open_atomic
from .sources import Source, is_relative, parse_source

Architecture = Literal["retinanet", "mask_rcnn"]
Size = Literal["tiny", "small", "medium"]

ARCHITECTURE_TITLES: dict[Architecture, str] = {"retinanet": "RetinaNet", "mask_rcnn": "Mask R-CNN"}
SCHEDULE_TITLES = {"1x": "1x", "ms3x": "MS+3x"}


@dataclass(frozen=True, kw_only=True)
class WeightsRecord:
    """What is known of one model's weights.

    Attributes:
        name: the zoo's name of the model, and of its files.
        sources: where the weights are, in order of preference.
        sha256: hash of the authors' file; None until somebody recorded it.
        num_bytes: size of the authors' file; None until somebody recorded it.
        tensors_sha256: digest of all tensors, whatever file they are in (`weights.digests`); None until recorded.
        structure_sha256: digest of the tensors' names, types and shapes; None for weights outside the manifest.
    """

    name: str
    sources: tuple[Source, ...]
    sha256: str | None = None
    num_bytes: int | None = None
    tensors_sha256: str | None = None
    structure_sha256: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name, re.ASCII):  # it becomes a file's name
            raise ValueError(f"{self.name!r} is no model name")


@dataclass(frozen=True, kw_only=True)
class PublishedWeights(WeightsRecord):
    """Weights of the manifest, with what the authors published on them.

    Attributes:
        size: the backbone's, "tiny", "small" or "medium".
        num_params: parameters of the whole model.
        num_classes: classes it was trained for.
        license: SPDX identifier.
        paper: the paper's address.
    """

    size: Size
    num_params: int
    num_classes: int
    license: str
    paper: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint(PublishedWeights):
    """One of the twelve detectors.

    Attributes:
        architecture: "retinanet" or "mask_rcnn".
        schedule: "1x" (12 epochs) or "ms3x" (36 epochs, multi-scale).
        config: the recipe's path, relative to the project's data (see `data_path`).
        published: the paper's COCO val2017 figures in percent, by "bbox" and "segm", then "mAP", "AP50", ...
    """

    architecture: Architecture
    schedule: str
    config: str
    published: dict[str, dict[str, float]]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_relative(self.config):
            raise ValueError(f"{self.config!r} is no path below the manifest's folder")

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


@dataclass(frozen=True, kw_only=True)
class Classifier(PublishedWeights):
    """One of the three ImageNet classifiers, which training starts from.

    Attributes:
        published: "top1", its accuracy in percent, and "gflops_224", for one 224x224 image.
    """

    published: dict[str, float]

    @property
    def title(self) -> str:
        """What the model is, in words: "DPT-Tiny ImageNet-1k classifier"."""
        return f"DPT-{self.size.capitalize()} ImageNet-1k classifier"


def data_path(relative: str) -> Path:
    """Find a data file (`configs/...`, `weights_manifest.json`) in a checkout or in an installed wheel.

    A wheel carries the data inside the package, in `_data`; a checkout has it beside the package.
    """
    package = Path(__file__).resolve().parent
    packed = package / "_data"
    return (packed if packed.is_dir() else package.parent) / relative


def list_models(pattern: str = "*") -> list[str]:
    """Names of the zoo's detectors that match a shell-style `pattern`, in the paper's order."""
    return [name for name in read_manifest().checkpoints if fnmatch.fnmatchcase(name, pattern)]


def get_checkpoint(name: str) -> Checkpoint:
    """The manifest's record of a detector.

    Raises:
        UnknownModelError: no detector has this name; the text suggests the nearest.
        ManifestError: the manifest cannot be read.
    """
    return _find(name, read_manifest().checkpoints)


def get_weights_record(name: str) -> Checkpoint | Classifier:
    """The manifest's record of a detector or a classifier.

    Raises:
        UnknownModelError: no model has this name; the text suggests the nearest.
        ManifestError: the manifest cannot be read.
    """
    return _find(name, read_manifest().records)


@dataclass(frozen=True)
class Manifest:
    """The records, by name."""

    checkpoints: dict[str, Checkpoint]
    classifiers: dict[str, Classifier]

    @property
    def records(self) -> dict[str, Checkpoint | Classifier]:
        """Those of the detectors, then those of the classifiers."""
        return {**self.checkpoints, **self.classifiers}


@functools.cache
def read_manifest() -> Manifest:
    """Read `weights_manifest.json`, once.

    Raises:
        ManifestError: it is missing, unreadable or not of the expected form.
    """
    path = data_path("weights_manifest.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        checkpoints = [Checkpoint(**_parse(record, path.parent)) for record in content["detectors"]]
        classifiers = [Classifier(**_parse(record, path.parent)) for record in content["classifiers"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ManifestError(f"{path} cannot be used ({error}): reinstall the package, or restore the file") from error
    return Manifest({each.name: each for each in checkpoints}, {each.name: each for each in classifiers})


def record_measured(measured: Mapping[str, Mapping[str, Any]]) -> None:
    """Write fields of records, by the records' names, into `weights_manifest.json`.

    Raises:
        OutputError: it cannot be written.
    """
    path = data_path("weights_manifest.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    for record in (*content["detectors"], *content["classifiers"]):
        record.update(measured.get(record["name"], {}))
    with open_atomic(path) as file:
        file.write(f"{json.dumps(content, indent=2)}\n".encode())
    read_manifest.cache_clear()


def _parse(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {**record, "sources": tuple(parse_source(source, folder) for source in record["sources"])}


def _find(name: str, records: dict[str, Any]) -> Any:
    if name in records:
        return records[name]
    near = difflib.get_close_matches(name.lower(), records, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(records)}"
    raise UnknownModelError(f"there is no model {name!r}: {hint}")
