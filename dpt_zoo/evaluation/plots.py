"""An evaluation's plots: precision against recall, and what was taken for what."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..utils.files import open_atomic
from ..utils.text import printable
from .metrics import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES: dict[Task, str] = {"bbox": "boxes", "segm": "masks"}
"""What is compared, in plain words."""

_CURVES = (
    ("mean of IoU .50 to .95", slice(None), "#BBBBBB", "-", 5),
    ("IoU .50", slice(0, 1), "#0072B2", "-", 2),
    ("IoU .75", slice(5, 6), "#D55E00", "--", 2),
)
"""Names, thresholds, colours, styles and widths: they differ to every eye (Okabe and Ito), and where they coincide."""

_MAX_NUMBERED = 25  # classes, in whose cells numbers can be read
_MAX_NAMED = 100  # classes whose names can be read
_MAX_NAME_LENGTH = 22


def plot_precision_recall(path: Path, precision: Mapping[Task, NDArray[np.float64]]) -> None:
    """Write a PNG of precision against recall, the mean over the classes that there are objects of.

    Args:
        path: where to.
        precision: by task, "bbox" or "segm", as in `Score`: `(10, 101, num_classes)`.

    Raises:
        OutputError: it cannot be written.
    """
    figure = _new_figure(6 * len(precision), 5)
    for axes, (task, values) in zip(
        figure.subplots(1, len(precision), squeeze=False)[0], precision.items(), strict=True
    ):
        _plot_curves(axes, values[..., (values > -1).all(axis=(0, 1))])
        axes.set_title(f"{TITLES[task]}: precision against recall")
    _save(figure, path)


def plot_confusion(path: Path, classes: Sequence[str], confusion: NDArray[np.int64]) -> None:
    """Write a PNG of the share of each class's objects that was found as each class, or missed.

    Args:
        path: where to.
        classes: their names.
        confusion: see `Mistakes`.

    Raises:
        OutputError: it cannot be written.
    """
    from matplotlib.colors import PowerNorm

    is_small = len(classes) <= _MAX_NUMBERED
    totals = confusion.sum(axis=1)
    percent = 100 * confusion / np.where(totals == 0, np.nan, totals)[:, None]
    side = min(max(7, (0.55 if is_small else 0.19) * len(confusion)), 22)
    figure = _new_figure(side + 1.5, side)
    axes = figure.subplots()
    image = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100))  # a few percent are seen, too
    axes.set_facecolor("#dddddd")  # of rows without objects
    figure.colorbar(image, ax=axes, ticks=[0, 1, 5, 10, 25, 50, 75, 100], format="%d %%", fraction=0.04, pad=0.02)
    axes.set(
        xlabel="found as", ylabel="truth (number of objects)", title="what was taken for what, in percent of each row"
    )
    _name_cells(axes, [_shorten(name) for name in classes], totals, font_size=10 if is_small else 7)
    if is_small:
        _number_cells(axes, percent)
    _save(figure, path)


def _plot_curves(axes: "Axes", precision: NDArray[np.float64]) -> None:
    """Plot mean precision over classes of `(10, 101, num_classes)`."""
    axes.set(xlim=(0, 101), ylim=(0, 101), xlabel="recall, %", ylabel="precision, %")
    axes.grid(color="#dddddd")
    if not precision.size:
        axes.text(50, 50, "no objects", horizontalalignment="center")
        return
    mean = 100 * precision.mean(axis=2)
    for name, thresholds, color, style, width in _CURVES:
        curve = mean[thresholds].mean(axis=0)
        axes.plot(curve, style, color=color, linewidth=width, label=f"{name}: AP {curve.mean():.1f}")
    axes.legend(loc="lower left")


def _name_cells(axes: "Axes", classes: Sequence[str], totals: NDArray[np.int64], font_size: int) -> None:
    """Name rows and columns, of many classes every so many, and set what is missed and what is not there apart."""
    last = len(classes)
    columns = [*classes, "missed"]
    rows = [f"{name} ({total:,})" for name, total in zip([*classes, "nothing there"], totals, strict=True)]
    shown = [*range(0, last, last // _MAX_NAMED + 1), last]
    style: dict[str, Any] = {"fontsize": font_size, "parse_math": False}  # a name is no formula
    axes.set_xticks(shown, [columns[place] for place in shown], rotation=90, **style)
    axes.set_yticks(shown, [rows[place] for place in shown], **style)
    axes.axhline(last - 0.5, color="black", linewidth=0.8)
    axes.axvline(last - 0.5, color="black", linewidth=0.8)


def _number_cells(axes: "Axes", percent: NDArray[np.float64]) -> None:
    for row, column in np.argwhere(percent.round() > 0):
        value = percent[row, column]
        color = "white" if value > 40 else "black"
        axes.text(column, row, f"{value:.0f}", color=color, ha="center", va="center", fontsize=9)


def _shorten(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _MAX_NAME_LENGTH else f"{name[: _MAX_NAME_LENGTH - 3]}..."


def _new_figure(width: float, height: float) -> "Figure":
    """A figure in inches that is not pyplot's, so that nothing is shared with other plots of the process."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", path: Path) -> None:
    with open_atomic(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a name in a script that the font lacks
        figure.savefig(file, format="png", bbox_inches="tight")
