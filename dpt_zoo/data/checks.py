"""What is wrong with data in COCO format, found before training or evaluation begins."""

import functools
import json
import reprlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from ..errors import DataError, ImageError, InputError
from ..utils.images import load_image
from ..utils.progress import ProgressCallback
from .annotation_checks import MAX_NUMBER, Fault, ImageSize, area_faults, box_faults, format_size, mask_faults
from .issues import IssueType, Issue, describe, list_names

PROVENANCE = "converted_from"
"""The key of a COCO record that names the file and line of another format that it was made from."""

_BATCH = 256  # images asked for at a time: a large data set's do not queue up in memory

_LEFT_OUT = {IssueType.CATEGORY, IssueType.BOX, IssueType.UNKNOWN_IMAGE, IssueType.EMPTY_BOX, IssueType.BOX_OUTSIDE, IssueType.NO_AREA}


@dataclass(frozen=True)
class CheckedSplit:
    """What is in an annotation file, and what is wrong with it and its images.

    Attributes:
        annotations, images: the file, and the folder that its image names are relative to.
        num_images: how many images it names.
        num_empty_images: how many of them have no objects.
        num_objects: how many objects there are, crowds among them.
        num_masks: how many objects have a mask.
        num_rle_masks: how many masks are RLE of single objects, not crowds; `LoadAnnotations` with `poly2mask=False`
            ignores these objects.
        classes: how many objects each class has, in the file's order, which MMDetection's labels follow.
        issues: what is wrong: errors and warnings.
    """

    annotations: Path
    images: Path
    num_images: int
    num_empty_images: int
    num_objects: int
    num_masks: int
    num_rle_masks: int
    classes: dict[str, int]
    issues: tuple[Issue, ...]


def check_coco(
    annotations: Path,
    images: Path,
    *,
    classes: Sequence[str] | None = None,
    with_objects: bool = True,
    with_masks: bool = False,
    read_images: bool = True,
    jobs: int | None = None,
    progress: ProgressCallback | None = None,
) -> CheckedSplit:
    """Find all that is wrong with a COCO annotation file and its images, not only what is first.

    Args:
        annotations: the JSON file.
        images: the folder that the file's image names are relative to.
        classes: the names that are expected, in order: the training split's, or the model's.
        with_objects: whether there have to be objects; if not, those that there are are not looked at.
        with_masks: whether every object needs a mask. Masks that are there are checked in any case.
        read_images: whether to decode the images; if not, only their presence is checked.
        jobs: how many images are read at a time; by default a few more than there are processors.
        progress: takes how many images are checked, and how many there are.

    Raises:
        InputError: `jobs` is less than 1.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs must be at least 1, not {jobs}")
    checker = _Checker(annotations, images)
    if checker.read(with_objects):
        checker.check_categories(classes)
        checker.check_images()
        if with_objects:
            checker.check_annotations(classes, with_masks)
        checker.check_files(read_images, jobs, progress)
    return checker.result()


def raise_errors(*checks: CheckedSplit, ignored: Collection[IssueType] = ()) -> None:
    """Refuse data that cannot be used.

    Args:
        ignored: what is no error where it is wrong with one image.

    Raises:
        DataError: the checks found errors: its text lists the first of each kind and counts the rest.
    """
    issues = [issue for check in checks for issue in check.issues]
    errors = [each for each in issues if each.type.is_error and (each.type not in ignored or each.image_id is None)]
    if errors:
        raise DataError(f"the data cannot be used as they are:\n{describe(errors, limit=5)}")


def exists(path: Path) -> bool:
    """Whether there is such a file or folder, however strange the name."""
    try:
        return path.exists()
    except (OSError, ValueError):  # no file can have this name
        return False


class _Image(NamedTuple):
    """What is right of an image's record."""

    where: str
    id: int | None
    name: str | None
    size: ImageSize | None


