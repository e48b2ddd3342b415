"""Data sets in COCO's, YOLO's and Pascal VOC's layouts become COCO annotations that say exactly the same."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmdet.datasets import CocoDataset
from numpy.testing import assert_allclose
from PIL import Image
from small_data import (
    BOX,
    CLASSES,
    HEIGHT,
    POLYGON,
    POLYGON_BOX,
    WIDTH,
    make_coco,
    make_image,
    make_voc,
    make_yolo,
    voc_object,
    voc_xml,
)

from dpt_zoo.data.checks import CheckedSplit, SplitFiles, check_splits, raise_errors
from dpt_zoo.data.layouts import find_splits
from dpt_zoo.errors import DataError, DPTZooError, OutputError
from dpt_zoo.formats.issues import Issue, IssueType


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    return tmp_path / "work"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def find_issues(root: Path, work_dir: Path) -> list[Issue]:
    return [issue for check in check_splits(find_splits(root, work_dir)) for issue in check.issues]


def content_of(split: SplitFiles) -> Any:
    return json.loads(split.annotations.read_text())


# --- COCO


@pytest.mark.parametrize("images", ["{}", "images/{}"])
def test_coco(root: Path, work_dir: Path, images: str) -> None:
    names = ["train2017", "a_third", "val2017"]
    for name in names:
        make_coco(root, split=name)
        (root / "images").mkdir(exist_ok=True)
        (root / name).rename(root / images.format(name))
    (root / "annotations" / "captions_val2017.json").write_text("{}")
    splits = find_splits(root, work_dir)
    assert [split.name for split in splits] == ["train2017", "a_third", "val2017"]
    assert [split.images for split in splits] == [root / images.format(split.name) for split in splits]
    assert not any(check.issues for check in check_splits(splits))
    assert not work_dir.exists()


def test_coco_as_roboflow_exports_it(root: Path, work_dir: Path) -> None:
    for name in ("train", "valid"):
        path = make_coco(root, split=name)
        path.rename(root / name / "_annotations.coco.json")
    (train, valid) = find_splits(root, work_dir)
    assert (train.name, train.images, valid.images) == ("train", root / "train", root / "valid")
    assert not any(check.issues for check in check_splits([train, valid]))


def move_images(root: Path, folder: str, prefix: str = "") -> None:
    """Move the images of a split, and put `prefix` before their names in the annotation file."""
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "train2017" / image["file_name"]).rename(root / folder / image["file_name"])
        image["file_name"] = prefix + image["file_name"]
    (root / "train2017").rmdir()
    path.write_text(json.dumps(content))


EXPORTS = [
    # the annotation file, the folder of the images, and what their names begin with
    ("result.json", "images", "images/"),  # Label Studio
    ("result.json", "images", "images\\"),  # Label Studio on Windows
    ("annotations.json", "JPEGImages", "JPEGImages/"),  # labelme2coco
    ("labels.json", "data", ""),  # FiftyOne
    ("_annotations.coco.json", "", ""),  # one split of Roboflow
    ("annotations/instances_default.json", "images/default", ""),  # CVAT
    ("annotations/instances_train.json", "images/train", "images/train/"),
    ("annotations/instances_train.json", "train", "train/"),
    ("annotations/train.json", "images", ""),
    ("annotations/train.json", "data", ""),
]


@pytest.mark.parametrize(("file", "images", "prefix"), EXPORTS)
def test_coco_as_tools_export_it(root: Path, work_dir: Path, file: str, images: str, prefix: str) -> None:
    path = make_coco(root)
    move_images(root, images, prefix)
    path.rename(root / file)
    if "/" not in file:
        path.parent.rmdir()
        (root / "notes.json").write_text('{"categories": [], "info": {}}')
    (split,) = find_splits(root, work_dir)
    assert split.annotations == root / file
    (checked,) = check_splits([split])
    assert not [issue for issue in checked.issues if issue.type is not IssueType.COMPLETED]


def test_what_an_earlier_run_wrote_is_no_data(root: Path) -> None:
    """The folder of a run may be that of its data."""
    make_yolo(root)
    first = find_splits(root, root / "annotations")
    (root / "labels" / "train" / "a.txt").write_text("1 0.5 0.5 0.5 0.5")
    second = find_splits(root, root / "annotations")
    assert [split.annotations for split in first] == [split.annotations for split in second]
    assert len(content_of(second[0])["annotations"]) == 1
    assert find_splits(root, root)[0].annotations.parent == root
    root.rename(root.parent / "other")  # a data set that was made from another is one
    assert find_splits(root.parent / "other", root)[0].annotations.parent == root.parent / "other" / "annotations"


def leave_clutter(folder: Path) -> None:
    """Leave what operating systems, archive tools and editors leave in each folder."""
    for inside in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for path in [path for path in inside.iterdir() if path.is_file()]:
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")  # macOS
            (inside / "__MACOSX").mkdir(exist_ok=True)
            (inside / "__MACOSX" / f"._{path.name}").write_bytes(b"\0\5\x16\7")
            for name in ("@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN", ".Trash-1000", "System Volume Information"):
                (inside / name).mkdir(exist_ok=True)
                (inside / name / path.name).write_bytes(path.read_bytes())
            (inside / f"a folder{path.suffix}").mkdir(exist_ok=True)
        for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
            (inside / name).write_bytes(b"\0")


@pytest.mark.parametrize("make", [make_coco, make_yolo, make_voc])
def test_clutter_is_no_data(root: Path, work_dir: Path, make: Any) -> None:
    make(root)
    before = [(split.name, split.annotations, split.images) for split in find_splits(root, work_dir)]
    leave_clutter(root)
    splits = find_splits(root, work_dir)
    assert [(split.name, split.annotations, split.images) for split in splits] == before
    checked = check_splits(splits)
    assert not any(split.issues for split in checked) and checked[0].num_images in (2, 4)


@pytest.mark.parametrize("make", [make_coco, make_yolo, make_voc])
def test_an_archive_in_a_folder_of_its_own(root: Path, work_dir: Path, make: Any) -> None:
    make(root / "pets")
    (root / "__MACOSX").mkdir()
    (root / ".DS_Store").touch()
    splits = find_splits(root, work_dir)
    assert splits and not any(split.issues for split in check_splits(splits))


def test_a_home_folder(root: Path, work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_coco(root / "pets")
    monkeypatch.setenv("HOME", str(root))
    (split,) = find_splits(Path("~/pets"), work_dir)
    assert split.annotations == path
    (checked,) = check_splits([SplitFiles("x", Path("~/pets/annotations", path.name), Path("~/pets/train2017"))])
    assert checked.issues == [] and checked.annotations == path
    with pytest.raises(DataError, match="~nobody-here/x: there is no such folder"):
        find_splits(Path("~nobody-here/x"), work_dir)


def test_a_later_split_has_to_have_the_classes_of_the_first(root: Path, work_dir: Path) -> None:
    make_coco(root)
    make_coco(root, lambda content: content["categories"].reverse(), split="val2017")
    (issue,) = find_issues(root, work_dir)
    assert issue.type is IssueType.CLASSES and issue.where == "instances_val2017.json"


# --- Conversion


@pytest.mark.parametrize("make", [make_yolo, make_voc])
class TestBoth:
    def test_the_annotations_are_exact(self, root: Path, work_dir: Path, make: Any) -> None:
        train, val = find_splits(make(root), work_dir)
        assert (train.name, val.name) == ("train", "val")
        content = content_of(train)
        assert [category["name"] for category in content["categories"]] == CLASSES
        assert content_of(val)["categories"] == content["categories"]
        box, polygon = content["annotations"]
        assert_allclose(as_corners(box["bbox"]), BOX, atol=1e-9)
        assert_allclose(as_corners(polygon["bbox"]), POLYGON_BOX, atol=1e-9)
        assert_allclose(polygon["segmentation"], [POLYGON], atol=1e-9)
        assert box["segmentation"] == []
        assert (box["area"], polygon["area"]) == (pytest.approx(32 * 24), pytest.approx(619.5))
        assert [each["category_id"] for each in (box, polygon)] == [1, 2]
        assert [each["id"] for each in content["images"] + content["annotations"]] == [1, 2, 1, 2]

    def test_it_has_no_issues(self, root: Path, work_dir: Path, make: Any) -> None:
        checks = check_splits(find_splits(make(root), work_dir))
        assert all(check.issues == [] for check in checks)
        assert (checks[0].num_images, checks[0].num_empty_images, checks[0].num_masks) == (2, 1, 1)

    def test_mmdetection_loads_it(self, root: Path, work_dir: Path, make: Any) -> None:
        train = find_splits(make(root), work_dir)[0]
        path = train.annotations
        keep_polygons(path)  # MMDetection's pipeline for masks takes no objects without
        dataset = CocoDataset(
            ann_file=str(path),
            data_prefix={"img": str(train.images)},
            metainfo={"classes": CLASSES},
            pipeline=[
                {"type": "LoadImageFromFile"},
                {"type": "mmdet.LoadAnnotations", "with_bbox": True, "with_mask": True},
                {"type": "mmdet.PackDetInputs"},
            ],
        )
        loaded = dataset[0]
        assert loaded["inputs"].shape == (3, HEIGHT, WIDTH)
        instances = loaded["data_samples"].gt_instances
        assert_allclose(instances.bboxes.tensor.tolist(), [POLYGON_BOX])
        assert instances.labels.tolist() == [1]
        assert instances.masks.masks.sum() == pytest.approx(619.5, rel=0.05)

    def test_images_stay_where_they_are(self, root: Path, work_dir: Path, make: Any) -> None:
        splits = find_splits(make(root), work_dir)
        assert sorted(path.name for path in work_dir.iterdir()) == ["instances_train.json", "instances_val.json"]
        assert all(split.images == root for split in splits)

    def test_an_unwritable_folder(self, root: Path, tmp_path: Path, make: Any) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="cannot be made"):
            find_splits(make(root), tmp_path / "file" / "work")


def test_supervision_reads_the_same(tmp_path: Path) -> None:
    """It is another reader of both. For VOC, its versions differ by a pixel, and older ones fail at these polygons."""
    yolo, voc = make_yolo(tmp_path / "yolo"), make_voc(tmp_path / "voc")
    (voc / "Annotations" / "a.xml").write_text(voc_xml(voc_object("cat", BOX), voc_object("dog", POLYGON_BOX)))
    theirs = {
        yolo: sv.DetectionDataset.from_yolo(
            str(yolo / "images" / "train"), str(yolo / "labels" / "train"), str(yolo / "data.yaml")
        ),
        voc: sv.DetectionDataset.from_pascal_voc(str(voc / "JPEGImages"), str(voc / "Annotations")),
    }
    for root, tolerance in ((yolo, 1e-4), (voc, 1.0)):
        ours = content_of(find_splits(root, tmp_path / "work")[0])
        assert [category["name"] for category in ours["categories"]] == theirs[root].classes
        (objects,) = (found for path, found in theirs[root].annotations.items() if Path(path).stem == "a")
        assert_allclose([as_corners(each["bbox"]) for each in ours["annotations"]], objects.xyxy, atol=tolerance)
        assert objects.class_id is not None
        assert [each["category_id"] - 1 for each in ours["annotations"]] == objects.class_id.tolist()


def test_what_supervision_writes_is_read_to_within_half_a_pixel(root: Path, work_dir: Path) -> None:
    image = str(root / "images" / "train" / "a.png")
    make_image(Path(image))
    boxes = np.array([[3.3, 4.7, 30.2, 40.9], [0, 0, WIDTH, HEIGHT]], np.float32)
    dataset = sv.DetectionDataset(CLASSES, [image], {image: sv.Detections(boxes, class_id=np.array([1, 0]))})
    dataset.as_yolo(None, str(root / "labels" / "train"), str(root / "data.yaml"))
    (root / "data.yaml").write_text((root / "data.yaml").read_text() + "train: images/train\n")
    (split,) = find_splits(root, work_dir)
    assert_allclose([as_corners(each["bbox"]) for each in content_of(split)["annotations"]], boxes, atol=0.01)


# --- YOLO


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def yolo_by_roboflow(root: Path) -> None:
    for split, folder in (("train", "train"), ("val", "valid")):
        for noun in ("images", "labels"):
            (root / folder).mkdir(exist_ok=True)
            (root / noun / split).rename(root / folder / noun)
        rewrite(root / "data.yaml", f"images/{split}", f"../{folder}/images")


def yolo_by_lists(root: Path) -> None:
    for split in ("train", "val"):
        (root / f"{split}.txt").write_text("".join(f"./images/{split}/{name}.png\n" for name in "ab"))
        rewrite(root / "data.yaml", f"images/{split}", f"{split}.txt")


def yolo_by_folders(root: Path) -> None:
    for name in ("a", "b"):
        (root / "images" / "train" / name).mkdir()
        (root / "images" / "train" / f"{name}.png").rename(root / "images" / "train" / name / f"{name}.png")
    (root / "labels" / "train" / "a").mkdir()
    (root / "labels" / "train" / "a.txt").rename(root / "labels" / "train" / "a" / "a.txt")
    rewrite(root / "data.yaml", "train: images/train", "train: [images/train/a, images/train/b]")


def yolo_in_a_subfolder(root: Path) -> None:
    (root / "pets").mkdir()
    for noun in ("images", "labels"):
        (root / noun).rename(root / "pets" / noun)
    rewrite(root / "data.yaml", "../datasets/pets", "pets")


def yolo_with_numbered_names(root: Path) -> None:
    rewrite(root / "data.yaml", "[cat, dog]", "{1: dog, 0: cat}\nnc: 2\ntest:")


def yolo_of_another_name(root: Path) -> None:
    (root / "data.yaml").rename(root / "pets.yml")


def yolo_beside_other_files(root: Path) -> None:
    (root / "data.yaml").rename(root / "pets.yaml")
    (root / "args.yaml").write_text("task: detect\nnames: none\n")
    (root / "broken.yml").write_text("{")


def yolo_by_absolute_paths(root: Path) -> None:
    for split in ("train", "val"):
        rewrite(root / "data.yaml", f"images/{split}", str(root / "images" / split))


def yolo_by_an_absolute_path(root: Path) -> None:
    rewrite(root / "data.yaml", "../datasets/pets", str(root))


def yolo_that_was_moved(root: Path) -> None:
    for split in ("train", "val"):
        rewrite(root / "data.yaml", f"images/{split}", f"/content/datasets/pets/images/{split}")


def yolo_that_was_moved_from_windows(root: Path) -> None:
    for split in ("train", "val"):
        rewrite(root / "data.yaml", f"images/{split}", f"D:\\me\\pets\\images\\{split}")


def yolo_of_label_studio(root: Path) -> None:
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "notes.json").write_text('{"categories": [], "info": {}}')
    for noun in ("images", "labels"):
        shutil.rmtree(root / noun / "val")


YOLO_LAYOUTS = [
    yolo_by_roboflow,
    yolo_by_lists,
    yolo_by_folders,
    yolo_in_a_subfolder,
    yolo_with_numbered_names,
    yolo_of_another_name,
    yolo_beside_other_files,
    yolo_by_absolute_paths,
    yolo_by_an_absolute_path,
    yolo_that_was_moved,
    yolo_that_was_moved_from_windows,
    yolo_of_label_studio,
]


@pytest.mark.parametrize("change", YOLO_LAYOUTS)
def test_yolo_layouts(root: Path, work_dir: Path, change: Any) -> None:
    change(make_yolo(root))
    splits = find_splits(root, work_dir)
    assert [split.name for split in splits] == (["train"] if change is yolo_of_label_studio else ["train", "val"])
    for split in splits:
        content = content_of(split)
        assert [image["file_name"][-5:] for image in content["images"]] == ["a.png", "b.png"]
        assert all((root / image["file_name"]).is_file() for image in content["images"])
        assert len(content["annotations"]) == 2
        assert [category["name"] for category in content["categories"]] == CLASSES
        assert not any(check.issues for check in check_splits([split]))


@pytest.mark.parametrize("by", ["absolute paths", "a path", "a relative path", "a home folder", "lists", "no images"])
def test_yolo_with_images_elsewhere(root: Path, work_dir: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """A code folder has the YAML file, as Ultralytics' do."""
    data = make_yolo(root / "somewhere" / "images" / "pets")  # "images" is also above the data
    file = root / "code" / "pets.yaml"
    file.parent.mkdir()
    paths = {"a relative path": "path: ../somewhere/images/pets\n"}.get(by, f"path: {data}\n")
    folders = {split: f"images/{split}" for split in ("train", "val")}
    match by:
        case "absolute paths":
            paths, folders = "", {split: str(data / folder) for split, folder in folders.items()}
        case "a home folder":
            monkeypatch.setenv("HOME", str(data.parent))
            paths = "path: ~/pets\n"
        case "lists":
            paths = ""
            (data / "lists").mkdir()
            for split in folders:
                names = [str(data / "images" / split / "a.png"), f"../images/{split}/b.png"]
                (data / "lists" / f"{split}.txt").write_text("\n".join(names))
                folders[split] = str(data / "lists" / f"{split}.txt")
        case "no images":
            data = data.rename(root / "pets")
            for split in folders:
                for label in (data / "labels" / split).iterdir():
                    label.rename(data / "images" / split / label.name)
                (data / "images" / split).rename(data / split)
                folders[split] = split
            paths = f"path: {data}\n"
    file.write_text(f"{paths}names: [cat, dog]\n" + "".join(f"{key}: {value}\n" for key, value in folders.items()))
    for place in (file.parent, file):
        splits = find_splits(place, work_dir)
        assert [split.name for split in splits] == ["train", "val"]
        checked = check_splits(splits)
        assert not any(split.issues for split in checked)
        assert [(split.num_images, split.num_objects) for split in checked] == [(2, 2), (2, 2)]


