"""The options of an evaluation."""

from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from ..errors import InputError
from ..utils.files import expand_user
from ..utils.validation import check_fraction, check_integer, check_not_empty, check_one_data_set
from .metrics import EVALUATORS, MAX_DETECTIONS, TASKS, Evaluator, Task
from .thresholds import Criterion


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """The checked arguments of `dpt_zoo.evaluate`, which documents them and the errors."""

    model: str | Path
    weights: str | Path | None = None
    tasks: tuple[Task, ...] | None = None
    data_root: Path | None = None
    annotations: Path | None = None
    images: Path | None = None
    limit: int | None = None
    skip_missing: bool = False
    batch_size: int | None = None
    workers: int | None = None
    amp: bool = False
    max_detections: int | None = None
    evaluator: Evaluator = "faster-coco-eval"
    work_dir: Path | None = None
    resume: bool = False
    output: Path | None = None
    format_only: bool = False
    show_dir: Path | None = None
    tune_thresholds: Criterion | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        device = f"cuda:{self.device}" if isinstance(self.device, Integral) else str(self.device or "auto")
        object.__setattr__(self, "device", device)
        for name in ("data_root", "annotations", "images", "work_dir", "output", "show_dir", "weights"):
            check_not_empty(name, getattr(self, name))
            if getattr(self, name) is not None and name != "weights":
                object.__setattr__(self, name, expand_user(getattr(self, name)))
        if self.tasks is not None:
            tasks = (self.tasks,) if isinstance(self.tasks, str) else tuple(dict.fromkeys(self.tasks))
            object.__setattr__(self, "tasks", tasks)
        for name, minimum in (("limit", 1), ("batch_size", 1), ("workers", 0), ("max_detections", MAX_DETECTIONS)):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum)
                object.__setattr__(self, name, int(getattr(self, name)))  # not NumPy's, which JSON cannot hold
        for task in self.tasks or ():
            if task not in TASKS:
                raise InputError(f"tasks must be {' or '.join(TASKS)}, not {task!r}")
        if self.evaluator not in EVALUATORS:
            raise InputError(f"evaluator must be {' or '.join(EVALUATORS)}, not {self.evaluator!r}")
        check_one_data_set(self.data_root, self.annotations, self.images)
        if self.weights is None and str(self.model).endswith(".py"):
            raise InputError(f"{self.model} is a config file: weights is required with it")
        if self.resume and self.work_dir is None:
            raise InputError("resume=True requires work_dir")
        if self.format_only and (self.output is None or self.show_dir is not None):
            raise InputError("format_only=True requires output and does not allow show_dir")
        if self.tune_thresholds not in (None, "f1"):
            check_fraction("tune_thresholds", self.tune_thresholds)
        if self.tune_thresholds is not None and self.format_only:
            raise InputError("tune_thresholds measures, which format_only does not: leave one of them out")
