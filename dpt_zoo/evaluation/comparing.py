"""Evaluations of the same images, side by side."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..utils.files import hash_file
from .error_analysis import ErrorAnalysis
from .metrics import NAMES, Task
from .predictions import read_image_ids, read_predictions
from .result import Evaluation

Row = tuple[float | None, ...]
"""A metric in each evaluation."""


@dataclass(frozen=True)
class EvaluationComparison:
    """Evaluations of the same images, side by side.

    Attributes:
        evaluations: the evaluations.
        num_errors: by the file name of each image, the number of errors in each evaluation: missed objects, wrong
            classes and predictions without an object, see `Comparison.errors`.
    """

    evaluations: tuple[Evaluation, ...]
    num_errors: dict[str, tuple[int, ...]]

    @property
    def tasks(self) -> list[Task]:
        """The tasks of all evaluations."""
        return [task for task in self.evaluations[0].metrics if all(task in each.metrics for each in self.evaluations)]

    def metrics(self, task: Task) -> dict[str, Row]:
        """Return COCO's twelve metrics of a task, by name."""
        return {name: tuple(each.metrics[task][name] for each in self.evaluations) for name in NAMES}

    def class_differences(self, task: Task) -> dict[str, Row]:
        """Return the AP of each class that was measured, by name, those with the largest differences first."""
        rows = {
            name: tuple(each.per_class[task][name]["mAP"] for each in self.evaluations)
            for name in self.evaluations[0].per_class[task]
        }
        measured = {name: [value for value in row if value is not None] for name, row in rows.items()}
        spread = {name: max(values) - min(values) for name, values in measured.items() if values}
        return {name: rows[name] for name in sorted(spread, key=lambda name: spread[name], reverse=True)}

    def only_right_in(self, right: int, wrong: int) -> list[str]:
        """Return the images without an error in the evaluation with index `right`, the worst in `wrong` first."""
        names = [name for name, counts in self.num_errors.items() if counts[right] == 0 < counts[wrong]]
        return sorted(names, key=lambda name: self.num_errors[name][wrong], reverse=True)


def compare(folders: Sequence[Path]) -> EvaluationComparison:
    """Compare evaluations of the same images.

    Args:
        folders: the `work_dir` of each evaluation, two or more.

    Raises:
        InputError: A folder has no finished evaluation, or it is of other images. The annotation file of the first
            evaluation no longer exists, or has changed.
    """
    if len(folders) < 2:
        raise InputError("comparing needs two or more evaluations")
    evaluations = tuple(map(_read, folders))
    annotations = Path(evaluations[0].annotations["path"])
    if not annotations.is_file() or hash_file(annotations).hexdigest() != evaluations[0].annotations["sha256"]:
        raise InputError(f"{folders[0]}: its annotation file {annotations} is missing or has changed: evaluate again")
    ground_truth: dict[str, Any] = json.loads(annotations.read_bytes())
    image_ids = [read_image_ids(folder / "predictions") for folder in folders]
    for folder, evaluation, ids in zip(folders, evaluations, image_ids, strict=True):
        if evaluation.annotations["sha256"] != evaluations[0].annotations["sha256"] or ids != image_ids[0]:
            raise InputError(f"{folder} and {folders[0]} are evaluations of other images: evaluate both on the same")
    ordered = [image["id"] for image in ground_truth["images"] if image["id"] in image_ids[0]]
    analyses = [ErrorAnalysis(ground_truth, num_worst=0) for _ in folders]
    num_errors = {}
    for lines in zip(*(read_predictions(folder / "predictions", ordered) for folder in folders), strict=True):
        pairs = zip(analyses, lines, strict=True)
        comparisons = [analysis.add(line.image_id, line.predictions) for analysis, line in pairs]
        counts = tuple(len(comparison.errors) for comparison in comparisons)
        num_errors[comparisons[0].image["file_name"]] = counts
    return EvaluationComparison(evaluations, num_errors)


def _read(folder: Path) -> Evaluation:
    evaluation = Evaluation.read(folder)
    if evaluation is None:
        raise InputError(f"{folder} has no finished evaluation: `dpt-zoo evaluate ... --work-dir {folder}` makes one")
    return evaluation
