"""The plots of an evaluation: precision by recall, and the confusion of classes."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..manifest.records import TASK_TITLES
from ..utils.files import open_atomic
from ..utils.text import printable
from .matching import Matches
from .metrics import Task
from .thresholds import Curve, compute_curve

# Name, thresholds, color (Okabe and Ito's, for color-blind readers), style and width (so that equal curves show).
_CURVES = (
    ("mean of IoU .50 to .95", slice(None), "#BBBBBB", "-", 5),
    ("IoU .50", slice(0, 1), "#0072B2", "-", 2),
    ("IoU .75", slice(5, 6), "#D55E00", "--", 2),
)

_MAX_NUMBERED = 25  # classes: with more, numbers in the cells cannot be read
_MAX_NAMED = 100  # classes: with more, only some are named
_MAX_NAME_LENGTH = 22


def plot_precision_recall(path: Path, precision: Mapping[Task, NDArray[np.float64]]) -> None:
    """Write a PNG of precision by recall, the mean over the classes that have objects.

    `precision` is by task, as in `Score`: `(10, 101, num_classes)`.
    """
    from matplotlib.figure import Figure  # not pyplot, which is shared with other plots of the process

    figure = Figure((6 * len(precision), 5), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(precision), squeeze=False)[0]
    for axes, (task, values) in zip(panels, precision.items(), strict=True):
        _plot_curves(axes, values[..., (values > -1).all(axis=(0, 1))])
        axes.set_title(f"{TASK_TITLES[task]} precision by recall")
    _save(figure, path)


def plot_confusion(path: Path, classes: Sequence[str], confusion: NDArray[np.int64]) -> None:
    """Write a PNG of the share of each class's objects that was detected as each class, or missed.

    `classes` are the class names, and `confusion` is as in `ErrorAnalysis`: `(num_classes + 1, num_classes + 1)`.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    is_small = len(classes) <= _MAX_NUMBERED
    totals = confusion.sum(axis=1)
    percent = 100 * confusion / np.where(totals == 0, np.nan, totals)[:, None]
    side = min(max(7, (0.55 if is_small else 0.19) * len(confusion)), 22)
    figure = Figure((side + 1.5, side), dpi=110, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100))  # so that a few percent are visible
    axes.set_facecolor("#dddddd")  # the color of rows without objects
    figure.colorbar(image, ax=axes, ticks=[0, 1, 5, 10, 25, 50, 75, 100], format="%d %%", fraction=0.04, pad=0.02)
    axes.set(xlabel="predicted class", ylabel="true class (objects)", title="predictions in percent of each row")
    _name_cells(axes, classes, totals, font_size=10 if is_small else 7)
    if is_small:
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9}
        for row, column in np.argwhere(percent.round() > 0):
            value = percent[row, column]
            axes.text(column, row, f"{value:.0f}", color="white" if value > 40 else "black", **style)
    _save(figure, path)


def plot_sizes(path: Path, boxes: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Write a PNG of the sizes of objects in each split, given their widths and heights in pixels."""
    from matplotlib.figure import Figure

    figure = Figure((7, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    sides = {name: np.sqrt([max(width * height, 1.0) for width, height in each]) for name, each in boxes.items()}
    bins = np.geomspace(1, max([2.0, *(each.max() for each in sides.values() if each.size)]), 40).tolist()
    for name, each in sides.items():
        shares = np.full(each.size, 100 / max(1, each.size))
        axes.hist(each, bins=bins, weights=shares, histtype="step", linewidth=2, label=printable(name))
    for side in (32, 96):  # COCO's limits of small and of large objects
        axes.axvline(side, color="#bbbbbb", linestyle="--")
    axes.set(xscale="log", xlabel="square root of the box's area, pixels (dashed: 32 and 96)", ylabel="objects, %")
    axes.legend()
    _save(figure, path)


def plot_thresholds(path: Path, matches: Matches, thresholds: Mapping[str, Mapping[str, float | None]]) -> None:
    """Write a PNG of precision, recall and F1 by score threshold: the mean over classes, and each class's F1.

    `thresholds` are those chosen from `matches`, as in `Evaluation`; they are marked on the curves of F1.
    """
    from matplotlib.figure import Figure

    figure = Figure((8, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="score threshold", title="boxes at IoU .50")
    axes.grid(color="#dddddd")
    grid = np.linspace(0, 1, 501)
    curves = [compute_curve(matches, label) for label in np.flatnonzero(matches.num_objects).tolist()]
    for curve in curves:
        axes.plot(grid, _at(grid, curve, curve.f1), color="#BBBBBB", linewidth=0.8, zorder=1)
    styles = (("precision", "#0072B2", ":"), ("recall", "#D55E00", "--"), ("f1", "#009E73", "-"))
    for name, color, style in styles:
        mean = np.mean([_at(grid, curve, getattr(curve, name)) for curve in curves], axis=0)
        axes.plot(grid, mean, style, color=color, linewidth=2, label=f"{name.replace('f1', 'F1')}, mean over classes")
    marks = [(each["score"], each["f1"]) for each in thresholds.values() if each["f1"] is not None]
    if marks:
        axes.plot(*zip(*marks, strict=True), ".", color="black", label="threshold of each class")
    axes.legend(loc="lower center")
    _save(figure, path)


def _at(thresholds: NDArray[np.float64], curve: Curve, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the `values` of a class's curve at `thresholds`; 0 above its highest score."""
    places = np.searchsorted(-curve.scores, -thresholds, side="right") - 1
    return np.where(places < 0, 0.0, np.append(values, 0)[places])


def _plot_curves(axes: Any, precision: NDArray[np.float64]) -> None:
    """Plot the mean over classes of `precision`: `(10, 101, num_classes)`."""
    axes.set(xlim=(0, 101), ylim=(0, 101), xlabel="recall, %", ylabel="precision, %")
    axes.grid(color="#dddddd")
    if not precision.size:
        axes.text(50, 50, "no objects", ha="center")
        return
    for name, thresholds, color, style, width in _CURVES:
        curve = 100 * precision[thresholds].mean(axis=(0, 2))
        axes.plot(curve, style, color=color, linewidth=width, label=f"{name}: AP {curve.mean():.1f}")
    axes.legend(loc="lower left")


def _name_cells(axes: Any, classes: Sequence[str], totals: NDArray[np.int64], font_size: int) -> None:
    """Name rows and columns, only some if there are many, and draw lines before the last ones."""
    names = [name if len(name) <= _MAX_NAME_LENGTH else f"{name[: _MAX_NAME_LENGTH - 3]}..." for name in classes]
    columns = [*map(printable, names), "missed"]
    rows = [f"{name} ({total:,})" for name, total in zip([*columns[:-1], "no object"], totals, strict=True)]
    last = len(classes)
    shown = [*range(0, last, last // _MAX_NAMED + 1), last]
    style: dict[str, Any] = {"fontsize": font_size, "parse_math": False}  # names are not formulas
    axes.set_xticks(shown, [columns[place] for place in shown], rotation=90, **style)
    axes.set_yticks(shown, [rows[place] for place in shown], **style)
    axes.axhline(last - 0.5, color="black", linewidth=0.8)
    axes.axvline(last - 0.5, color="black", linewidth=0.8)


def _save(figure: Any, path: Path) -> None:
    with open_atomic(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the font lacks some scripts
        figure.savefig(file, format="png", bbox_inches="tight")
