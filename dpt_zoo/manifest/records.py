"""The manifest, `weights_manifest.json`: which weights there are, as frozen records. Imports no torch."""

import difflib
import fnmatch
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..errors import ManifestError, UnknownModelError
from ..utils.files import open_atomic
from .locations import Location, is_relative, location_from_record

Architecture = Literal["retinanet", "mask_rcnn"]
Size = Literal["nano", "tiny", "small", "medium"]

ARCHITECTURE_TITLES: dict[Architecture, str] = {"retinanet": "RetinaNet", "mask_rcnn": "Mask R-CNN"}
SCHEDULE_TITLES = {"1x": "1x", "ms3x": "MS+3x"}
TASK_TITLES = {"bbox": "box", "segm": "mask"}
"""The word before "AP" for each task."""

Metrics = dict[str, dict[str, float]]
"""COCO's figures in percent, by "bbox" and "segm", then "mAP", "AP50", ..."""


@dataclass(frozen=True, kw_only=True)
class WeightsRecord:
    """What is known of one model's weights.

    Attributes:
        name: the zoo's name of the model, and of its files.
        sources: where the weights are, in order of preference.
        sha256: hash of the file as it was published; None until somebody recorded it.
        num_bytes: size of that file; None until somebody recorded it.
        tensors_sha256: digest of all tensors, whatever file they are in (`weights.digests`); None until recorded.
        structure_sha256: digest of the tensors' names, types and shapes; None for weights outside the manifest.
    """

    name: str
    locations: tuple[Location, ...]
    sha256: str | None = None
    num_bytes: int | None = None
    tensors_sha256: str | None = None
    structure_sha256: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name, re.ASCII):  # it becomes a file's name
            raise ValueError(f"{self.name!r} is no model name")


@dataclass(frozen=True, kw_only=True)
class ModelRecord(WeightsRecord):
    """Weights of the manifest, and the model that they are of.

    Attributes:
        dataset: what it was trained on, in words.
        size: the backbone's, "nano", "tiny", "small" or "medium".
        num_params: parameters of the whole model.
        num_classes: classes it was trained for.
        measured_by: who measured its `metrics`: "authors" or "dpt-zoo".
        license: SPDX identifier.
        paper: the paper's address.
    """

    dataset: ClassVar[str]
    measured_by: ClassVar[str]
    size: Size
    num_params: int
    num_classes: int
    license: str
    paper: str


@dataclass(frozen=True, kw_only=True)
class DetectorRecord(ModelRecord):
    """A detector, whoever trained it.

    Attributes:
        architecture: "retinanet" or "mask_rcnn".
        config: the recipe's path, relative to the project's data (see `data_path`).
    """

    architecture: Architecture
    config: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_relative(self.config)

    @property
    def network(self) -> str:
        """The network in words: "Mask R-CNN DPT-Tiny"."""
        return f"{ARCHITECTURE_TITLES[self.architecture]} DPT-{self.size.capitalize()}"

    @property
    def config_path(self) -> Path:
        """Where the recipe lies on this machine."""
        return data_path(self.config)


@dataclass(frozen=True, kw_only=True)
class PublishedDetector(DetectorRecord):
    """One of the authors' twelve detectors.

    Attributes:
        schedule: "1x" (12 epochs) or "ms3x" (36 epochs, multi-scale).
        metrics: the paper's, on COCO val2017.
    """

    dataset: ClassVar[str] = "COCO"
    measured_by: ClassVar[str] = "authors"
    schedule: str
    metrics: Metrics

    @property
    def title(self) -> str:
        """What the model is, in words: "Mask R-CNN DPT-Tiny 1x"."""
        return f"{self.network} {SCHEDULE_TITLES[self.schedule]}"

    @property
    def summary(self) -> str:
        """The title with its published figures, in one line."""
        return f"{self.title}: {_average_precisions(self.metrics)} (COCO val2017)."


@dataclass(frozen=True, kw_only=True)
class DemoDetector(DetectorRecord):
    """A small detector that this project trained and ships, so that there is one which needs no download.

    Attributes:
        metrics: measured by this project on `data`.
        data: what it was measured on, in words.
        command: what trained it, as it was typed.
        seed: of that run.
        versions: of what it ran on, by name: "python", "torch", ...
        machine: where it ran, in words.
        minutes: how long it ran.
        log: the run's log as JSON lines, a path as `config` is.
    """

    dataset: ClassVar[str] = "digit scenes"
    measured_by: ClassVar[str] = "dpt-zoo"
    metrics: Metrics
    data: str
    command: str
    seed: int
    versions: dict[str, str]
    machine: str
    minutes: float
    log: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_relative(self.log)

    @property
    def title(self) -> str:
        """What the model is, in words: "Mask R-CNN DPT-Nano for digit scenes"."""
        return f"{self.network} for {self.dataset}"

    @property
    def summary(self) -> str:
        """The title with its measured figures, in one line."""
        return f"{self.title}, trained by this project: {_average_precisions(self.metrics)} ({self.data})."

    @property
    def log_path(self) -> Path:
        """Where the training log lies on this machine."""
        return data_path(self.log)


