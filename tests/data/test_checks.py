"""Issues of COCO data are reported before training with type, file and annotation; valid data have none."""

import copy
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmdet.datasets import CocoDataset
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from small_data import CLASSES, HEIGHT, POLYGON, WIDTH, Json, coco_annotation, coco_content, make_coco, make_image

from dpt_zoo.data.annotation_checks import check_mask
from dpt_zoo.data.checks import CheckedSplit, SplitFiles, check_splits, raise_errors
from dpt_zoo.errors import DataError, InputError
from dpt_zoo.formats.issues import IssueType, describe

NAN = float("nan")
INF = float("inf")


def check(root: Path, **options: Any) -> CheckedSplit:
    return check_files(root / "annotations" / "instances_train2017.json", root / "train2017", **options)


def check_files(annotations: Path, images: Path, **options: Any) -> CheckedSplit:
    (split,) = check_splits([SplitFiles("train2017", annotations, images)], **options)
    return split


def test_a_valid_data_set(tmp_path: Path) -> None:
    make_coco(tmp_path)
    found = check(tmp_path, classes=CLASSES)
    assert found.issues == []
    assert (found.num_images, found.num_empty_images, found.num_objects) == (4, 1, 5)
    assert (found.num_masks, found.num_rle_masks) == (4, 1)
    assert found.classes == {"cat": 3, "dog": 2}
    raise_errors(found)


# --- Annotations

Change = Callable[[Json], object]


def edit(**fields: Any) -> Change:
    """Change fields of the first annotation."""
    return lambda content: content["annotations"][0].update(fields)


def edit_image(**fields: Any) -> Change:
    return lambda content: content["images"][0].update(fields)


def edit_category(**fields: Any) -> Change:
    return lambda content: content["categories"][0].update(fields)


def remove(noun: str, key: str) -> Change:
    return lambda content: content[noun][0].pop(key)


def remove_box(content: Json) -> None:
    content["annotations"][0] = {"id": 11, "image_id": 1, "category_id": 1, "iscrowd": 0}


def add(noun: str, record: Any) -> Change:
    return lambda content: content[noun].append(record)


def segment(*polygons: Any) -> Change:
    return edit(segmentation=list(polygons))


def rle(counts: Any, size: Any = (HEIGHT, WIDTH)) -> Change:
    return edit(segmentation={"counts": counts, "size": list(size) if isinstance(size, tuple) else size})


FIRST = "instances_train2017.json, annotation 11 (image 1)"
FIRST_IMAGE = "instances_train2017.json, image 1 ('1.png')"