def test_several_yolo_files(root: Path, work_dir: Path) -> None:
    (make_yolo(root) / "data.yaml").rename(root / "pets.yaml")
    shutil.copy(root / "pets.yaml", root / "more.yml")
    with pytest.raises(DataError, match=r"pets.yaml, more.yml: give one of them, not the folder"):
        find_splits(root, work_dir)
    assert len(find_splits(root / "more.yml", work_dir)) == 2
    with pytest.raises(DataError, match="this is a file: give the folder"):
        find_splits(root / "labels" / "train" / "a.txt", work_dir)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("[yes, no]", ["yes", "no"]),  # not True and False
        ("[1e3, 0x10]", ["1e3", "0x10"]),
        ("[2001-01-01, 1_000]", ["2001-01-01", "1_000"]),
        ("{00: cat, 01: dog}", ["cat", "dog"]),
        ("[1.0, Käse]", ["1.0", "Käse"]),
    ],
)
def test_yolo_names_are_text(root: Path, work_dir: Path, names: str, expected: list[str]) -> None:
    rewrite(make_yolo(root) / "data.yaml", "[cat, dog]", names)
    content = content_of(find_splits(root, work_dir)[0])
    assert [category["name"] for category in content["categories"]] == expected


YOLO_LINES = [
    # a label, and the expected issue
    ("0 nan 0.5 0.1 0.1", IssueType.LABEL, "'nan' is not a number"),
    ("0 0.5 0.5 inf 0.1", IssueType.LABEL, "'inf' is not a number"),
    ("cat 0.5 0.5 0.1 0.1", IssueType.LABEL, "'cat' is not a number"),
    ("2 0.5 0.5 0.1 0.1", IssueType.LABEL, "the class is 2: the names are numbered from 0 to 1"),
    ("0 0_5 0.5 0.1 0.1", IssueType.LABEL, "'0_5' is not a number"),
    ("0 0.5 \u0661 0.1 0.1", IssueType.LABEL, "'\u0661' is not a number"),  # Arabic
    ("0 0.5 0.\uff15 0.1 0.1", IssueType.LABEL, "'0.\uff15' is not a number"),  # full-width
    ("0 0.5 1_0e-2 0.1 0.1", IssueType.LABEL, "'1_0e-2' is not a number"),
    ("\u0967 0.5 0.5 0.1 0.1", IssueType.LABEL, "'\u0967' is not a number"),  # Devanagari
    ("0 0.5 0,5 0.1 0.1", IssueType.LABEL, "'0,5' is not a number"),
    ("-1 0.5 0.5 0.1 0.1", IssueType.LABEL, "the class is -1"),
    ("0.5 0.5 0.5 0.1 0.1", IssueType.LABEL, "the class is 0.5"),
    ("0 0.5 0.5 0.1", IssueType.LABEL, "the line has 4 numbers"),
    ("0 0.5 0.5 0.1 0.1 0.9", IssueType.LABEL, "the line has 6 numbers"),
    ("0 0.1 0.1 0.5 0.5 0.9 0.9 0.3", IssueType.LABEL, "the line has 8 numbers"),
    ("0 0.9 0.5 0.5 0.5", IssueType.BOX_ACROSS, "the image is 64x48"),
    ("0 1.5 0.5 0.1 0.1", IssueType.BOX_OUTSIDE, "the image is 64x48"),
    ("0 0.1 0.1 0.5 0.5 1.9 0.1", IssueType.POLYGON_ACROSS, "the image is 64x48"),
    ("0 0.5 0.5 -0.1 0.1", IssueType.BOX, "bbox is"),
    ("0 0.5 0.5 0.001 0.1", IssueType.EMPTY_BOX, "bbox is"),
    ("0 0.1 0.1 0.5 0.5 0.9 0.9", IssueType.NO_AREA, "area is 0, bbox is"),
]


