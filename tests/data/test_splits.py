"""The data of a run are found, completed in the run's folder, and checked for what its model needs."""

import os
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from small_data import Json, make_coco, make_yolo

from dpt_zoo.data.splits import prepare_splits
from dpt_zoo.errors import DataError
from dpt_zoo.formats.issues import IssueType

BOXES, MASKS = Config({"model": {}}), Config({"model": {"roi_head": {"mask_head": {}}}})


def break_a_mask(content: Json) -> None:
    content["annotations"] = content["annotations"][:3]
    content["annotations"][0]["segmentation"] = [[1, 2, 3]]


def prepare(cfg: Config, data: Path, folder: Path, **options: Any) -> Any:
    return prepare_splits(cfg, data, folder / "work", **options)


def test_invalid_masks_concern_only_models_with_masks(tmp_path: Path) -> None:
    path = make_coco(tmp_path, break_a_mask)
    train = prepare(BOXES, tmp_path, tmp_path)["train"]
    assert train.annotations == tmp_path / "work" / "instances_train2017.json" and train.num_objects == 3
    with pytest.raises(DataError, match="invalid polygon"):
        prepare(MASKS, tmp_path, tmp_path)
    assert prepare(MASKS, tmp_path, tmp_path, with_masks=False)["train"].annotations != path


def test_the_parent_category_of_roboflow(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its ids differ from split to split."""
    for split, first in (("train", 0), ("valid", 5)):

        def export(content: Json, first: int = first) -> None:
            for category in content["categories"]:
                category.update(id=category["id"] + first, supercategory="cat")
            for annotation in content["annotations"]:
                annotation["category_id"] += first
            content["categories"].insert(0, {"id": first, "name": "cat", "supercategory": "none"})

        make_coco(tmp_path, export, split=split).rename(tmp_path / split / "_annotations.coco.json")
    prepared = prepare(BOXES, tmp_path, tmp_path)
    assert [split.classes for split in prepared.values()] == [{"cat": 3, "dog": 2}] * 2
    assert [[issue.type for issue in split.issues] for split in prepared.values()] == [[IssueType.PARENT_CLASS]] * 2
    assert "category that is no class (2): left out" in caplog.text and "_annotations.coco.json: 'cat'" in caplog.text


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_paths_that_are_no_text(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    make_coco(folder)
    with pytest.raises(DataError, match=r"caf\\udce9.*this path is not valid UTF-8: rename the folder"):
        prepare(BOXES, folder, tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_images_whose_names_are_no_text(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    for noun, suffix in (("images", ".png"), ("labels", ".txt")):
        path = tmp_path / noun / "train" / f"a{suffix}"
        path.rename(path.with_name(os.fsdecode(b"caf\xe9" + suffix.encode())))
    train = prepare(BOXES, tmp_path, tmp_path)["train"]
    assert (train.num_images, train.num_objects, train.issues) == (2, 2, [])


def test_a_second_split_of_one_purpose_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train2014", "train2017", "val", "test"):
        make_coco(tmp_path, split=split)
    prepared = prepare(BOXES, tmp_path, tmp_path)
    assert [split.images.name for split in prepared.values()] == ["train2014", "val"]
    assert caplog.messages == [f"{tmp_path}: train2014 is used for train, train2017 is not"]