class _Checker:
    """Goes through one annotation file, and collects what it finds."""

    def __init__(self, annotations: Path, folder: Path) -> None:
        self.annotations = annotations
        self.folder = folder
        self.issues: list[Issue] = []
        self.records: dict[str, list[Any]] = {"images": [], "categories": [], "annotations": []}
        self.categories: dict[int | None, str] = {}
        self.images: list[_Image] = []
        self.annotated: set[int] = set()  # ids of images
        self.objects: Counter[str] = Counter()  # by class
        self.num_masks = self.num_rle_masks = 0

    def result(self) -> CheckedSplit:
        return CheckedSplit(
            annotations=self.annotations,
            images=self.folder,
            num_images=len(self.records["images"]),
            num_empty_images=len(self.records["images"]) - len(self.annotated),
            num_objects=len(self.records["annotations"]),
            num_masks=self.num_masks,
            num_rle_masks=self.num_rle_masks,
            classes={name: self.objects[name] for name in self.categories.values()},
            issues=tuple(self.issues),
        )

    def add(self, issue_type: IssueType, what: str, where: str | None = None, image_id: int | None = None) -> None:
        self.issues.append(Issue(issue_type, where or self.annotations.name, what, image_id))

    def read(self, with_objects: bool) -> bool:
        """Read the records; whether there are any to be checked."""
        nouns = [noun for noun in self.records if with_objects or noun != "annotations"]
        try:
            with self.annotations.open(encoding="utf-8") as file:
                content = json.load(file)
            fault = _content_fault(content, nouns)
        except OSError as error:
            fault = f"it cannot be read: {error.strerror or error}"
        except (ValueError, RecursionError) as error:
            fault = f"it is not JSON: {error}"
        if fault:
            self.add(IssueType.FILE, fault, str(self.annotations))
            return False
        self.records.update({noun: content[noun] for noun in nouns})
        return True

    def check_categories(self, expected: Sequence[str] | None) -> None:
        """Check the classes, also against those that are expected."""
        for where, id, record in self._each("categories", "category", ("id", "name")):
            name = record.get("name")
            if not isinstance(name, str) or not name:
                if "name" in record:
                    self.add(IssueType.RECORD, f"its name is {reprlib.repr(name)}", where)
            elif name in self.categories.values():
                self.add(IssueType.DUPLICATE_CLASS, f"there is another {name!r}", where)
            elif id is not None:
                self.categories[id] = name
        names = list(self.categories.values())
        if not names:
            self.add(IssueType.CLASSES, "it names none")
        elif expected is not None:
            self._compare_classes(names, expected)

    def _compare_classes(self, names: Sequence[str], expected: Sequence[str]) -> None:
        missing = [name for name in expected if name not in names]
        common = [name for name in expected if name in names]
        further = [name for name in names if name not in expected]
        if missing:
            self.add(IssueType.CLASSES, f"{len(missing)} of {len(expected)} are missing: {list_names(missing)}")
        if common != [name for name in names if name in expected]:
            self.add(IssueType.CLASSES, f"they are {list_names(names)}, in another order than {list_names(expected)}")
        if further:
            self.add(IssueType.OTHER_CLASSES, list_names(further))

    def check_images(self) -> None:
        """Check the images' records."""
        owners: dict[PurePosixPath, str] = {}
        for where, id, record in self._each("images", "image", ("id", "file_name", "width", "height")):
            image = _Image(where, id, _file_name(record), _size(record))
            if image.name is None and "file_name" in record:
                self.add(IssueType.RECORD, f"its file_name is {reprlib.repr(record['file_name'])}", where, id)
            if image.size is None and "width" in record and "height" in record:
                self.add(
                    IssueType.RECORD,
                    f"its size is {reprlib.repr(record['width'])} x {reprlib.repr(record['height'])}",
                    where,
                    id,
                )
            if image.name and _leaves_folder(image.name):
                self.add(IssueType.IMAGE_PATH, f"its file_name is {image.name!r}", where, id)
                image = image._replace(name=None)  # it is not to be read
            if image.name:
                owner = owners.setdefault(PurePosixPath(image.name), where)
                if owner is not where:
                    self.add(IssueType.DUPLICATE_IMAGE, f"{image.name!r} is also the file of {owner}", where, id)
            self.images.append(image)
        if not self.records["images"]:
            self.add(IssueType.EMPTY, "it names no images")

    def check_annotations(self, classes: Collection[str] | None, with_masks: bool) -> None:
        """Check the objects, and whether any is left to learn of the `classes`, or of all."""
        images: dict[int | None, _Image] = {image.id: image for image in self.images if image.id is not None}
        num_learned = 0
        keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
        for where, id, record in self._each("annotations", "annotation", keys):
            image = images.get(_id(record.get("image_id")))
            name = self.categories.get(_id(record.get("category_id")))
            size = image and image.size
            faults = [
                *_reference_faults(record, id, image, name),
                *box_faults(record, size),
                *area_faults(record),
                *mask_faults(record, size, with_masks),
            ]
            for issue_type, what in faults:
                self.add(issue_type, what, where, image and image.id)
            if image and image.id is not None:
                self.annotated.add(image.id)
            if name is not None:
                self.objects[name] += 1
            segmentation, is_crowd = record.get("segmentation"), bool(record.get("iscrowd"))
            self.num_masks += bool(segmentation)
            self.num_rle_masks += isinstance(segmentation, dict) and not is_crowd
            is_wanted = not is_crowd and (classes is None or name in classes)
            num_learned += is_wanted and _LEFT_OUT.isdisjoint(issue_type for issue_type, _ in faults)
        if self.images and not num_learned:
            total = len(self.records["annotations"])
            self.add(IssueType.EMPTY, f"of its {total:,} objects none can be learned" if total else "it has no objects")

    def check_files(self, read: bool, jobs: int | None, progress: ProgressCallback | None) -> None:
        """Look at the images themselves."""
        images = [image for image in self.images if image.name is not None]
        if images and not self.folder.is_dir():
            self.add(IssueType.MISSING_IMAGE, "there is no such folder", str(self.folder))
            return
        look = functools.partial(_file_fault, self.folder, read)
        faults: list[tuple[_Image, Fault]] = []
        with ThreadPoolExecutor(jobs) as pool:  # Pillow's decoders let other threads run
            for start in range(0, len(images), _BATCH):
                batch = images[start : start + _BATCH]
                for done, (image, fault) in enumerate(zip(batch, pool.map(look, batch), strict=True), start + 1):
                    if fault:
                        faults.append((image, fault))
                    if progress:
                        progress(done, len(images))
        num_missing = sum(issue_type is IssueType.MISSING_IMAGE for _, (issue_type, _) in faults)
        if num_missing == len(images) > 1:
            what = f"none of its {len(images):,} images is in {self.folder}: is this another split's folder?"
            self.add(IssueType.MISSING_IMAGE, what)
            return
        for image, (issue_type, what) in faults:
            self.add(issue_type, what, image.where, image.id)

    def _each(self, nouns: str, noun: str, keys: Sequence[str]) -> Iterator[tuple[str, int | None, dict[str, Any]]]:
        """Where each record is, its id and the record; what is no record, lacks keys or has a bad id is told."""
        seen: set[int] = set()
        for index, record in enumerate(self.records[nouns]):
            where = f"{self.annotations.name}, {nouns}[{index}]"
            if not isinstance(record, dict):
                self.add(IssueType.RECORD, f"it is {reprlib.repr(record)}", where)
                continue
            id = _id(record.get("id"))
            if isinstance(record.get(PROVENANCE), str):
                where = record[PROVENANCE]
            elif id is not None:
                where = f"{self.annotations.name}, {_name_record(noun, id, record)}"
            missing = [key for key in keys if key not in record]
            if missing:
                self.add(IssueType.RECORD, f"it has no {', '.join(missing)}", where)
            if id is None and "id" in record:
                self.add(IssueType.RECORD, f"its id is {reprlib.repr(record['id'])}, not a whole number from 0", where)
            if id in seen:
                self.add(IssueType.DUPLICATE_ID, f"{nouns}[{index}] has it too", where)
            elif id is not None:
                seen.add(id)
            yield where, id, record


