"""Write data sets: convert one to another layout, and split one that has a single folder."""

import contextlib
import functools
import json
import os
import posixpath
import random
import shutil
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import yaml

from ..errors import DataError, InputError, OutputError
from ..formats.annotations import PROVENANCE
from ..formats.yolo import label_of
from ..utils.files import exists, expand_user, remove
from ..utils.progress import ProgressCallback
from ..utils.text import plural
from ..utils.validation import check_integer
from .checks import CheckedSplit, check_splits, raise_errors
from .layouts import find_splits

Layout = Literal["coco", "yolo", "voc"]

_Json = dict[str, Any]
_Writer = Callable[[Path, str, _Json, Callable[[str, str], None], Counter[str]], None]
"""Writes a split: the folder, the name, COCO's content, a function that copies an image (file_name, to a path in the
folder), and the numbers of objects that cannot be written completely, by what is lost."""


def convert_data(
    data: str | Path, output: str | Path, layout: Layout, *, progress: ProgressCallback | None = None
) -> list[str]:
    """Write a data set of any layout that `find_splits` reads to a new folder, in another layout, with its images.

    Coordinates stay the same. YOLO has one polygon for an object, and neither YOLO nor VOC has pixel masks: an object
    with another mask keeps its box. They have no crowds. VOC has one folder for all images: an image with the name of
    another one gets a name with its split and folders.

    Args:
        data: the data set: a folder, a YAML file or a zip archive.
        output: the new folder. It appears when everything is written.
        layout: "coco", "yolo" or "voc".
        progress: called with the number of copied images and the total.

    Returns:
        What could not be written, one line each.

    Raises:
        InputError: The layout is unknown, or the output exists.
        DataError: The data set has errors, or two images would have the same VOC label.
        OutputError: The output cannot be written.
    """
    if layout not in get_args(Layout):
        raise InputError(f"layout must be one of {', '.join(get_args(Layout))}, not {layout!r}")
    with _checked(data) as splits:
        contents = {name: _read(split) for name, split in splits.items()}
        return _write(Path(output), contents, layout, progress)


