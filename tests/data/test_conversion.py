"""Data sets are written in other layouts and split, and nothing changes but what the layout cannot hold."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from running import Run
from small_data import coco_annotation, make_coco, make_image
from tool_exports import EXPORTS, Expected, roboflow, supervisely

from dpt_zoo.data.checks import check_splits
from dpt_zoo.data.conversion import Layout, _choose_stratified, convert_data, split_data
from dpt_zoo.data.layouts import find_splits
from dpt_zoo.errors import DataError, InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_coco(tmp_path / "data")
    make_coco(tmp_path / "data", with_other_names, split="val2017")
    for path in (tmp_path / "data" / "val2017").iterdir():
        path.rename(path.with_name(f"val {path.name}"))
    return tmp_path / "data"


def with_other_names(content: Any) -> None:
    for image in content["images"]:
        image["file_name"] = f"val {image['file_name']}"


def read(folder: Path, work_dir: Path) -> dict[str, list[tuple[str, str, list[float], Any]]]:
    """Return the objects of each split that are no crowds: image, class, box and segmentation."""
    objects = {}
    splits = find_splits(folder, work_dir)
    checked = check_splits(splits, work_dir=work_dir)
    assert not [issue for split in checked for issue in split.issues if issue.type.is_error]
    for split, files in zip(checked, splits, strict=True):
        content = json.loads(split.annotations.read_text())
        images = {image["id"]: image["file_name"] for image in content["images"]}
        classes = {category["id"]: category["name"] for category in content["categories"]}
        objects[files.name] = sorted(
            (Path(images[each["image_id"]]).name, classes[each["category_id"]], each["bbox"], each["segmentation"])
            for each in content["annotations"]
            if not each["iscrowd"]
        )
    return objects


LOST = {
    "coco": [],
    "yolo": ["4 objects: only the box is written, the mask is not one polygon", "2 objects: left out, it is a crowd"],
    "voc": ["2 objects: only the box is written, the mask is no polygon", "2 objects: left out, it is a crowd"],
}


@pytest.mark.parametrize("layout", ["coco", "yolo", "voc"])
def test_what_is_written_is_read_as_it_was(layout: Layout, root: Path, tmp_path: Path) -> None:
    assert sorted(convert_data(root, tmp_path / "out", layout)) == sorted(LOST[layout])
    before, after = read(root, tmp_path / "work"), read(tmp_path / "out", tmp_path / "work")
    assert list(after) == (["train2017", "val2017"] if layout == "coco" else ["train", "val"])
    for objects, others in zip(before.values(), after.values(), strict=True):
        assert [each[:2] for each in objects] == [each[:2] for each in others]
        assert_allclose([each[2] for each in objects], [each[2] for each in others], atol=1e-9)
        polygons = [(each[3], other[3]) for each, other in zip(objects, others, strict=True) if other[3]]
        assert len(polygons) == {"coco": 3, "yolo": 1, "voc": 2}[layout]
        for polygon, other in polygons:
            if layout != "coco":
                assert_allclose(np.concatenate(polygon), np.concatenate(other), atol=1e-9)
    if layout == "coco":
        assert before == {name: after[name] for name in before}
    assert len(list((tmp_path / "out").rglob("*.png"))) == 8


def test_names_of_images_are_unique_in_voc(root: Path, tmp_path: Path) -> None:
    make_coco(root, split="val2017")
    convert_data(root, tmp_path / "out", "voc")
    assert (tmp_path / "out" / "ImageSets" / "Main" / "val.txt").read_text() == "val_1\nval_2\nval_3\nval_4\n"
    assert (tmp_path / "out" / "JPEGImages" / "val_1.png").is_file()
    assert [len(objects) for objects in read(tmp_path / "out", tmp_path / "work").values()] == [4, 4]


@pytest.mark.parametrize("layout", ["coco", "yolo", "voc"])
@pytest.mark.parametrize("export", EXPORTS)
def test_every_export_can_be_written_in_every_layout(
    export: Callable[[Path], Expected], layout: Layout, tmp_path: Path
) -> None:
    export(tmp_path / "data")
    convert_data(tmp_path / "data", tmp_path / "out", layout)
    before, after = read(tmp_path / "data", tmp_path / "work"), read(tmp_path / "out", tmp_path / "work")
    for objects, others in zip(before.values(), after.values(), strict=True):
        assert [each[1] for each in objects] == [each[1] for each in others]
        assert_allclose([each[2] for each in objects], [each[2] for each in others], atol=1e-9)


def test_other_tools(tmp_path: Path, run: Run) -> None:
    roboflow(tmp_path / "data")
    assert run("convert-data", tmp_path / "data", tmp_path / "out", "--to", "yolo") == (
        0,
        f"{tmp_path}/out: written\n",
        "",
    )
    assert "names:\n  0: cat\n  1: dog\n" in (tmp_path / "out" / "data.yaml").read_text()
    assert (tmp_path / "out/labels/val/a_png.rf.0f3c1e2d.txt").read_text().startswith("1 0.15625 0.16")
    status, out, _ = run("convert-data", tmp_path / "data", tmp_path / "out", "--to", "yolo")
    assert (status, out) == (2, "")


def test_masks_with_holes_stay_in_coco(tmp_path: Path) -> None:
    supervisely(tmp_path / "data")
    convert_data(tmp_path / "data", tmp_path / "out", "coco")
    assert read(tmp_path / "out", tmp_path / "work")["ds0"] == read(tmp_path / "data", tmp_path / "work")["ds0"]


def test_errors_of_the_data_write_nothing(root: Path, tmp_path: Path) -> None:
    (root / "train2017" / "1.png").unlink()
    with pytest.raises(DataError, match=r"(?s)missing image.*1\.png"):
        convert_data(root, tmp_path / "out", "yolo")
    assert not (tmp_path / "out").exists()


# --- Splits


@pytest.fixture
def one_folder(tmp_path: Path) -> Path:
    """40 images: cats in all but 4, which are empty, and dogs in 8 of them."""

    def fill(content: Any) -> None:
        content["images"] = [
            {**content["images"][0], "id": number, "file_name": f"{number}.png"} for number in range(1, 41)
        ]
        cats = [coco_annotation(number, number) for number in range(1, 37)]
        dogs = [coco_annotation(100 + number, number, category_id=2) for number in range(1, 9)]
        content["annotations"] = cats + dogs

    make_coco(tmp_path / "data", fill)
    for number in range(5, 41):
        make_image(tmp_path / "data" / "train2017" / f"{number}.png")
    return tmp_path / "data"


def test_a_split_keeps_every_image_once(one_folder: Path, tmp_path: Path, run: Run) -> None:
    options = ["--val", 0.25, "--test", 0.25, "--stratify", "--seed", 3]
    status, out, err = run("split-data", one_folder, tmp_path / "out", *options)
    assert (status, err) == (0, "")
    assert out == f"{tmp_path}/out: 20 images in train, 10 images in val, 10 images in test\n"
    checked = {
        split.annotations.stem: split for split in check_splits(find_splits(tmp_path / "out", tmp_path / "work"))
    }
    for split, share in (("train", 0.5), ("val", 0.25), ("test", 0.25)):
        found = checked[f"instances_{split}"]
        assert not found.issues
        assert dict(found.class_images) == {"cat": 36 * share, "dog": 8 * share}
        assert found.num_empty_images == 4 * share
    names = [path.name for path in (tmp_path / "out").rglob("*.png")]
    assert sorted(names) == sorted(f"{number}.png" for number in range(1, 41))


def test_the_seed_decides(one_folder: Path, tmp_path: Path) -> None:
    def names(seed: int, name: str) -> list[str]:
        assert split_data(one_folder, tmp_path / name, seed=seed) == {"train": 32, "val": 8}
        return sorted(path.name for path in (tmp_path / name / "val").iterdir())

    assert names(1, "a") == names(1, "b") != names(2, "c")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sets(st.integers(1, 4), max_size=3), min_size=1, max_size=60), st.integers(0, 9))
def test_stratified_splits_of_any_data(images: list[set[int]], seed: int) -> None:
    annotations = [{"image_id": id, "category_id": each} for id, classes in enumerate(images) for each in classes]
    content = {"images": [{"id": id} for id in range(len(images))], "annotations": annotations}
    chosen = _choose_stratified(content, {"train": 0.75, "val": 0.25}, random.Random(seed))
    assert sorted(chosen) == list(range(len(images)))
    counts = Counter((each, chosen[id]) for id, classes in enumerate(images) for each in classes)
    totals = Counter(each for classes in images for each in classes)
    if totals:  # the images of the rarest class go first, so its fraction is exact
        rarest = min(totals, key=lambda each: (totals[each], each))
        assert abs(counts[rarest, "val"] - 0.25 * totals[rarest]) <= 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"val": 1.0}, InputError, "val and test must be fractions that leave images to train on, not 1.0 and 0.0"),
        ({"val": 0.5, "test": 0.5}, InputError, "val and test must be fractions"),
        ({"val": 0.01}, DataError, "of 40 images, none is left for val"),
        ({"seed": -1}, InputError, "seed must be a whole number from 0"),
    ],
)
def test_bad_fractions(options: Any, error: type[Exception], message: str, one_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        split_data(one_folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_splits_are_not_split_again(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this has splits already: train2017, val2017"):
        split_data(root, tmp_path / "out")
