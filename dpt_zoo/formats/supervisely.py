"""Reader of Supervisely's projects: `meta.json`, and for each split a JSON file for each image."""

import base64
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..utils.files import exists, list_files
from ..utils.image_files import find_images
from .annotations import LabelledSplit, check_number, check_points, has_keys, list_categories, read_mask
from .issues import IssueType

WITHOUT_EXTENT = ("point", "line", "graph")
MAX_PNG = 1 << 26
"""The largest PNG of a mask in bytes, against compressed data that becomes much larger."""


def read_supervisely(folder: Path) -> tuple[list[str], list[LabelledSplit]]:
    """Return the classes, in the project's order, and the splits of a project. Without one, there are no splits.

    Boxes include their last pixel. Polygons with holes and bitmaps become masks.
    """
    meta = folder / "meta.json"
    homes = sorted(path.parent for path in folder.glob("*/ann") if path.is_dir())
    if not homes or not has_keys(meta, "classes"):
        return [], []
    splits = [LabelledSplit(home.name, folder) for home in homes]
    project = splits[0].read_json(meta) or {}
    for split, home in zip(splits, homes, strict=True):
        for path in find_images(home / "img"):
            labels = (home / "ann" / f"{path.name}.json", home / "ann" / f"{path.stem}.json")
            label = next(filter(exists, labels), None)
            if split.add_file(path) and label:
                _read_image(split, label)
        names = {name for path in find_images(home / "img") for name in (path.name, path.stem)}
        for label in list_files(home / "ann", "*.json"):
            if label.stem not in names:
                split.add_issue(IssueType.ORPHAN, split.relative(label), f"there is no image {label.stem!r}")
    titles = [each.get("title") for each in project.get("classes", ()) if isinstance(each, dict)]
    return list(dict.fromkeys([*filter(None, titles), *list_categories(splits)])), splits


def _read_image(split: LabelledSplit, label: Path) -> None:
    where = split.relative(label)
    content = split.read_json(label)
    objects = (content or {}).get("objects", ())
    for number, each in enumerate(objects if isinstance(objects, list) else (), 1):
        place = f"{where}, object {number}"
        try:
            shape = each["geometryType"]
            if shape in WITHOUT_EXTENT:
                split.add_issue(IssueType.NO_EXTENT, place, f"{shape} {each['classTitle']!r}")
            else:
                _read_object(split, each, place)
        except (KeyError, TypeError) as error:
            split.add_issue(IssueType.LABEL, place, f"the object has another form: {error!r}")
        except (ValueError, zlib.error) as error:
            split.add_issue(IssueType.LABEL, place, str(error))


def _read_object(split: LabelledSplit, content: dict[str, Any], where: str) -> None:
    category = content["classTitle"]
    size = split.images[-1]["height"], split.images[-1]["width"]
    match content["geometryType"]:
        case "rectangle":
            points = np.array(check_points(content["points"]["exterior"], 2))
            (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
            split.add_object(category, [x1, y1, x2 + 1, y2 + 1], [], where)
        case "polygon":
            outline = _flat(content["points"]["exterior"])
            if holes := [_flat(hole) for hole in content["points"]["interior"]]:
                split.add_mask(category, _draw([outline], size) & ~_draw(holes, size), where)
            else:
                split.add_polygons(category, [outline], where)
        case "bitmap":
            split.add_mask(category, _read_bitmap(content["bitmap"], size), where)
        case other:
            raise ValueError(f"the geometry is {other!r}; rectangle, polygon and bitmap are supported")


def _flat(points: Any) -> list[float]:
    return [value for point in check_points(points) for value in point]


def _draw(polygons: list[list[float]], size: tuple[int, int]) -> NDArray[np.bool_]:
    rles = coco_mask.frPyObjects(polygons, *size)
    return coco_mask.decode(coco_mask.merge(rles)).astype(bool)


def _read_bitmap(bitmap: dict[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    packed = base64.b64decode(bitmap["data"], validate=True)
    png = zlib.decompressobj().decompress(packed, MAX_PNG)
    return read_mask(png, [check_number(value) for value in bitmap["origin"]], size)
