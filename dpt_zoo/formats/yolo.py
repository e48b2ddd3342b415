"""Reader of YOLO's labels: text files with boxes or polygons, and a YAML file that describes them."""

import itertools
import os
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError
from ..utils.files import exists, expand_user, list_files, walk_files
from ..utils.image_files import find_images
from .annotations import LabelledSplit, parse_number
from .issues import IssueType

_SPLITS = ("train", "val", "test")

_NOT_A_LABEL = re.compile(r"(classes|labels|notes|readme.*|license.*)\.txt", re.IGNORECASE)
"""Text files that tools write among the labels."""


class _Loader(yaml.SafeLoader):
    """Reads text, null, lists and dicts only, so that a class named `no` keeps its name, and loses no key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[str, Any] = {}
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            other = first.setdefault(key.value, value) if isinstance(key, yaml.ScalarNode) else value
            if other is not value and not (isinstance(value, yaml.ScalarNode) and other.value == value.value):
                problem = f"the key {key.value!r} stands twice, with different values"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def _tag(name: str) -> str:
    return f"tag:yaml.org,2002:{name}"


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] in (_tag("null"), _tag("merge"))]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag in (None, *map(_tag, ("null", "str", "seq", "map")))
} | dict.fromkeys(map(_tag, ("int", "float", "bool", "timestamp")), yaml.SafeLoader.construct_yaml_str)


def find_description(folder: Path) -> Path | None:
    """Return the file that describes a YOLO data set: `data.yaml`, another YAML file, or `classes.txt`.

    Raises:
        DataError: There are several, none of which is `data.yaml`.
    """
    files = [*list_files(folder, "data.y*ml"), *list_files(folder, "*.yaml"), *list_files(folder, "*.yml")]
    found = [path for path in files if path.stem == "data" or _describes_images(path)]
    if len(found) > 1 and found[0].stem != "data":
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder}: several files describe a YOLO data set: {names}: give one of them, not the folder")
    if not found and (folder / "labels").is_dir():  # as Label Studio exports it
        found = list_files(folder, "classes.txt")
    return found[0] if found else None


def read_yolo(path: Path) -> tuple[list[str], list[LabelledSplit]]:
    """Return the classes and the splits of a data set that the YAML file (or the `classes.txt`) at `path` describes.

    Raises:
        DataError: The file cannot be used.
    """
    try:
        content = _read_description(path)
        classes = _read_classes(content)
        names = [name for name in filter(content.get, _SPLITS) if name != "test" or _has_test(path, content)]
        splits = [_read_split(path, name, content, classes) for name in names]
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be used: {' '.join(str(error).split())}") from error
    if not splits:
        raise DataError(f"{path} cannot be used: it names no images: give the folders of images as train and val")
    return classes, splits


def _has_test(path: Path, content: dict[str, Any]) -> bool:
    """Return whether the folder of the test images exists. Roboflow's files name one that is not always exported."""
    entry = content["test"]
    return not isinstance(entry, str) or _locate(path.parent, [content.get("path")], entry) is not None


def _read_description(path: Path) -> Any:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".txt":
        names = [line.strip() for line in text.split("\n") if line.strip()]
        return {"names": names, "train": "images" if (path.parent / "images").is_dir() else "."}
    return yaml.load(text, _Loader)