@dataclass(frozen=True, kw_only=True)
class Classifier(ModelRecord):
    """One of the three ImageNet classifiers, which training starts from.

    Attributes:
        gflops: multiply-adds for one 224x224 image, in 1e9.
        metrics: "top1", the accuracy in percent.
    """

    dataset: ClassVar[str] = "ImageNet-1k"
    measured_by: ClassVar[str] = "authors"
    gflops: float
    metrics: dict[str, float]

    @property
    def title(self) -> str:
        """What the model is, in words: "DPT-Tiny ImageNet-1k classifier"."""
        return f"DPT-{self.size.capitalize()} {self.dataset} classifier"


PublishedWeights = PublishedDetector | Classifier
"""The records of what the authors published."""


def data_path(relative: str) -> Path:
    """Find a data file (`configs/...`, `weights_manifest.json`) in a checkout or in an installed wheel.

    A wheel carries the data inside the package, in `_data`; a checkout has it beside the package.
    """
    package = Path(__file__).resolve().parent.parent
    packed = package / "_data"
    return (packed if packed.is_dir() else package.parent) / relative


def list_models(pattern: str = "*", *, include_demos: bool = False) -> list[str]:
    """List the names of the authors' detectors that match a shell-style `pattern`, in the paper's order.

    Args:
        pattern: a shell-style pattern such as "mrcnn*".
        include_demos: also list the small detectors that this project trained and ships, after the others.
    """
    manifest = read_manifest()
    records = manifest.detectors if include_demos else manifest.checkpoints
    return [name for name in records if fnmatch.fnmatchcase(name, pattern)]


def get_detector_info(name: str) -> PublishedDetector | DemoDetector:
    """The manifest's record of a detector: one of `list_models(include_demos=True)`.

    Raises:
        UnknownModelError: no detector has this name; the text suggests the nearest.
        ManifestError: the manifest cannot be read.
    """
    return _find(name, read_manifest().detectors)


def get_model_info(name: str) -> PublishedDetector | DemoDetector | Classifier:
    """The manifest's record of a detector or a classifier.

    Raises:
        UnknownModelError: no model has this name; the text suggests the nearest.
        ManifestError: the manifest cannot be read.
    """
    return _find(name, read_manifest().records)


@dataclass(frozen=True)
class Manifest:
    """The records, by name."""

    checkpoints: dict[str, PublishedDetector]
    classifiers: dict[str, Classifier]
    demos: dict[str, DemoDetector]

    @property
    def detectors(self) -> dict[str, PublishedDetector | DemoDetector]:
        """Those of the authors' detectors, then those of the shipped ones."""
        return {**self.checkpoints, **self.demos}

    @property
    def published(self) -> dict[str, PublishedDetector | Classifier]:
        """Those of the authors' detectors, then those of their classifiers."""
        return {**self.checkpoints, **self.classifiers}

    @property
    def records(self) -> dict[str, PublishedDetector | Classifier | DemoDetector]:
        """All of them."""
        return {**self.published, **self.demos}


@functools.cache
def read_manifest() -> Manifest:
    """Read `weights_manifest.json`, once.

    Raises:
        ManifestError: it is missing, unreadable or not of the expected form.
    """
    path = data_path("weights_manifest.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        checkpoints = [PublishedDetector(**_parse(record, path.parent)) for record in content["detectors"]]
        classifiers = [Classifier(**_parse(record, path.parent)) for record in content["classifiers"]]
        demos = [DemoDetector(**_parse(record, path.parent)) for record in content["demos"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ManifestError(f"{path} cannot be used ({error}): reinstall the package, or restore the file") from error
    return Manifest(
        checkpoints={each.name: each for each in checkpoints},
        classifiers={each.name: each for each in classifiers},
        demos={each.name: each for each in demos},
    )


def record_measured(measured: Mapping[str, Mapping[str, Any]]) -> None:
    """Write fields of records, by the records' names, into `weights_manifest.json`.

    Raises:
        OutputError: it cannot be written.
    """
    path = data_path("weights_manifest.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    for record in (*content["detectors"], *content["classifiers"], *content["demos"]):
        record.update(measured.get(record["name"], {}))
    with open_atomic(path) as file:
        file.write(f"{json.dumps(content, indent=2)}\n".encode())
    read_manifest.cache_clear()


def _parse(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {**record, "locations": tuple(location_from_record(each, folder) for each in record["locations"])}


def _find(name: str, records: dict[str, Any]) -> Any:
    if name in records:
        return records[name]
    near = difflib.get_close_matches(name.lower(), records, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(records)}"
    raise UnknownModelError(f"there is no model {name!r}: {hint}")


def _check_relative(path: str) -> None:
    if not is_relative(path):
        raise ValueError(f"{path!r} is no path below the manifest's folder")


def _average_precisions(figures: Metrics) -> str:
    nouns = {"bbox": "box", "segm": "mask"}
    return ", ".join(f"{figures[task]['mAP']} {noun} AP" for task, noun in nouns.items() if task in figures)
