"""An evaluation as a Markdown page, from the template `report.md.j2`, with pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from ..analysis.error_analysis import MIN_SCORE, ErrorAnalysis
from ..analysis.error_types import MEANINGS, ErrorType
from ..analysis.matching import MIN_IOU, Matches
from ..analysis.metrics import Task
from ..analysis.plots import plot_confusion, plot_precision_recall, plot_thresholds
from ..analysis.visualize import draw_worst
from ..manifest.records import TASK_TITLES
from ..utils.files import open_atomic
from ..utils.markdown import escape
from ..utils.text import format_percent, plural
from .result import Evaluation


def write_report(
    folder: Path,
    evaluation: Evaluation,
    precision: Mapping[Task, NDArray[np.float64]],
    errors: ErrorAnalysis,
    types: Mapping[str, ErrorType],
    matches: Matches,
    images: Path,
) -> None:
    """Write an evaluation as `report.md` with pictures: `precision_recall.png`, `confusion.png`, `worst.png`, ...

    Args:
        folder: the folder to write to.
        evaluation: the metrics.
        precision: by task, as in `Score`: `(10, 101, num_classes)`.
        errors: the errors, by image and class.
        types: the errors, by type.
        matches: the matched predictions, for the curves of tuned thresholds.
        images: the folder of the images.

    Raises:
        OutputError: A file cannot be written.
    """
    plot_precision_recall(folder / "precision_recall.png", precision)
    plot_confusion(folder / "confusion.png", list(errors.classes.values()), errors.confusion)
    draw_worst(folder / "worst.png", images, errors)
    if evaluation.thresholds:
        plot_thresholds(folder / "thresholds.png", matches, evaluation.thresholds)
    with open_atomic(folder / "report.md") as file:  # last, because it shows the others
        file.write(_page(evaluation, errors, types).encode())


def render(template: Path, **context: Any) -> str:
    """Return the Markdown of a Jinja2 `template` with the variables in `context`."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {
        "percent": format_percent,
        "fraction": _fraction,
        "seconds": _seconds,
        "plural": plural,
        "escape": escape,
    }
    return environment.from_string(template.read_text(encoding="utf-8")).render(context)


def _page(evaluation: Evaluation, errors: ErrorAnalysis, types: Mapping[str, ErrorType]) -> str:
    num_objects, num_correct = int(errors.confusion[:-1].sum()), int(errors.confusion.trace())
    num_missed = int(errors.confusion[:-1, -1].sum())
    num_wrong = num_objects - num_correct - num_missed
    means = {name: metrics["mAP"] for name, metrics in next(iter(evaluation.per_class.values())).items()}
    return render(
        Path(__file__).with_name("report.md.j2"),
        evaluation=evaluation,
        titles=TASK_TITLES,
        classes=sorted(means, key=lambda name: -1 if (mean := means[name]) is None else mean, reverse=True),
        min_score=MIN_SCORE,
        min_iou=MIN_IOU,
        num_objects=num_objects,
        outcomes={"detected": num_correct, "detected as another class": num_wrong, "missed": num_missed},
        num_extra=int(errors.confusion[-1].sum()),
        confused=_most_confused(errors),
        types=types,
        meanings=MEANINGS,
    )


def _most_confused(errors: ErrorAnalysis, limit: int = 10) -> list[tuple[str, str, int, int]]:
    """Return the pairs of classes that are confused most: true, predicted, how often, and of how many objects."""
    classes, totals = list(errors.classes.values()), errors.confusion.sum(axis=1)
    wrong = errors.confusion[:-1, :-1] * ~np.eye(len(classes), dtype=bool)
    cells = [divmod(place, len(classes)) for place in np.argsort(-wrong, axis=None, kind="stable")[:limit].tolist()]
    return [(classes[row], classes[to], int(wrong[row, to]), int(totals[row])) for row, to in cells if wrong[row, to]]


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _seconds(value: float) -> str:
    return f"{value:,.3g}" if value < 10 else f"{value:,.0f}"
