"""Conversion of labels in other formats to COCO annotations, and helpers to read them."""

import math
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from ..utils.images import DECODER_ERRORS
from .annotation_checks import MAX_NUMBER
from .checks import PROVENANCE
from .issues import Issue, IssueType

_IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass
class LabelledSplit:
    """A split of a data set while its labels are read: COCO's lists, with ids from 1, and the issues."""

    name: str
    folder: Path  # of the data set; image names are relative to it
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)  # with the name of a "category", not its id
    issues: list[Issue] = field(default_factory=list)

    def add_issue(self, issue_type: IssueType, where: str, message: str) -> None:
        """Add `Issue(issue_type, where, message)`."""
        self.issues.append(Issue(issue_type, where, message))

    def add_image(self, name: str, image_size: tuple[int, int], where: str) -> None:
        """Add the image with the file `name` and `image_size` (height, width), which the file `where` describes."""
        height, width = image_size
        entry = {"id": len(self.images) + 1, "file_name": name, "width": width, "height": height, PROVENANCE: where}
        self.images.append(entry)

    def add_object(self, category: str, box: list[float], polygons: list[list[float]], where: str) -> None:
        """Add an object to the last image, with the name of its `category` and the place of its label, `where`.

        The `box` is x1, y1, x2, y2, and each of the `polygons` x1, y1, x2, y2, x3, y3, ... in pixels from 0.
        """
        x1, y1, x2, y2 = box
        annotation = {
            "id": len(self.annotations) + 1,
            "image_id": len(self.images),
            "category": category,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": round(sum(map(_area, polygons)), 2) if polygons else abs((x2 - x1) * (y2 - y1)),
            "segmentation": polygons,
            "iscrowd": 0,
            PROVENANCE: where,
        }
        self.annotations.append(annotation)

    def relative(self, path: Path) -> str:
        """Return a path relative to the data set's folder."""
        return path.relative_to(self.folder).as_posix()

    def read_lines(self, path: Path) -> Iterator[tuple[int, str]]:
        """Yield the number and the text of each non-empty line. If the file cannot be read, add an issue."""
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            self.add_issue(IssueType.LABEL, str(path), f"the file cannot be read: {error}")
            return
        yield from ((number, line.strip()) for number, line in enumerate(lines, 1) if line.strip())

    def add_file(self, path: Path) -> tuple[int, int] | None:
        """Add an image file. Return the (height, width) in its header, or None and add an issue if it is unreadable."""
        name = self.relative(path)
        try:
            with Image.open(path) as image:
                is_turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)  # by 90 degrees
                image_size = image.size if is_turned else image.size[::-1]
        except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
            self.add_issue(IssueType.UNREADABLE_IMAGE, name, str(error))
            return None
        self.add_image(name, image_size, name)
        return image_size


def find_images(folder: Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted."""
    paths = sorted(folder.rglob("*"))
    return [path for path in paths if path.suffix.lower() in _IMAGE_SUFFIXES and not path.name.startswith(".")]


def parse_number(text: str | None) -> float:
    """Parse a coordinate.

    Raises:
        ValueError: The text is not a number, or the number is not finite or too large.
    """
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not abs(number) < MAX_NUMBER:
        raise ValueError(f"{reprlib.repr(text)} is not a number below {MAX_NUMBER:,.0f}")
    return number


def _area(polygon: list[float]) -> float:
    xs, ys = np.array(polygon).reshape(-1, 2).T
    return abs(float(xs @ np.roll(ys, -1) - ys @ np.roll(xs, -1))) / 2  # the shoelace formula