ERRORS: list[tuple[str, Change, IssueType, str, str]] = [
    # name, change, and the expected type, place and message
    ("three numbers", edit(bbox=[1, 2, 3]), IssueType.BOX, FIRST, "bbox is [1, 2, 3]"),
    ("a text in a box", edit(bbox=[1, 2, "3", 4]), IssueType.BOX, FIRST, "[1, 2, '3', 4]"),
    ("a truth value in a box", edit(bbox=[1, 2, True, 4]), IssueType.BOX, FIRST, "True"),
    ("no box", edit(bbox=None), IssueType.BOX, FIRST, "None"),
    ("NaN in a box", edit(bbox=[1, NAN, 3, 4]), IssueType.BOX, FIRST, "[1, nan, 3, 4]"),
    ("infinity in a box", edit(bbox=[1, 2, INF, 4]), IssueType.BOX, FIRST, "inf"),
    ("an enormous number in a box", edit(bbox=[10**400, 2, 3, 4]), IssueType.BOX, FIRST, "bbox is [1000"),
    ("a negative width", edit(bbox=[50, 8, -40, 32]), IssueType.BOX, FIRST, "[50, 8, -40, 32]"),
    ("NaN for an area", edit(area=NAN), IssueType.AREA, FIRST, "area is nan"),
    ("a negative area", edit(area=-5), IssueType.AREA, FIRST, "area is -5"),
    ("a text for an area", edit(area="12"), IssueType.AREA, FIRST, "'12'"),
    ("no box", remove_box, IssueType.FIELD, FIRST, "bbox, area missing"),
    ("another iscrowd", edit(iscrowd=2), IssueType.FIELD, FIRST, "iscrowd is 2"),
    ("an unknown category", edit(category_id=9), IssueType.CATEGORY, FIRST, "the file has no category 9"),
    ("a category by name", edit(category_id="cat"), IssueType.CATEGORY, FIRST, "the file has no category 'cat'"),
    ("an id as text", edit(id="a"), IssueType.FIELD, "instances_train2017.json, annotations[0]", "id is 'a'"),
    ("a list for an id", edit(id=[1]), IssueType.FIELD, "annotations[0]", "id is [1]"),
    ("no id", remove("annotations", "id"), IssueType.FIELD, "annotations[0]", "id missing"),
    ("no record", add("annotations", 5), IssueType.FIELD, "annotations[5]", "the entry is 5"),
    ("one id twice", edit(id=12), IssueType.DUPLICATE_ID, "annotation 12 (image 1)", "annotations[1] has the same id"),
    (
        "an odd polygon",
        segment(POLYGON[:5]),
        IssueType.POLYGON,
        FIRST,
        "polygon 1 of 1 is [10.0, 8.0, 50.0, 10.0, 30.5]",
    ),
    ("a line", segment(POLYGON, [1, 2, 3, 4]), IssueType.POLYGON, FIRST, "polygon 2 of 2 is [1, 2, 3, 4]"),
    ("an empty polygon", segment([]), IssueType.POLYGON, FIRST, "polygon 1 of 1 is []"),
    ("NaN in a polygon", segment([NAN, *POLYGON[1:]]), IssueType.POLYGON, FIRST, "[nan, 8.0"),
    ("an enormous polygon", segment([3e8, *POLYGON[1:]]), IssueType.POLYGON, FIRST, "[300000000.0, 8.0"),
    ("a text in a polygon", segment(["1", *POLYGON[1:]]), IssueType.POLYGON, FIRST, "['1', 8.0"),
    ("a flat polygon", segment(*POLYGON), IssueType.POLYGON, FIRST, "not a list of polygons"),
    ("a text for a mask", edit(segmentation="none"), IssueType.POLYGON, FIRST, "segmentation is 'none'"),
    (
        "an RLE of another size",
        rle([WIDTH * HEIGHT], (WIDTH, HEIGHT)),
        IssueType.RLE,
        FIRST,
        "its size is [64, 48], the image is 64x48",
    ),
    ("an RLE without size", rle([WIDTH * HEIGHT], None), IssueType.RLE, FIRST, "its size is None"),
    ("an RLE that is too short", rle([5, 5]), IssueType.RLE, FIRST, "its counts sum to 10, its size is [48, 64]"),
    ("an RLE with a negative count", rle([-1, WIDTH * HEIGHT + 1]), IssueType.RLE, FIRST, "its counts are [-1, 3073]"),
    ("an RLE with a half count", rle([0.5, 3071.5]), IssueType.RLE, FIRST, "its counts are [0.5"),
    ("an RLE without counts", rle(None), IssueType.RLE, FIRST, "its counts are None"),
    ("an RLE of strange text", rle("\u20ac"), IssueType.RLE, FIRST, "its counts are '\u20ac'"),
    ("an RLE that breaks off", rle("oooo"), IssueType.RLE, FIRST, "its counts are 'oooo'"),
    ("an RLE text that is too short", rle("05"), IssueType.RLE, FIRST, "its counts sum to 5"),
    ("no file name", remove("images", "file_name"), IssueType.FIELD, "image 1 (None)", "file_name missing"),
    ("a number for a file name", edit_image(file_name=7), IssueType.FIELD, "image 1 (7)", "file_name is 7"),
    ("a path upwards", edit_image(file_name="../1.png"), IssueType.IMAGE_PATH, "image 1", "'../1.png'"),
    ("a path upwards on Windows", edit_image(file_name="a\\..\\1.png"), IssueType.IMAGE_PATH, "image 1", "1.png"),
    ("an absolute path", edit_image(file_name="/etc/hosts"), IssueType.IMAGE_PATH, "image 1", "'/etc/hosts'"),
    ("one file twice", edit_image(file_name="./2.png"), IssueType.DUPLICATE_IMAGE, "image 2", "is also the file of"),
    ("one image id twice", edit_image(id=2), IssueType.DUPLICATE_ID, "image 2 ('2.png')", "images[1] has the same id"),
    ("a size as text", edit_image(width="64"), IssueType.FIELD, FIRST_IMAGE, "width is '64'"),
    ("no size", edit_image(width=0, height=0), IssueType.FIELD, FIRST_IMAGE, "width is 0"),
    ("no height", remove("images", "height"), IssueType.FIELD, FIRST_IMAGE, "height missing"),
    (
        "a size of another image",
        edit_image(width=65),
        IssueType.IMAGE_SIZE,
        FIRST_IMAGE,
        "is 64x48, the annotations say 65x48",
    ),
    ("half a character", edit_category(name="\ud83d"), IssueType.FIELD, "category 1", "name is '\\ud83d'"),
    ("a class without name", edit_category(name=None), IssueType.FIELD, "category 1 (None)", "name is None"),
    ("one class twice", edit_category(name="dog"), IssueType.DUPLICATE_CLASS, "category 2 ('dog')", "also named 'dog'"),
    (
        "one category id twice",
        edit_category(id=2),
        IssueType.DUPLICATE_ID,
        "category 2",
        "categories[1] has the same id",
    ),
    (
        "no classes",
        lambda content: content["categories"].clear(),
        IssueType.CLASSES,
        "instances_train2017.json",
        "no classes",
    ),
    ("no images", lambda content: content["images"].clear(), IssueType.EMPTY, "instances_train2017.json", "no images"),
    (
        "no objects",
        lambda content: content["annotations"].clear(),
        IssueType.EMPTY,
        "instances_train2017.json",
        "no objects",
    ),
]

