"""Incomplete but unambiguous annotations are completed in a copy, and categories that are no classes are left out."""

import copy
import json
import locale
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.datasets import CocoDataset
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from small_data import HEIGHT, POLYGON, WIDTH, Json, coco_annotation, coco_content, make_coco, make_image

from dpt_zoo.data import checks
from dpt_zoo.data.annotation_checks import measure_mask
from dpt_zoo.data.checks import CheckedSplit, SplitFiles, check_splits, raise_errors
from dpt_zoo.data.completion import remove_parents
from dpt_zoo.errors import DataError
from dpt_zoo.formats.issues import IssueType

Change = Callable[[Json], object]


def check(path: Path, images: Path | None = None, **options: Any) -> CheckedSplit:
    images = images or path.parent.parent / "train2017"
    (split,) = check_splits([SplitFiles("train2017", path, images)], work_dir=path.parent.parent / "work", **options)
    raise_errors(split)
    return split


def read(split: CheckedSplit) -> Any:
    return json.loads(split.annotations.read_text())


def messages(split: CheckedSplit, issue_type: IssueType) -> list[str]:
    return [issue.message for issue in split.issues if issue.type is issue_type]


# --- Values


def pop(index: int, *keys: str) -> Change:
    return lambda content: [content["annotations"][index].pop(key) for key in keys]


def floats(noun: str, *keys: str) -> Change:
    return lambda content: [entry.update({key: float(entry[key]) for key in keys}) for entry in content[noun]]


def float_rle(content: Json) -> None:
    content["annotations"][2]["segmentation"]["size"] = [float(HEIGHT), float(WIDTH)]


VALUES: list[tuple[str, Change, str]] = [
    # name, change, and the expected message; the copy is as the content before the change
    ("float sizes", floats("images", "width", "height"), ""),
    ("float ids of images", floats("images", "id"), ""),
    ("float ids of categories", floats("categories", "id"), ""),
    ("float ids of annotations", floats("annotations", "id", "image_id", "category_id", "iscrowd"), ""),
    ("a float size of an RLE", float_rle, ""),
    ("no iscrowd", pop(0, "iscrowd"), "1 annotation had no iscrowd"),
    ("iscrowd is null", lambda content: content["annotations"][0].update(iscrowd=None), "1 annotation had no iscrowd"),
    ("no area of polygons", pop(0, "area"), "1 annotation had no area"),
    ("no area of a compressed RLE", pop(2, "area"), "1 annotation had no area"),
    ("no area of an RLE", pop(3, "area"), "1 annotation had no area"),
    ("no area of a box", pop(4, "area"), "1 annotation had no area"),
    ("no box of polygons", pop(0, "bbox"), "1 annotation had no bbox"),
    ("no box of a compressed RLE", pop(2, "bbox", "area"), "1 annotation had no bbox"),
    ("no box of an RLE", pop(3, "bbox"), "1 annotation had no bbox"),
]


def test_id_zero_is_the_next_free_id(tmp_path: Path) -> None:
    """COCO's evaluation counts an object with this id as missed."""
    path = make_coco(tmp_path, lambda content: content["annotations"][1].update(id=0))
    split = check(path)
    assert [each["id"] for each in read(split)["annotations"]] == [11, 16, 13, 14, 15]
    (message,) = messages(split, IssueType.COMPLETED)
    assert message == "the annotation with id 0, which COCO's evaluation counts as missed, has id 16 now"


@pytest.mark.parametrize(("change", "message"), [pytest.param(*row[1:], id=row[0]) for row in VALUES])
def test_values(tmp_path: Path, change: Change, message: str) -> None:
    path = make_coco(tmp_path, change)
    before = path.read_bytes()
    split = check(path)
    assert split.annotations == tmp_path / "work" / "instances_train2017.json"
    copied = {key: value for key, value in read(split).items() if key in coco_content()}
    assert copied == coco_content()
    assert not re.search(r"(id|width|height|iscrowd)\": [0-9]+[.]", json.dumps(copied))
    assert message in "".join(messages(split, IssueType.COMPLETED)) and bool(message) == bool(split.issues)
    assert path.read_bytes() == before
    assert check(split.annotations, tmp_path / "train2017").issues == []


def test_valid_annotations_are_not_copied(tmp_path: Path) -> None:
    path = make_coco(tmp_path)
    assert check(path).annotations == path and not (tmp_path / "work").exists()


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    path = make_coco(tmp_path, pop(0, "area"))
    (split,) = check_splits([SplitFiles("train2017", path, tmp_path / "train2017")])
    assert split.annotations == path and [issue.type for issue in split.issues] == [IssueType.COMPLETED]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000), st.floats(0, 1))
def test_masks_are_measured_as_pycocotools_measures_them(height: int, width: int, seed: int, density: float) -> None:
    bits = np.asfortranarray(np.random.default_rng(seed).random((height, width)) < density, np.uint8)
    rle = coco_mask.encode(bits)
    measured = measure_mask({"size": [height, width], "counts": rle["counts"].decode()})
    assert measured == (None if not bits.any() else (coco_mask.toBbox(rle).tolist(), coco_mask.area(rle)))


