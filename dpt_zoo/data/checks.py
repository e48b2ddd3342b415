"""Checks of COCO annotation files and their images, made before training and evaluation."""

import codecs
import functools
import json
import locale
import math
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ImageError
from ..formats.annotations import MAX_NUMBER, PROVENANCE
from ..formats.issues import Issue, IssueType, describe, list_names
from ..utils.files import exists, expand_user, make_folder, open_atomic
from ..utils.images import load_image
from ..utils.json_files import parse_json
from ..utils.progress import ProgressCallback
from ..utils.text import plural
from ..utils.validation import check_integer
from .annotation_checks import Finding, check_box, check_mask, format_size, parse_box
from .completion import complete, leaves_folder, remove_parents
from .duplicates import find_duplicates, make_thumbnail

_Entry = dict[str, Any]

_BATCH = 256  # images submitted at a time, so that a large data set does not queue up in memory

_NOT_LEARNED = {
    *(IssueType.CATEGORY, IssueType.BOX, IssueType.UNKNOWN_IMAGE),
    *(IssueType.EMPTY_BOX, IssueType.BOX_OUTSIDE, IssueType.NO_AREA),
}


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split of a data set, in COCO's format."""

    name: str  # in the data set, such as "train2017"
    annotations: Path
    images: Path  # the folder that the file's image names are relative to
    issues: tuple[Issue, ...] = ()  # labels of other formats that could not be converted


@dataclass
class CheckedSplit:
    """The contents and the issues of an annotation file and its images."""

    annotations: Path
    images: Path
    num_images: int = 0
    num_empty_images: int = 0  # images without objects
    num_objects: int = 0  # crowds included
    num_masks: int = 0
    num_rle_masks: int = 0  # without crowds; `LoadAnnotations` with `poly2mask=False` ignores these objects
    classes: dict[str, int] = field(default_factory=dict)  # numbers of objects, in the order of MMDetection's labels
    class_images: Counter[str] = field(default_factory=Counter)  # numbers of images with objects of each class
    image_sizes: list[tuple[int, int]] = field(default_factory=list, repr=False)  # (height, width) of each image
    object_sizes: list[float] = field(default_factory=list, repr=False)  # the root of each box's area, without crowds
    issues: list[Issue] = field(default_factory=list)  # errors and warnings
    thumbnails: dict["_Image", NDArray[np.uint8]] = field(default_factory=dict, repr=False)  # to find leaks

    def add(self, issue_type: IssueType, message: str, where: str | None = None, image_id: int | None = None) -> None:
        """Add `Issue(issue_type, where, message, image_id)`. By default, it concerns the whole annotation file."""
        self.issues.append(Issue(issue_type, where or self.annotations.name, message, image_id))


def check_splits(
    splits: Iterable[SplitFiles],
    *,
    classes: Sequence[str] | None = None,
    with_objects: bool = True,
    with_masks: bool | None = None,
    read_images: bool = True,
    find_leaks: bool = False,
    work_dir: Path | None = None,
    jobs: int | None = None,
    progress: ProgressCallback | None = None,
) -> list[CheckedSplit]:
    """Find all issues of COCO annotation files and their images, not only the first one.

    Args:
        splits: the files of each split.
        classes: the expected class names in order; by default those of the first split.
        with_objects: whether objects are required; if not, annotations are not checked at all.
        with_masks: whether every object needs a mask (True), or masks are not used and invalid ones are left out
            (False); by default, those that exist are checked.
        read_images: whether to decode the images; if not, only their presence is checked.
        find_leaks: whether to warn of images that are in two splits (see `duplicates`); needs `read_images`.
        work_dir: the folder for completed copies of annotation files (see `complete`), which the results then name;
            without it, none is written.
        jobs: the number of images read at a time; by default a few more than there are processors.
        progress: called with the number of checked images and the total.

    Raises:
        InputError: `jobs` is not a positive whole number.
        OutputError: `work_dir` cannot be written.
    """
    if jobs is not None:
        check_integer("jobs", jobs, 1)
    splits = list(splits)
    checked = [
        CheckedSplit(expand_user(files.annotations), expand_user(files.images), issues=list(files.issues))
        for files in splits
    ]
    contents = [_read(split, with_objects) for split in checked]
    parents = remove_parents([content for content, _ in contents], classes or ())
    for files, split, names in zip(splits, checked, parents, strict=True):
        content, is_changed = contents.pop(0)  # each is large
        if content is None:
            continue
        for name in names:
            split.add(IssueType.PARENT_CLASS, repr(name))
        categories = _check_categories(split, content["categories"], classes)
        entries = _check_images(split, content["images"])
        if with_objects:
            is_changed |= _check_annotations(split, content["annotations"], entries, categories, classes, with_masks)
        keep = split.thumbnails if find_leaks else None
        _check_files(split, entries, read_images, keep, jobs, progress)
        if work_dir and (is_changed or names):
            _write_copy(split, content, work_dir, files.name)
        classes = classes or tuple(split.classes) or None
    for number, split in enumerate(checked):
        for other in checked[:number]:
            _check_leaks(split, other)
    return checked


