"""Conversion of labels in other formats to COCO annotations, and helpers to read them."""

import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ImageError
from ..utils.image_files import read_size
from .annotation_checks import MAX_NUMBER, polygon_area
from .checks import PROVENANCE
from .issues import Issue, IssueType

_NUMBER = re.compile(r"\s*[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?\s*", re.IGNORECASE)
"""A decimal number. Python's `float` also takes `0_5`, digits of other scripts, and `nan`."""


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
        areas = [polygon_area(np.array(polygon).reshape(-1, 2)) for polygon in polygons]
        annotation = {
            "id": len(self.annotations) + 1,
            "image_id": len(self.images),
            "category": category,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": round(sum(areas), 2) if areas else abs((x2 - x1) * (y2 - y1)),
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
            lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() also splits at U+2028 and others
        except (OSError, ValueError) as error:
            self.add_issue(IssueType.LABEL, str(path), f"the file cannot be read: {error}")
            return
        yield from ((number, line.strip()) for number, line in enumerate(lines, 1) if line.strip())

    def add_file(self, path: Path) -> tuple[int, int] | None:
        """Add an image file. Return the (height, width) in its header, or None and add an issue if it is unreadable."""
        name = self.relative(path)
        try:
            image_size = read_size(path)
        except ImageError as error:
            self.add_issue(IssueType.UNREADABLE_IMAGE, name, str(error).removeprefix(f"{path}: "))
            return None
        self.add_image(name, image_size, name)
        return image_size


def parse_number(text: str | None) -> float:
    """Parse a coordinate.

    Raises:
        ValueError: The text is not a number, or the number is not finite or too large.
    """
    if not _NUMBER.fullmatch(text or "") or not abs(number := float(text or "")) < MAX_NUMBER:
        raise ValueError(f"{reprlib.repr(text)} is not a number below {MAX_NUMBER:,.0f}")
    return number