@pytest.mark.parametrize(("line", "issue_type", "message"), YOLO_LINES)
def test_yolo_issues_by_file_and_line(
    root: Path, work_dir: Path, line: str, issue_type: IssueType, message: str
) -> None:
    label = make_yolo(root) / "labels" / "train" / "a.txt"
    label.write_text(f"{label.read_text()}\n\n  {line}\n1.0e+00 0.5 0.5 0.5 0.5\n")
    found = [issue for issue in find_issues(root, work_dir) if issue.type is issue_type]
    assert [issue.where for issue in found] == ["labels/train/a.txt, line 4"] and message in found[0].message
    num_converted = len(content_of(find_splits(root, work_dir)[0])["annotations"])
    assert num_converted == (3 if issue_type is IssueType.LABEL else 4)


def test_yolo_issues_of_files(root: Path, work_dir: Path) -> None:
    make_yolo(root)
    (root / "images" / "train" / "c.jpg").write_text("no image")
    (root / "images" / "train" / ".hidden.jpg").touch()
    (root / "labels" / "train" / "b.txt").write_bytes(b"\xff\xff")
    (root / "labels" / "train" / "lost.txt").touch()
    (root / "labels" / "train" / "classes.txt").write_text("cat\ndog\n")
    (root / "lists.txt").write_text("images/val/a.png\nimages/val/none.png\n")
    rewrite(root / "data.yaml", "val: images/val", "val: [lists.txt, images/none]")
    assert [(issue.type, issue.where) for issue in find_issues(root, work_dir)] == [
        (IssueType.LABEL, f"{root / 'labels' / 'train' / 'b.txt'}"),
        (IssueType.UNREADABLE_IMAGE, "images/train/c.jpg"),
        (IssueType.ORPHAN, "labels/train/lost.txt"),
        (IssueType.MISSING_IMAGE, f"{root / 'lists.txt'}, line 2"),
        (IssueType.MISSING_IMAGE, f"{root / 'data.yaml'}, val"),
    ]


