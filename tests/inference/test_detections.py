"""Detections: selecting, drawing, cropping, resizing, and other formats."""

import dataclasses
import errno
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv
from mmdet.datasets import CocoDataset
from PIL import Image
from pycocotools import mask as coco_mask

from dpt_zoo import Detections
from dpt_zoo.errors import InputError, OutputError
from dpt_zoo.inference.detections import COCO_CLASSES, coco_category_ids, encode_mask
from dpt_zoo.inference.drawing import _Labels, draw
from dpt_zoo.utils.files import open_atomic

COCO = CocoDataset.METAINFO["classes"]


@pytest.fixture
def found() -> Detections:
    """A person with a mask of 10 rows and 20 columns, a bicycle with none of its pixels, another person."""
    masks = np.zeros((3, 40, 60), bool)
    masks[0, 10:20, 5:25] = masks[2, 0:2, 0:3] = True
    return Detections(
        boxes=np.array([[5, 10, 25, 20], [30.2, 5.5, 50.7, 35.1], [-2, -1, 3, 2]], np.float32),
        scores=np.array([0.9, 0.5, 0.4], np.float32),
        labels=np.array([0, 1, 0]),
        classes=COCO,
        image_size=(40, 60),
        rles=[encode_mask(mask) for mask in masks],
        image=np.full((40, 60, 3), 100, np.uint8),
        path="street.jpg",
    )


def assert_selected(some: Detections, found: Detections, selected: list[int]) -> None:
    assert len(some) == len(selected)
    assert some.boxes.shape == (len(selected), 4) and some.boxes.tolist() == found.boxes[selected].tolist()
    assert some.scores.tolist() == found.scores[selected].tolist()
    assert some.names == [found.names[index] for index in selected]
    assert some.masks is not None and found.masks is not None and (some.masks == found.masks[selected]).all()
    assert (some.image_size, some.path, some.image) == (found.image_size, found.path, found.image)


class TestIndexing:
    """As in NumPy."""

    @pytest.mark.parametrize(
        ("index", "selected"),
        [
            (1, [1]),
            (-1, [2]),
            (np.int64(1), [1]),
            (np.uint8(2), [2]),
            (np.array(1), [1]),
            (slice(1, None), [1, 2]),
            (slice(5, 9), []),
            ([2, 0], [2, 0]),
            ([-1], [2]),
            ([], []),
            ([True, False, True], [0, 2]),
            (np.array([2, 1], np.int16), [2, 1]),
            (np.array([False, True, False]), [1]),
        ],
        ids=repr,
    )
    def test_all_parts_are_selected_alike(self, found: Detections, index: Any, selected: list[int]) -> None:
        assert_selected(found[index], found, selected)

    def test_iterating_yields_each_object(self, found: Detections) -> None:
        assert [each.names for each in found] == [["person"], ["bicycle"], ["person"]]

    @pytest.mark.parametrize(
        "index",
        [1.0, 0.5, np.float32(0.5), np.array([0.5]), [0.5], "person", ["person"], "", None, True, np.True_, ...],
    )
    def test_scores_and_classes_are_not_indices(self, found: Detections, index: Any) -> None:
        with pytest.raises(InputError, match=r"use detections\.filter\(min_score=\.\.\., classes=\.\.\.\)"):
            found[index]

    @pytest.mark.parametrize("index", [3, -4, [0, 3], np.array([True]), np.ones(4, bool), (0, 1)], ids=repr)
    def test_out_of_range(self, found: Detections, index: Any) -> None:
        with pytest.raises(IndexError):
            found[index]


