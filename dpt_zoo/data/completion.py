"""Complete COCO annotations that are incomplete but unambiguous, and leave out categories that are no classes."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import unquote

from ..utils.files import exists
from ..utils.text import plural
from .annotation_checks import measure_mask, parse_box

_WHOLE = {
    "images": ("id", "width", "height"),
    "categories": ("id",),
    "annotations": ("id", "image_id", "category_id", "iscrowd"),
}
"""The whole numbers of each list; pandas, for example, writes them as 192.0."""

_BACKGROUND = re.compile(r"_*(background|ignore)_*|n/a", re.IGNORECASE)
"""The names of categories that some tools write for pixels without an object."""


def complete(content: Mapping[str, Any], images: Path) -> tuple[bool, list[str]]:
    """Complete the `content` of an annotation file in place. Its images are in the folder `images`.

    Whole numbers are read from numbers such as 192.0, and ids that are text become numbers. A missing iscrowd is 0, a
    missing bbox is that of the mask, and a missing area is that of the mask or, without one, of the box. A file name is
    replaced by that of the file if it differs in slashes or Unicode composition, or in what Label Studio adds: a URL's
    encoding, the folders of its server, and a prefix of 8 digits. The iscrowd of CVAT's masks becomes 0, and the
    annotation with id 0 gets another id.

    Returns:
        Whether anything was changed, and a message for each type of change but the first.
    """
    is_changed = _read_whole_numbers(content)
    messages = [*_number_ids(content), *_replace_id_zero(content)]
    missing = Counter(key for entry in list_entries(content, "annotations") for key in _complete_annotation(entry))
    messages += [f"{plural(count, 'annotation')} had no {key}" for key, count in missing.items()]
    if num_masks := sum(map(_clear_crowd_of_cvat, list_entries(content, "annotations"))):
        messages.append(f"{plural(num_masks, 'mask')} of CVAT had iscrowd 1, as CVAT marks an RLE: it is 0 now")
    respelled = 0
    for image in list_entries(content, "images"):
        name = image.get("file_name")
        if isinstance(name, str) and (found := _find_spelling(images, name)):
            image["file_name"] = found
            respelled += 1
            example = f"{name!a} is {found!a}"
    if respelled:
        messages.append(f"{plural(respelled, 'file name')} differed from the files: {example}")
    return is_changed or bool(messages), messages


def remove_parents(contents: Sequence[Mapping[str, Any] | None], kept: Collection[str] = ()) -> list[list[str]]:
    """Remove categories that are no classes from the `contents` of a data set's annotation files, in place.

    These have no objects in any of the files, and are either the supercategory of others, as the first category of
    Roboflow's files, or the background. Another class of the same name stays. Those with a name in `kept` stay too.

    Returns:
        The removed names of each file.
    """
    objects = [_count_objects(content) for content in contents]
    used = {
        category.get("name")
        for content, ids in zip(contents, objects, strict=True)
        for category in list_entries(content, "categories")
        if _is_in(category.get("id"), ids) and isinstance(category.get("name"), str)
    }
    removed: list[list[str]] = []
    for content, ids in zip(contents, objects, strict=True):
        entries = [each for each in list_entries(content, "categories") if isinstance(each.get("name"), str)]
        names = Counter(each["name"] for each in entries)
        parents = Counter(each["supercategory"] for each in entries if isinstance(each.get("supercategory"), str))
        left_out = []
        for entry in entries:
            name, parent = entry["name"], entry.get("supercategory")
            is_empty = not _is_in(entry.get("id"), ids) and (name not in used or names[name] > 1)
            is_parent = parents[name] > (parent == name) or _BACKGROUND.fullmatch(name)
            if is_empty and is_parent and name not in kept and (used or parent == "none"):
                left_out.append(entry)
        if content and 0 < len(left_out) < len(entries):
            gone = set(map(id, left_out))
            content["categories"][:] = [each for each in content["categories"] if id(each) not in gone]
            removed.append([entry["name"] for entry in left_out])
        else:
            removed.append([])
    return removed


def leaves_folder(name: str) -> bool:
    """Return whether a relative path leads out of its folder on any operating system."""
    return any(path.anchor or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name)))


def list_entries(content: Mapping[str, Any] | None, key: str) -> Iterator[dict[str, Any]]:
    """Yield the dicts in the list `key` of an annotation file's `content`."""
    entries = content.get(key) if content else None
    yield from (entry for entry in (entries if isinstance(entries, list) else ()) if isinstance(entry, dict))


def _read_whole_numbers(content: Mapping[str, Any]) -> bool:
    is_changed = False
    for key, names in _WHOLE.items():
        for entry in list_entries(content, key):
            for name in names:
                is_changed |= _make_whole(entry, name)
            if isinstance(rle := entry.get("segmentation"), dict) and isinstance(size := rle.get("size"), list):
                for index in range(len(size)):
                    is_changed |= _make_whole(size, index)
    return is_changed