def test_yolo_without_labels(root: Path, work_dir: Path) -> None:
    make_yolo(root)
    (root / "labels").rename(root / "label")
    found = find_issues(root, work_dir)
    assert [issue.type for issue in found] == [IssueType.LABEL, IssueType.EMPTY] * 2
    assert found[0].where == "labels/train/a.txt"
    assert found[0].message == "neither this nor any other label of train exists"


def test_yolo_images_are_measured_upright(root: Path, work_dir: Path) -> None:
    make_yolo(root)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(root / "images" / "train" / "a.png", exif=exif)
    assert find_issues(root, work_dir) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("names: [cat", "cannot be used: while parsing a flow sequence"),
        ("names: &a [*a, *a]", "its names are"),
        ("names: [cat, cat]", "its names are \\['cat', 'cat'\\]: give every class its own name"),
        ("just text", "it has no names"),
        ("train: images/train", "it has no names"),
        ("names: []\ntrain: images/train", "it has no names"),
        ("names: cat\ntrain: images/train", "it has no names"),
        ("names: {0: cat, 2: dog}\ntrain: images/train", "not numbered from 0 to 1"),
        ("names: {a: cat, b: dog}\ntrain: images/train", "not numbered from 0 to 1"),
        ("names: [cat, dog]\nnames: [dog]\ntrain: images/train", "the key 'names' stands twice, with different values"),
        ("names: [cat, dog]\ntrain: images/val\ntrain: images/train", "the key 'train' stands twice"),
        ("names: {0: cat, 0: dog}\ntrain: images/train", "the key '0' stands twice"),
        ("names: {0: cat, 00: dog}\ntrain: images/train", "not numbered from 0 to 1"),
        ("names: {\u0660: cat}\ntrain: images/train", "not numbered from 0 to 0"),
        ("names: [cat, dog]\nnc: \u0662\ntrain: images/train", "is not a number"),
        ("names: [!!timestamp x, !!python/name:os.system x]\ntrain: images/train", "could not determine a constructor"),
        ("names: [cat, dog]\nnc: 3\ntrain: images/train", "nc is 3, but there are 2 names"),
        ("names: [cat, dog]", "it names no images"),
        ("names: [cat, dog]\nkpt_shape: [17, 3]\ntrain: images/train", "poses"),
        ("\0", "cannot be used"),
    ],
)
def test_yolo_without_a_usable_yaml(root: Path, work_dir: Path, content: str, message: str) -> None:
    (make_yolo(root) / "data.yaml").write_text(content)
    with pytest.raises(DataError, match=message) as raised:
        find_splits(root, work_dir)
    assert str(raised.value).startswith(str(root / "data.yaml")) and "\n" not in str(raised.value)


