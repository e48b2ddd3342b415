"""Pictures of an explanation, with Matplotlib."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..utils.files import open_atomic
from ..utils.text import printable

if TYPE_CHECKING:
    from .patches import Explanation, StagePatches

MAX_PATCHES = 300  # drawn in a stage: of more, those of some rows and columns
MAX_IMPORTANT = 40  # drawn in a stage for an object: those on which its score depends most
MAX_SHIFT, MAX_GROWTH = 0.5, 3.0  # at the ends of the colour scales; what is beyond has their colours


def draw_patches(path: Path, explanation: "Explanation") -> None:
    """Write a PNG with a panel for each stage: predicted boxes and their sampling points on the image.

    Without an object, boxes have the colour of their growth, and points that of their shift. With an object, the most
    important patches have the colour of their importance.

    Raises:
        OutputError: The file cannot be written.
    """
    from matplotlib.figure import Figure  # not pyplot, which is shared with other plots of the process

    image = explanation.detections.image
    assert image is not None
    height, width = image.shape[:2]
    figure = Figure((15, max(3.0, 4.6 * height / width) + 1.2), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(explanation.stages), squeeze=False)[0]
    for axes, stage in zip(panels, explanation.stages, strict=True):
        axes.imshow(image, alpha=0.6)
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        chosen = _choose(stage)
        rows, columns = stage.grid_shape
        title = f"stage {stage.stage}: {rows} x {columns} patches"
        axes.set_title(title if len(chosen) == rows * columns else f"{title}, {len(chosen)} shown")
        if stage.importance is None:
            _draw_offsets(axes, stage, chosen)
        else:
            _draw_importance(axes, stage, chosen)
            _draw_object(axes, explanation)
    _add_scales(figure, panels, explanation)
    with open_atomic(path) as file:
        figure.savefig(file, format="png")


def _choose(stage: "StagePatches") -> NDArray[np.int64]:
    """Return the indices of the patches to draw."""
    if stage.importance is not None:
        return np.argsort(stage.importance)[-MAX_IMPORTANT:]  # the most important one is drawn last, on top
    rows, columns = stage.grid_shape
    step = int(np.ceil(np.sqrt(rows * columns / MAX_PATCHES)))
    return np.arange(rows * columns).reshape(rows, columns)[step // 2 :: step, step // 2 :: step].flatten()


def _draw_offsets(axes: Any, stage: "StagePatches", chosen: NDArray[np.int64]) -> None:
    colours = _growth_scale().to_rgba(stage.growth[chosen])
    _add_boxes(axes, stage.boxes[chosen], colours)
    points = stage.points[chosen].reshape(-1, 2)
    shift = np.repeat(stage.shift[chosen], stage.points.shape[1])
    axes.scatter(*points.T, s=4, c=_shift_scale().to_rgba(shift), linewidths=0, zorder=3)


def _draw_importance(axes: Any, stage: "StagePatches", chosen: NDArray[np.int64]) -> None:
    assert stage.importance is not None
    importance = stage.importance[chosen]
    colours = _importance_scale().to_rgba(importance)
    colours[:, 3] = 0.25 + 0.75 * importance
    _add_boxes(axes, stage.boxes[chosen], colours)
    points = stage.points[chosen].reshape(-1, 2)
    axes.scatter(*points.T, s=5, c=np.repeat(colours, stage.points.shape[1], axis=0), linewidths=0, zorder=3)


def _draw_object(axes: Any, explanation: "Explanation") -> None:
    from matplotlib.patches import Rectangle

    assert explanation.object is not None
    x0, y0, x1, y1 = explanation.detections.boxes[explanation.object].tolist()
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="#00A2FF", linewidth=2.5, zorder=4))


def _add_boxes(axes: Any, boxes: NDArray[np.float64], colours: NDArray[np.float64]) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    rectangles = [Rectangle((x0, y0), x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes.tolist()]
    axes.add_collection(PatchCollection(rectangles, facecolors="none", edgecolors=colours, linewidths=1, zorder=2))


def _add_scales(figure: Any, panels: Any, explanation: "Explanation") -> None:
    style: dict[str, Any] = {"location": "bottom", "shrink": 0.5, "aspect": 60, "pad": 0.02}
    if explanation.object is not None:
        detections, index = explanation.detections, explanation.object
        name = printable(f"{detections.names[index]} {detections.scores[index]:.2f}")
        figure.colorbar(_importance_scale(), ax=panels, label="patches: importance for the object", **style)
        figure.suptitle(f"Patches that the score of object {index} depends on: {name}", parse_math=False)
        return
    figure.colorbar(_shift_scale(), ax=panels, label="points: shift, in distances of neighbouring patches", **style)
    bar = figure.colorbar(_growth_scale(), ax=panels, label="boxes: length, in that of the regular grid's", **style)
    bar.set_ticks([1 / 3, 0.5, 1, 2, 3], labels=["1/3", "1/2", "1", "2", "3"])
    bar.minorticks_off()


def _shift_scale() -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(0, MAX_SHIFT, clip=True), "plasma")


def _growth_scale() -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    return ScalarMappable(LogNorm(1 / MAX_GROWTH, MAX_GROWTH, clip=True), "coolwarm")


def _importance_scale() -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(0, 1), "autumn_r")
