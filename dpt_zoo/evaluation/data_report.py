"""A data set as a Markdown page, from the template `data_report.md.j2`, with pictures of its labels and its issues."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..analysis.plots import plot_sizes
from ..analysis.visualize import to_rle
from ..data.annotation_checks import format_size, measure_mask, parse_box
from ..data.checks import CheckedSplit
from ..errors import ImageError
from ..formats.issues import Issue, IssueType
from ..inference.detections import Detections
from ..inference.drawing import draw
from ..utils.files import make_folder, open_atomic
from ..utils.images import load_image, write_picture
from ..utils.json_files import DAMAGE
from ..utils.progress import ProgressCallback
from .report import render

SHEET = 12
"""Images in a split's contact sheet."""
MAX_PICTURES = 100
"""Issues of each type that are shown with their image; all are listed."""
MAX_SIZES = 10
"""Sizes of images that are counted one by one, the most frequent ones."""

_SIZE = 320  # pixels of a drawn image's longer side

_Json = dict[str, Any]


def write_data_report(
    folder: Path, splits: Mapping[str, CheckedSplit], *, progress: ProgressCallback | None = None
) -> Path:
    """Write `report.md` about checked `splits`, by name, with pictures beside it, and return its path.

    `progress` is called with the number of drawn issues and the total.

    Raises:
        OutputError: A file cannot be written.
    """
    make_folder(folder / "issues", "report")
    readers = {name: _Labels(split) for name, split in splits.items()}
    for name, labels in readers.items():
        write_picture(folder / f"labels_{name}.jpg", _draw_sheet(labels))
    boxes = {name: labels.measure() for name, labels in readers.items()}
    plot_sizes(folder / "sizes.png", boxes)
    shown = [(name, issue) for name, split in splits.items() for issue in _select(split.issues)]
    pictures: dict[Issue, str] = {}
    for number, (name, issue) in enumerate(shown, 1):
        if picture := readers[name].draw_image(issue.image_id):
            path = folder / "issues" / f"{number:04}.jpg"
            write_picture(path, picture)
            pictures[issue] = path.relative_to(folder).as_posix()
        if progress:
            progress(number, len(shown))
    classes = list(dict.fromkeys(each for split in splits.values() for each in split.classes))
    page = render(
        Path(__file__).with_name("data_report.md.j2"),
        splits=splits,
        classes=classes,
        image_sizes=_count_sizes([labels.list_image_sizes() for labels in readers.values()]),
        groups={name: _group(split.issues) for name, split in splits.items()},
        pictures=pictures,
    )
    with open_atomic(folder / "report.md") as file:  # last, because it shows the others
        file.write(page.encode())
    return folder / "report.md"


def _count_sizes(sizes: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """Return the number of images of each size in each split, given the size of each image in each split."""
    counts = [Counter(each) for each in sizes]
    frequent = [size for size, _ in Counter(size for each in sizes for size in each).most_common(MAX_SIZES)]
    table = {size: [each[size] for each in counts] for size in frequent}
    others = [each.total() - sum(each[size] for size in frequent) for each in counts]
    return {**table, "others": others} if any(others) else table


def _group(issues: Iterable[Issue]) -> dict[IssueType, list[Issue]]:
    groups: dict[IssueType, list[Issue]] = {}
    for issue in issues:
        groups.setdefault(issue.type, []).append(issue)
    return groups


def _select(issues: Iterable[Issue]) -> list[Issue]:
    return [issue for group in _group(issues).values() for issue in group[:MAX_PICTURES]]


class _Labels:
    """The valid labels of a split, by image."""

    def __init__(self, split: CheckedSplit) -> None:
        self._split = split
        try:
            content = json.loads(split.annotations.read_bytes())
        except (OSError, *DAMAGE):  # it is one of the issues
            content = {}
        entries: dict[str, list[_Json]] = {}
        for key in ("images", "categories", "annotations"):
            listed = content.get(key) if isinstance(content, dict) else None
            entries[key] = [each for each in (listed if isinstance(listed, list) else ()) if isinstance(each, dict)]
        names = (each for each in entries["categories"] if isinstance(each.get("id"), int))
        self._classes = {each["id"]: str(each.get("name")) for each in names}
        self._objects: dict[Any, list[_Json]] = {}
        for each in entries["annotations"]:
            is_valid = isinstance(each.get("image_id"), int) and parse_box(each.get("bbox")) is not None
            if is_valid and each.get("category_id") in self._classes:
                self._objects.setdefault(each["image_id"], []).append(each)
        is_named = (each for each in entries["images"] if isinstance(each.get("file_name"), str))
        self.images: dict[Any, _Json] = {each.get("id"): each for each in is_named if isinstance(each.get("id"), int)}

    def measure(self) -> list[tuple[float, float]]:
        """Return the width and height of each object in pixels."""
        return [(each["bbox"][2], each["bbox"][3]) for objects in self._objects.values() for each in objects]

    def list_image_sizes(self) -> list[str]:
        """Return the size of each image, such as "640x480"."""
        sides = ((each.get("height"), each.get("width")) for each in self.images.values())
        return [format_size((height, width)) for height, width in sides if type(height) is type(width) is int]

    def draw_image(self, image_id: int | None) -> Image.Image | None:
        """Draw an image with its labels; return None if it cannot be read."""
        image = self.images.get(image_id)
        if image is None:
            return None
        try:
            pixels = load_image(self._split.images / image["file_name"])
        except ImageError:
            return None
        height, width, _ = pixels.shape
        objects = self._objects.get(image_id, [])
        places = {id: place for place, id in enumerate(self._classes)}
        boxes = np.array([each["bbox"] for each in objects], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        detections = Detections(
            boxes=boxes,
            scores=np.ones(len(objects), np.float32),
            labels=np.array([places[each["category_id"]] for each in objects], np.int64),
            classes=tuple(self._classes.values()),
            image_size=(height, width),
            rles=[to_rle(_valid_mask(each, (height, width)), height, width) for each in objects] if objects else None,
            image=pixels,
        )
        scale = _SIZE / max(height, width)
        detections = detections.resize((max(1, round(height * scale)), max(1, round(width * scale))))
        assert detections.image is not None
        return draw(detections.image, detections, with_scores=False)


def _valid_mask(annotation: _Json, image_size: tuple[int, int]) -> Any:
    """Return the mask of an annotation, or None if it has none that can be drawn."""
    segmentation = annotation.get("segmentation")
    if measure_mask(segmentation) is None:
        return None
    if isinstance(segmentation, dict) and segmentation.get("size") != list(image_size):
        return None
    return segmentation


def _draw_sheet(labels: _Labels) -> Image.Image:
    """Draw some images with their labels in a grid; the same ones each time."""
    ids = sorted(labels.images)
    random.Random(0).shuffle(ids)
    drawn: list[Image.Image] = []
    for image_id in ids:
        if len(drawn) == SHEET:
            break
        if picture := labels.draw_image(image_id):
            drawn.append(picture)
    return _join(drawn, columns=4)


def _join(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    num_rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * _SIZE, max(1, num_rows) * _SIZE), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        sheet.paste(picture, (column * _SIZE, row * _SIZE))
    return sheet
