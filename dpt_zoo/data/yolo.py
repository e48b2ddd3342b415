"""Reader of YOLO's labels: text files with boxes or polygons, and a `data.yaml`."""

import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError
from .annotations import LabelledSplit, find_images, parse_number
from .checks import exists
from .issues import IssueType


def find_yaml(folder: Path) -> Path | None:
    """Return the file that describes a YOLO data set: `data.yaml`, or the only YAML file."""
    files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    if folder / "data.yaml" in files:
        return folder / "data.yaml"
    return files[0] if len(files) == 1 else None


def read_yolo(path: Path) -> tuple[list[str], list[LabelledSplit]]:
    """Return the classes and the splits of a data set that the YAML file at `path` describes.

    Raises:
        DataError: The file cannot be used.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        classes = _read_classes(content)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be used: {' '.join(str(error).split())}") from error
    splits = []
    for name in filter(content.get, ("train", "val", "test")):
        split, entries = LabelledSplit(name, path.parent), content[name]
        for entry in entries if isinstance(entries, list) else [entries]:
            for image in _find_images(split, entry, content.get("path"), f"{path}, {name}"):
                _read_image(split, image, classes)
        labels = [_label_of(image["file_name"]) for image in split.images]
        if labels and not any(exists(split.folder / label) for label in labels):
            split.add_issue(IssueType.LABEL, labels[0], f"neither this nor any other label of {name} exists")
        splits.append(split)
    if not splits:
        raise DataError(f"{path} cannot be used: it names no images: give the folders of images as train and val")
    return classes, splits


def _read_classes(content: Any) -> list[str]:
    """Return the classes in a YAML file's content. Raise `ValueError` if they are invalid or for another task."""
    if not isinstance(content, dict) or not content.get("names") or not isinstance(content["names"], list | dict):
        raise ValueError("it has no names: give the classes, in order, as a list")
    if "kpt_shape" in content:
        raise ValueError("its labels are poses (kpt_shape); only boxes and polygons are supported")
    names = content["names"]
    names = names if isinstance(names, dict) else dict(enumerate(names))
    if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
        raise ValueError(f"its names are not numbered from 0 to {len(names) - 1}")
    if content.get("nc", len(names)) != len(names):
        raise ValueError(f"nc is {reprlib.repr(content['nc'])}, but there are {len(names)} names")
    classes = [names[number] for number in sorted(names, key=int)]
    if any(isinstance(name, list | dict) for name in classes) or len(set(map(str, classes))) < len(classes):
        raise ValueError(f"its names are {reprlib.repr(classes)}: give every class its own name")
    return list(map(str, classes))


def _find_images(split: LabelledSplit, entry: Any, prefix: Any, where: str) -> Iterator[Path]:
    """Yield the images of an entry in the YAML file: a folder, or a text file that lists them."""
    path = _find(split, prefix, entry, where)
    if path and path.is_dir():
        images = find_images(path)
        yield from images
        expected = {_label_of(split.relative(image)) for image in images}
        for label in sorted((split.folder / _label_of(f"{split.relative(path)}/any")).parent.rglob("*.txt")):
            name = split.relative(label)
            if name not in expected and label.name != "classes.txt":  # some tools put the names there
                split.add_issue(IssueType.ORPHAN, name, f"there is no image {label.stem!r}")
    elif path:
        listed = (_find(split, prefix, line, f"{path}, line {number}") for number, line in split.read_lines(path))
        yield from filter(None, listed)


def _find(split: LabelledSplit, prefix: Any, entry: Any, where: str) -> Path | None:
    """Find a path from the YAML file in the file's own folder, because data sets are moved after they are written."""
    for start in ("", prefix):
        if isinstance(start, str) and isinstance(entry, str):
            names = f"{start}/{entry}".replace("\\", "/").split("/")
            path = split.folder.joinpath(*(name for name in names if name not in ("", ".", "..")))
            if exists(path):
                return path
    name = repr(entry) if isinstance(entry, str) else reprlib.repr(entry)
    split.add_issue(IssueType.MISSING_IMAGE, where, f"there is no {name} below {split.folder}")
    return None


def _label_of(image: str) -> str:
    """Return an image's label: its path with "labels" instead of the last "images". Paths are relative to the data."""
    *folders, name = image.split("/")
    if "images" in folders:
        folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return "/".join([*folders, str(Path(name).with_suffix(".txt"))])


def _read_image(split: LabelledSplit, path: Path, classes: list[str]) -> None:
    size, label = split.add_file(path), _label_of(split.relative(path))
    if size is None or not exists(split.folder / label):
        return
    for number, line in split.read_lines(split.folder / label):
        try:
            _read_line(split, line, size, classes, f"{label}, line {number}")
        except ValueError as error:
            split.add_issue(IssueType.LABEL, f"{label}, line {number}", str(error))


def _read_line(split: LabelledSplit, line: str, size: tuple[int, int], classes: list[str], where: str) -> None:
    """Read a class and a box's centre, width and height, or a polygon's points, as fractions of (height, width)."""
    label, *numbers = map(parse_number, line.split())
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise ValueError(f"the line has {len(numbers) + 1} numbers: a class and a box are 5; with a polygon 7, 9, ...")
    if label not in range(len(classes)):
        raise ValueError(f"the class is {label:g}: the names are numbered from 0 to {len(classes) - 1}")
    numbers = [number * size[(index + 1) % 2] for index, number in enumerate(numbers)]
    if len(numbers) == 4:
        x, y, width, height = numbers
        box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        split.add_object(classes[int(label)], box, [], where)
    else:
        xs, ys = numbers[::2], numbers[1::2]
        split.add_object(classes[int(label)], [min(xs), min(ys), max(xs), max(ys)], [numbers], where)
