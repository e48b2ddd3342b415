"""The limits of what is detected: how many objects, how alike, how unsure."""

import copy
from typing import Any

import numpy as np
import pytest
from digit_canvas import make_mosaic
from mmengine.config import ConfigDict
from numpy.typing import NDArray
from torchvision.ops import box_iou

import dpt_zoo
from dpt_zoo import Detections, Detector
from dpt_zoo.errors import InputError
from dpt_zoo.inference.limits import Limits
from dpt_zoo.models.detection import head_configs

DEMOS = ("retinanet_dpt_nano_digits", "mrcnn_dpt_nano_digits")
RETINANET = ConfigDict(nms_pre=1000, score_thr=0.05, nms={"type": "nms", "iou_threshold": 0.5}, max_per_img=100)
MASK_RCNN = {
    "rpn": ConfigDict(nms_pre=300, max_per_img=100, nms={"type": "nms", "iou_threshold": 0.7}),
    "rcnn": ConfigDict(score_thr=0.05, nms={"type": "nms", "iou_threshold": 0.5}, max_per_img=100),
}


@pytest.fixture(scope="module", params=DEMOS)
def model(request: pytest.FixtureRequest) -> Any:
    return dpt_zoo.create_model(request.param)


def ious(found: Detections) -> NDArray[np.float32]:
    """The IoU of each pair of boxes; 0 of a box with itself."""
    import torch

    boxes = torch.from_numpy(found.boxes)
    pairs: NDArray[np.float32] = (
        box_iou(boxes, boxes).fill_diagonal_(0).nan_to_num().numpy()
    )  # boxes may have no extent
    return pairs


class TestConfig:
    def test_no_limits_change_nothing(self) -> None:
        for test_cfg in (RETINANET, MASK_RCNN):
            assert Limits().apply(test_cfg) == test_cfg
            assert Limits(0.3, 100, 0.5).apply(test_cfg) == test_cfg  # the threshold is the caller's

    def test_more_objects_need_more_candidates(self) -> None:
        retinanet, mask_rcnn = Limits(max_detections=250).apply(RETINANET), Limits(max_detections=250).apply(MASK_RCNN)
        assert (retinanet.nms_pre, retinanet.max_per_img) == (2500, 250)
        assert (mask_rcnn["rpn"].nms_pre, mask_rcnn["rpn"].max_per_img) == (2500, 2500)
        assert mask_rcnn["rcnn"].max_per_img == 250

    def test_fewer_objects_leave_the_candidates(self) -> None:
        assert Limits(max_detections=5).apply(RETINANET) == {**RETINANET, "max_per_img": 5}
        assert Limits(max_detections=5).apply(MASK_RCNN)["rpn"] == MASK_RCNN["rpn"]

    def test_the_other_limits(self) -> None:
        limited = Limits(0.01, nms_iou=0.7, class_agnostic_nms=True).apply(MASK_RCNN)
        assert limited["rcnn"].score_thr == 0.01 and limited["rcnn"].nms.iou_threshold == 0.7
        assert limited["rcnn"].nms.class_agnostic and limited["rpn"] == MASK_RCNN["rpn"]

    @pytest.mark.parametrize(
        ("limits", "complaint"),
        [
            ({"max_detections": 0}, "max_detections must be a whole number from 1, not 0"),
            ({"max_detections": 1.5}, "max_detections must be a whole number from 1, not 1.5"),
            ({"nms_iou": 1.1}, "nms_iou must be a number from 0 to 1, not 1.1"),
            ({"nms_iou": "0.5"}, "nms_iou must be a number from 0 to 1"),
            ({"score_threshold": -1}, "score_threshold must be a number from 0 to 1, not -1"),
        ],
    )
    def test_values_out_of_range(self, limits: Any, complaint: str) -> None:
        with pytest.raises(InputError, match=complaint):
            Limits(**limits)


def test_more_objects_than_the_config_allows(model: Any) -> None:
    """The config allows 8 objects, and few candidates for them."""
    crowd = make_mosaic(2, 2)
    assert len(crowd.boxes) > 16
    model = copy.deepcopy(model)
    configs = head_configs(model)
    for config in configs.values() if hasattr(model, "roi_head") else [configs]:
        config.update({name: value for name, value in {"max_per_img": 8, "nms_pre": 24}.items() if name in config})
    before = copy.deepcopy(configs)
    usual, same, most, best = (
        Detector(model, max_detections=limit, scale=crowd.image.shape[:2])(crowd.image) for limit in (None, 8, 60, 3)
    )
    assert len(usual) <= 8 < 16 < len(most) <= 60
    assert np.array_equal(usual.boxes, same.boxes) and np.array_equal(usual.scores, same.scores)
    assert np.array_equal(usual[:3].boxes, best.boxes)
    assert head_configs(model) == before  # a model of the caller is not changed


def test_scores_below_the_configs_threshold(model: Any) -> None:
    scene = make_mosaic(1, 1).image
    found = Detector(model, score_threshold=0.01)(scene)
    assert 0.01 <= found.scores.min() < 0.05
    usual = found.filter(min_score=0.05)
    assert len(usual) and np.array_equal(usual.boxes, Detector(model, score_threshold=0.05)(scene).boxes)


def test_objects_that_overlap(model: Any) -> None:
    scene = make_mosaic(1, 1, seed=1).image
    options: Any = {"score_threshold": 0.05, "max_detections": 400}
    usual = Detector(model, **options)(scene)
    pairs, same_class = ious(usual), usual.labels[:, None] == usual.labels
    assert pairs[same_class].max() <= 0.5 < pairs.max()
    more = Detector(model, **options, nms_iou=0.8)(scene)
    assert 0.5 < ious(more)[more.labels[:, None] == more.labels].max() <= 0.8
    fewer = Detector(model, **options, class_agnostic_nms=True)(scene)
    assert ious(fewer).max() <= 0.5 and len(fewer) < len(usual) < len(more)
