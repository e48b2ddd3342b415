"""Slices of an image, and the objects that were detected in them."""

import itertools
from typing import Any

import numpy as np
import pytest
from digit_canvas import make_mosaic
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from dpt_zoo import Detector
from dpt_zoo.errors import InputError
from dpt_zoo.inference.detections import encode_mask
from dpt_zoo.utils.windows import Window
from dpt_zoo.views import slices
from dpt_zoo.views.layout import Views
from dpt_zoo.views.objects import Objects
from dpt_zoo.views.slices import _find_pairs, _gather, _place_mask, merge, place

Boxes = NDArray[np.float32]


class TestViews:
    @given(
        st.tuples(st.integers(1, 900), st.integers(1, 900)),
        st.integers(32, 400),
        st.floats(0, 0.9),
    )
    def test_slices_cover_the_image_and_overlap(self, image_size: tuple[int, int], size: int, overlap: float) -> None:
        windows = list(Views(size, overlap).windows(image_size))
        assert Views(size, overlap).count(image_size) == len(windows)
        for low, high, length in ((0, 2, image_size[1]), (1, 3, image_size[0])):
            sides = sorted({(window[low], window[high]) for window in windows})
            assert sides[0][0] == 0 and sides[-1][1] == length
            for (_, end), (start, _) in itertools.pairwise(sides):
                assert end - start >= np.floor(size * overlap) - 1  # rounding to whole pixels
        assert all(min(length, size) == high - low for low, high, length in _sides(windows, image_size, size))

    def test_the_whole_image(self) -> None:
        assert list(Views().windows((30, 40))) == [Window(0, 0, 40, 30)]
        assert list(Views(50).windows((30, 40))) == [Window(0, 0, 40, 30)]
        assert list(Views(200, whole_image=True).windows((100, 300))) == [
            *(Window(x, 0, x + 200, 100) for x in (0, 100)),
            Window(0, 0, 300, 100),
        ]

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"slice_size": 31}, "slice_size must be a whole number from 32, not 31"),
            ({"slice_size": 64, "slice_overlap": 1}, r"slice_overlap must be a number from 0 to 0\.9, not 1"),
            ({"whole_image": True}, "whole_image is an addition to slices: give slice_size, or leave it out"),
        ],
    )
    def test_options_out_of_range(self, options: dict[str, Any], complaint: str) -> None:
        with pytest.raises(InputError, match=complaint):
            Views(**options)


def _sides(windows: list[Window], image_size: tuple[int, int], size: int) -> list[tuple[int, int, int]]:
    height, width = image_size
    whole = size >= max(image_size)
    sides = [(x0, x1, width if whole else min(width, size)) for x0, _, x1, _ in windows]
    return (
        [*sides, *((y0, y1, height if whole else min(height, size)) for _, y0, _, y1 in windows)] if not whole else []
    )


def detect_in(views: Views, boxes: Boxes, image_size: tuple[int, int]) -> list[tuple[Window, Objects]]:
    """Detect perfectly in each view: the visible part of each object, surer the more of it is visible."""
    parts = []
    for window in views.windows(image_size):
        x0, y0, x1, y1 = window
        seen = np.clip(boxes, [x0, y0] * 2, [x1, y1] * 2)
        area, whole = ((each[:, 2:] - each[:, :2]).prod(1) for each in (seen, boxes))
        labels = np.flatnonzero(area > 0)
        local = (seen[labels] - [x0, y0] * 2).astype(np.float32)
        rles = []
        for a, b, c, d in local.astype(int).tolist():
            mask = np.zeros((y1 - y0, x1 - x0), bool)
            mask[b:d, a:c] = True
            rles.append(encode_mask(mask))
        objects = Objects(local, (area / whole)[labels].astype(np.float32), labels % 3, rles)
        parts.append((window, place(objects, window, image_size)))
    return parts