def _make_whole(parent: Any, key: Any) -> bool:
    """Replace a number such as 192.0 by an integer. Return whether it was one."""
    value = parent[key] if isinstance(parent, list) else parent.get(key)
    if type(value) is float and value.is_integer():
        parent[key] = int(value)
        return True
    return False


def _number_ids(content: Mapping[str, Any]) -> list[str]:
    """Replace ids that are text by numbers, wherever they occur: "7" by 7, or the ids of a list by 1, 2, 3, ..."""
    messages = []
    for key, reference in (("images", "image_id"), ("categories", "category_id"), ("annotations", None)):
        owners = [(entry, "id") for entry in list_entries(content, key)]
        texts = list(dict.fromkeys(id for entry, name in owners if isinstance(id := entry.get(name), str)))
        are_numbers = all(map(_is_number, texts))
        if not are_numbers and not all(isinstance(entry.get(name), str) for entry, name in owners):
            continue  # one of them is an error
        numbers = {text: int(text) if are_numbers else number for number, text in enumerate(texts, 1)}
        if reference:
            owners += [(entry, reference) for entry in list_entries(content, "annotations")]
        changed = []
        for entry, name in owners:
            if isinstance(id := entry.get(name), str) and (id in numbers or (are_numbers and _is_number(id))):
                entry[name] = numbers[id] if id in numbers else int(id)
                changed.append(id)
        if changed:
            messages.append(f"{plural(len(changed), 'id')} of {key} were text, such as {changed[0]!a}")
    return messages


def _replace_id_zero(content: Mapping[str, Any]) -> Iterator[str]:
    """Give the annotation with id 0, which COCO's evaluation counts as missed, the next free id."""
    entries = list(list_entries(content, "annotations"))
    ids: list[Any] = [entry.get("id") for entry in entries]
    if ids.count(0) == 1 and all(type(id) is int for id in ids):
        entries[ids.index(0)]["id"] = max(ids) + 1
        yield f"the annotation with id 0, which COCO's evaluation counts as missed, has id {max(ids) + 1} now"


def _is_number(text: str) -> bool:
    return re.fullmatch("[0-9]{1,18}", text) is not None


def _complete_annotation(annotation: dict[str, Any]) -> Iterator[str]:
    """Set the missing fields of an annotation that follow from the others, and yield their names."""
    if annotation.get("iscrowd") is None:
        annotation["iscrowd"] = 0
        yield "iscrowd"
    if "bbox" in annotation and "area" in annotation:
        return
    measures = measure_mask(annotation.get("segmentation"))
    if "bbox" not in annotation and measures:
        annotation["bbox"] = measures[0]
        yield "bbox"
    box = parse_box(annotation.get("bbox"))
    if "area" not in annotation and (measures or box):
        annotation["area"] = measures[1] if measures else box[2] * box[3]  # type: ignore[index]
        yield "area"


def _clear_crowd_of_cvat(annotation: dict[str, Any]) -> bool:
    """Set iscrowd to 0 if CVAT wrote the annotation of a mask: it has 1 for each RLE. Return whether it was 1."""
    attributes = annotation.get("attributes")
    is_mask_of_cvat = isinstance(attributes, dict) and "occluded" in attributes and "is_crowd" not in attributes
    if is_mask_of_cvat and annotation["iscrowd"] == 1 and isinstance(annotation.get("segmentation"), dict):
        annotation["iscrowd"] = 0
        return True
    return False


def _find_spelling(folder: Path, name: str) -> str | None:
    """Return another spelling of a file's name that exists, if the name does not."""
    if not leaves_folder(name) and exists(folder / name):
        return None
    return next((each for each in spell(name) if exists(folder / each)), None)


def spell(name: str) -> list[str]:
    """Return other spellings of a file's name, the most similar first, none of which leaves its folder."""
    slashed = name.replace("\\", "/")
    unquoted = unquote(slashed.rpartition("?d=")[2])  # /data/local-files/?d=my%20photo.jpg
    last = unquoted.rpartition("/")[2]
    spellings = [slashed, unquoted]
    spellings += [last] if re.search(r"/upload/|://|\?d=", slashed) else []
    spellings += [last[9:]] if re.match("[0-9a-f]{8}-", last) else []
    spellings += [unicodedata.normalize(form, each) for form in ("NFC", "NFD") for each in spellings]
    return [each for each in dict.fromkeys(spellings) if each and each != name and not leaves_folder(each)]


def _count_objects(content: Mapping[str, Any] | None) -> Counter[int]:
    """Return the number of objects of each category id."""
    ids = (annotation.get("category_id") for annotation in list_entries(content, "annotations"))
    return Counter(id for id in ids if type(id) is int)


def _is_in(id: Any, ids: Collection[int]) -> bool:
    return type(id) is int and id in ids