def _describes_images(path: Path) -> bool:
    try:
        content = _read_description(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and "names" in content and any(map(content.get, _SPLITS))


def _read_classes(content: Any) -> list[str]:
    """Return the classes in a YAML file's content. Raise `ValueError` if they are invalid or for another task."""
    if not isinstance(content, dict) or not content.get("names") or not isinstance(content["names"], list | dict):
        raise ValueError("it has no names: give the classes, in order, as a list")
    if "kpt_shape" in content:
        raise ValueError("its labels are poses (kpt_shape); only boxes and polygons are supported")
    names = content["names"]
    names = names if isinstance(names, dict) else {str(number): name for number, name in enumerate(names)}
    numbers = [int(key) if re.fullmatch("[0-9]{1,9}", str(key)) else -1 for key in names]
    if sorted(numbers) != list(range(len(names))):
        raise ValueError(f"its names are not numbered from 0 to {len(names) - 1}")
    if (num_names := content.get("nc")) is not None and parse_number(str(num_names)) != len(names):
        raise ValueError(f"nc is {num_names}, but there are {len(names)} names")
    classes = [name for _, name in sorted(zip(numbers, names.values(), strict=True), key=lambda pair: pair[0])]
    if any(isinstance(name, list | dict) for name in classes) or len(set(map(str, classes))) < len(classes):
        raise ValueError(f"its names are {reprlib.repr(classes)}: give every class its own name")
    return list(map(str, classes))


def _read_split(path: Path, name: str, content: dict[str, Any], classes: list[str]) -> LabelledSplit:
    """Read the images of a split in the YAML file at `path`: folders, text files that list them, or a list of these."""
    split, prefix = LabelledSplit(name, path.parent), content.get("path")
    folders: list[Path] = []
    images: list[Path] = []
    for entry in content[name] if isinstance(content[name], list) else [content[name]]:
        found = _find(split, [prefix], entry, f"{path}, {name}")
        if found and found.is_dir():
            folders.append(found)
            images += find_images(found)
        elif found:
            for number, line in split.read_lines(found):
                image = _find(split, [prefix, str(found.parent)], line, f"{found}, line {number}")
                images += [image] if image else []
    split.folder = _common_folder(path.parent, {*folders, *(image.parent for image in images)})
    for image in images:
        _read_image(split, image, classes)
    for folder in folders:
        _report_orphans(split, folder, images)
    labels = [label_of(image["file_name"]) for image in split.images]
    if labels and not any(exists(split.folder / label) for label in labels):
        split.add_issue(IssueType.LABEL, labels[0], f"neither this nor any other label of {name} exists")
    return split


def _find(split: LabelledSplit, prefixes: list[Any], entry: Any, where: str) -> Path | None:
    """Find a path from the YAML file, or add an issue."""
    if isinstance(entry, str) and (path := _locate(split.folder, prefixes, entry)):
        return path
    name = repr(entry) if isinstance(entry, str) else reprlib.repr(entry)
    split.add_issue(IssueType.MISSING_IMAGE, where, f"there is no {name}, also not below {split.folder}")
    return None


def _locate(folder: Path, prefixes: list[Any], entry: str) -> Path | None:
    """Return where a path from the YAML file in a `folder` is, or None.

    Data sets are moved after they are written. So a path is first looked for in the file's own folder, as if that were
    the root. Then it is what it says, and finally its last two or more names may be in the file's folder.
    """
    starts = ["", *(prefix for prefix in prefixes if isinstance(prefix, str))]
    places = itertools.chain(_places_below(folder, starts, entry), _places(folder, starts, entry))
    return next(filter(exists, places), None)


def _places_below(folder: Path, starts: list[str], entry: str) -> Iterator[Path]:
    for start in starts:
        names = f"{start}/{entry}".replace("\\", "/").split("/")
        yield folder.joinpath(*(name for name in names if name not in ("", ".", "..")))


def _places(folder: Path, starts: list[str], entry: str) -> Iterator[Path]:
    for start in starts:
        yield Path(os.path.normpath(folder / expand_user(start) / expand_user(entry)))
    names = [name for name in entry.replace("\\", "/").split("/") if name not in ("", ".", "..")]
    yield from (folder.joinpath(*names[index:]) for index in range(1, len(names) - 1))


def _common_folder(home: Path, folders: set[Path]) -> Path:
    """Return the folder of the data, given those of its images: `home` if they are in it, or one with their labels."""
    if all(folder.is_relative_to(home) for folder in folders):
        return home
    return Path(os.path.commonpath([_without_images(folder) for folder in folders]))


def _without_images(folder: Path) -> Path:
    """Return the folder above the last "images" in a path."""
    return folder.parents[folder.parts[::-1].index("images")] if "images" in folder.parts else folder


def _report_orphans(split: LabelledSplit, folder: Path, images: list[Path]) -> None:
    """Report the labels for a `folder` that are for none of the `images`."""
    expected = {label_of(split.relative(image)) for image in images}
    for label in walk_files((split.folder / label_of(f"{split.relative(folder)}/any")).parent):
        name = split.relative(label)
        if label.suffix == ".txt" and name not in expected and not _NOT_A_LABEL.fullmatch(label.name):
            split.add_issue(IssueType.ORPHAN, name, f"there is no image {label.stem!r}")


def label_of(image: str) -> str:
    """Return an image's label: its path with "labels" instead of the last "images". Paths are relative to the data."""
    *folders, name = image.split("/")
    if "images" in folders:
        folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return "/".join([*folders, str(Path(name).with_suffix(".txt"))])


def _read_image(split: LabelledSplit, path: Path, classes: list[str]) -> None:
    size, label = split.add_file(path), label_of(split.relative(path))
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