WARNINGS: list[tuple[str, Change, IssueType, str, int]] = [
    # name, change, the expected type and message, and the number of objects (of five) that MMDetection learns
    ("an unknown image", edit(image_id=9), IssueType.UNKNOWN_IMAGE, "the file has no image 9", 3),
    ("no width", edit(bbox=[10, 8, 0, 32]), IssueType.EMPTY_BOX, "bbox is [10, 8, 0, 32]", 3),
    ("half a pixel's height", edit(bbox=[10, 8, 40, 0.5]), IssueType.EMPTY_BOX, "[10, 8, 40, 0.5]", 3),
    ("a box beside the image", edit(bbox=[64, 8, 40, 32]), IssueType.BOX_OUTSIDE, "the image is 64x48", 3),
    ("a box before the image", edit(bbox=[-41, 8, 40, 32]), IssueType.BOX_OUTSIDE, "[-41, 8, 40, 32]", 3),
    ("a box across the border", edit(bbox=[30, 8, 40, 32]), IssueType.BOX_ACROSS, "the image is 64x48", 4),
    ("a polygon across the border", segment([-2, *POLYGON[1:]]), IssueType.POLYGON_ACROSS, "the image is 64x48", 4),
    ("area 0", edit(area=0), IssueType.NO_AREA, "area is 0, bbox is [10.0, 8.0, 40.0, 32.0]", 3),
    ("an area larger than the box", edit(area=2000), IssueType.LARGE_AREA, "area is 2000", 4),
    ("a crowd of polygons", edit(iscrowd=1), IssueType.CROWD, "iscrowd is 1", 3),
]


