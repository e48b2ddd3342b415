"""Reader of Pascal VOC's labels: an XML file for each image."""

import itertools
from pathlib import Path
from xml.etree.ElementTree import Element

import defusedxml.ElementTree

from ..utils.files import exists, list_files
from ..utils.image_files import find_images
from .annotations import LabelledSplit, find_homes, list_categories, parse_number
from .issues import IssueType


def read_voc(folder: Path) -> tuple[list[str], list[LabelledSplit]]:
    """Return the classes, in alphabetical order, and the splits of a data set. Without labels, there are no splits."""
    labels, images = _find_folders(folder)
    if list_files(labels, "*.xml"):
        lists = {path.stem: path for path in list_files(folder, "ImageSets/Main/*.txt")}
        listed = [name for name in ("train", "val", "test", "trainval") if name in lists]
        names: list[str] = [name for name in listed if name != "trainval" or len(listed) == 1] or ["train"]
        splits = [_read_split(LabelledSplit(name, folder), images, labels, lists.get(name)) for name in names]
    else:
        homes = {home: name for home, name in find_homes(folder).items() if list_files(home, "*.xml")}
        splits = [_read_split(LabelledSplit(name, folder), home, home) for home, name in homes.items()]
    return list_categories(splits), splits


def _find_folders(folder: Path) -> tuple[Path, Path]:
    """Return the folders of the labels and of the images: VOC's, or those that other tools write."""
    default = folder / "Annotations", folder / "JPEGImages"
    pairs = itertools.product(("Annotations", "annotations", "labels"), ("JPEGImages", "images", "data"))
    found = ((folder / labels, folder / images) for labels, images in pairs if (folder / images).is_dir())
    return next((pair for pair in found if list_files(pair[0], "*.xml")), default)


def _read_split(split: LabelledSplit, images: Path, labels: Path, listed: Path | None = None) -> LabelledSplit:
    """Read the images that the file `listed` names, or all in a folder."""
    files: dict[str, Path] = {}
    for path in find_images(images):
        if files.setdefault(path.stem, path) != path:
            message = f"it would have the label of {split.relative(files[path.stem])}"
            split.add_issue(IssueType.DUPLICATE_IMAGE, split.relative(path), message)
    if listed:
        stems = {line: f"{split.relative(listed)}, line {number}" for number, line in split.read_lines(listed)}
    else:
        stems = {path.stem: split.relative(path) for path in sorted([*files.values(), *list_files(labels, "*.xml")])}
    for stem, where in stems.items():
        if stem in files:
            _read_image(split, files[stem], labels / f"{stem}.xml")
        else:
            issue_type = IssueType.MISSING_IMAGE if listed else IssueType.ORPHAN
            split.add_issue(issue_type, where, f"there is no image {stem!r} in {images}")
    return split


def _read_image(split: LabelledSplit, path: Path, label: Path) -> None:
    where = split.relative(label)
    if not exists(label):
        split.add_file(path)
        return
    try:
        root = defusedxml.ElementTree.fromstring(label.read_bytes())
        width, height = _read_side(root, "size/width"), _read_side(root, "size/height")
    except (OSError, SyntaxError, ValueError) as error:  # a SyntaxError's text has the line and column
        split.add_issue(IssueType.LABEL, where, str(error))
        return
    split.add_image(split.relative(path), (height, width), where)
    for number, element in enumerate(root.findall("object"), 1):
        try:
            _read_object(split, element, f"{where}, object {number}")
        except ValueError as error:
            split.add_issue(IssueType.LABEL, f"{where}, object {number}", str(error))


def _read_object(split: LabelledSplit, element: Element, where: str) -> None:
    """Read an object. Its box is the first and the last pixel, counted from 1."""
    name = _read_text(element, "name").strip()
    if not name:
        raise ValueError("the object has no name")
    x1, y1, x2, y2 = (_read_number(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    polygons = [[parse_number(point.text) - 1 for point in polygon] for polygon in element.findall("polygon")]
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"the polygon has {len(polygon)} numbers, not x1, y1, x2, y2, x3, y3, ...")
    split.add_object(name, [x1 - 1, y1 - 1, x2, y2], polygons, where)


def _read_side(root: Element, path: str) -> int:
    number = _read_number(root, path)
    if not number.is_integer():
        raise ValueError(f"{path} is {number}, not a whole number")
    return int(number)


def _read_number(element: Element, path: str) -> float:
    return parse_number(_read_text(element, path))


def _read_text(element: Element, path: str) -> str:
    found = element.findall(path)
    if len(found) != 1:
        raise ValueError(f"there is no {path}" if not found else f"there are {len(found)} {path}, not one")
    return found[0].text or ""
