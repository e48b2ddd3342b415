"""Draw detections on their image, with Pillow."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from ..utils.text import printable

if TYPE_CHECKING:
    from .detections import Detections

OPACITY = 0.45  # of masks
REMARK_SIZE = 12  # of the font, in pixels
Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]  # xyxy, in pixels


def draw(
    image: NDArray[np.uint8],
    detections: "Detections",
    *,
    with_scores: bool = True,
    remarks: Mapping[int, str] | None = None,
) -> Image.Image:
    """Draw the mask, box and class name of each object on a copy of `image`, `(H, W, 3)` RGB, in one colour per class.

    Tracked objects have a colour for each track, and its id. `with_scores` adds the scores of the `detections`. Objects
    with a higher score are on top. `remarks` are small texts below objects, by their index.
    """
    height, width = image.shape[:2]
    line, font_size = line_width((height, width)), max(10, round(min(height, width) / 40))
    track_ids = detections.track_ids
    colours = [colour_of(number) for number in (detections.labels if track_ids is None else track_ids).tolist()]
    picture = Image.fromarray(_blend_masks(image, detections, colours))
    pen = ImageDraw.Draw(picture)
    boxes = np.rint(np.sort(detections.boxes.reshape(-1, 2, 2), axis=1)).astype(int).reshape(-1, 4).tolist()
    for (x0, y0, x1, y1), colour in reversed(list(zip(boxes, colours, strict=True))):
        pen.rectangle((x0 - line // 2, y0 - line // 2, x1 + line // 2, y1 + line // 2), outline=colour, width=line)
    named = zip(detections.names, detections.scores, strict=True)
    texts = [f"{name} {score:.2f}" if with_scores else name for name, score in named]
    if track_ids is not None:
        texts = [f"#{id} {text}" if id > 0 else text for id, text in zip(track_ids, texts, strict=True)]
    labels = _Labels(picture, font_size, padding=line)
    for box, text, colour in zip(boxes, texts, colours, strict=True):
        labels.add(text, colour, box, ("above", "inside", "below"))
    if remarks:
        labels = _Labels(picture, REMARK_SIZE, padding=REMARK_SIZE // 4, placed=labels.placed)
        for index, text in remarks.items():
            labels.add(text, (0, 0, 0), boxes[index], ("below", "above", "inside"))
    return picture


def line_width(image_size: tuple[int, int]) -> int:
    """Return the width of lines in an image of this height and width, in pixels."""
    return max(1, round(min(image_size) / 220))


class _Labels:
    """Texts on filled backgrounds in a picture. They stay inside it and, if there is room, do not cover `placed` ones.

    The size of the font and the padding are in pixels.
    """

    def __init__(self, picture: Image.Image, font_size: int, padding: int, placed: Sequence[Box] = ()) -> None:
        self.placed = [*placed]
        self._size, self._pen = picture.size, ImageDraw.Draw(picture)
        self._font, self._padding = ImageFont.load_default(font_size), padding
        _, top, _, bottom = self._font.getbbox("Tg")
        self._top, self._height = top, round(bottom - top) + 2 * padding

    def add(self, text: str, colour: Colour, box: Sequence[int], places: Sequence[str]) -> None:
        """Write a text at the first free one of `places`, at the left or the right corner of a box."""
        text = printable(text)
        width, height = round(self._font.getlength(text)) + 2 * self._padding, self._height
        tops = {"above": box[1] - height, "inside": box[1], "below": box[3]}
        corners = ((left, tops[place]) for place in places for left in (box[0], box[2] - width))
        corners = ((max(0, min(x, self._size[0] - width)), max(0, min(y, self._size[1] - height))) for x, y in corners)
        labels = [(x, y, x + width, y + height) for x, y in corners]
        label = next(filter(self._is_free, labels), labels[0])
        self.placed.append(label)
        self._pen.rectangle((label[0], label[1], label[2] - 1, label[3] - 1), fill=colour)
        red, green, blue = colour
        text_colour = "black" if 299 * red + 587 * green + 114 * blue > 128_000 else "white"
        corner = label[0] + self._padding, label[1] + self._padding - self._top
        self._pen.text(corner, text, text_colour, self._font)

    def _is_free(self, label: Box) -> bool:
        x0, y0, x1, y1 = label
        return not any(
            x0 < right and left < x1 and y0 < bottom and top < y1 for left, top, right, bottom in self.placed
        )


def colour_of(number: int) -> Colour:
    """Return the colour of a class or a track: neighbours have different hues."""
    golden_ratio = (5**0.5 - 1) / 2
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(number * golden_ratio % 1, 0.85, 0.85))
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