@pytest.mark.parametrize(
    ("change", "issue_type", "where", "message"), [pytest.param(*row[1:], id=row[0]) for row in ERRORS]
)
def test_errors(tmp_path: Path, change: Change, issue_type: IssueType, where: str, message: str) -> None:
    make_coco(tmp_path, change)
    found = [issue for issue in check(tmp_path).issues if issue.type is issue_type]
    assert any(where in issue.where and message in issue.message for issue in found), check(tmp_path).issues
    assert issue_type.is_error
    with pytest.raises(DataError, match=issue_type.title):
        raise_errors(check(tmp_path))


@pytest.mark.parametrize(
    ("change", "issue_type", "message", "num_learned"), [pytest.param(*row[1:], id=row[0]) for row in WARNINGS]
)
def test_warnings_and_what_mmdetection_does(
    tmp_path: Path, change: Change, issue_type: IssueType, message: str, num_learned: int
) -> None:
    path = make_coco(tmp_path, change)
    (issue,) = check(tmp_path).issues
    assert issue.type is issue_type and not issue_type.is_error and message in issue.message
    raise_errors(check(tmp_path))
    dataset = CocoDataset(
        ann_file=str(path), data_prefix={"img": str(tmp_path / "train2017")}, metainfo={"classes": CLASSES}, pipeline=[]
    )
    instances = [instance for index in range(len(dataset)) for instance in dataset.get_data_info(index)["instances"]]
    assert sum(not instance["ignore_flag"] for instance in instances) == num_learned


def test_all_issues_are_reported_at_once(tmp_path: Path) -> None:
    def change(content: Json) -> None:
        content["annotations"][0].update(bbox=[NAN] * 4, area=None, category_id=7, segmentation=[[1, 2, 3]])
        content["annotations"] += [coco_annotation(100 + number, 1, 50) for number in range(20)]
        content["images"][1]["file_name"] = "lost.png"

    make_coco(tmp_path, change)
    (tmp_path / "train2017" / "3.png").write_text("no image")
    with pytest.raises(DataError) as raised:
        raise_errors(check(tmp_path))
    text = str(raised.value)
    for issue_type in (
        IssueType.BOX,
        IssueType.AREA,
        IssueType.CATEGORY,
        IssueType.POLYGON,
        IssueType.MISSING_IMAGE,
        IssueType.UNREADABLE_IMAGE,
    ):
        assert f"  {issue_type.title} (" in text
    assert "unknown category (21)" in text and "    ... and 16 more" in text
    assert text.count("the file has no category 50") == 4


def test_a_model_that_learns_masks_needs_one_for_each_object(tmp_path: Path) -> None:
    make_coco(tmp_path)
    (issue,) = check(tmp_path, with_masks=True).issues
    assert (issue.type, issue.where) == (IssueType.NO_MASK, "instances_train2017.json, annotation 15 (image 3)")


@pytest.mark.parametrize(
    ("expected", "issue_type", "message"),
    [
        (["cat", "dog", "cow"], IssueType.CLASSES, "1 of 3 are missing: 'cow'"),
        (["dog", "cat"], IssueType.CLASSES, "the order is 'cat', 'dog', not 'dog', 'cat'"),
        (["cat"], IssueType.OTHER_CLASSES, "'dog'"),
        (
            [f"class {number}" for number in range(80)],
            IssueType.CLASSES,
            "80 of 80 are missing: 'class 0', 'class 1', ",
        ),
    ],
)
def test_expected_classes(tmp_path: Path, expected: list[str], issue_type: IssueType, message: str) -> None:
    make_coco(tmp_path)
    issue = check(tmp_path, classes=expected).issues[0]
    assert issue.type is issue_type and message in issue.message


@pytest.mark.parametrize(
    "change",
    [edit_category(name="other"), lambda content: [each.update(iscrowd=1) for each in content["annotations"]]],
)
def test_nothing_is_left_to_learn(tmp_path: Path, change: Change) -> None:
    def one_class(content: Json) -> None:
        content["annotations"] = [each for each in content["annotations"] if each["category_id"] == 1]
        change(content)

    make_coco(tmp_path, one_class)
    issues = check(tmp_path, classes=["cat"]).issues
    assert any(
        each.type is IssueType.EMPTY and "none of the 3 objects can be learned" in each.message for each in issues
    )