def _content_fault(content: Any, keys: Iterable[str]) -> str | None:
    """Why a JSON file's content has no COCO annotations of objects in it."""
    if isinstance(content, list):
        return "it is a list, as a detector's results are"
    if not isinstance(content, dict):
        return f"it is only {reprlib.repr(content)}"
    if "shapes" in content and "imagePath" in content:
        return "it is LabelMe's file of one image: convert all of them to one COCO file"
    missing = [key for key in keys if key not in content]
    if missing:
        return f"it has no {', '.join(missing)}"
    wrong = [key for key in keys if not isinstance(content[key], list)]
    if wrong:
        return f"{', '.join(wrong)}: not a list"
    first = next(iter(content.get("annotations", [])), None)
    if isinstance(first, dict) and "bbox" not in first:
        for key in ("caption", "segments_info"):
            if key in first:
                return f"its annotations are of another task of COCO's: they have {key!r}, no boxes"
    return None


def _name_record(noun: str, id: int, record: dict[str, Any]) -> str:
    if noun == "annotation":
        return f"annotation {id} (image {reprlib.repr(record.get('image_id'))})"
    return f"{noun} {id} ({reprlib.repr(record.get('file_name', record.get('name')))})"


def _file_name(record: dict[str, Any]) -> str | None:
    name = record.get("file_name")
    return name if isinstance(name, str) and name else None


