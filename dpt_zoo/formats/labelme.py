"""Reader of labelme's labels: a JSON file for each image, beside it."""

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..utils.files import list_files
from ..utils.image_files import find_images
from .annotations import (
    LabelledSplit,
    check_points,
    ellipse_polygon,
    find_homes,
    find_image,
    has_keys,
    list_categories,
    read_mask,
)
from .issues import IssueType

WITHOUT_EXTENT = ("point", "points", "line", "linestrip")


def read_labelme(folder: Path) -> tuple[list[str], list[LabelledSplit]]:
    """Return the classes, in alphabetical order, and the splits of a data set. Without labels, there are no splits.

    The parts of an object have the same label and `group_id`. Images without a file of labels have no objects.
    """
    splits = []
    for home, name in find_homes(folder).items():
        if labels := [file for file in list_files(home, "*.json") if has_keys(file, "shapes", "imagePath")]:
            splits.append(LabelledSplit(name, folder))
            _read_split(splits[-1], home, labels)
    return list_categories(splits), splits


def _read_split(split: LabelledSplit, home: Path, labels: list[Path]) -> None:
    labelled = set()
    for label in labels:
        if content := split.read_json(label):
            name = content.get("imagePath")
            path = find_image(home, name) if isinstance(name, str) else None
            path = path or next((path for path in find_images(home) if path.stem == label.stem), None)
            if path is None:
                split.add_issue(IssueType.MISSING_IMAGE, split.relative(label), f"there is no image {name!r}")
                continue
            labelled.add(path.resolve())
            _read_image(split, path, content, split.relative(label))
    for path in find_images(home):
        if path.resolve() not in labelled:
            split.add_file(path)


def _read_image(split: LabelledSplit, path: Path, content: dict[str, Any], where: str) -> None:
    size = split.add_file(path)
    if size is None:
        return
    groups: dict[Any, list[tuple[str, dict[str, Any]]]] = {}
    shapes = content["shapes"] if isinstance(content["shapes"], list) else []
    for number, shape in enumerate(shapes, 1):
        place = f"{where}, shape {number}"
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"].strip():
            split.add_issue(IssueType.LABEL, place, "the shape has no label")
        elif shape.get("shape_type") in WITHOUT_EXTENT:
            split.add_issue(IssueType.NO_EXTENT, place, f"{shape['shape_type']} {shape['label']!r}")
        else:
            group = shape.get("group_id")
            key = number if group is None else (shape["label"], str(group))
            groups.setdefault(key, []).append((place, shape))
    for parts in groups.values():
        try:
            _read_object(split, parts, size)
        except ValueError as error:
            split.add_issue(IssueType.LABEL, parts[0][0], str(error))


def _read_object(split: LabelledSplit, parts: list[tuple[str, dict[str, Any]]], size: tuple[int, int]) -> None:
    place, label = parts[0][0], parts[0][1]["label"].strip()
    shapes = [shape for _, shape in parts]
    types = {shape.get("shape_type", "polygon") for shape in shapes}
    if "mask" in types:
        if types != {"mask"}:
            raise ValueError("a group has masks and other shapes")
        split.add_mask(label, np.logical_or.reduce([_read_mask(shape, size) for shape in shapes]), place)
    elif types == {"rectangle"} and len(shapes) == 1:
        (x1, y1), (x2, y2) = _read_corners(shapes[0])
        split.add_object(label, [x1, y1, x2, y2], [], place)
    else:
        split.add_polygons(label, [_read_polygon(shape) for shape in shapes], place)


def _read_polygon(shape: dict[str, Any]) -> list[float]:
    match shape.get("shape_type", "polygon"):
        case "polygon":
            return [value for point in check_points(shape.get("points")) for value in point]
        case "rectangle":
            (x1, y1), (x2, y2) = _read_corners(shape)
            return [x1, y1, x2, y1, x2, y2, x1, y2]
        case "circle":  # its centre, and a point on it
            centre, point = check_points(shape.get("points"), 2)
            return ellipse_polygon(centre, [math.dist(centre, point)] * 2)
        case other:
            raise ValueError(f"the shape is {other!r}; polygon, rectangle, circle and mask are supported")


def _read_corners(shape: dict[str, Any]) -> list[list[float]]:
    """Return the upper left and the lower right corner of a rectangle, which may be drawn in any direction."""
    points = np.array(check_points(shape.get("points"), 2))
    return [points.min(0).tolist(), points.max(0).tolist()]


def _read_mask(shape: dict[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    corner, _ = _read_corners(shape)
    return read_mask(base64.b64decode(str(shape.get("mask")), validate=True), corner, size)
