"""Draw detections on their image, with Pillow."""

import colorsys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from ..utils.text import printable

if TYPE_CHECKING:
    from .detections import Detections

OPACITY = 0.45  # of masks
Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]  # xyxy, in pixels


def draw(image: NDArray[np.uint8], detections: "Detections", *, with_scores: bool = True) -> Image.Image:
    """Draw the mask, box and class name of each object on a copy of `image`, `(H, W, 3)` RGB, in one colour per class.

    `with_scores` adds the scores of the `detections`. Objects with a higher score are on top.
    """
    height, width = image.shape[:2]
    line, font_size = max(1, round(min(height, width) / 220)), max(10, round(min(height, width) / 40))
    colours = [class_colour(label) for label in detections.labels.tolist()]
    picture = Image.fromarray(_blend_masks(image, detections, colours))
    pen = ImageDraw.Draw(picture)
    boxes = np.rint(np.sort(detections.boxes.reshape(-1, 2, 2), axis=1)).astype(int).reshape(-1, 4).tolist()
    for (x0, y0, x1, y1), colour in reversed(list(zip(boxes, colours, strict=True))):
        pen.rectangle((x0 - line // 2, y0 - line // 2, x1 + line // 2, y1 + line // 2), outline=colour, width=line)
    named = zip(detections.names, detections.scores, strict=True)
    texts = [f"{name} {score:.2f}" if with_scores else name for name, score in named]
    draw_labels(picture, boxes, texts, colours, font_size=font_size, padding=line)
    return picture


def draw_labels(
    picture: Image.Image,
    boxes: Sequence[Sequence[int]],
    texts: Sequence[str],
    colours: Sequence[Colour],
    *,
    font_size: int,
    padding: int,
    below: bool = False,
) -> None:
    """Write a text at a corner of each box. It moves up or down if it would cover an earlier one and there is room.

    Args:
        picture: the image to draw on.
        boxes: xyxy, in pixels.
        texts: the text of each box.
        colours: the background of each text, which is black or white by contrast.
        font_size: in pixels.
        padding: pixels around each text.
        below: write at the lower left corner instead of the upper left one.
    """
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(font_size)
    _, top, _, bottom = font.getbbox("Tg")
    label_height = round(bottom - top) + 2 * padding
    placed: list[Box] = []
    for (x0, y0, _, y1), text, colour in zip(boxes, map(printable, texts), colours, strict=True):
        width = round(font.getlength(text)) + 2 * padding
        x = max(0, min(x0, picture.width - width))
        starts = (y1, y1 - label_height, y0 - label_height) if below else (y0 - label_height, y0, y1)
        candidates = [(x, y, x + width, y + label_height) for y in starts if 0 <= y <= picture.height - label_height]
        label = _first_free(candidates, placed, (x, 0, x + width, label_height))
        placed.append(label)
        pen.rectangle((label[0], label[1], label[2] - 1, label[3] - 1), fill=colour)
        red, green, blue = colour
        text_colour = "black" if 299 * red + 587 * green + 114 * blue > 128_000 else "white"
        pen.text((label[0] + padding, label[1] + padding - top), text, text_colour, font)


def class_colour(label: int) -> Colour:
    """Return the colour of a class: neighbours have different hues."""
    golden_ratio = (5**0.5 - 1) / 2
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(label * golden_ratio % 1, 0.85, 0.85))
    return red, green, blue


def _blend_masks(image: NDArray[np.uint8], detections: "Detections", colours: Sequence[Colour]) -> NDArray[np.uint8]:
    """Blend the masks into a copy of the image, one at a time, each only within its own box."""
    pixels = image.copy()
    for rle, colour in reversed(list(zip(detections.rles or (), colours, strict=detections.rles is not None))):
        x, y, width, height = coco_mask.toBbox(rle).astype(int)
        place = pixels[y : y + height, x : x + width]
        inside = coco_mask.decode(rle)[y : y + height, x : x + width].astype(bool)
        place[inside] = np.rint(place[inside] * (1 - OPACITY) + np.array(colour) * OPACITY)
    return pixels


def _first_free(candidates: Sequence[Box], placed: Sequence[Box], otherwise: Box) -> Box:
    """Return the first candidate that covers no placed label, or else the first one."""

    def is_free(label: Box) -> bool:
        return not any(
            label[0] < other[2] and other[0] < label[2] and label[1] < other[3] and other[1] < label[3]
            for other in placed
        )

    return next(filter(is_free, candidates), candidates[0] if candidates else otherwise)
