"""What is in an image beside what was found in it, drawn."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from pycocotools import mask as coco_mask

from ..errors import ImageError
from ..utils.files import make_folder, open_atomic
from ..utils.images import load_image
from ..utils.text import printable
from .error_analysis import CocoRecord, Comparison, Mistakes, class_names, compare

if TYPE_CHECKING:
    from ..inference.detections import Detections

_SHOWN_SIZE, _WORST_SIZE = 800, 440  # pixels of a drawn image's longer side
_COLUMNS = 3  # of the worst images
_GAP, _MARGIN = 8, 16  # pixels between truth and found, and around them
_FONT_SIZE = 18


def show(
    folder: Path, images: Path, truth: Mapping[str, Any], found: Iterable[tuple[int, Sequence[CocoRecord]]]
) -> None:
    """Write each image as a JPEG, once with what is in it and once with what was found, mistakes marked.

    The pictures have the images' names, below `folder` as they are below `images`, and ".jpg" added to names that do
    not end so. Images that cannot be read are left out.

    Args:
        folder: where to, not that of the images; it is made if it is not there.
        images: the folder of the images.
        truth, found: see `find_mistakes`.

    Raises:
        OutputError: a picture cannot be written.
    """
    classes = class_names(truth)
    for comparison in compare(truth, found):
        name = comparison.image["file_name"]
        path = folder / (name if name.lower().endswith((".jpg", ".jpeg")) else f"{name}.jpg")
        picture = _draw_pair(comparison, images, classes, _SHOWN_SIZE)
        if picture is None:
            continue
        make_folder(path.parent)
        with open_atomic(path) as file:
            picture.save(file, "JPEG", quality=90)


def draw_worst(path: Path, images: Path, mistakes: Mistakes) -> None:
    """Write one PNG with all of the worst images, as `show` draws them; those that cannot be read are left out.

    Raises:
        OutputError: it cannot be written.
    """
    drawn = (_draw_pair(comparison, images, mistakes.classes, _WORST_SIZE) for comparison in mistakes.worst)
    pictures = [picture for picture in drawn if picture]
    if pictures:
        grid = _stack([_join(pictures[at : at + _COLUMNS]) for at in range(0, len(pictures), _COLUMNS)])
    else:
        grid = _text_line("of the worst images none can be read" if mistakes.worst else "no mistakes", 400)
    with open_atomic(path) as file:
        grid.save(file, "PNG")


def describe(comparison: Comparison) -> str:
    """How many mistakes of which kind there are in an image."""
    mistakes = comparison.mistakes
    missed = sum(pair.found is None for pair in mistakes)
    nothing_there = sum(pair.truth is None for pair in mistakes)
    counts = {
        "missed": missed,
        "of a wrong class": len(mistakes) - missed - nothing_there,
        "where nothing is": nothing_there,
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "no mistakes"


def _draw_pair(comparison: Comparison, images: Path, classes: Mapping[int, str], size: int) -> Image.Image | None:
    """Draw truth and found beside each other, under a caption; None if the image cannot be read."""
    try:
        pixels = load_image(images / comparison.image["file_name"])
    except ImageError:
        return None
    missed = {id(pair.truth): _found_as(pair.found, classes) for pair in comparison.mistakes if pair.truth}
    wrong = {id(pair.found): _really(pair.truth, classes) for pair in comparison.mistakes if pair.found}
    halves = [
        _stack([_text_line(title, size), _draw(pixels, records, remarks, classes, size)])
        for title, records, remarks in (("truth", comparison.truth, missed), ("found", comparison.found, wrong))
    ]
    panels = _join(halves, _GAP)
    caption = _text_line(f"{printable(comparison.image['file_name'])}: {describe(comparison)}", panels.width)
    return ImageOps.expand(_stack([caption, panels]), _MARGIN, "white")


def _found_as(found: CocoRecord | None, classes: Mapping[int, str]) -> str:
    return f"found as {classes[found['category_id']]}" if found else "missed"


def _really(truth: CocoRecord | None, classes: Mapping[int, str]) -> str:
    return f"is {classes[truth['category_id']]}" if truth else "nothing there"


def _draw(
    pixels: NDArray[np.uint8],
    records: Sequence[CocoRecord],
    remarks: Mapping[int, str],
    classes: Mapping[int, str],
    size: int,
) -> Image.Image:
    """Draw objects on an image resized to `size`, with remarks on some, by the identity of their records."""
    import supervision as sv

    from ..inference.drawing import draw

    scale = size / max(pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    objects = _detections(records, classes, pixels.shape[:2], (height, width))
    enlarged = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    picture = draw(enlarged, objects, with_scores=any("score" in record for record in records))
    remarked = [index for index, record in enumerate(records) if id(record) in remarks]
    annotator = sv.RichLabelAnnotator(
        sv.Color.BLACK,
        text_color=sv.Color.WHITE,
        font_size=12,
        text_padding=3,
        text_position=sv.Position.BOTTOM_LEFT,
        smart_position=True,
    )
    boxes = sv.Detections(xyxy=objects.boxes[remarked], class_id=objects.labels[remarked])
    return annotator.annotate(picture, boxes, [remarks[id(records[index])] for index in remarked])


def _detections(
    records: Sequence[CocoRecord], classes: Mapping[int, str], size: tuple[int, int], new_size: tuple[int, int]
) -> "Detections":
    """Annotations or results of an image as `Detections` in the same image at another size (height, width).

    Crowds are a class of their own, and what is there has score 1.
    """
    from ..inference.detections import Detections, encode_mask

    places = {category_id: place for place, category_id in enumerate(classes)}
    labels = [places[record["category_id"]] + len(places) * bool(record.get("iscrowd")) for record in records]
    boxes = np.array([record["bbox"] for record in records], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    has_masks = any(record.get("segmentation") for record in records)
    return Detections(
        boxes=boxes * np.divide(new_size[::-1] * 2, size[::-1] * 2, dtype=np.float32),
        scores=np.array([record.get("score", 1) for record in records], np.float32),
        labels=np.array(labels, np.int64),
        classes=(*classes.values(), *(f"{name} (crowd)" for name in classes.values())),
        image_size=new_size,
        rles=[encode_mask(_mask(record, size, new_size)) for record in records] if has_masks else None,
    )


def _mask(record: CocoRecord, size: tuple[int, int], new_size: tuple[int, int]) -> NDArray[np.bool_]:
    """An object's mask, from polygons or RLE, resized; empty if it has none."""
    segmentation = record.get("segmentation")
    if not segmentation:
        return np.zeros(new_size, bool)
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, *size)
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(segmentation)
    mask = Image.fromarray(coco_mask.decode(segmentation))
    return np.asarray(mask.resize(new_size[::-1], Image.Resampling.NEAREST)) > 0


def _text_line(text: str, width: int) -> Image.Image:
    """A line of text on white; of what is too long the end is shown."""
    font = ImageFont.load_default(_FONT_SIZE)
    while font.getlength(text) > width:
        text = f"...{text[4:]}"
    line = Image.new("RGB", (width, _FONT_SIZE * 4 // 3), "white")
    ImageDraw.Draw(line).text((0, 0), text, "black", font)
    return line


def _join(pictures: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Pictures beside each other, on white."""
    width = sum(picture.width + gap for picture in pictures) - gap
    joined = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        joined.paste(picture, (left, 0))
        left += picture.width + gap
    return joined


def _stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, on white."""
    height = sum(picture.height for picture in pictures)
    stacked = Image.new("RGB", (max(picture.width for picture in pictures), height), "white")
    top = 0
    for picture in pictures:
        stacked.paste(picture, (0, top))
        top += picture.height
    return stacked