def _size(record: dict[str, Any]) -> ImageSize | None:
    width, height = record.get("width"), record.get("height")
    if type(width) is int and type(height) is int and 0 < width < MAX_NUMBER and 0 < height < MAX_NUMBER:
        return width, height
    return None


def _file_fault(folder: Path, read: bool, image: _Image) -> Fault | None:
    path = folder / str(image.name)
    if not exists(path):
        return IssueType.MISSING_IMAGE, f"there is no file {str(path)!r}"
    if not read:
        return None
    try:
        height, width, _ = load_image(path).shape
    except ImageError as error:
        return IssueType.UNREADABLE_IMAGE, str(error).removeprefix(f"{path}: ")
    if image.size is None or image.size == (width, height):
        return None
    turned = " (turned by its EXIF orientation?)" if image.size == (height, width) else ""
    return (
        IssueType.IMAGE_SIZE,
        f"the image is {format_size((width, height))}{turned}, the annotations say {format_size(image.size)}",
    )


def _leaves_folder(name: str) -> bool:
    """Whether a file's name may lead out of the folder that it is relative to, on any system."""
    paths = (PurePosixPath(name), PureWindowsPath(name))
    return any(path.anchor or ".." in path.parts for path in paths)


def _reference_faults(
    record: dict[str, Any], id: int | None, image: _Image | None, category: str | None
) -> Iterator[Fault]:
    if id == 0:
        yield IssueType.ID_ZERO, "its id is 0"
    if image is None and "image_id" in record:
        yield IssueType.UNKNOWN_IMAGE, f"there is no image {reprlib.repr(record['image_id'])} in the file"
    if category is None and "category_id" in record:
        yield IssueType.CATEGORY, f"there is no category {reprlib.repr(record['category_id'])} in the file"
    if record.get("iscrowd", 0) not in (0, 1):
        yield IssueType.RECORD, f"its iscrowd is {reprlib.repr(record['iscrowd'])}, neither 0 nor 1"


def _id(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**63 else None