def test_an_object_with_id_0_counts_as_never_found() -> None:
    """The reason for the warning: pycocotools gives correct detections an AP below 1."""
    for first_id, expected in ((0, 0), (1, 1)):
        content = {**coco_content(), "annotations": [coco_annotation(first_id, 1)]}
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([{**coco_annotation(1, 1), "score": 0.9}]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(expected)


# --- Files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the file cannot be read: No such file"),
        (b"", "the file is not JSON"),
        (b'{"images": [', "the file is not JSON: Expecting value: line 1 column 13"),
        (b"\xff\xfe\x00", "the file is not JSON"),
        (b"[" * 100_000, "the file is not JSON"),
        (b"1" * 10_000, "the file is not JSON"),
        (b'[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}]', "as a detector's results do"),
        (b'"text"', "the file only holds 'text'"),
        (b'{"version": "5.0", "shapes": [], "imagePath": "a.jpg"}', "labelme"),
        (b"{}", "the file has no list of images, categories, annotations"),
        (b'{"images": {}, "annotations": [], "categories": 1}', "no list of images, categories"),
        (b'{"images": [], "annotations": [{"caption": "a cat"}], "categories": []}', "another COCO task"),
        (b'{"images": [], "annotations": [{"segments_info": []}], "categories": []}', "another COCO task"),
    ],
)
def test_no_annotation_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = make_coco(tmp_path)
    path.unlink() if content is None else path.write_bytes(content)
    found = check(tmp_path)
    (issue,) = found.issues
    assert (issue.type, issue.where) == (IssueType.FILE, str(path)) and message in issue.message
    assert (found.num_images, found.num_objects, found.classes) == (0, 0, {})


def damage_image(path: Path, damage: str) -> None:
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "a folder":
            path.unlink()
            path.mkdir()
        case "truncated":
            noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
            Image.fromarray(noise).save(path)
            path.write_bytes(path.read_bytes()[:-500])
        case "turned":
            exif = Image.Exif()
            exif[0x0112] = 6
            Image.new("RGB", (WIDTH, HEIGHT)).save(path, exif=exif)
        case "resized":
            make_image(path, (WIDTH * 2, HEIGHT * 2))


@pytest.mark.parametrize(
    ("damage", "issue_type", "message"),
    [
        ("missing", IssueType.MISSING_IMAGE, "there is no file"),
        ("empty", IssueType.UNREADABLE_IMAGE, "the file is empty"),
        ("a folder", IssueType.UNREADABLE_IMAGE, "this is a folder"),
        ("truncated", IssueType.UNREADABLE_IMAGE, "damaged"),
        (
            "turned",
            IssueType.IMAGE_SIZE,
            "the image is 48x64 (turned by its EXIF orientation?), the annotations say 64x48",
        ),
        ("resized", IssueType.IMAGE_SIZE, "the image is 128x96, the annotations say 64x48"),
    ],
)
def test_damaged_images(tmp_path: Path, damage: str, issue_type: IssueType, message: str) -> None:
    make_coco(tmp_path)
    damage_image(tmp_path / "train2017" / "2.png", damage)
    (issue,) = check(tmp_path, jobs=1).issues
    assert issue.type is issue_type and message in issue.message and "\n" not in issue.message
    assert (issue.where, issue.image_id) == ("instances_train2017.json, image 2 ('2.png')", 2)
    assert bool(check(tmp_path, read_images=False).issues) == (damage == "missing")


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png", "x" * 5000, "\x1b[2J.png"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    make_coco(tmp_path, edit_image(file_name=name))
    (issue,) = check(tmp_path).issues
    assert issue.type is IssueType.MISSING_IMAGE
    assert describe([issue]).encode().isascii() and "\x1b" not in describe([issue])


def test_a_wrong_folder_is_reported_once(tmp_path: Path) -> None:
    path = make_coco(tmp_path)
    (tmp_path / "other").mkdir()
    (issue,) = check_files(path, tmp_path / "other").issues
    assert "none of the 4 images is in" in issue.message and "another split's folder?" in issue.message
    (issue,) = check_files(path, tmp_path / "none").issues
    assert (issue.where, issue.message) == (str(tmp_path / "none"), "there is no such folder")


def test_progress_and_jobs(tmp_path: Path) -> None:
    make_coco(tmp_path)
    reports: list[tuple[int, int | None]] = []
    check(tmp_path, jobs=3, progress=lambda done, total: reports.append((done, total)))
    assert reports == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(InputError, match="jobs must be a whole number from 1, not 0"):
        check(tmp_path, jobs=0)


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    size = 512
    images = [{"id": number, "file_name": f"{number}.png", "width": size, "height": size} for number in range(1, 151)]
    path = make_coco(tmp_path, lambda content: content.update(images=images))
    make_image(tmp_path / "big.png", (size, size))
    for image in images:
        (tmp_path / "train2017" / str(image["file_name"])).unlink(missing_ok=True)
        (tmp_path / "train2017" / str(image["file_name"])).hardlink_to(tmp_path / "big.png")
    tracemalloc.start()
    check_files(path, tmp_path / "train2017", jobs=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6 < len(images) * size * size * 3  # NumPy's arrays are counted


# --- Random damage

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**31, 2**63, 10**400])
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["../x", "/", "1.png", "\0", "\ud800"]),
    lambda children: st.lists(children, max_size=7) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)


