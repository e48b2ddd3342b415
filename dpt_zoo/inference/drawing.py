"""Draw detections on their image, with supervision's annotators."""

import colorsys
from typing import TYPE_CHECKING

import numpy as np
import supervision as sv
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from .detections import Detections


def draw(image: NDArray[np.uint8], detections: "Detections", *, with_scores: bool = True) -> Image.Image:
    """Draw the mask, box and class name of each object on a copy of `image`, `(H, W, 3)` RGB, in one colour per class.

    `with_scores` adds the scores of the `detections`.
    """
    height, width = image.shape[:2]
    colours, text_colours = _palettes(len(detections.classes))
    line = max(1, round(min(height, width) / 300))
    font_size = max(10, round(min(height, width) / 40))
    objects = detections.to_supervision()
    named = zip(detections.names, detections.scores, strict=True)
    labels = [f"{name} {score:.2f}" if with_scores else name for name, score in named]
    picture = Image.fromarray(image)
    if detections.rles is not None:
        picture = sv.MaskAnnotator(colours, opacity=0.45).annotate(picture, objects)
    picture = sv.BoxAnnotator(colours, thickness=line).annotate(picture, objects)
    labeller = sv.RichLabelAnnotator(
        colours, text_color=text_colours, font_size=font_size, text_padding=line + 1, smart_position=True
    )
    return labeller.annotate(picture, objects, labels)


def _palettes(num_classes: int) -> tuple[sv.ColorPalette, sv.ColorPalette]:
    """Return a colour for each class, with different hues for neighbours, and black or white for text on it."""
    golden_ratio = (5**0.5 - 1) / 2
    colours = [
        sv.Color(*(round(255 * part) for part in colorsys.hsv_to_rgb(index * golden_ratio % 1, 0.85, 0.85)))
        for index in range(num_classes)
    ]
    text = [sv.Color.BLACK if 299 * c.r + 587 * c.g + 114 * c.b > 128_000 else sv.Color.WHITE for c in colours]
    return sv.ColorPalette(colours), sv.ColorPalette(text)