# --- Pascal VOC


def voc_without_lists(root: Path) -> None:
    for path in (root / "ImageSets" / "Main").iterdir():
        path.unlink()


def voc_with_trainval(root: Path) -> None:
    voc_without_lists(root)
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("a\nb\nc\n")


def voc_beside(root: Path) -> None:
    for path in [*(root / "Annotations").iterdir(), *(root / "JPEGImages").iterdir()]:
        path.rename(root / path.name)


def voc_in_lower_case(root: Path) -> None:
    voc_without_lists(root)
    (root / "Annotations").rename(root / "annotations")
    (root / "JPEGImages").rename(root / "images")


def voc_of_fiftyone(root: Path) -> None:
    voc_without_lists(root)
    (root / "Annotations").rename(root / "labels")
    (root / "JPEGImages").rename(root / "data")


def voc_with_odd_names(root: Path) -> None:
    """U+2028 and U+0085 end lines for `str.splitlines`."""
    for folder, suffix in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
        (root / folder / f"a{suffix}").rename(root / folder / f"a\u2028\x85b{suffix}")
    voc_without_lists(root)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\u2028\x85b\r\nb\r\nc\r\n")


def voc_in_folders(root: Path) -> None:
    for name, stems in (("train", "ab"), ("valid", "c")):
        (root / name).mkdir()
        for path in [*(root / "Annotations").iterdir(), *(root / "JPEGImages").iterdir()]:
            if path.stem in stems:
                path.rename(root / name / path.name)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (voc_without_lists, {"train": (3, 3)}),
        (voc_with_trainval, {"trainval": (3, 3)}),
        (voc_beside, {"train": (3, 3)}),
        (voc_in_lower_case, {"train": (3, 3)}),
        (voc_of_fiftyone, {"train": (3, 3)}),
        (voc_with_odd_names, {"train": (3, 3)}),
        (voc_in_folders, {"train": (2, 2), "valid": (1, 1)}),
    ],
)
def test_voc_layouts(root: Path, work_dir: Path, change: Any, expected: dict[str, tuple[int, int]]) -> None:
    change(make_voc(root))
    splits = find_splits(root, work_dir)
    checks = check_splits(splits)
    assert {
        split.name: (check.num_images, check.num_objects) for split, check in zip(splits, checks, strict=True)
    } == expected
    assert not any(issue.type is not IssueType.CLASSES for check in checks for issue in check.issues)