@pytest.mark.parametrize(
    "segmentation", [None, [], {}, "x", [[1, 2]], [POLYGON, None], {"size": [9, 9], "counts": [81]}]
)
def test_no_mask_to_measure(segmentation: Any) -> None:
    assert measure_mask(segmentation) is None


# --- Text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    path = make_coco(tmp_path, lambda content: content["categories"][0].update(name="Kätzchen"))
    path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False), encoding=encoding)
    split = check(path)
    assert list(split.classes) == ["Kätzchen", "dog"]
    assert [each["name"] for each in COCO(str(split.annotations)).dataset["categories"]] == ["Kätzchen", "dog"]


@pytest.mark.parametrize(("name", "is_copied"), [("Kätzchen", True), ("cat", False)])
def test_a_locale_in_which_pycocotools_would_read_another_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_copied: bool
) -> None:
    path = make_coco(tmp_path, lambda content: content["categories"][0].update(name=name))
    path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False), encoding="utf-8")
    assert check(path).annotations == path
    monkeypatch.setattr(locale, "getpreferredencoding", lambda do_setlocale: "ISO-8859-1")
    split = check(path)
    assert (split.annotations != path) == is_copied and split.annotations.read_bytes().isascii()


@pytest.mark.parametrize(
    ("old", "new", "is_error"),
    [
        ('"annotations": [', '"annotations": [], "annotations": [', True),  # a merge by hand
        ('"images": [', '"images": [], "images": [', True),
        ('"iscrowd": 1', '"iscrowd": 0, "iscrowd": 1', True),
        ('"counts": ', '"counts": "x", "counts": ', True),
        ('"iscrowd": 1', '"iscrowd": 1, "iscrowd": 1', False),
    ],
)
def test_a_key_that_stands_twice(tmp_path: Path, old: str, new: str, is_error: bool) -> None:
    path = make_coco(tmp_path)
    path.write_text(path.read_text().replace(old, new, 1))
    (split,) = check_splits([SplitFiles("train2017", path, tmp_path / "train2017")])
    key = old.split('"')[1]
    expected = [f"the file is not JSON: one object has the key '{key}' twice, with different values"]
    assert [issue.message for issue in split.issues] == (expected if is_error else [])


# --- Names of files


@pytest.mark.parametrize(
    ("on_disk", "in_file"),
    [
        ("deep/1.png", "deep\\1.png"),
        (unicodedata.normalize("NFD", "Käfer.png"), unicodedata.normalize("NFC", "Käfer.png")),
        (unicodedata.normalize("NFC", "Käfer.png"), unicodedata.normalize("NFD", "Käfer.png")),
        ("deep/" + unicodedata.normalize("NFD", "Käfer.png"), unicodedata.normalize("NFC", "deep\\Käfer.png")),
    ],
)
def test_spellings_of_file_names(tmp_path: Path, on_disk: str, in_file: str) -> None:
    path = make_coco(tmp_path, lambda content: content["images"][0].update(file_name=in_file))
    make_image(tmp_path / "train2017" / on_disk)
    split = check(path)
    assert read(split)["images"][0]["file_name"] == on_disk
    assert messages(split, IssueType.COMPLETED)[0].startswith("1 file name differed from the files: ")


def test_a_name_with_backslashes_that_no_file_has(tmp_path: Path) -> None:
    path = make_coco(tmp_path, lambda content: content["images"][0].update(file_name="deep\\lost.png"))
    (split,) = check_splits([SplitFiles("train2017", path, tmp_path / "train2017")])
    (issue,) = split.issues
    assert issue.type is IssueType.MISSING_IMAGE and "backslashes" in issue.message


# --- Classes


def category(id: int, name: str, parent: str | None = None) -> Json:
    return {"id": id, "name": name, **({} if parent is None else {"supercategory": parent})}


PETS, DOG = ["cat", "dog"], category(2, "dog", "pets")

CATEGORIES: list[tuple[str, list[Json], list[str]]] = [
    # name, categories, of which 1 and 2 have objects, and the expected classes
    ("Roboflow", [category(0, "pets", "none"), category(1, "cat", "pets"), category(2, "dog", "pets")], ["cat", "dog"]),
    ("Roboflow, one class", [category(0, "cat", "none"), category(1, "cat", "cat"), category(2, "dog", "cat")], PETS),
    ("two levels", [category(7, "all", ""), category(8, "pets", "all"), category(1, "cat", "pets"), DOG], PETS),
    ("the parent last", [category(1, "cat", "pets"), category(2, "dog", "pets"), category(9, "pets")], PETS),
    ("labelme's background", [category(0, "_background_"), category(1, "cat"), DOG], PETS),
    ("Detectron's background", [category(0, "__background__"), category(1, "cat"), DOG], PETS),
    ("ignored", [category(0, "__ignore__"), category(1, "cat"), category(2, "N/A")], ["cat", "N/A"]),
    ("its own parent", [category(0, "cow", "cow"), category(1, "cat", "cat"), DOG], ["cow", *PETS]),
    ("a parent with objects", [category(1, "pets", "none"), category(2, "dog", "pets")], ["pets", "dog"]),
    ("an empty class", [category(1, "cat"), DOG, category(3, "cow", "animals")], [*PETS, "cow"]),
    ("COCO's", [category(1, "person", "person"), DOG, category(3, "cat", "animal")], ["person", "dog", "cat"]),
]