class TestFilter:
    @pytest.mark.parametrize(
        ("arguments", "selected"),
        [
            ({}, [0, 1, 2]),
            ({"min_score": 0.5}, [0, 1]),
            ({"min_score": np.float32(0.5)}, [0, 1]),
            ({"min_score": 0}, [0, 1, 2]),
            ({"min_score": 1}, []),
            ({"classes": "person"}, [0, 2]),
            ({"classes": "toothbrush"}, []),
            ({"classes": ["bicycle", "person"]}, [0, 1, 2]),
            ({"classes": ("bicycle",)}, [1]),
            ({"classes": []}, []),
            ({"min_score": 0.5, "classes": "person"}, [0]),
        ],
        ids=str,
    )
    def test_by_score_and_class(self, found: Detections, arguments: Any, selected: list[int]) -> None:
        assert_selected(found.filter(**arguments), found, selected)

    def test_nothing_can_be_filtered(self, found: Detections) -> None:
        assert len(found[[]].filter(min_score=0.5, classes=["person"])) == 0

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ({"min_score": 1.5}, "min_score must be a number from 0 to 1, not 1.5"),
            ({"min_score": np.nan}, "min_score must be a number from 0 to 1, not nan"),
            ({"min_score": "0.5"}, "min_score must be a number"),
            ({"classes": "unicorn"}, "the model has no class 'unicorn': its classes are person, bicycle"),
            ({"classes": ["person", 1]}, "the model has no class 1"),
        ],
        ids=str,
    )
    def test_wrong_arguments(self, found: Detections, arguments: Any, complaint: str) -> None:
        with pytest.raises(InputError, match=complaint):
            found.filter(**arguments)


class TestResize:
    def test_boxes_masks_and_image(self, found: Detections) -> None:
        large = found.resize((120, 90))
        assert large.image_size == (120, 90) and large.boxes.dtype == np.float32
        np.testing.assert_allclose(large.boxes, found.boxes * [1.5, 3, 1.5, 3], rtol=1e-6)
        assert large.masks is not None and large.masks.shape == (3, 120, 90)
        assert large.image is not None and large.image.shape == (120, 90, 3) and (large.image == 100).all()
        assert (large.names, large.path) == (found.names, found.path)

    def test_whole_factors_repeat_the_pixels_of_masks(self, found: Detections) -> None:
        large = found.resize((80, 120))
        assert large.masks is not None and found.masks is not None
        assert np.array_equal(large.masks, found.masks.repeat(2, axis=1).repeat(2, axis=2))
        back = large.resize((40, 60))
        assert back.masks is not None and np.array_equal(back.masks, found.masks)
        np.testing.assert_allclose(back.boxes, found.boxes, rtol=1e-6)

    def test_without_masks_and_image(self, found: Detections) -> None:
        small = dataclasses.replace(found, rles=None, image=None).resize((20, 30))
        assert small.masks is None and small.image is None and len(small) == 3

    @pytest.mark.parametrize("image_size", [(0, 60), (40, -1), (40.5, 60)])
    def test_wrong_sizes(self, found: Detections, image_size: Any) -> None:
        with pytest.raises(InputError, match="must be a whole number from 1"):
            found.resize(image_size)


def test_masks_are_made_when_asked_for(found: Detections) -> None:
    assert found.masks is found.masks
    assert found.masks is not None and found.masks.shape == (3, 40, 60) and found.masks.dtype == bool
    assert found.masks.sum(axis=(1, 2)).tolist() == [200, 0, 6]
    assert found.masks[0, 10:20, 5:25].all()
    assert dataclasses.replace(found, rles=None).masks is None


