"""Detections, what is written of them, and how they are drawn."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from dpt_zoo.errors import OutputError
from dpt_zoo.files import open_atomic
from dpt_zoo.inference import Detections
from dpt_zoo.inference.detections import COCO_CATEGORY_IDS
from dpt_zoo.inference.drawing import draw
from dpt_zoo.inference.saving import output_stems, save_coco, save_picture

COCO = tuple(f"class {index}" for index in range(80))


@pytest.fixture
def two() -> Detections:
    masks = np.zeros((2, 40, 60), dtype=bool)
    masks[0, 10:20, 5:25] = True
    return Detections(
        boxes=np.array([[5, 10, 25, 20], [30, 5, 50, 35]], dtype=np.float32),
        scores=np.array([0.9, 0.4], dtype=np.float32),
        labels=np.array([0, 79]),
        masks=masks,
        classes=COCO,
    )


def test_coco_results(two: Detections) -> None:
    first, second = two.to_coco(139)
    assert (first["image_id"], first["category_id"], second["category_id"]) == (139, 1, 90)
    assert first["bbox"] == [5, 10, 20, 10]
    assert first["score"] == pytest.approx(0.9)
    assert coco_mask.area(first["segmentation"]) == 200
    assert coco_mask.toBbox(first["segmentation"]).tolist() == first["bbox"]
    assert json.loads(json.dumps(two.to_coco(139))) == two.to_coco(139)


def test_category_ids_are_cocos() -> None:
    assert len(COCO_CATEGORY_IDS) == 80
    assert (COCO_CATEGORY_IDS[11], COCO_CATEGORY_IDS[24], COCO_CATEGORY_IDS[-1]) == (13, 27, 90)  # by COCO's file


def test_other_classes_count_from_one(two: Detections) -> None:
    own = Detections(two.boxes, two.scores, np.array([0, 1]), None, ("cat", "dog"))
    assert [record["category_id"] for record in own.to_coco("a")] == [1, 2]
    assert own.names == ["cat", "dog"]
    assert "segmentation" not in own.to_coco("a")[0]


def test_threshold(two: Detections) -> None:
    kept = two.above(0.5)
    assert len(kept) == 1 and kept.masks is not None and len(kept.masks) == 1
    assert kept.names == ["class 0"]
    assert len(two.above(0.95)) == 0 and two.above(0.95).to_coco(1) == []


@pytest.mark.parametrize("with_masks", [True, False])
def test_a_drawing_marks_the_objects_and_nothing_else(two: Detections, with_masks: bool) -> None:
    image = np.full((400, 600, 3), 100, dtype=np.uint8)
    masks = np.zeros((2, 400, 600), dtype=bool)
    masks[0, 120:200, 60:240] = True
    found = Detections(two.boxes * 10, two.scores, two.labels, masks if with_masks else None, COCO)
    picture = np.asarray(draw(image, found))
    changed = (picture != 100).any(axis=2)
    assert picture.shape == image.shape and (image == 100).all()
    assert changed[100, 150] and changed[200, 150] and changed[150, 50]  # the first box's sides
    assert changed[160, 150] == with_masks
    assert not changed[300:, :280].any()


def test_nothing_found_leaves_the_image(two: Detections) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(draw(image, two.above(1.0))), image)


def test_names_of_results() -> None:
    images = [Path("a/photo.jpg"), Path("b/photo.png"), Path("c/photo-2.png"), Path("photo")]
    assert output_stems(images) == ["photo", "photo-2", "photo-2-2", "photo-3"]


def test_files(two: Detections, tmp_path: Path) -> None:
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    for suffix, kind in ((".jpg", "JPEG"), (".png", "PNG")):
        save_picture(tmp_path / f"picture{suffix}", image, two)
        with Image.open(tmp_path / f"picture{suffix}") as picture:
            assert (picture.format, picture.size) == (kind, (60, 40))
    save_coco(tmp_path / "records.json", two, "photo")
    assert json.loads((tmp_path / "records.json").read_text()) == two.to_coco("photo")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"), open_atomic(tmp_path / "none" / "file"):
        pass
    (tmp_path / "file").mkdir()
    with pytest.raises(OutputError, match="Is a directory"), open_atomic(tmp_path / "file") as file:
        file.write(b"new")
    with pytest.raises(OutputError, match="No space left"), open_atomic(tmp_path / "other"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), open_atomic(tmp_path / "file") as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"
