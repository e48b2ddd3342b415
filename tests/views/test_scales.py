"""Objects at several scales, and what becomes of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digit_canvas import make_mosaic
from exported_files import make_onnx
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

import dpt_zoo
from dpt_zoo import Detector
from dpt_zoo.errors import InputError
from dpt_zoo.inference.detections import encode_mask
from dpt_zoo.views.layout import ZOOMS
from dpt_zoo.views.objects import Objects
from dpt_zoo.views.scales import fuse


def objects(boxes: Sequence[Sequence[float]], scores: Sequence[float], labels: Sequence[int]) -> Objects:
    """Objects whose masks are their boxes, in an image of 50 x 50 pixels."""
    array = np.array(boxes, np.float32).reshape(-1, 4)
    rles = [encode_mask(box_mask(box)) for box in array]
    return Objects(array, np.array(scores, np.float32), np.array(labels, np.int64), rles)


def box_mask(box: NDArray[np.float32]) -> NDArray[np.bool_]:
    mask = np.zeros((50, 50), bool)
    x0, y0, x1, y1 = box.astype(int)
    mask[y0:y1, x0:x1] = True
    return mask


def test_the_mean_of_boxes_scores_and_masks() -> None:
    first = objects([[10, 10, 30, 30], [40, 40, 48, 48]], [0.6, 0.9], [1, 2])
    second = objects([[14, 10, 34, 30]], [0.2], [1])
    fused = fuse([first, second])
    assert fused.boxes == pytest.approx(np.array([[40, 40, 48, 48], [11, 10, 31, 30]]))
    assert fused.scores == pytest.approx([0.45, 0.4])
    assert fused.labels.tolist() == [2, 1]
    assert fused.rles is not None
    assert np.array_equal(coco_mask.decode(fused.rles[1]), box_mask(first.boxes[0]))  # its weight is larger


def test_neighbours_at_one_scale_and_other_classes_stay_apart() -> None:
    boxes = [[10, 10, 30, 30], [11, 10, 31, 30], [10, 10, 30, 30]]
    first, second = objects(boxes, [0.8, 0.6, 0.5], [0, 0, 1]), objects(boxes[:2], [0.7, 0.7], [0, 0])
    fused = fuse([first, second])
    assert fused.labels.tolist() == [0, 0, 1]
    assert fused.scores == pytest.approx([0.75, 0.65, 0.25])


def test_nothing() -> None:
    fused = fuse([objects([], [], [])] * 3)
    assert fused.boxes.shape == (0, 4) and fused.rles == []


def test_a_detector_fuses_what_it_detects_at_three_scales() -> None:
    scene, model = make_mosaic(1, 1, seed=2).image, dpt_zoo.create_model("mrcnn_dpt_nano_digits")
    scales = [
        Detector(model, scale=(round(192 * zoom), round(192 * zoom)), score_threshold=0.05)(scene) for zoom in ZOOMS
    ]
    fused = fuse([Objects(each.boxes, each.scores, each.labels, each.rles) for each in scales])
    found = Detector(model, batch_size=2, score_threshold=0.9995)(scene, tta=True)
    count = int((fused.scores >= 0.9995).sum())
    assert 0 < len(found) == count < len(fused.scores)
    assert found.boxes == pytest.approx(fused.boxes[:count], abs=1e-3)
    assert found.scores == pytest.approx(fused.scores[:count], abs=1e-5)
    assert fused.rles is not None and found.rles == fused.rles[:count]


@pytest.mark.parametrize("fixed", [{"image_size": [64, 64]}, {"has_preprocessing": True}])
def test_a_file_of_one_scale_is_refused(fixed: dict[str, Any], tmp_path: Path) -> None:
    detector = Detector(make_onnx(tmp_path / "model.onnx", **fixed))
    with pytest.raises(InputError, match=r"tta: model\.onnx takes images of one scale only: export the model without"):
        detector(np.zeros((64, 64, 3), np.uint8), tta=True)