def split_data(
    data: str | Path,
    output: str | Path,
    *,
    val: float = 0.2,
    test: float = 0.0,
    stratify: bool = False,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> dict[str, int]:
    """Split a data set that has no splits at random, and write it to a new folder in COCO's layout, with its images.

    Args:
        data: the data set: a folder, a YAML file or a zip archive.
        output: the new folder. It appears when everything is written.
        val: the fraction of the images to validate with.
        test: the fraction of the images to test with.
        stratify: whether to keep the fractions for each class, and for images without objects, too.
        seed: the same seed gives the same splits.
        progress: called with the number of copied images and the total.

    Returns:
        The number of images in each split.

    Raises:
        InputError: The fractions cannot be used, or the output exists.
        DataError: The data set has errors, several splits, or too few images.
        OutputError: The output cannot be written.
    """
    check_integer("seed", seed, 0)
    fractions = {"train": 1 - val - test, "val": val, "test": test}
    if not (0 < val < 1 and 0 <= test < 1 and fractions["train"] > 0):
        raise InputError(f"val and test must be fractions that leave images to train on, not {val} and {test}")
    if not test:
        del fractions["test"]
    with _checked(data) as splits:
        if len(splits) > 1:
            raise DataError(f"{data}: this has splits already: {', '.join(splits)}")
        (split,) = splits.values()
        content, folder = _read(split)
        choose = _choose_stratified if stratify else _choose
        chosen = choose(content, fractions, random.Random(seed))
        contents = {}
        for name in fractions:
            ids = {id for id, other in chosen.items() if other == name}
            if not ids:
                raise DataError(f"{data}: of {plural(split.num_images, 'image')}, none is left for {name}")
            images = [image for image in content["images"] if image["id"] in ids]
            annotations = [each for each in content["annotations"] if each["image_id"] in ids]
            contents[name] = {**content, "images": images, "annotations": annotations}, folder
        _write(Path(output), contents, "coco", progress)
    return {name: len(content["images"]) for name, (content, _) in contents.items()}


@contextlib.contextmanager
def _checked(data: str | Path) -> Iterator[dict[str, CheckedSplit]]:
    """Yield the splits of a data set without errors, by name."""
    with tempfile.TemporaryDirectory() as work_dir:
        files = find_splits(Path(data), Path(work_dir))
        checked = check_splits(files, work_dir=Path(work_dir))
        raise_errors(*checked)
        yield {each.name: split for each, split in zip(files, checked, strict=True)}


def _read(split: CheckedSplit) -> tuple[_Json, Path]:
    """Return COCO's content without the places of its original labels, and the folder that all its images are in."""
    content = json.loads(split.annotations.read_bytes())
    common = posixpath.commonpath([posixpath.dirname(image["file_name"]) for image in content["images"]])
    for image in content["images"]:
        image["file_name"] = posixpath.relpath(image["file_name"], common or ".")
    content.pop(PROVENANCE, None)
    for entry in (*content["images"], *content["annotations"]):
        entry.pop(PROVENANCE, None)
    return content, split.images / common


def _write(
    output: Path, contents: Mapping[str, tuple[_Json, Path]], layout: Layout, progress: ProgressCallback | None
) -> list[str]:
    """Write splits, each with COCO's content and the folder of its images, and return what is lost."""
    output = expand_user(output).absolute()
    if exists(output):
        raise InputError(f"{output} exists: choose a new folder")
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    lost: Counter[str] = Counter()
    total, done = sum(len(content["images"]) for content, _ in contents.values()), 0

    def copy(images: Path, name: str, target: str) -> None:
        nonlocal done
        (partial / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(images / name, partial / target)
        done += 1
        if progress:
            progress(done, total)

    names = {name: name if layout == "coco" else _find_key(name, list(contents)) for name in contents}
    try:
        remove(partial)
        partial.mkdir(parents=True)
        for name, (content, images) in contents.items():
            _WRITERS[layout](partial, names[name], content, functools.partial(copy, images), lost)
        if layout == "yolo":
            _describe_yolo(partial, next(iter(contents.values()))[0], list(names.values()))
        partial.rename(output)
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}: choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [f"{plural(count, 'object')}: {what}" for what, count in lost.items()]


def _find_key(name: str, splits: Sequence[str]) -> str:
    """Return the name that YOLO and VOC have for a split: "train", "val" or "test"."""
    default = "train" if len(splits) == 1 else None
    key = next((key for key in ("train", "val", "test") if name.startswith(key)), default)
    if key is None or sum(other.startswith(key) for other in splits) > 1:
        raise DataError(f"these layouts have the splits train, val and test, one of each, not {', '.join(splits)}")
    return key


def _write_coco(folder: Path, name: str, content: _Json, copy: Callable[[str, str], None], lost: Counter[str]) -> None:
    for image in content["images"]:
        copy(image["file_name"], f"{name}/{image['file_name']}")
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))


def _write_yolo(folder: Path, name: str, content: _Json, copy: Callable[[str, str], None], lost: Counter[str]) -> None:
    labels = {category["id"]: label for label, category in enumerate(content["categories"])}
    for image, objects in _objects_of_images(content, lost):
        copy(image["file_name"], f"images/{name}/{image['file_name']}")
        sides = image["width"], image["height"]
        lines = []
        for each in objects:
            x, y, width, height = each["bbox"]
            numbers = [x + width / 2, y + height / 2, width, height]
            match each.get("segmentation"):
                case [polygon]:
                    numbers = polygon
                case [_, *_] | {"counts": _}:
                    lost["only the box is written, the mask is not one polygon"] += 1
            fractions = (number / sides[index % 2] for index, number in enumerate(numbers))
            lines.append(" ".join(map(str, (labels[each["category_id"]], *fractions))))
        if lines:
            label = folder / label_of(f"images/{name}/{image['file_name']}")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("\n".join(lines) + "\n")


