"""What tools export is read to the pixel, and written in other layouts."""

import base64
import json
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from numpy.testing import assert_allclose
from pycocotools.coco import COCO
from running import Run
from small_data import HEIGHT, WIDTH, make_coco, make_image
from tool_exports import EXPORTS, Expected, labelme, png, supervisely, supervisely_with_short_names, via, write_json

from dpt_zoo.data.checks import SplitFiles, check_splits, raise_errors
from dpt_zoo.data.layouts import find_splits
from dpt_zoo.errors import DataError
from dpt_zoo.formats.issues import IssueType


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def assert_holds(split: SplitFiles, expected: Expected, work_dir: Path) -> None:
    """Check a split, and compare its boxes and masks."""
    (checked,) = check_splits([split], work_dir=work_dir)
    raise_errors(checked)
    coco = COCO(checked.annotations)
    names = {category["id"]: category["name"] for category in coco.dataset["categories"]}
    assert set(names.values()) <= {"cat", "dog"}
    assert len(coco.imgs) == len(expected)
    for image in coco.dataset["images"]:
        (objects,) = (value for name, value in expected.items() if image["file_name"].endswith(name))
        annotations = coco.imgToAnns[image["id"]]
        assert [names[each["category_id"]] for each in annotations] == [name for name, _, _ in objects]
        for annotation, (_, box, mask) in zip(annotations, objects, strict=True):
            x, y, width, height = annotation["bbox"]
            assert_allclose([x, y, x + width, y + height], box, atol=1e-4)
            assert not annotation["iscrowd"]
            if mask is not None:
                assert np.array_equal(coco.annToMask(annotation), mask)
    dataset = CocoDataset(
        ann_file=str(checked.annotations),
        data_prefix={"img": str(checked.images)},
        metainfo={"classes": tuple(checked.classes)},
        pipeline=[],
    )
    assert len(dataset) == len(expected)


@pytest.mark.parametrize("export", EXPORTS)
def test_exports_are_read_to_the_pixel(export: Callable[[Path], Expected], root: Path, tmp_path: Path) -> None:
    expected = export(root)
    splits = find_splits(root, tmp_path / "work")
    names = [split.name for split in splits]
    assert names[0] in ("train", "result", "default", "ds0") and names[1:] in ([], ["val"], ["valid"], ["validation"])
    for split in splits:
        assert_holds(split, expected, tmp_path / "work")


@pytest.mark.parametrize("export", [supervisely_with_short_names, labelme])
def test_exports_in_an_archive(export: Callable[[Path], Expected], root: Path, tmp_path: Path) -> None:
    expected = export(root / "My project")
    archive = Path(shutil.make_archive(str(tmp_path / "export"), "zip", root))
    for _ in range(2):  # unpacked once
        for split in find_splits(archive, tmp_path / "work"):
            assert split.images.is_relative_to(tmp_path / "export")
            assert_holds(split, expected, tmp_path / "work")
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"is not what was unpacked to .*export: remove that folder"):
        find_splits(archive, tmp_path / "work")


def test_an_archive_beside_a_folder_of_its_name(root: Path, tmp_path: Path) -> None:
    make_coco(root)
    archive = Path(shutil.make_archive(str(root), "zip", root))
    with pytest.raises(DataError, match="data exists, but is not this archive: use that folder"):
        find_splits(archive, tmp_path / "work")


