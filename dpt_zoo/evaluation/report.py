"""An evaluation as a page to read, with its pictures."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..utils.files import open_atomic
from ..utils.text import printable
from .error_analysis import MIN_IOU, MIN_SCORE, Mistakes
from .metrics import Metrics, Task
from .plots import TITLES, plot_confusion, plot_precision_recall
from .visualize import draw_worst

_MEANINGS = {
    "mAP": "average precision, the mean over IoU thresholds .50, .55, ... .95",
    "AP50": "at IoU .50",
    "AP75": "at IoU .75",
    "APs": "of small objects, less than 32 x 32 pixels",
    "APm": "of medium objects, up to 96 x 96 pixels",
    "APl": "of large objects",
    "AR1": "average recall with 1 result in an image",
    "AR10": "with 10",
    "AR100": "with 100",
    "ARs": "with 100, of small objects",
    "ARm": "with 100, of medium objects",
    "ARl": "with 100, of large objects",
}
_CLASS_COLUMNS = ("mAP", "AP50", "AP75")
_MAX_LISTED = 10


def write_report(
    folder: Path,
    evaluation: Mapping[str, Any],
    precision: Mapping[Task, NDArray[np.float64]],
    mistakes: Mistakes,
    images: Path,
) -> None:
    """Write `report.md`, `precision_recall.png`, `confusion.png` and `worst.png`.

    Args:
        folder: where to.
        evaluation: the content of `evaluation.json`.
        precision: by task, "bbox" or "segm", as in `Score`: `(10, 101, num_classes)`.
        mistakes: what was right and wrong.
        images: the folder of the images.

    Raises:
        OutputError: a file cannot be written.
    """
    plot_precision_recall(folder / "precision_recall.png", precision)
    plot_confusion(folder / "confusion.png", list(mistakes.classes.values()), mistakes.confusion)
    draw_worst(folder / "worst.png", images, mistakes)
    with open_atomic(folder / "report.md") as file:  # the last, as it shows the others
        file.write(_page(evaluation, mistakes).encode())


def _page(evaluation: Mapping[str, Any], mistakes: Mistakes) -> str:
    sections = [
        "# Evaluation",
        *_warnings(evaluation),
        _summary(evaluation),
        _figures_table(evaluation["metrics"]),
        "## Precision and recall",
        "![Precision against recall](precision_recall.png)",
        "## Mistakes",
        *_mistakes(mistakes),
        "## Classes",
        _classes_table(evaluation["per_class"]),
        "## The run",
        _run_table(evaluation),
        *_skipped(evaluation["skipped"]),
    ]
    return "\n\n".join(sections) + "\n"


def _warnings(evaluation: Mapping[str, Any]) -> list[str]:
    warnings = []
    if evaluation["limit"] is not None:
        warnings.append(f"> **A quick look (`--limit {evaluation['limit']}`): no result of the whole set.**")
    if evaluation["skipped"]:
        warnings.append(f"> **{len(evaluation['skipped']):,} images were left out**: see the end.")
    return warnings


def _summary(evaluation: Mapping[str, Any]) -> str:
    names = {"bbox": "box AP", "segm": "mask AP"}
    averages = [f"{names[task]} {_percent(row['mAP'])}" for task, row in evaluation["metrics"].items()]
    return f"**{', '.join(averages)}** on {evaluation['num_images']:,} images."


def _figures_table(metrics: Mapping[Task, Metrics]) -> str:
    header = ["", *(TITLES[task] for task in metrics), ""]
    rows = [[name, *(_percent(row[name]) for row in metrics.values()), what] for name, what in _MEANINGS.items()]
    return _table(header, rows, "l" + "r" * len(metrics) + "l")


def _mistakes(mistakes: Mistakes) -> list[str]:
    confusion = mistakes.confusion
    missed, nothing_there = confusion[:, -1], confusion[-1]
    num_objects, num_right = int(confusion[:-1].sum()), int(confusion.trace())
    num_wrong = num_objects - num_right - int(missed.sum())
    shares = {"found": num_right, "found as another class": num_wrong, "missed": int(missed.sum())}
    counts = ", ".join(f"{count:,} {what}{_share(count, num_objects)}" for what, count in shares.items())
    return [
        f"Boxes of score {MIN_SCORE} and IoU {MIN_IOU} or more count. Of {num_objects:,} objects: {counts}. "
        f"Found where nothing is: {int(nothing_there.sum()):,}.",
        *_confusions(list(mistakes.classes.values()), confusion[:-1]),
        "![What was taken for what](confusion.png)",
        "The worst images:",
        "![The worst images](worst.png)",
    ]


def _confusions(classes: Sequence[str], confusion: NDArray[np.int64]) -> list[str]:
    """The classes that are most often taken for others; `confusion` has a row for each and one more column."""
    totals = confusion.sum(axis=1)
    wrong = confusion[:, :-1] * ~np.eye(len(classes), dtype=bool)
    most = np.argsort(-wrong, axis=None, kind="stable")[:_MAX_LISTED].tolist()
    taken = []
    for row, column in (divmod(place, len(classes)) for place in most):
        if wrong[row, column]:
            names = f"{_text(classes[row])} for {_text(classes[column])}"
            taken.append(f"{names} ({wrong[row, column]:,} of {totals[row]:,})")
    return [f"Most often taken for another class: {', '.join(taken)}."] if taken else []


def _classes_table(per_class: Mapping[Task, Mapping[str, Metrics]]) -> str:
    """A row for each class, the best first by the first task; those without objects last."""
    tasks = list(per_class.values())
    header = ["class", *(f"{TITLES[task]} {name}" for task in per_class for name in _CLASS_COLUMNS)]
    best_first = sorted(tasks[0], key=lambda name: -_or_less(tasks[0][name]["mAP"]))
    rows = [
        [_text(name), *(_percent(task[name][column]) for task in tasks for column in _CLASS_COLUMNS)]
        for name in best_first
    ]
    return _table(header, rows, "l" + "r" * (len(header) - 1))


def _run_table(evaluation: Mapping[str, Any]) -> str:
    seconds, num_images = evaluation["seconds"], evaluation["num_images"]
    detecting = seconds["detecting"]
    each = None if detecting is None or not num_images else detecting / num_images
    facts = {
        "images": f"{num_images:,}",
        "limit": evaluation["limit"],
        "left out": f"{len(evaluation['skipped']):,}",
        "annotations": _file(evaluation["annotations"]),
        "weights": _file(evaluation["weights"]),
        "device": evaluation["device"],
        "processes": evaluation["processes"],
        "seconds, detecting": _seconds(detecting),
        "seconds an image": _seconds(each),
        "seconds, measuring": _seconds(seconds["measuring"]),
        "versions": ", ".join(f"{name} {version}" for name, version in evaluation["versions"].items()),
    }
    return _table(["", ""], [[name, "-" if fact is None else _text(str(fact))] for name, fact in facts.items()], "ll")


def _skipped(skipped: Sequence[str]) -> list[str]:
    if not skipped:
        return []
    lines = [f"- {_text(line)}" for line in skipped[:_MAX_LISTED]]
    if len(skipped) > _MAX_LISTED:
        lines.append(f"- and {len(skipped) - _MAX_LISTED:,} more: see `evaluation.json`")
    return ["## Images left out", "\n".join(lines)]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], alignments: str) -> str:
    """A Markdown table, its columns aligned to the left ("l") or the right ("r")."""
    rules = ["---:" if alignment == "r" else ":---" for alignment in alignments]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rules, *rows))


def _file(facts: Mapping[str, str | None]) -> str:
    return f"{facts['path']} (SHA-256 {facts['sha256'] or 'unknown'})"


def _text(text: str) -> str:
    """Text from outside as plain text of one line in Markdown."""
    return re.sub(r"([\\`*_|\[\]<>])", r"\\\1", printable(text))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:,.3g}" if value < 10 else f"{value:,.0f}"


def _share(count: int, total: int) -> str:
    return f" ({100 * count / total:.1f}%)" if total else ""


def _or_less(value: float | None) -> float:
    return -1 if value is None else value