def _describe_yolo(folder: Path, content: _Json, splits: Sequence[str]) -> None:
    description = {name: f"images/{name}" for name in splits}
    classes = [category["name"] for category in content["categories"]]
    text = yaml.safe_dump({**description, "names": dict(enumerate(classes))}, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")


def _write_voc(folder: Path, name: str, content: _Json, copy: Callable[[str, str], None], lost: Counter[str]) -> None:
    names = {category["id"]: category["name"] for category in content["categories"]}
    lists = folder / "ImageSets" / "Main"
    for inside in (folder / "Annotations", lists):
        inside.mkdir(parents=True, exist_ok=True)
    stems = []
    for image, objects in _objects_of_images(content, lost):
        path = PurePosixPath(image["file_name"])
        stem = path.stem
        if exists(folder / "Annotations" / f"{stem}.xml"):
            stem = "_".join([name, *path.with_suffix("").parts])
        label = folder / "Annotations" / f"{stem}.xml"
        if exists(label):
            raise DataError(f"VOC has one label for {stem!r}, but two images have this name: rename one")
        copy(image["file_name"], f"JPEGImages/{stem}{path.suffix}")
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = f"{stem}{path.suffix}"
        size = ElementTree.SubElement(root, "size")
        for side, value in (("width", image["width"]), ("height", image["height"]), ("depth", 3)):
            ElementTree.SubElement(size, side).text = str(value)
        for each in objects:
            _add_voc_object(root, each, names[each["category_id"]], lost)
        ElementTree.indent(root)
        label.write_bytes(ElementTree.tostring(root, encoding="utf-8"))
        stems.append(stem)
    (lists / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))


def _add_voc_object(root: ElementTree.Element, annotation: _Json, category: str, lost: Counter[str]) -> None:
    """Add an object. Pixels count from 1, and a box includes its last one."""
    element = ElementTree.SubElement(root, "object")
    ElementTree.SubElement(element, "name").text = category
    x, y, width, height = annotation["bbox"]
    box = ElementTree.SubElement(element, "bndbox")
    for side, value in (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + width), ("ymax", y + height)):
        ElementTree.SubElement(box, side).text = str(value)
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        lost["only the box is written, the mask is no polygon"] += 1
        return
    for polygon in segmentation or ():
        points = ElementTree.SubElement(element, "polygon")
        for index, value in enumerate(polygon):
            ElementTree.SubElement(points, f"{'xy'[index % 2]}{index // 2 + 1}").text = str(value + 1)


_WRITERS: dict[str, _Writer] = {"coco": _write_coco, "yolo": _write_yolo, "voc": _write_voc}


def _objects_of_images(content: _Json, lost: Counter[str]) -> Iterator[tuple[_Json, list[_Json]]]:
    """Yield each image with its objects, without crowds."""
    objects: dict[int, list[_Json]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation["iscrowd"]:
            lost["left out, it is a crowd"] += 1
        else:
            objects.get(annotation["image_id"], []).append(annotation)
    yield from ((image, objects[image["id"]]) for image in content["images"])


def _choose(content: _Json, fractions: Mapping[str, float], generator: random.Random) -> dict[int, str]:
    """Return the split of each image."""
    ids = sorted(image["id"] for image in content["images"])
    generator.shuffle(ids)
    chosen: dict[int, str] = {}
    start, share = 0, 0.0
    for name, fraction in fractions.items():
        share += fraction
        end = round(share * len(ids))
        chosen |= dict.fromkeys(ids[start:end], name)
        start = end
    return chosen


def _choose_stratified(content: _Json, fractions: Mapping[str, float], generator: random.Random) -> dict[int, str]:
    """Return the split of each image by iterative stratification (Sechidis et al., ECML 2011).

    Of the images left, those of the class with the fewest go first, each to the split that lacks most of the class.
    """
    classes: dict[int, set[int | None]] = {image["id"]: set() for image in content["images"]}
    for annotation in content["annotations"]:
        classes.get(annotation["image_id"], set()).add(annotation["category_id"])
    left = {id: own or {None} for id, own in sorted(classes.items())}
    wanted = {name: fraction * len(left) for name, fraction in fractions.items()}
    counts = Counter(each for own in left.values() for each in own)
    lacking = {each: {name: share * count for name, share in fractions.items()} for each, count in counts.items()}
    chosen: dict[int, str] = {}
    while left:
        counts = Counter(each for own in left.values() for each in own)
        rarest = min(counts, key=lambda each: (counts[each], each is None, each or 0))
        ids = [id for id, own in left.items() if rarest in own]
        generator.shuffle(ids)
        for id in ids:
            name = max(fractions, key=lambda name: (lacking[rarest][name], wanted[name]))
            chosen[id] = name
            wanted[name] -= 1
            for each in left.pop(id):
                lacking[each][name] -= 1
    return chosen
