"""The result of an evaluation. Imports no torch."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.files import open_atomic
from .metrics import Metrics, Task

RESULT = "evaluation.json"
"""The file of a finished evaluation in its work_dir: an `Evaluation` and, under "errors", the error analysis."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The metrics of a detector, and what they were measured on and with.

    Attributes:
        metrics: COCO's twelve in percent, for boxes ("bbox") and masks ("segm").
        per_class: the same for each class, by name.
        num_images: the number of images that were evaluated.
        limit: the largest number of images to evaluate; None for all.
        amp: whether the detector computed in half precision.
        skipped: the images that could not be read, and why.
        weights, annotations: the "path" and "sha256" of these files.
        seconds: the time for "detecting", as the mean over the processes, and for "measuring".
        processes: the number of processes.
        device: the name of the GPU or the CPU.
        versions: the versions of the software, by name.
    """

    metrics: dict[Task, Metrics]
    per_class: dict[Task, dict[str, Metrics]]
    num_images: int
    limit: int | None
    amp: bool
    skipped: tuple[str, ...]
    weights: dict[str, str]
    annotations: dict[str, str]
    seconds: dict[str, float]
    processes: int
    device: str
    versions: dict[str, str]

    @property
    def seconds_per_image(self) -> float:
        """The mean time that detection took."""
        return self.seconds["detecting"] / max(self.num_images, 1)

    def write(self, folder: Path, errors: dict[str, Any]) -> None:
        """Write `evaluation.json`.

        Raises:
            OutputError: It cannot be written.
        """
        with open_atomic(folder / RESULT) as file:
            file.write(f"{json.dumps({**dataclasses.asdict(self), 'errors': errors}, indent=2)}\n".encode())

    @classmethod
    def read(cls, folder: Path) -> "Evaluation | None":
        """Return what `write` wrote; None if there is no such file, or one of another form."""
        names = [field.name for field in dataclasses.fields(cls)]
        try:
            content = json.loads((folder / RESULT).read_bytes())
            return cls(**{**{name: content[name] for name in names}, "skipped": tuple(content["skipped"])})
        except (OSError, ValueError, LookupError, TypeError):
            return None
