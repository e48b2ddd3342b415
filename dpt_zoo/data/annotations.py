"""What the labels of other formats than COCO's are read into, and what reading them takes."""

import math
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..utils.images import DAMAGE
from .annotation_checks import MAX_NUMBER, ImageSize
from .issues import IssueType, Issue

_IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)


@dataclass
class Object:
    """A labelled object.

    Attributes:
        name: its class.
        box: xyxy, pixels that count from 0.
        polygons: its outlines, each x1, y1, x2, y2, ... in such pixels; empty if it has only a box.
        source: the file and the place in it.
    """

    name: str
    box: list[float]
    polygons: list[list[float]]
    source: str


@dataclass
class Picture:
    """An image and its objects.

    Attributes:
        name: its path relative to the data set's folder.
        size: of the upright image.
        source: the file that tells of it.
        objects: what is labelled in it.
    """

    name: str
    size: ImageSize
    source: str
    objects: list[Object] = field(default_factory=list)


@dataclass
class LabelledSplit:
    """A split that is being read: what is in it, and what could not be read."""

    name: str
    pictures: list[Picture] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)

    def add(self, issue_type: IssueType, where: str, what: str) -> None:
        self.issues.append(Issue(issue_type, where, what))

    def lines(self, path: Path) -> Iterator[tuple[int, str]]:
        """The lines of a text file that are not empty, with their numbers; if it cannot be read, none."""
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            self.add(IssueType.LABEL, str(path), f"it cannot be read: {error}")
            return
        yield from ((number, line.strip()) for number, line in enumerate(lines, 1) if line.strip())

    def read_size(self, path: Path, where: str) -> ImageSize | None:
        """Width and height of an image that is turned upright, from its header; None if it cannot be read."""
        try:
            with Image.open(path) as image:
                width, height = image.size
                is_turned = image.getexif().get(_EXIF_ORIENTATION) in _QUARTER_TURNS
        except (*DAMAGE, Image.DecompressionBombError) as error:
            self.add(IssueType.UNREADABLE_IMAGE, where, str(error))
            return None
        return (height, width) if is_turned else (width, height)


def images_in(folder: Path) -> list[Path]:
    """The image files in a folder and those below, by name."""
    paths = sorted(folder.rglob("*"))
    return [path for path in paths if path.suffix.lower() in _IMAGE_SUFFIXES and not path.name.startswith(".")]


def sensible(text: str | None) -> float:
    """Read a number.

    Raises:
        ValueError: it is none, not finite, or of no size that can be meant.
    """
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not abs(number) < MAX_NUMBER:
        raise ValueError(f"{reprlib.repr(text)} is no sensible number")
    return number