TWO_BOXES = voc_object("cat", BOX).replace("</bndbox>", "</bndbox><bndbox><xmin>1</xmin></bndbox>")
TWO_NAMES = voc_object("cat", BOX).replace("</name>", "</name><name>dog</name>")

VOC_FILES = [
    # an XML file, and the expected issue
    ("<annotation><object></annotation>", IssueType.LABEL, "", "mismatched tag: line 1"),
    ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', IssueType.LABEL, "", "EntitiesForbidden"),
    (voc_xml(voc_object("cat", BOX), size=""), IssueType.LABEL, "", "there is no size/width"),
    (voc_xml(size="<size><width>64</width><height>x</height></size>"), IssueType.LABEL, "", "'x' is not a number"),
    (voc_xml(size="<size><width>64.5</width><height>48</height></size>"), IssueType.LABEL, "", "size/width is 64.5"),
    (voc_xml(size="<size><width>0</width><height>48</height></size>"), IssueType.FIELD, "", "width is 0"),
    (voc_xml(size="<size><width>48</width><height>64</height></size>"), IssueType.IMAGE_SIZE, "", "the image is 64x48"),
    (voc_xml(voc_object("cat", BOX), voc_object("", BOX)), IssueType.LABEL, ", object 2", "the object has no name"),
    (voc_xml("<object><name>cat</name></object>"), IssueType.LABEL, ", object 1", "there is no bndbox/xmin"),
    (voc_xml(voc_object("cat", [float("nan"), 2, 3, 4])), IssueType.LABEL, ", object 1", "'nan' is not a number"),
    (voc_xml(voc_object("cat", [40, 6, 8, 30])), IssueType.BOX, ", object 1", "bbox is [40.0, 6.0, -32.0, 24.0]"),
    (voc_xml(voc_object("cat", [8, 6, 80, 30])), IssueType.BOX_ACROSS, ", object 1", "the image is 64x48"),
    (voc_xml(TWO_BOXES), IssueType.LABEL, ", object 1", "there are 2 bndbox/xmin, not one"),
    (voc_xml(TWO_NAMES), IssueType.LABEL, ", object 1", "there are 2 name, not one"),
    (voc_xml(size=2 * "<size><width>64</width></size>"), IssueType.LABEL, "", "there are 2 size/width, not one"),
    (voc_xml(voc_object("cat", BOX).replace(">40<", ">4_0<")), IssueType.LABEL, ", object 1", "'4_0' is not a number"),
    (voc_xml(voc_object("cat", BOX, POLYGON[:4])), IssueType.LABEL, ", object 1", "the polygon has 4 numbers"),
    (voc_xml(voc_object("cat", BOX, POLYGON[:5])), IssueType.LABEL, ", object 1", "the polygon has 5 numbers"),
]


