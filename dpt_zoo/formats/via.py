"""Reader of VGG Image Annotator's JSON: one file for all images of a split."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..utils.files import list_files
from .annotations import (
    LabelledSplit,
    check_number,
    check_points,
    ellipse_polygon,
    find_homes,
    find_image,
    has_keys,
    list_categories,
)
from .issues import IssueType

CLASS_NAMES = ("class", "label", "name", "category", "type", "object")
"""The usual names of the attribute that has the class; the only attribute may have any name."""
WITHOUT_EXTENT = ("point", "polyline", "line")


def read_via(folder: Path) -> tuple[list[str], list[LabelledSplit]]:
    """Return the classes, in alphabetical order, and the splits of a data set. Without labels, there are no splits.

    Raises:
        DataError: A folder has several of these files.
    """
    splits = []
    for home, name in find_homes(folder).items():
        files = [file for file in list_files(home, "*.json") if has_keys(file, "regions", "filename")]
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise DataError(
                f"{home}: several files of VGG Image Annotator, of which each may have all: {names}: keep one"
            )
        if files:
            splits.append(LabelledSplit(name, folder))
            _read_file(splits[-1], files[0])
    return list_categories(splits), splits


def _read_file(split: LabelledSplit, file: Path) -> None:
    content = split.read_json(file) or {}
    images = content.get("_via_img_metadata", content)  # of a project, or exported
    entries = [entry for entry in images.values() if isinstance(entry, dict)] if isinstance(images, dict) else []
    where = split.relative(file)
    for entry in entries:
        name = str(entry.get("filename"))
        folders = (file.parent, file.parent / "images", split.folder / "images")
        path = next(filter(None, (find_image(folder, name) for folder in folders)), None)
        if path is None:
            split.add_issue(IssueType.MISSING_IMAGE, where, f"there is no image {name!r}")
        elif split.add_file(path):
            _read_regions(split, entry.get("regions"), f"{where}, {name}")


def _read_regions(split: LabelledSplit, regions: Any, where: str) -> None:
    """Read the regions of an image: a list or, in version 1, a dict by number."""
    listed: Iterable[Any] = regions.values() if isinstance(regions, dict) else regions or ()
    for number, region in enumerate(listed, 1):
        place = f"{where}, region {number}"
        try:
            shape, attributes = region["shape_attributes"], region["region_attributes"]
            if shape["name"] in WITHOUT_EXTENT:
                split.add_issue(IssueType.NO_EXTENT, place, str(shape["name"]))
                continue
            _add_region(split, _find_class(attributes), shape, place)
        except (KeyError, TypeError, AttributeError) as error:
            split.add_issue(IssueType.LABEL, place, f"the region has another form: {error}")
        except ValueError as error:
            split.add_issue(IssueType.LABEL, place, str(error))


def _find_class(attributes: dict[str, Any]) -> str:
    """Return the class in a region's attributes: a text, or the one that is true of several."""
    names = [name for name in CLASS_NAMES if name in attributes] or list(attributes)
    if len(names) != 1 and names[:1] != [next((name for name in CLASS_NAMES if name in attributes), None)]:
        raise ValueError(f"its attributes are {attributes!r}: name the one with the class {CLASS_NAMES[0]!r}")
    value = attributes[names[0]]
    if isinstance(value, dict):
        chosen = [name for name, is_chosen in value.items() if is_chosen]
        value = chosen[0] if len(chosen) == 1 else ""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"its class is {attributes[names[0]]!r}: choose one")
    return value.strip()


def _add_region(split: LabelledSplit, category: str, shape: dict[str, Any], where: str) -> None:
    def read(*keys: str) -> list[float]:
        return [check_number(shape[key]) for key in keys]

    match shape["name"]:
        case "rect":
            x, y, width, height = read("x", "y", "width", "height")
            split.add_object(category, [x, y, x + width, y + height], [], where)
        case "polygon":
            pairs = zip(shape["all_points_x"], shape["all_points_y"], strict=True)
            points = check_points([[x, y] for x, y in pairs])
            split.add_polygons(category, [[value for point in points for value in point]], where)
        case "circle":
            x, y, radius = read("cx", "cy", "r")
            split.add_polygons(category, [ellipse_polygon([x, y], [radius, radius])], where)
        case "ellipse":
            x, y, radius_x, radius_y = read("cx", "cy", "rx", "ry")
            angle = check_number(shape.get("theta", 0))
            split.add_polygons(category, [ellipse_polygon([x, y], [radius_x, radius_y], angle)], where)
        case other:
            raise ValueError(f"the shape is {other!r}; rect, polygon, circle and ellipse are supported")