def raise_errors(*checked: CheckedSplit, ignored: Collection[IssueType] = ()) -> None:
    """Raise `DataError` if `checked` splits have errors. Errors of an `ignored` type in a single image are accepted."""
    issues = [issue for split in checked for issue in split.issues]
    errors = [each for each in issues if each.type.is_error and (each.type not in ignored or each.image_id is None)]
    if errors:
        raise DataError(f"the data set cannot be used:\n{describe(errors, limit=5)}")


def _is_id(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**63


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_class_name(value: Any) -> bool:
    return _is_name(value) and not re.search("[\ud800-\udfff]", value)  # half characters, which no file can hold


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value < MAX_NUMBER


_FIELDS: Mapping[str, Mapping[str, Callable[[Any], bool] | None]] = {
    "images": {"id": _is_id, "file_name": _is_name, "width": _is_side, "height": _is_side},
    "categories": {"id": _is_id, "name": _is_class_name},
    "annotations": {
        **dict.fromkeys(("image_id", "category_id", "bbox", "area")),
        "id": _is_id,
        "iscrowd": lambda value: value in (0, 1),
    },
}
"""The required fields of the entries in each list, with a check of the value or None for any value."""


class _Image(NamedTuple):
    where: str
    id: int | None
    name: str | None
    size: tuple[int, int] | None  # (height, width)


def _read(split: CheckedSplit, with_objects: bool) -> tuple[dict[str, Any] | None, bool]:
    """Return the content of the annotation file, if it has the lists of COCO's format, and whether a copy is needed."""
    keys = ("images", "categories", "annotations") if with_objects else ("images", "categories")
    try:
        text, is_plain = _read_text(split.annotations)
        content = parse_json(text)
        message = _check_content(content, keys)
    except OSError as error:
        message = f"the file cannot be read: {error.strerror or error}"
    except (ValueError, RecursionError) as error:
        message = f"the file is not JSON: {error}"
    if message:
        split.add(IssueType.FILE, message, str(split.annotations))
        return None, False
    is_changed, messages = complete(content, split.images)
    for message in messages:
        split.add(IssueType.COMPLETED, message)
    return content, is_changed or not is_plain


def _read_text(path: Path) -> tuple[str, bool]:
    """Return a JSON file's text, and whether pycocotools, which uses the encoding of the locale, reads the same."""
    content = path.read_bytes()
    encoding = json.detect_encoding(content)
    is_utf8_used = content.isascii() or codecs.lookup(locale.getpreferredencoding(False)).name == "utf-8"
    return content.decode(encoding), encoding == "utf-8" and is_utf8_used


def _write_copy(split: CheckedSplit, content: dict[str, Any], folder: Path, name: str) -> None:
    """Write the completed `content` of a split's annotation file to a folder, and use it from now on."""
    make_folder(folder, "work_dir")
    path = folder / f"instances_{name}.json"
    with open_atomic(path) as file:
        file.write(json.dumps({PROVENANCE: str(split.annotations), **content}).encode())
    split.annotations = path


def _check_categories(split: CheckedSplit, categories: list[Any], expected: Sequence[str] | None) -> dict[int, str]:
    """Check the classes, compare them with the expected ones, and return their names by id."""
    names: dict[int, str] = {}
    known: set[str] = set()
    for where, category, _ in _check_entries(split, "categories", categories):
        id, name = category.get("id"), category.get("name")
        if name in known:
            split.add(IssueType.DUPLICATE_CLASS, f"another category is also named {name!r}", where)
        elif name and id is not None:
            names[id] = name
            known.add(name)
    split.classes = dict.fromkeys(names.values(), 0)
    if not names:
        split.add(IssueType.CLASSES, "the file has no classes")
    elif expected is not None:
        _compare_classes(split, list(split.classes), expected)
    return names


def _compare_classes(split: CheckedSplit, classes: Sequence[str], expected: Sequence[str]) -> None:
    own, others = set(classes), set(expected)
    missing = [name for name in expected if name not in own]
    extra = [name for name in classes if name not in others]
    if missing:
        split.add(IssueType.CLASSES, f"{len(missing)} of {len(expected)} are missing: {list_names(missing)}")
    if [name for name in expected if name in own] != [name for name in classes if name in others]:
        split.add(IssueType.CLASSES, f"the order is {list_names(classes)}, not {list_names(expected)}")
    if extra:
        split.add(IssueType.OTHER_CLASSES, list_names(extra))


def _check_images(split: CheckedSplit, images: list[Any]) -> list[_Image]:
    """Check the entries of the images, and return their valid values."""
    valid: list[_Image] = []
    first: dict[PurePosixPath, str] = {}
    for where, image, _ in _check_entries(split, "images", images):
        id, name, height, width = (image.get(key) for key in ("id", "file_name", "height", "width"))
        if name and leaves_folder(name):
            split.add(IssueType.IMAGE_PATH, f"file_name is {name!r}", where, id)
            name = None
        other = first.setdefault(PurePosixPath(name), where) if name else where
        if other is not where:
            split.add(IssueType.DUPLICATE_IMAGE, f"{name!r} is also the file of {other}", where, id)
        valid.append(_Image(where, id, name, (height, width) if height and width else None))
    if not images:
        split.add(IssueType.EMPTY, "the file has no images")
    split.num_images = split.num_empty_images = len(images)
    split.image_sizes = [image.size for image in valid if image.size]
    return valid


def _check_annotations(
    split: CheckedSplit,
    annotations: list[Any],
    images: list[_Image],
    categories: dict[int, str],
    classes: Collection[str] | None,
    with_masks: bool | None,
) -> bool:
    """Check the objects, and whether any object of the `classes`, or of any class, can be learned.

    Return whether invalid masks were removed from `annotations`, see `check_splits`.
    """
    images_by_id = {image.id: image for image in images if image.id is not None}
    annotated: set[int] = set()  # ids of images
    pairs: set[tuple[str, int]] = set()  # classes and the ids of images with objects of them
    crowds: Counter[str] = Counter()
    wanted = None if classes is None else set(classes)
    num_learned = num_removed = num_crowds = 0
    for where, annotation, entry in _check_entries(split, "annotations", annotations):
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        image = images_by_id.get(image_id) if _is_id(image_id) else None
        name = categories.get(category_id) if _is_id(category_id) else None
        size = image.size if image else None
        of_mask = list(check_mask(annotation, size, with_masks is True))
        if with_masks is False and any(issue_type.is_error for issue_type, _ in of_mask):
            of_mask.clear()
            annotation["segmentation"] = entry["segmentation"] = []
            num_removed += 1
        findings = [*check_box(annotation, size), *of_mask]
        if image is None and "image_id" in annotation:
            findings.append((IssueType.UNKNOWN_IMAGE, f"the file has no image {reprlib.repr(image_id)}"))
        if name is None and "category_id" in annotation:
            findings.append((IssueType.CATEGORY, f"the file has no category {reprlib.repr(category_id)}"))
        for issue_type, message in findings:
            split.add(issue_type, message, where, image.id if image else None)
        if image and image.id is not None:
            annotated.add(image.id)
            if name is not None:
                pairs.add((name, image.id))
        segmentation, is_crowd = annotation.get("segmentation"), bool(annotation.get("iscrowd"))
        split.num_masks += bool(segmentation)
        split.num_rle_masks += isinstance(segmentation, dict) and not is_crowd
        if name is not None:
            split.classes[name] += 1
            crowds[name] += is_crowd and isinstance(segmentation, dict)
        num_crowds += is_crowd
        if not is_crowd and _NOT_LEARNED.isdisjoint(issue_type for issue_type, _ in findings):
            num_learned += wanted is None or name in wanted
            if box := parse_box(annotation.get("bbox")):
                split.object_sizes.append(math.sqrt(box[2] * box[3]))
    split.num_objects = len(annotations)
    split.class_images = Counter(name for name, _ in pairs)
    split.num_empty_images -= len(annotated)
    if images and not num_learned:
        total = len(annotations)
        reason = f"none of the {total:,} objects can be learned" if total else "the file has no objects"
        if num_crowds:
            reason += f": {num_crowds:,} have iscrowd 1"
        split.add(IssueType.EMPTY, reason)
    for name, count in crowds.items():
        if 2 * count > split.classes[name]:
            message = f"{count:,} of the {split.classes[name]:,} objects of {name!r} are crowds"
            split.add(IssueType.MOSTLY_CROWDS, message)
    if num_removed:
        message = f"{plural(num_removed, 'invalid mask')} left out, because masks are not used"
        split.add(IssueType.COMPLETED, message)
    return bool(num_removed)


def _check_leaks(split: CheckedSplit, other: CheckedSplit) -> None:
    if split.thumbnails and other.thumbnails:
        images, others = (sorted(each.thumbnails, key=lambda image: image.where) for each in (split, other))
        arrays = (
            np.stack([each.thumbnails[name] for name in names]) for each, names in ((split, images), (other, others))
        )
        for place, other_place in find_duplicates(*arrays):
            image = images[place]
            split.add(IssueType.LEAK, f"it looks the same as {others[other_place].where}", image.where, image.id)


def _check_files(
    split: CheckedSplit,
    entries: list[_Image],
    read: bool,
    thumbnails: dict["_Image", NDArray[np.uint8]] | None,
    jobs: int | None,
    progress: ProgressCallback | None,
) -> None:
    images = [image for image in entries if image.name is not None]
    if images and not split.images.is_dir():
        split.add(IssueType.MISSING_IMAGE, "there is no such folder", str(split.images))
        return
    check = functools.partial(_check_file, split.images, read, thumbnails)
    findings: list[tuple[_Image, Finding]] = []
    with ThreadPoolExecutor(jobs) as pool:  # Pillow's decoders release the GIL
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            for done, (image, finding) in enumerate(zip(batch, pool.map(check, batch), strict=True), start + 1):
                if finding:
                    findings.append((image, finding))
                if progress:
                    progress(done, len(images))
    num_missing = sum(issue_type is IssueType.MISSING_IMAGE for _, (issue_type, _) in findings)
    if num_missing == len(images) > 1:
        reason = f"none of the {len(images):,} images is in {split.images}: is this another split's folder?"
        split.add(IssueType.MISSING_IMAGE, reason)
        return
    for image, (issue_type, message) in findings:
        split.add(issue_type, message, image.where, image.id)


def _check_entries(split: CheckedSplit, key: str, entries: list[Any]) -> Iterator[tuple[str, _Entry, _Entry]]:
    """Check the fields of each entry of a list; yield its place, a copy with None for invalid values, and itself."""
    noun = {"images": "image", "categories": "category", "annotations": "annotation"}[key]
    fields, ids = _FIELDS[key], set[int]()
    for index, entry in enumerate(entries):
        where = f"{split.annotations.name}, {key}[{index}]"
        if not isinstance(entry, dict):
            split.add(IssueType.FIELD, f"the entry is {reprlib.repr(entry)}", where)
            continue
        id = entry.get("id")
        if isinstance(entry.get(PROVENANCE), str):
            where = entry[PROVENANCE]
        elif _is_id(id):
            image_id, name = entry.get("image_id"), entry.get("file_name", entry.get("name"))
            details = f"image {reprlib.repr(image_id)}" if key == "annotations" else reprlib.repr(name)
            where = f"{split.annotations.name}, {noun} {id} ({details})"
        missing = [name for name in fields if name not in entry]
        invalid = [name for name, check in fields.items() if check and name in entry and not check(entry[name])]
        if missing:
            split.add(IssueType.FIELD, f"{', '.join(missing)} missing", where)
        for name in invalid:
            split.add(IssueType.FIELD, f"{name} is {reprlib.repr(entry[name])}", where)
        if _is_id(id) and id in ids:
            split.add(IssueType.DUPLICATE_ID, f"{key}[{index}] has the same id", where)
        elif _is_id(id):
            ids.add(id)
        yield where, {**entry, **dict.fromkeys(invalid)}, entry


def _check_content(content: Any, keys: Sequence[str]) -> str | None:
    """Return why the content of a JSON file is not COCO annotations of objects, or None if it is."""
    if isinstance(content, list):
        return "the file holds a list, as a detector's results do"
    if not isinstance(content, dict):
        return f"the file only holds {reprlib.repr(content)}"
    if "shapes" in content and "imagePath" in content:
        return "this is labelme's file of one image: give the folder of all of them as the data set"
    missing = [key for key in keys if not isinstance(content.get(key), list)]
    if missing:
        return f"the file has no list of {', '.join(missing)}"
    first = next(iter(content.get("annotations", [])), None)
    if isinstance(first, dict) and "bbox" not in first and ("caption" in first or "segments_info" in first):
        return "the annotations are of another COCO task (caption, segments_info): they have no bbox"
    return None


def _check_file(
    folder: Path, read: bool, thumbnails: dict["_Image", NDArray[np.uint8]] | None, image: _Image
) -> Finding | None:
    path = folder / str(image.name)
    if not exists(path):
        hint = ": it has backslashes, which are no slashes here" if "\\" in str(image.name) else ""
        return IssueType.MISSING_IMAGE, f"there is no file {str(path)!r}{hint}"
    if not read:
        return None
    try:
        pixels = load_image(path)
    except ImageError as error:
        return IssueType.UNREADABLE_IMAGE, str(error).removeprefix(f"{path}: ")
    height, width, _ = pixels.shape
    if thumbnails is not None:
        thumbnails[image] = make_thumbnail(pixels)
    if image.size is None or image.size == (height, width):
        return None
    turned = " (turned by its EXIF orientation?)" if image.size == (width, height) else ""
    sizes = f"the image is {format_size((height, width))}{turned}, the annotations say {format_size(image.size)}"
    return IssueType.IMAGE_SIZE, sizes