@st.composite
def damaged_contents(draw: st.DrawFn) -> Any:
    """Valid content with some values replaced, removed or repeated."""
    content: Any = {"all": copy.deepcopy(coco_content())}
    for _ in range(draw(st.integers(1, 4))):
        parent: Any = content
        key: Any = "all"
        while isinstance(parent[key], dict | list) and parent[key] and draw(st.integers(0, 4)):
            parent = parent[key]
            key = (
                draw(st.sampled_from(sorted(parent)))
                if isinstance(parent, dict)
                else draw(st.integers(0, len(parent) - 1))
            )
        match draw(st.sampled_from(["replace", "remove", "repeat"])):
            case "repeat" if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            case "remove" if parent is not content:
                del parent[key]
            case _:
                parent[key] = draw(values)
    return content["all"]


once = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A valid data set; all examples share it, and write its annotation file."""
    make_coco(tmp_path)
    return tmp_path


@once
@given(content=damaged_contents())
def test_damaged_json(root: Path, content: Any) -> None:
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    found = check(root, with_masks=True, classes=CLASSES, jobs=1)
    describe(found.issues).encode()
    json.dumps(found.classes)
    assert found.num_empty_images >= 0


@once
@given(data=st.data())
def test_damaged_bytes(root: Path, data: st.DataObject) -> None:
    content = bytearray(json.dumps(coco_content()).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=4))
    (root / "annotations" / "instances_train2017.json").write_bytes(content)
    describe(check(root, jobs=1).issues).encode()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_rle_texts_are_read_as_pycocotools_reads_them(data: st.DataObject) -> None:
    """Valid texts pass; damaged texts that pass are safe to decode."""
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    bits = np.random.default_rng(data.draw(st.integers(0, 1000))).random((height, width))
    mask = np.asfortranarray(bits < data.draw(st.floats(0, 1)), np.uint8)
    text = coco_mask.encode(mask)["counts"].decode()
    record = {"segmentation": {"size": [height, width], "counts": text}}
    assert not list(check_mask(record, (height, width), is_needed=True))
    place = data.draw(st.integers(0, len(text)))
    changed = text[:place] + data.draw(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=3))
    record["segmentation"]["counts"] = changed + text[place + 1 :]
    if not list(check_mask(record, (height, width), is_needed=True)):
        decoded = coco_mask.decode(record["segmentation"])
        assert decoded.shape == (height, width) and decoded.sum() == coco_mask.area(record["segmentation"])
