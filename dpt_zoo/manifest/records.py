"""The manifest, `weights_manifest.json`: all models and their weights, as frozen records. Imports no torch."""

import difflib
import fnmatch
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..errors import ManifestError, UnknownModelError
from ..utils.json_files import DAMAGE
from .locations import Location, check_relative, location_from_record

Architecture = Literal["retinanet", "mask_rcnn"]
Size = Literal["nano", "tiny", "small", "medium"]

ARCHITECTURE_TITLES: dict[Architecture, str] = {"retinanet": "RetinaNet", "mask_rcnn": "Mask R-CNN"}
SCHEDULE_TITLES = {"1x": "1x", "ms3x": "MS+3x"}
TASK_TITLES = {"bbox": "box", "segm": "mask"}  # the word before "AP"

Metrics = dict[str, dict[str, float]]  # COCO metrics in percent, by task and name ("mAP", "AP50", ...)


@dataclass(frozen=True, kw_only=True)
class WeightsRecord:
    """The weights of one model.

    Attributes:
        name: name of the model, and stem of its files.
        locations: where the weights are, the preferred location first.
        sha256: SHA-256 of the published file, or None if it is not recorded.
        num_bytes: size of that file in bytes, or None if it is not recorded.
        tensors_sha256: digest of all tensors, in any file format (see `weights.digests`), or None.
        structure_sha256: digest of the tensors' names, types and shapes; None for weights outside the manifest.
    """

    name: str
    locations: tuple[Location, ...]
    sha256: str | None = None
    num_bytes: int | None = None
    tensors_sha256: str | None = None
    structure_sha256: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name, re.ASCII):  # it becomes a file name
            raise ValueError(f"{self.name!r} is not a model name")


@dataclass(frozen=True, kw_only=True)
class ModelRecord(WeightsRecord):
    """A model of the manifest.

    Attributes:
        dataset: name of the training data set.
        measured_by: source of the `metrics`: "authors" or "dpt-zoo".
        size: size of the backbone.
        num_params: number of parameters of the whole model.
        num_classes: number of classes that the model was trained for.
        license: SPDX identifier.
        paper: URL of the paper.
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
    """A detector of the manifest.

    Attributes:
        architecture: "retinanet" or "mask_rcnn".
        config: path of the config file, relative to the project's data (see `data_path`).
        metrics: COCO metrics in percent.
    """

    architecture: Architecture
    config: str
    metrics: Metrics

    def __post_init__(self) -> None:
        super().__post_init__()
        check_relative(self.config)

    @property
    def network(self) -> str:
        """The network as text: "Mask R-CNN DPT-Tiny"."""
        return f"{ARCHITECTURE_TITLES[self.architecture]} DPT-{self.size.capitalize()}"

    @property
    def config_path(self) -> Path:
        """Path of the config file on this machine."""
        return data_path(self.config)

    @property
    def average_precisions(self) -> str:
        """The AP of each task as text: "40.2 box AP, 37.7 mask AP"."""
        return ", ".join(f"{values['mAP']} {TASK_TITLES[task]} AP" for task, values in self.metrics.items())


@dataclass(frozen=True, kw_only=True)
class PublishedDetector(DetectorRecord):
    """One of the authors' twelve detectors; its metrics are the paper's, on COCO val2017.

    Attributes:
        schedule: "1x" (12 epochs) or "ms3x" (36 epochs, multi-scale).
    """

    dataset: ClassVar[str] = "COCO"
    measured_by: ClassVar[str] = "authors"
    schedule: str

    @property
    def title(self) -> str:
        """The model as text: "Mask R-CNN DPT-Tiny 1x"."""
        return f"{self.network} {SCHEDULE_TITLES[self.schedule]}"

    @property
    def summary(self) -> str:
        """The title and the published AP in one line."""
        return f"{self.title}: {self.average_precisions} (COCO val2017)."


@dataclass(frozen=True, kw_only=True)
class DemoDetector(DetectorRecord):
    """A small detector that was trained by this project and is shipped with it: it needs no download.

    Attributes:
        data: evaluation data, as text.
        command: the training command.
        seed: seed of the training run.
        versions: software versions of the training run, by name: "python", "torch", ...
        machine: description of the machine.
        minutes: duration of the training run.
        log: path of the training log (JSON lines), relative to the project's data.
    """

    dataset: ClassVar[str] = "digit scenes"
    measured_by: ClassVar[str] = "dpt-zoo"
    data: str
    command: str
    seed: int
    versions: dict[str, str]
    machine: str
    minutes: float
    log: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_relative(self.log)

    @property
    def title(self) -> str:
        """The model as text: "Mask R-CNN DPT-Nano for digit scenes"."""
        return f"{self.network} for {self.dataset}"

    @property
    def summary(self) -> str:
        """The title and the measured AP in one line."""
        return f"{self.title}, trained by this project: {self.average_precisions} ({self.data})."

    @property
    def log_path(self) -> Path:
        """Path of the training log on this machine."""
        return data_path(self.log)


@dataclass(frozen=True, kw_only=True)
class Classifier(ModelRecord):
    """One of the authors' three ImageNet classifiers. The training of detectors starts from them.

    Attributes:
        gflops: multiply-adds per image of 224x224 pixels, in 1e9.
        metrics: "top1" accuracy in percent.
    """

    dataset: ClassVar[str] = "ImageNet-1k"
    measured_by: ClassVar[str] = "authors"
    gflops: float
    metrics: dict[str, float]

    @property
    def title(self) -> str:
        """The model as text: "DPT-Tiny ImageNet-1k classifier"."""
        return f"DPT-{self.size.capitalize()} {self.dataset} classifier"

    @property
    def summary(self) -> str:
        """The title and the published accuracy in one line."""
        return f"{self.title}: {self.metrics['top1']} % top-1 accuracy."


PublishedWeights = PublishedDetector | Classifier  # the authors' models


def data_path(relative: str) -> Path:
    """Return the path of a data file (`configs/...`, `weights_manifest.json`) in a checkout or an installed wheel."""
    package = Path(__file__).resolve().parent.parent
    packed = package / "_data"  # in a wheel; a checkout has the data beside the package
    return (packed if packed.is_dir() else package.parent) / relative


def list_models(pattern: str = "*", *, include_demos: bool = False) -> list[str]:
    """List the names of the authors' detectors, in the paper's order.

    Args:
        pattern: a shell-style pattern that the names must match, such as "mrcnn*".
        include_demos: also list the small detectors that this project trained and ships, after the others.
    """
    manifest = read_manifest()
    records = manifest.detectors if include_demos else manifest.published_detectors
    return [name for name in records if fnmatch.fnmatchcase(name, pattern)]


def get_model_info(name: str) -> PublishedDetector | DemoDetector | Classifier:
    """Return the manifest's record of a model: a detector or an ImageNet classifier.

    Args:
        name: a name in `list_models(include_demos=True)`, or "dpt_tiny", "dpt_small" or "dpt_medium".

    Raises:
        UnknownModelError: No model has this name. The text suggests the most similar name.
        ManifestError: The manifest cannot be read.
    """
    return _find(name, read_manifest().records)


def get_detector_info(name: str) -> PublishedDetector | DemoDetector:
    """Return the manifest's record of a detector. The errors are those of `get_model_info`."""
    return _find(name, read_manifest().detectors)