class TestDrawing:
    @pytest.mark.parametrize("with_masks", [True, False])
    def test_the_objects_and_nothing_else_are_marked(self, found: Detections, with_masks: bool) -> None:
        mask = np.zeros((400, 600), bool)
        mask[120:200, 60:240] = True
        image = np.full((400, 600, 3), 100, np.uint8)
        one = dataclasses.replace(
            found[0],
            boxes=10 * found[0].boxes,
            image_size=(400, 600),
            rles=[encode_mask(mask)] if with_masks else None,
            image=image,
        )
        picture = np.asarray(one.plot())
        changed = (picture != 100).any(axis=2)
        assert picture.shape == image.shape and (image == 100).all()
        assert changed[100, 150] and changed[200, 150] and changed[150, 50]  # the box's sides
        assert changed[160, 150] == with_masks
        assert not changed[300:, :].any()

    @pytest.mark.parametrize("box", [(60, 60, 160, 140), (0, 0, 90, 60), (150, 140, 240, 200), (-50, -20, 300, 250)])
    def test_labels_are_inside_and_do_not_cover_each_other(self, box: tuple[int, ...]) -> None:
        labels = _Labels(Image.new("RGB", (240, 200)), font_size=10, padding=1)
        for text in ("cat 0.97", "dog 0.35", "a\nb"):
            labels.add(text, (255, 0, 0), box, ("above", "inside", "below"))
        for index, (x0, y0, x1, y1) in enumerate(labels.placed):
            assert 0 <= x0 < x1 <= 240 and 0 <= y0 < y1 <= 200
            for left, top, right, bottom in labels.placed[:index]:
                assert x1 <= left or right <= x0 or y1 <= top or bottom <= y0

    def test_remarks(self, found: Detections) -> None:
        image = np.full((400, 600, 3), 100, np.uint8)
        large = dataclasses.replace(found.resize((400, 600)), image=image)
        plain, remarked = (np.asarray(draw(image, large, remarks=remarks)) for remarks in (None, {1: "missed"}))
        changed = (plain != remarked).any(axis=2)
        assert changed.any() and (remarked[changed].max(axis=1) == remarked[changed].min(axis=1)).all()  # greys
        assert changed[351:, 302:].any() and not changed[:300].any()

    def test_nothing_found_leaves_the_image(self, found: Detections) -> None:
        image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        assert np.array_equal(np.asarray(draw(image, found[[]])), image)

    @pytest.mark.parametrize(("name", "kind"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.png", "PNG")])
    def test_saved(self, found: Detections, tmp_path: Path, name: str, kind: str) -> None:
        found.save(tmp_path / name)
        with Image.open(tmp_path / name) as picture:
            assert (picture.format, picture.size) == (kind, (60, 40))

    def test_other_suffixes_are_refused(self, found: Detections, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"\.jpg or \.png, not '\.gif'"):
            found.save(tmp_path / "a.gif")
        assert not list(tmp_path.iterdir())

    def test_notebooks_show_the_picture(self, found: Detections) -> None:
        png = found._repr_png_()
        assert png and np.array_equal(np.asarray(Image.open(io.BytesIO(png))), np.asarray(found.plot()))
        assert dataclasses.replace(found, image=None)._repr_png_() is None
        assert repr(found) == "<Detections in street.jpg (60x40): person 0.90, bicycle 0.50, person 0.40>"
        assert repr(found[[]]) == "<Detections in street.jpg (60x40): nothing>"

    def test_without_the_image(self, found: Detections) -> None:
        for action in (Detections.plot, Detections.crop):
            with pytest.raises(InputError, match="the image was not kept"):
                action(dataclasses.replace(found, image=None))


def test_crop(found: Detections) -> None:
    image = np.arange(40 * 60 * 3, dtype=np.uint32).astype(np.uint8).reshape(40, 60, 3)
    crops = [np.asarray(crop) for crop in dataclasses.replace(found, image=image).crop()]
    assert [crop.shape for crop in crops] == [(10, 20, 3), (31, 21, 3), (2, 3, 3)]  # whole pixels, inside the image
    assert np.array_equal(crops[1], image[5:36, 30:51])
    empty = dataclasses.replace(found[0], image=image, boxes=np.array([[60, 40, 60, 40]], np.float32))
    assert [crop.size for crop in empty.crop()] == [(1, 1)]


class TestCoco:
    def test_results(self, found: Detections) -> None:
        first, second, _ = found.to_coco(139)
        assert (first["image_id"], first["category_id"], second["category_id"]) == (139, 1, 2)
        assert first["bbox"] == [5, 10, 20, 10]
        assert first["score"] == pytest.approx(0.9)
        assert coco_mask.area(first["segmentation"]) == 200
        assert coco_mask.toBbox(first["segmentation"]).tolist() == first["bbox"]
        assert json.loads(json.dumps(found.to_coco(139))) == found.to_coco(139)
        numbers = found.to_coco(np.int64(139), np.array(coco_category_ids(COCO)))  # type: ignore[arg-type]
        assert json.loads(json.dumps(numbers)) == found.to_coco(139)

    def test_categories(self, found: Detections) -> None:
        assert [record["category_id"] for record in found.to_coco(1, [7, *[None] * 79])] == [7, 7]
        assert COCO_CLASSES == COCO
        ids = coco_category_ids(COCO)
        assert (ids[0], ids[11], ids[24], ids[-1], len(ids)) == (1, 13, 27, 90, 80)  # by COCO's file
        assert list(coco_category_ids(["cat", "dog"])) == [1, 2]
        assert list(coco_category_ids([f"class {index}" for index in range(80)])) == list(range(1, 81))

    def test_without_masks(self, found: Detections) -> None:
        assert "segmentation" not in dataclasses.replace(found, rles=None).to_coco("a")[0]


@pytest.mark.parametrize("with_masks", [True, False])
def test_json_and_back(found: Detections, with_masks: bool) -> None:
    found = found if with_masks else dataclasses.replace(found, rles=None)
    height, width = found.image_size
    found = dataclasses.replace(found, image_size=(np.int64(height), np.uint16(width)))
    content = json.loads(json.dumps(found.to_json()))
    assert (content["path"], content["width"], content["height"]) == ("street.jpg", 60, 40)
    assert content["objects"][0].items() >= {"name": "person", "label": 0, "box": [5, 10, 25, 20]}.items()
    back = Detections.from_json(content, COCO)
    assert (back.boxes == found.boxes).all() and (back.scores == found.scores).all() and back.names == found.names
    assert (back.image_size, back.path) == (found.image_size, found.path) and back.boxes.dtype == np.float32
    if with_masks:
        assert back.masks is not None and (back.masks == found.masks).all()
    else:
        assert back.masks is None


CHANGES: dict[str, Any] = {
    "no objects": lambda content: content.pop("objects"),
    "objects that are none": lambda content: content.update(objects=5),
    "a number as an object": lambda content: content["objects"].append(1),
    "an object without a box": lambda content: content["objects"][0].pop("box"),
    "a box of three numbers": lambda content: content["objects"][0].update(box=[1, 2, 3]),
    "a huge number": lambda content: content["objects"][0].update(score=10**400),
    "a box beyond float32": lambda content: content["objects"][0].update(box=[0, 0, 1e300, 1]),
    "a score that is none": lambda content: content["objects"][0].update(score=math.nan),
    "an unknown class": lambda content: content["objects"][0].update(label=80),
    "a negative class": lambda content: content["objects"][0].update(label=-1),
    "a class by name": lambda content: content["objects"][0].update(label="person"),
    "an object without a mask": lambda content: content["objects"][0].pop("mask"),
    "a mask that ends in a number": lambda content: content["objects"][0]["mask"].update(counts="P"),
    "a mask of another size": lambda content: content["objects"][0]["mask"].update(size=[1, 1]),
    "a width of text": lambda content: content.update(width="60"),
    "no height": lambda content: content.update(height=0),
    "a path that is none": lambda content: content.update(path=["a"]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_json_of_another_form(found: Detections, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(json.dumps(found.to_json()))
    change(content)
    with pytest.raises(InputError, match=r"^these are not the detections of an image: "):
        Detections.from_json(content, COCO)


@pytest.mark.parametrize("with_masks", [True, False])
def test_no_objects_in_json_and_back(found: Detections, with_masks: bool) -> None:
    """The result of a model with masks stays one."""
    nothing = found[[]] if with_masks else dataclasses.replace(found[[]], rles=None)
    back = Detections.from_json(json.loads(json.dumps(nothing.to_json())), COCO)
    assert len(back) == 0 and back.boxes.shape == (0, 4)
    assert back.rles == ([] if with_masks else None)
    assert (back.masks is not None and back.masks.shape == (0, 40, 60)) == with_masks
    assert ("area" in back.to_dataframe()) == with_masks


def test_track_ids_stay_with_their_objects(found: Detections) -> None:
    tracked = dataclasses.replace(found, track_ids=np.array([7, -1, 2]))
    read = Detections.from_json(json.loads(json.dumps(tracked.to_json())), COCO)
    for some in (
        tracked[[2, 0]],
        tracked.filter(classes="person")[::-1],
        tracked.resize((20, 30))[[2, 0]],
        read[[2, 0]],
    ):
        assert some.track_ids is not None and some.track_ids.dtype == np.int64 and some.track_ids.tolist() == [2, 7]
    empty = Detections.from_json(json.loads(json.dumps(tracked[:0].to_json())), COCO)
    assert empty.track_ids is not None and empty.track_ids.shape == (0,)
    assert [result.get("track_id") for result in tracked.to_coco(1)] == [7, None, 2]
    assert tracked.to_dataframe()["track_id"].tolist() == [7, -1, 2]
    ids = tracked.to_supervision().tracker_id
    assert ids is not None and ids.tolist() == [7, -1, 2]
    assert (np.asarray(tracked.plot()) != np.asarray(found.plot())).any()


def test_table(found: Detections) -> None:
    table = found.to_dataframe()
    assert list(table.columns) == ["name", "label", "score", "x1", "y1", "x2", "y2", "area"]
    assert table["area"].tolist() == [200, 0, 6] and table["name"].tolist() == found.names
    assert table.loc[0, ["x1", "y1", "x2", "y2"]].tolist() == [5, 10, 25, 20]
    assert "area" not in dataclasses.replace(found, rles=None).to_dataframe()
    assert len(found[[]].to_dataframe()) == 0


def test_without_supervision(found: Detections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match="pip install supervision"):
        found.to_supervision()
    assert found.plot().size == (60, 40)


def test_supervision(found: Detections) -> None:
    theirs = found.to_supervision()
    assert isinstance(theirs, sv.Detections) and (theirs.xyxy == found.boxes).all()
    assert np.asarray(theirs["class_name"]).tolist() == found.names
    assert (np.asarray(theirs.mask) == found.masks).all()
    assert len(found[[]].to_supervision()) == 0
    assert dataclasses.replace(found, rles=None).to_supervision().mask is None


def test_huge_images_are_drawn_too() -> None:
    mask = np.zeros((4, 40_000), bool)
    mask[:, -8:] = True
    found = Detections(
        np.array([[39_992, 0, 40_000, 4]], np.float32),
        np.ones(1, np.float32),
        np.zeros(1, np.int64),
        ("end",),
        mask.shape,
        [encode_mask(mask)],
        np.zeros((4, 40_000, 3), np.uint8),
    )
    assert np.asarray(found.plot())[2, -4:].any()


class TestFiles:
    """Whole files or none: `files.open_atomic`, with which all of these are written."""

    def test_that_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="No such file"), open_atomic(tmp_path / "none" / "file"):
            pass
        (tmp_path / "file").mkdir()
        with pytest.raises(OutputError, match="Is a directory"), open_atomic(tmp_path / "file") as file:
            file.write(b"new")
        with pytest.raises(OutputError, match="No space left"), open_atomic(tmp_path / "other"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_that_fail_half_way_leave_the_old_one(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("old")
        with pytest.raises(ZeroDivisionError), open_atomic(tmp_path / "file") as file:
            file.write(b"new")
            raise ZeroDivisionError
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        assert (tmp_path / "file").read_text() == "old"


def test_detections_need_no_pytorch() -> None:
    code = (
        "import sys, numpy as np; from dpt_zoo.inference.detections import Detections; from dpt_zoo import Detections\n"
        "nothing = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), ('cat',), (4, 4), [])\n"
        "Detections.from_json(nothing.to_json(), ['cat']).resize((8, 8)).filter(0.5, 'cat').to_coco(1)\n"
        "print({'torch', 'mmdet', 'mmengine', 'mmcv'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
