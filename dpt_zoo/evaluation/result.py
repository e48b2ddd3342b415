"""The result of an evaluation. Does not import PyTorch."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..analysis.metrics import Metrics, Task
from ..utils.files import open_atomic
from ..utils.json_files import DAMAGE

RESULT = "evaluation.json"
"""The file of a finished evaluation in its `work_dir`: an `Evaluation` and, as "errors", the error analysis."""
RUNTIMES = {"": "PyTorch", ".onnx": "ONNX Runtime", ".xml": "OpenVINO"}
"""What computes, by the suffix of an exported file; "" is a model that is not exported."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The metrics of a detector, with the data, software and hardware of the evaluation.

    Attributes:
        metrics: COCO's twelve in percent, for boxes ("bbox") and masks ("segm").
        per_class: the same for each class, by name.
        num_images: the number of evaluated images.
        limit: the largest number of images to evaluate; None for all.
        amp: whether the detector computed in half precision.
        max_detections: the number of predictions of an image that count; with more than 100, AP is not COCO's.
        skipped: the images that could not be read, and why.
        weights: the "path" and "sha256" of the weights file.
        annotations: the "path" and "sha256" of the annotation file.
        seconds: the time for "detecting" (the mean over the processes) and for "measuring".
        processes: the number of processes.
        device: the name of the GPU or the CPU.
        runtime: the name and the version of what computed: PyTorch, ONNX Runtime or OpenVINO.
        versions: the versions of the software, by name.
        thresholds: the tuned threshold of each class, by name: its "score", and the "precision", "recall" and "f1" of
            the predictions of at least this score, in [0, 1]; None if they were not tuned.
    """

    metrics: dict[Task, Metrics]
    per_class: dict[Task, dict[str, Metrics]]
    num_images: int
    limit: int | None
    amp: bool
    max_detections: int
    skipped: tuple[str, ...]
    weights: dict[str, str]
    annotations: dict[str, str]
    seconds: dict[str, float]
    processes: int
    device: str
    runtime: str
    versions: dict[str, str]
    thresholds: dict[str, dict[str, float | None]] | None = None

    @property
    def seconds_per_image(self) -> float:
        """The mean time of detection."""
        return self.seconds["detecting"] / max(self.num_images, 1)

    def write(self, folder: Path, errors: dict[str, Any]) -> None:
        """Write `evaluation.json`, with the error analysis `errors`."""
        with open_atomic(folder / RESULT) as file:
            file.write(f"{json.dumps({**dataclasses.asdict(self), 'errors': errors}, indent=2)}\n".encode())

    @classmethod
    def read(cls, folder: Path) -> "Evaluation | None":
        """Read what `write` wrote; return None if the file does not exist or has another form."""
        try:
            content = json.loads((folder / RESULT).read_bytes())
            values = {field.name: content[field.name] for field in dataclasses.fields(cls)}
            return cls(**values | {"skipped": tuple(values["skipped"])})
        except (OSError, *DAMAGE):
            return None