@dataclass(frozen=True)
class Manifest:
    """The records, by name."""

    published_detectors: dict[str, PublishedDetector]
    classifiers: dict[str, Classifier]
    demos: dict[str, DemoDetector]

    @property
    def detectors(self) -> dict[str, PublishedDetector | DemoDetector]:
        """The authors' detectors, then the shipped demos."""
        return {**self.published_detectors, **self.demos}

    @property
    def records(self) -> dict[str, PublishedDetector | Classifier | DemoDetector]:
        """All models: the authors' detectors, their classifiers, then the shipped demos."""
        return {**self.published_detectors, **self.classifiers, **self.demos}


@functools.cache
def read_manifest() -> Manifest:
    """Read `weights_manifest.json`, once.

    Raises:
        ManifestError: The file is missing, cannot be read or does not have the expected form.
    """
    path = data_path("weights_manifest.json")
    sections = (("detectors", PublishedDetector), ("classifiers", Classifier), ("demos", DemoDetector))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Manifest(*(_by_name(record_type, content[key], path.parent) for key, record_type in sections))
    except (OSError, *DAMAGE) as error:
        raise ManifestError(f"{path} cannot be used ({error}): reinstall the package, or restore the file") from error


def _by_name(record_type: Any, entries: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    for entry in entries:
        entry["locations"] = tuple(location_from_record(each, folder) for each in entry["locations"])
    return {entry["name"]: record_type(**entry) for entry in entries}


def _find(name: str, records: dict[str, Any]) -> Any:
    if name in records:
        return records[name]
    similar = difflib.get_close_matches(name.lower(), records, n=1, cutoff=0.5)
    hint = f"did you mean {similar[0]}?" if similar else f"choose one of {', '.join(records)}"
    raise UnknownModelError(f"there is no model {name!r}: {hint}")