class TestMerging:
    @settings(deadline=None, max_examples=50)
    @given(st.integers(0, 2**32), st.integers(0, 12), st.sampled_from([0.2, 0.5]))
    def test_each_object_is_there_once(self, seed: int, count: int, overlap: float) -> None:
        """Objects apart, of any length: some are whole in no slice."""
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.choice(np.arange(2, 30), count, replace=False)) * 10
        starts, lengths = rng.integers(0, 200, count), rng.integers(8, 100, count)
        boxes = np.stack([starts, rows, starts + lengths, rows + 8], axis=1).astype(np.float32)
        image_size = (310, 301)
        merged = merge(detect_in(Views(96, overlap), boxes, image_size), image_size, 0.5)
        order = merged.boxes[:, 1].argsort()
        assert merged.rles is not None
        assert np.array_equal(merged.boxes[order], boxes)
        for index, box in zip(order, boxes.astype(int).tolist(), strict=True):
            x0, y0, width, height = coco_mask.toBbox(merged.rles[index]).astype(int).tolist()
            assert [x0, y0, x0 + width, y0 + height] == box
            assert coco_mask.area(merged.rles[index]) == width * height

    def test_neighbours_in_one_view_stay_apart(self) -> None:
        boxes = np.array([[10, 10, 30, 30], [12, 12, 30, 30]], np.float32)
        window = Window(0, 0, 100, 100)
        objects = Objects(boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64), None)
        assert len(merge([(window, objects)], (100, 100), 0.5).scores) == 2
        assert len(merge([(window, objects)] * 2, (100, 100), 0.5).scores) == 2

    def test_a_part_of_another_class_is_dropped(self) -> None:
        """A digit that is cut may look like another one."""
        part = Objects(np.array([[90, 10, 100, 30]], np.float32), np.array([0.9], np.float32), np.array([1]), None)
        whole = Objects(np.array([[90, 10, 112, 30]], np.float32), np.array([0.5], np.float32), np.array([7]), None)
        merged = merge([(Window(0, 0, 100, 100), part), (Window(80, 0, 180, 100), whole)], (100, 180), 0.5)
        assert merged.labels.tolist() == [7]

    def test_a_part_that_another_view_takes_for_the_whole_is_dropped(self) -> None:
        """Both views show the object whole. In one view, a small object in front of a large one stays."""
        large, small = [20, 10, 60, 50], [40, 10, 58, 30]
        both = Objects(np.array([large, small], np.float32), np.array([0.9, 0.8], np.float32), np.zeros(2, int), None)
        part = Objects(np.array([small], np.float32), np.array([0.7], np.float32), np.zeros(1, int), None)
        whole = Objects(both.boxes[:1], both.scores[:1], both.labels[:1], None)
        first, second = Window(0, 0, 100, 100), Window(5, 0, 105, 100)
        assert merge([(first, whole), (second, part)], (100, 105), 0.5).boxes.tolist() == [large]
        assert merge([(first, both), (second, both)], (100, 105), 0.5).boxes.tolist() == [large, small]

    def test_the_box_is_the_mean_of_those_of_all_views(self) -> None:
        """Weighted by their scores. A view that shows another extent has no weight."""
        windows = [Window(x0, 0, x0 + 100, 100) for x0 in (0, 5, 10)]
        boxes = np.array([[40, 40, 60, 60], [40, 40, 60, 63], [40, 40, 60, 75]], np.float32)
        scores = np.array([0.8, 0.4, 0.5], np.float32)
        parts = [
            (window, Objects(box[None], score[None], np.zeros(1, np.int64), None))
            for window, box, score in zip(windows, boxes, scores, strict=True)
        ]
        merged = merge(parts, (100, 110), 0.5)
        assert merged.boxes.tolist() == [[40, 40, 60, 61]] and merged.scores.tolist() == scores[:1].tolist()

    @settings(deadline=None, max_examples=30)
    @given(st.integers(0, 2**32), st.integers(0, 40), st.integers(1, 50))
    def test_few_pairs_at_a_time_give_the_same(self, seed: int, count: int, max_pairs: int) -> None:
        rng = np.random.default_rng(seed)
        corners = rng.uniform(0, 150, (count, 2))
        boxes = np.hstack([corners, corners + rng.uniform(5, 60, (count, 2))]).astype(np.float32)
        parts = detect_in(Views(96, 0.5), boxes, (210, 210))
        expected = merge(parts, (210, 210), 0.5)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(slices, "MAX_PAIRS", max_pairs)
            merged = merge(parts, (210, 210), 0.5)
        for name in ("boxes", "scores", "labels", "rles"):
            assert np.array_equal(getattr(merged, name), getattr(expected, name))

    def test_nothing(self) -> None:
        nothing = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), [])
        merged = merge([(Window(0, 0, 64, 64), nothing), (Window(40, 0, 104, 64), nothing)], (64, 104), 0.5)
        assert merged.boxes.shape == (0, 4) and merged.rles == []

    def test_the_pairs_grow_with_the_objects(self) -> None:
        """Four times the objects in four times the area make about four times the pairs, not sixteen."""
        numbers = []
        for side in (1000, 2000):
            rng, count = np.random.default_rng(0), (side // 20) ** 2
            corners = rng.uniform(0, side - 20, (count, 2))
            boxes = np.hstack([corners, corners + 20]).astype(np.float32)
            parts = []
            for window in Views(200, 0.2).windows((side, side)):
                x0, y0, x1, y1 = window
                here = boxes[((boxes >= (x0, y0, x0, y0)) & (boxes <= (x1, y1, x1, y1))).all(1)]
                scores = rng.random(len(here), np.float32)
                parts.append((window, Objects(here, scores, np.zeros(len(here), np.int64), None)))
            numbers.append(sum(len(pairs.first) for pairs in _find_pairs(_gather(parts, (side, side)))))
        assert 3 * numbers[0] < numbers[1] < 8 * numbers[0]


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 1), st.booleans())
def test_a_mask_of_a_window_in_the_image(seed: int, part: float, is_full: bool) -> None:
    rng = np.random.default_rng(seed)
    (height, width), (y, x) = rng.integers(1, 20, 2), rng.integers(0, 9, 2)
    y = 0 if is_full else y
    size = (int(y + height + (0 if is_full else rng.integers(0, 9))), int(x + width + rng.integers(0, 9)))
    mask = rng.random((height, width)) < part
    canvas = np.zeros(size, bool)
    canvas[y : y + height, x : x + width] = mask
    window = Window(int(x), int(y), int(x + width), int(y + height))
    assert _place_mask(encode_mask(mask), window, size) == encode_mask(canvas)


class TestDetector:
    def test_slices(self, tmp_path: Any) -> None:
        import tifffile

        mosaic = make_mosaic(2, 3)
        detector = Detector("mrcnn_dpt_nano_digits", score_threshold=0.5)
        found = detector(mosaic.image, slice_size=192, slice_overlap=0.5)
        centres = (mosaic.boxes[:, :2] + mosaic.boxes[:, 2:]) / 2
        inside = (centres[:, None] > found.boxes[:, :2]) & (centres[:, None] < found.boxes[:, 2:])
        right = inside.all(2) & (mosaic.labels[:, None] == found.labels)
        assert right.any(1).mean() > 0.8 and right.sum(1).max() == 1
        assert found.image is not None and found.image_size == mosaic.image.shape[:2]
        assert found.rles is not None and {tuple(rle["size"]) for rle in found.rles} == {found.image_size}
        assert (np.diff(found.scores) <= 0).all()

        tifffile.imwrite(tmp_path / "mosaic.tif", mosaic.image, tile=(128, 128), photometric="rgb")
        (same,) = detector.stream([tmp_path / "mosaic.tif"], slice_size=192, slice_overlap=0.5)
        assert same.image is None and np.array_equal(same.boxes, found.boxes) and same.rles == found.rles
