"""What an evaluation leaves. Imports no torch."""

from dataclasses import dataclass

from .metrics import Metrics, Task

RESULT = "evaluation.json"
"""In a work_dir, when an evaluation is done: its `Evaluation` and `Mistakes`."""


@dataclass(frozen=True)
class Evaluation:
    """How good a detector is, and on what and with what that was measured.

    Attributes:
        metrics: COCO's twelve, in percent, of boxes ("bbox") and of masks ("segm").
        per_class: the same of each class, by its name.
        num_images: how many images they are of.
        limit: of how many at most that was to be; None without a limit.
        amp: whether that was in half precision.
        skipped: the images that could not be read, and why.
        weights, annotations: the "path" and "sha256" of these files.
        seconds: how long "detecting" took, on average over the processes, and "measuring".
        processes: how many there were.
        device: the GPU or the processor.
        versions: of the software.
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