@pytest.mark.parametrize(("categories", "expected"), [pytest.param(*row[1:], id=row[0]) for row in CATEGORIES])
def test_categories_that_are_no_classes(tmp_path: Path, categories: list[Json], expected: list[str]) -> None:
    path = make_coco(tmp_path, lambda content: content.update(categories=copy.deepcopy(categories)))
    split = check(path)
    assert list(split.classes) == expected
    left_out = len(categories) - len(expected)
    assert len(messages(split, IssueType.PARENT_CLASS)) == len(split.issues) == left_out
    dataset = CocoDataset(
        ann_file=str(split.annotations), data_prefix={"img": ""}, metainfo={"classes": tuple(expected)}, pipeline=[]
    )
    labels = {each["bbox_label"] for index in range(len(dataset)) for each in dataset.get_data_info(index)["instances"]}
    names = {each["name"] for each in categories if each["id"] in (1, 2)}
    assert {expected[label] for label in labels} == names and max(labels) < len(expected)


def test_a_parent_with_objects_in_another_split_stays_a_class() -> None:
    categories = [category(1, "pets"), category(2, "dog", "pets"), category(3, "all"), category(4, "x", "all")]
    contents: list[Json] = [
        {"categories": copy.deepcopy(categories), "annotations": [{"category_id": id}]} for id in (1, 2)
    ]
    assert remove_parents(contents, kept=["all"]) == [[], []]
    assert remove_parents(contents) == [["all"], ["all"]]
    assert [[each["id"] for each in content["categories"]] for content in contents] == [[1, 2, 4]] * 2


def test_the_parent_is_left_out_where_annotations_are_not_needed() -> None:
    content = {
        "categories": [
            category(0, "pets", "none"),
            category(1, "cat", "pets"),
            category(2, "fish", "x"),
            category(3, "x"),
        ]
    }
    assert remove_parents([content]) == [["pets"]]


def test_ten_thousand_classes_are_compared_a_few_times_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, comparisons = 2000, 0

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal comparisons
            comparisons += 1
            return str.__eq__(self, other)

    path = make_coco(tmp_path)
    content = coco_content()
    content["categories"] = [category(number, Name(f"class {number}")) for number in range(1, count + 1)]
    monkeypatch.setattr(checks, "parse_json", lambda text: copy.deepcopy(content))
    split = check(path, classes=[Name(f"class {number}") for number in range(1, count + 1)])
    assert len(split.classes) == count and comparisons < 30 * count


# --- Masks and crowds


@pytest.mark.parametrize(
    "segmentation", [[[1, 2, 3]], "none", {"size": [1, 1], "counts": [5]}, {"counts": "oooo", "size": [HEIGHT, WIDTH]}]
)
def test_invalid_masks_are_left_out_where_none_are_needed(tmp_path: Path, segmentation: Any) -> None:
    path = make_coco(tmp_path, lambda content: content["annotations"][0].update(segmentation=segmentation))
    split = check(path, with_masks=False)
    assert messages(split, IssueType.COMPLETED) == ["1 invalid mask left out, because masks are not used"]
    assert read(split)["annotations"][0]["segmentation"] == [] and split.num_masks == 3
    assert read(split)["annotations"][1]["segmentation"]


def test_masks_of_cvat_are_no_crowds_unless_they_were_marked_so(tmp_path: Path) -> None:
    def mark(content: Json) -> None:
        content["annotations"][2].update(iscrowd=1, attributes={"occluded": False})
        content["annotations"][3].update(iscrowd=1, attributes={"occluded": False, "is_crowd": True})

    split = check(make_coco(tmp_path, mark))
    assert [each["iscrowd"] for each in read(split)["annotations"]] == [0, 0, 0, 1, 0]
    (message,) = messages(split, IssueType.COMPLETED)
    assert message == "1 mask of CVAT had iscrowd 1, as CVAT marks an RLE: it is 0 now"


def test_objects_that_all_are_crowds(tmp_path: Path) -> None:
    def brush(content: Json) -> None:
        for annotation in content["annotations"][2:4]:
            annotation.update(iscrowd=1, category_id=1)
        content["annotations"] = [*content["annotations"][2:4], coco_annotation(20, 1, 1), coco_annotation(21, 1, 2)]

    split = check(make_coco(tmp_path, brush))
    assert messages(split, IssueType.MOSTLY_CROWDS) == ["2 of the 3 objects of 'cat' are crowds"]
    path = make_coco(tmp_path, lambda content: [each.update(iscrowd=1) for each in content["annotations"]])
    with pytest.raises(DataError, match="none of the 5 objects can be learned: 5 have iscrowd 1"):
        check(path)