@pytest.mark.parametrize(("xml", "issue_type", "place", "message"), VOC_FILES)
def test_voc_issues(root: Path, work_dir: Path, xml: str, issue_type: IssueType, place: str, message: str) -> None:
    (make_voc(root) / "Annotations" / "a.xml").write_text(xml)
    (issue,) = [issue for issue in find_issues(root, work_dir) if issue.type is issue_type]
    assert issue.where == f"Annotations/a.xml{place}" and message in issue.message


def test_voc_issues_of_files(root: Path, work_dir: Path) -> None:
    make_voc(root)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nlost\n")
    (root / "JPEGImages" / "b.jpg").write_text("no image")
    found = [(issue.type, issue.where) for issue in find_issues(root, work_dir)]
    assert found[:2] == [
        (IssueType.UNREADABLE_IMAGE, "JPEGImages/b.jpg"),
        (IssueType.MISSING_IMAGE, "ImageSets/Main/train.txt, line 3"),
    ]
    voc_without_lists(root)
    (root / "JPEGImages" / "c.jpg").unlink()
    found = [(issue.type, issue.where) for issue in find_issues(root, work_dir)]
    assert found == [(IssueType.ORPHAN, "Annotations/c.xml"), (IssueType.UNREADABLE_IMAGE, "JPEGImages/b.jpg")]


