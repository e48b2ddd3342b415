"""Pictures with the ground truth of an image beside its predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from pycocotools import mask as coco_mask

from ..errors import ImageError
from ..inference.detections import Detections
from ..inference.drawing import draw
from ..utils.files import make_folder, open_atomic
from ..utils.images import load_image
from ..utils.text import printable
from ..views.objects import RLE
from .error_analysis import Comparison, ErrorAnalysis
from .metrics import CocoDict

_IMAGE_SIZE, _WORST_SIZE = 800, 440  # pixels of a drawn image's longer side
_COLUMNS = 3  # of the worst images
_GAP, _MARGIN = 8, 16  # pixels between the two sides, and around them
_FONT_SIZE = 18


def save_comparison(folder: Path, images: Path, comparison: Comparison, classes: Mapping[int, str]) -> None:
    """Write a JPEG of a `comparison`: ground truth on the left, predictions on the right, errors marked.

    The file has the image's name, with ".jpg" added if necessary, and is in `folder`, which must not be the folder of
    the `images` and is created if missing. Unreadable images are skipped. `classes` are the names by category id.

    Raises:
        OutputError: The file cannot be written.
    """
    name = comparison.image["file_name"]
    path = folder / (name if name.lower().endswith((".jpg", ".jpeg")) else f"{name}.jpg")
    picture = _draw_comparison(comparison, images, classes, _IMAGE_SIZE)
    if picture is not None:
        make_folder(path.parent)
        with open_atomic(path) as file:
            picture.save(file, "JPEG", quality=90)


def draw_worst(path: Path, images: Path, errors: ErrorAnalysis) -> None:
    """Write a PNG with the worst images of `errors`, drawn as by `save_comparison`; unreadable images are skipped.

    `images` is the folder of the images.
    """
    drawn = (_draw_comparison(comparison, images, errors.classes, _WORST_SIZE) for comparison in errors.worst)
    pictures = [picture for picture in drawn if picture]
    if pictures:
        grid = _join([_join(pictures[at : at + _COLUMNS], 1) for at in range(0, len(pictures), _COLUMNS)], 0)
    else:
        grid = _text_line("none of the worst images can be read" if errors.worst else "no errors", 400)
    with open_atomic(path) as file:
        grid.save(file, "PNG")


def describe(comparison: Comparison) -> str:
    """Return the number of errors of each type in an image."""
    missed = sum(pair.prediction is None for pair in comparison.errors)
    extra = sum(pair.annotation is None for pair in comparison.errors)
    wrong = len(comparison.errors) - missed - extra
    counts = {"missed": missed, "with a wrong class": wrong, "without an object": extra}
    return ", ".join(f"{count} {text}" for text, count in counts.items() if count) or "no errors"


def _draw_comparison(comparison: Comparison, images: Path, classes: Mapping[int, str], size: int) -> Image.Image | None:
    """Draw two images of `size` pixels (longer side) under a caption; return None if the image cannot be read."""
    try:
        pixels = load_image(images / comparison.image["file_name"])
    except ImageError:
        return None
    remarks: dict[int, str] = {}
    for annotation, prediction in comparison.errors:
        if annotation:
            remarks[id(annotation)] = f"detected as {classes[prediction['category_id']]}" if prediction else "missed"
        if prediction:
            remarks[id(prediction)] = f"is {classes[annotation['category_id']]}" if annotation else "no object"
    sides = [
        _join([_text_line(title, size), _draw(_to_detections(pixels, objects, classes), objects, remarks, size)], 0)
        for title, objects in (("ground truth", comparison.annotations), ("predictions", comparison.predictions))
    ]
    panels = _join([sides[0], Image.new("RGB", (_GAP, 1), "white"), sides[1]], 1)
    caption = _text_line(f"{printable(comparison.image['file_name'])}: {describe(comparison)}", panels.width)
    return ImageOps.expand(_join([caption, panels], 0), _MARGIN, "white")


def _draw(detections: Detections, objects: Sequence[CocoDict], remarks: Mapping[int, str], size: int) -> Image.Image:
    """Draw objects on their image resized to `size`, with the remarks on some of them, by the `id` of their dicts."""
    scale = size / max(detections.image_size)
    height, width = (max(1, round(side * scale)) for side in detections.image_size)
    detections = detections.resize((height, width))
    assert detections.image is not None
    texts = {index: remarks[id(each)] for index, each in enumerate(objects) if id(each) in remarks}
    with_scores = any("score" in each for each in objects)
    return draw(detections.image, detections, with_scores=with_scores, remarks=texts)


def _to_detections(pixels: NDArray[np.uint8], objects: Sequence[CocoDict], classes: Mapping[int, str]) -> Detections:
    """Return annotations or predictions as `Detections`: crowds get their own classes, annotations a score of 1."""
    height, width, _ = pixels.shape
    places = {category_id: place for place, category_id in enumerate(classes)}
    labels = [places[each["category_id"]] + len(places) * bool(each.get("iscrowd")) for each in objects]
    boxes = np.array([each["bbox"] for each in objects], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    has_masks = any(each.get("segmentation") for each in objects)
    return Detections(
        boxes=boxes,
        scores=np.array([each.get("score", 1) for each in objects], np.float32),
        labels=np.array(labels, np.int64),
        classes=(*classes.values(), *(f"{name} (crowd)" for name in classes.values())),
        image_size=(height, width),
        rles=[to_rle(each.get("segmentation"), height, width) for each in objects] if has_masks else None,
        image=pixels,
    )


def to_rle(segmentation: list[list[float]] | CocoDict | None, height: int, width: int) -> RLE:
    """Return a `segmentation` of an image with `height` and `width` as a compressed RLE.

    It may be polygons, run lengths, a compressed RLE or, for an empty one, None.
    """
    if not segmentation:
        return coco_mask.encode(np.zeros((height, width), np.uint8, order="F"))
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def _text_line(text: str, width: int) -> Image.Image:
    """Draw a line of text on white, without its start if it is too long."""
    font = ImageFont.load_default(_FONT_SIZE)
    while font.getlength(text) > width:
        text = f"...{text[4:]}"
    line = Image.new("RGB", (width, _FONT_SIZE * 4 // 3), "white")
    ImageDraw.Draw(line).text((0, 0), text, "black", font)
    return line


def _join(pictures: Sequence[Image.Image], axis: int) -> Image.Image:
    """Put pictures below each other (axis 0) or side by side (axis 1), on white."""
    width, height = np.max([picture.size for picture in pictures], axis=0).tolist()
    padded = []
    for picture in pictures:
        right, bottom = (0, height - picture.height) if axis == 1 else (width - picture.width, 0)
        padded.append(np.asarray(ImageOps.expand(picture, (0, 0, right, bottom), "white")))
    return Image.fromarray(np.concatenate(padded, axis))
