"""Conversion of labels in other formats to COCO annotations, and helpers to read them."""

import contextlib
import io
import itertools
import math
import mmap
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from ..errors import ImageError
from ..utils.files import exists, is_clutter
from ..utils.image_files import read_size
from ..utils.images import DECODER_ERRORS
from ..utils.json_files import parse_json
from .issues import Issue, IssueType

PROVENANCE = "converted_from"
"""The first key of a converted file, with its original's path; in an image or annotation, the place of its label."""

MAX_NUMBER = 1e6
"""The largest coordinate in pixels. pycocotools runs out of memory on very long outlines."""

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
        area = round(sum(areas), 2) if areas else abs((x2 - x1) * (y2 - y1))
        self._add(category, [x1, y1, x2 - x1, y2 - y1], area, polygons, where)

    def add_polygons(self, category: str, polygons: list[list[float]], where: str) -> None:
        """Add an object as `add_object` does: `category`, the box of the `polygons`, `where`."""
        xs, ys = (list(itertools.chain(*(polygon[start::2] for polygon in polygons))) for start in (0, 1))
        self.add_object(category, [min(xs), min(ys), max(xs), max(ys)], polygons, where)

    def add_mask(self, category: str, mask: NDArray[Any], where: str) -> None:
        """Add an object as `add_object` does: `category`, a `mask` (H, W) of the whole image, `where`.

        Raises:
            ValueError: The mask is empty.
        """
        rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        area = int(coco_mask.area(rle))
        if not area:
            raise ValueError("the mask has no pixels")
        segmentation = {"size": list(mask.shape), "counts": rle["counts"].decode()}
        self._add(category, coco_mask.toBbox(rle).tolist(), area, segmentation, where)

    def _add(self, category: str, bbox: list[float], area: float, segmentation: Any, where: str) -> None:
        annotation = {
            "id": len(self.annotations) + 1,
            "image_id": len(self.images),
            "category": category,
            "bbox": bbox,
            "area": area,
            "segmentation": segmentation,
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

    def read_json(self, path: Path) -> dict[str, Any] | None:
        """Return the object in a JSON file, or None and add an issue if it cannot be read or is no object."""
        try:
            content = parse_json(path.read_text(encoding="utf-8-sig"))
            if not isinstance(content, dict):
                raise ValueError(f"the file holds {reprlib.repr(content)}")
        except (OSError, ValueError, RecursionError) as error:
            self.add_issue(IssueType.LABEL, self.relative(path), str(error))
            return None
        return content

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


def find_homes(folder: Path) -> dict[Path, str]:
    """Return where labels beside images may be, with the name of the split: in `folder` itself, "train", and below."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not is_clutter(path.name))
    return {folder: "train", **{home: home.name for home in inside}}


def list_categories(splits: Iterable[LabelledSplit]) -> list[str]:
    """Return the categories of the objects in `splits`, in alphabetical order."""
    return sorted({each["category"] for split in splits for each in split.annotations})


def polygon_area(points: NDArray[np.float64]) -> float:
    """Return the area of a polygon with the `points` (N, 2), by the shoelace formula."""
    xs, ys = points.T
    return abs(float(xs @ np.roll(ys, -1) - ys @ np.roll(xs, -1))) / 2


def has_keys(file: Path, *keys: str) -> bool:
    """Return whether all `keys` occur in a JSON `file`, without parsing it."""
    with mapped(file) as content:
        return all(re.search(rb'"%s"\s*:' % key.encode(), content) for key in keys)


@contextlib.contextmanager
def mapped(file: Path) -> Iterator[mmap.mmap | bytes]:
    """Yield the content of a file, in memory only where it is used, or nothing if it cannot be read."""
    with contextlib.ExitStack() as stack:
        content: mmap.mmap | bytes = b""
        with contextlib.suppress(OSError, ValueError):  # ValueError: the file is empty
            stream = stack.enter_context(file.open("rb"))
            content = stack.enter_context(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        yield content


def find_image(folder: Path, name: str) -> Path | None:
    """Find an image by the `name` in a label: it may have backslashes, or folders that exist no more."""
    parts = name.replace("\\", "/").split("/")
    return next((path for path in (folder.joinpath(*parts), folder / parts[-1]) if exists(path)), None)


def check_number(value: Any) -> float:
    """Return a coordinate from a JSON file.

    Raises:
        ValueError: It is not a finite number, or too large.
    """
    if type(value) not in (int, float) or not abs(value) < MAX_NUMBER:
        raise ValueError(f"{reprlib.repr(value)} is not a number below {MAX_NUMBER:,.0f}")
    return value


def check_points(points: Any, minimum: int = 3) -> list[list[float]]:
    """Return the `points` [x, y] of a shape in a JSON file.

    Raises:
        ValueError: There are fewer than `minimum`, or one is invalid.
    """
    if not isinstance(points, list) or len(points) < minimum:
        raise ValueError(f"its points are {reprlib.repr(points)}: it needs {minimum}")
    if any(not isinstance(point, list) or len(point) != 2 for point in points):
        raise ValueError(f"its points are {reprlib.repr(points)}, not [[x, y], ...]")
    return [[check_number(x), check_number(y)] for x, y in points]


def ellipse_polygon(centre: Sequence[float], radii: Sequence[float], angle: float = 0.0) -> list[float]:
    """Return a polygon of 64 points for an ellipse at `centre` with the `radii`, turned by an `angle` in radians."""
    steps = [2 * math.pi * number / 64 for number in range(64)]
    xs = [radii[0] * math.cos(step) for step in steps]
    ys = [radii[1] * math.sin(step) for step in steps]
    cos, sin = math.cos(angle), math.sin(angle)
    points = ((x * cos - y * sin + centre[0], x * sin + y * cos + centre[1]) for x, y in zip(xs, ys, strict=True))
    return [round(value, 3) for point in points for value in point]


def read_mask(png: bytes, corner: Sequence[float], image_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask of a whole image with `image_size` (H, W) from a `png` of the pixels from `corner` (x, y) on.

    The alpha channel is the mask, if the PNG has one.

    Raises:
        ValueError: The PNG is damaged, or not inside the image.
    """
    x, y = map(round, corner)
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            width, height = image.size
            fits = 0 <= x <= image_size[1] - width and 0 <= y <= image_size[0] - height
            inside = _read_channel(image) if fits else None
    except DECODER_ERRORS as error:
        raise ValueError("the mask is no PNG that can be read") from error
    if inside is None:
        raise ValueError(f"the mask of {width}x{height} pixels at {x}, {y} is not in the image")
    mask = np.zeros(image_size, dtype=bool)
    mask[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return mask


def _read_channel(image: Image.Image) -> NDArray[np.bool_]:
    channel = image.getchannel("A") if "A" in image.getbands() else image.convert("L")
    return np.asarray(channel) > 0


def parse_number(text: str | None) -> float:
    """Parse a coordinate.

    Raises:
        ValueError: The text is not a number, or the number is not finite or too large.
    """
    if not _NUMBER.fullmatch(text or "") or not abs(number := float(text or "")) < MAX_NUMBER:
        raise ValueError(f"{reprlib.repr(text)} is not a number below {MAX_NUMBER:,.0f}")
    return number