def test_voc_images_of_one_label(root: Path, work_dir: Path) -> None:
    make_voc(root)
    make_image(root / "JPEGImages" / "a.png")
    make_image(root / "JPEGImages" / "deep" / "b.jpg")
    found = {(issue.type, issue.where, issue.message) for issue in find_issues(root, work_dir)}
    assert found == {
        (IssueType.DUPLICATE_IMAGE, "JPEGImages/a.png", "it would have the label of JPEGImages/a.jpg"),
        (IssueType.DUPLICATE_IMAGE, "JPEGImages/deep/b.jpg", "it would have the label of JPEGImages/b.jpg"),
    }


# --- Other folders, and random damage


def test_no_data_set(root: Path, work_dir: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        find_splits(root / "none", work_dir)
    make_image(root / "a.png")
    with pytest.raises(DataError, match="no data set is found here: COCO has") as raised:
        find_splits(root, work_dir)
    assert str(raised.value).startswith(str(root))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Nothing but this package's own errors comes of damaged text."""
    root = tmp_path_factory.mktemp("damaged")
    make, name = data.draw(
        st.sampled_from(
            [
                (make_yolo, "data.yaml"),
                (make_yolo, "labels/train/a.txt"),
                (make_voc, "Annotations/a.xml"),
                (make_voc, "ImageSets/Main/train.txt"),
            ]
        )
    )
    path = make(root) / name
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        new = data.draw(st.binary(max_size=4) | st.text(max_size=6).map(lambda text: text.encode("utf-8", "replace")))
        content[start : start + data.draw(st.integers(0, 20))] = new
    path.write_bytes(content)
    try:
        checks: list[CheckedSplit] = check_splits(find_splits(root, root / "work"), jobs=1)
        raise_errors(*checks)
    except DPTZooError as error:
        str(error).encode()


def as_corners(bbox: list[float]) -> list[float]:
    x, y, width, height = bbox
    return [x, y, x + width, y + height]


def keep_polygons(path: Path) -> None:
    content = json.loads(path.read_text())
    content["annotations"] = [each for each in content["annotations"] if each["segmentation"]]
    path.write_text(json.dumps(content))