def hostile_link(archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("data/link")
    entry.external_attr = 0o120777 << 16
    archive.writestr(entry, "/etc/passwd")


HOSTILE: dict[str, tuple[Callable[[zipfile.ZipFile], None], str]] = {
    "parent": (lambda archive: archive.writestr("../outside.txt", ""), "is not a file below the folder"),
    "root": (lambda archive: archive.writestr("/tmp/outside.txt", ""), "is not a file below the folder"),
    "drive": (lambda archive: archive.writestr("C:\\outside.txt", ""), "is not a file below the folder"),
    "link": (hostile_link, "is not a file below the folder"),
    "bomb": (lambda archive: archive.writestr("zeros", bytes(10**7), zipfile.ZIP_DEFLATED), "bytes would become 10,0"),
}


@pytest.mark.parametrize(("add", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_archives(add: Callable[[zipfile.ZipFile], None], reason: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.writestr("a.txt", "a")
        add(archive)
    with pytest.raises(DataError, match=f"export.zip cannot be unpacked: .*{reason}"):
        find_splits(tmp_path / "export.zip", tmp_path / "work")
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["export.zip"]


def test_damaged_archives(root: Path, tmp_path: Path) -> None:
    make_coco(root)
    archive = Path(shutil.make_archive(str(tmp_path / "export"), "zip", root))
    content = archive.read_bytes()
    for damaged in (content[:-200], content[:300] + bytes(20) + content[320:], b"", b"no archive"):
        archive.write_bytes(damaged)
        with pytest.raises(DataError, match=r"export\.zip cannot be unpacked: .*: download or export it again"):
            find_splits(archive, tmp_path / "work")
    assert not (tmp_path / "export").exists()


# --- Labels that cannot be read


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def labelme_shape(**fields: Any) -> Callable[[Path], object]:
    def break_it(root: Path) -> None:
        labelme(root)
        change_json(root / "a.json", lambda content: content["shapes"][1].update(fields))

    return break_it


def via_shape(**fields: Any) -> Callable[[Path], object]:
    def break_it(root: Path) -> None:
        via(root)

        def change(content: Any) -> None:
            content["_via_img_metadata"]["a.png128"]["regions"][1].update(fields)

        change_json(root / "via_project.json", change)

    return break_it


def supervisely_object(number: int, **fields: Any) -> Callable[[Path], object]:
    def break_it(root: Path) -> None:
        supervisely(root)
        change_json(root / "ds0/ann/a.png.json", lambda content: content["objects"][number].update(fields))

    return break_it


def bitmap(data: bytes, origin: list[int]) -> dict[str, Any]:
    return {"bitmap": {"origin": origin, "data": base64.b64encode(data).decode()}}


LARGE = zlib.compress(png(np.ones((HEIGHT + 1, 2), dtype=bool)))

BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "labelme: two points": (labelme_shape(points=[[1, 2], [3, 4]]), "a.json, shape 2: its points are"),
    "labelme: text": (labelme_shape(points=[[1, 2], [3, 4], ["5", 6]]), "a.json, shape 2: '5' is not a number below"),
    "labelme: infinite": (labelme_shape(points=[[1, 2], [3, 4], [1e9, 6]]), "shape 2: 1000000000.0 is not a number"),
    "labelme: no label": (labelme_shape(label=" "), "a.json, shape 2: the shape has no label"),
    "labelme: a cube": (labelme_shape(shape_type="cube"), "a.json, shape 2: the shape is 'cube'; polygon, rectangle"),
    "labelme: no PNG": (labelme_shape(shape_type="mask", mask="AAAA"), "a.json, shape 2: the mask is no PNG"),
    "labelme: no JSON": (
        lambda root: (labelme(root), (root / "a.json").write_text('{"shapes": 1, "imagePath":')),
        "a.json: Exp",
    ),
    "via: no class": (via_shape(region_attributes={"class": ""}), "via_project.json, a.png, region 2: its class is ''"),
    "via: two classes": (via_shape(region_attributes={"x": "cat", "y": "dog"}), "region 2: its attributes are"),
    "via: no shape": (via_shape(shape_attributes={}), "region 2: the region has another form: 'name'"),
    "supervisely: outside": (
        supervisely_object(2, **bitmap(LARGE, [0, 0])),
        "object 3: the mask of 2x49 pixels at 0, 0 is not",
    ),
    "supervisely: no data": (supervisely_object(2, **bitmap(b"x", [0, 0])), "object 3: the mask is no PNG"),
    "supervisely: no title": (supervisely_object(0, points=None), "a.png.json, object 1: the object has another form"),
}


@pytest.mark.parametrize(("break_it", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_labels_are_errors_with_their_place(
    break_it: Callable[[Path], object], message: str, root: Path, tmp_path: Path
) -> None:
    break_it(root)
    (split,) = check_splits(find_splits(root, tmp_path / "work"))
    (issue,) = [issue for issue in split.issues if issue.type is IssueType.LABEL]
    assert message in str(issue)


def test_points_are_ignored_with_a_warning(root: Path, run: Run) -> None:
    labelme(root)
    status, out, _ = run("check-data", root)
    assert status == 0 and "label without extent (1)" in out and "a.json, shape 4: point 'nose'" in out


def test_several_files_of_via(root: Path, tmp_path: Path) -> None:
    via(root)
    shutil.copy(root / "via_project.json", root / "via_project_2.json")
    with pytest.raises(DataError, match=r"several files .*: via_project\.json, via_project_2\.json: keep one"):
        find_splits(root, tmp_path / "work")


def test_huggingface_without_objects(root: Path, tmp_path: Path) -> None:
    make_image(root / "train" / "a.png")
    (root / "train" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}\n')
    with pytest.raises(DataError, match="its columns are image, text: it needs image, and objects with bbox and cat"):
        find_splits(root, tmp_path / "work")


def test_ids_that_are_numbers_as_text_stay_the_same_numbers(root: Path, tmp_path: Path) -> None:
    def as_text(content: Any) -> None:
        for annotation in content["annotations"]:
            annotation["image_id"] = str(annotation["image_id"])

    path = make_coco(root, as_text)
    (split,) = check_splits([SplitFiles("train", path, root / "train2017")], work_dir=tmp_path / "work")
    raise_errors(split)
    content = json.loads(split.annotations.read_text())
    assert [each["image_id"] for each in content["annotations"]] == [1, 1, 2, 2, 3]
    assert [image["id"] for image in content["images"]] == [1, 2, 3, 4]


def test_an_unknown_id_stays_an_error(root: Path) -> None:
    path = make_coco(root, lambda content: content["annotations"][0].update(category_id="no such"))
    (split,) = check_splits([SplitFiles("train", path, root / "train2017")])
    assert IssueType.CATEGORY in {issue.type for issue in split.issues}


def test_sizes_of_the_labels_are_those_of_the_images(root: Path, tmp_path: Path) -> None:
    """The width and height in labelme's files may be wrong, so the images' own are used."""
    labelme(root)
    change_json(root / "a.json", lambda content: content.update(imageWidth=None, imageHeight=7))
    (split,) = find_splits(root, tmp_path / "work")
    assert [image["width"] for image in json.loads(split.annotations.read_text())["images"]] == [WIDTH, WIDTH]
