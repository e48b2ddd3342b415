"""With the same weights, every output equals the one that the authors' code computed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compare_detections import compare
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from reference_data import (
    ARCHITECTURES,
    PHOTO,
    REFERENCE,
    random_images,
    read_json,
    relative_error,
    rule_model,
)
from rule_weights import load_rule_weights
from torch import Tensor
from torch.nn import functional as F

from dpt_zoo import Detector
from dpt_zoo.engine.config import load_config
from dpt_zoo.engine.runner import quiet_runner
from dpt_zoo.models import DPTClassifier

pytestmark = pytest.mark.slow

STRICT = 1e-9
"""Tolerance in float64, in standard deviations of the map."""

INPUTS = {"224x224": (7, (1, 3, 224, 224)), "256x320": (7, (1, 3, 256, 320)), "b2_256x320": (8, (2, 3, 256, 320))}


@pytest.mark.parametrize("architecture", ARCHITECTURES, scope="module")
class TestOutputsInFloat64:
    @pytest.mark.parametrize("name", INPUTS)
    def test_backbone(self, architecture: str, name: str) -> None:
        recorded = np.load(REFERENCE / f"float64_{architecture}.npz")
        model = rule_model(ARCHITECTURES[architecture], torch.float64)
        with torch.inference_mode():
            maps = model.backbone(random_images(*INPUTS[name]).double())
        for level, feature_map in enumerate(maps):
            assert relative_error(feature_map, recorded, f"{name}.level{level}") < STRICT

    def test_pyramid_and_dense_heads(self, architecture: str) -> None:
        recorded = np.load(REFERENCE / f"float64_{architecture}.npz")
        model = rule_model(ARCHITECTURES[architecture], torch.float64)
        head = model.rpn_head if "mask" in architecture else model.bbox_head
        with torch.inference_mode():
            pyramid = model.extract_feat(random_images(*INPUTS["256x320"]).double())
            scores, boxes = head(pyramid)
        for level in range(5):
            assert relative_error(pyramid[level], recorded, f"fpn{level}") < STRICT
            assert relative_error(scores[level], recorded, f"cls{level}") < STRICT
            assert relative_error(boxes[level], recorded, f"bbox{level}") < STRICT


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_classifier_logits(size: str) -> None:
    recorded = np.load(REFERENCE / f"float64_imagenet_dpt_{size}.npz")["logits"]
    model = load_rule_weights(DPTClassifier(size).double()).eval()
    with torch.inference_mode():
        logits = model(random_images(7, (2, 3, 224, 224)).double())
    assert np.abs(logits.numpy() - recorded).max() < STRICT * recorded.std()


@pytest.mark.parametrize("architecture", ARCHITECTURES, scope="module")
def test_detections_on_the_photograph(architecture: str) -> None:
    (recorded,) = read_json(f"detections_{architecture}.json").values()
    detector = Detector(rule_model(ARCHITECTURES[architecture]), score_threshold=0.05)
    comparison = compare(detector(PHOTO).to_coco("coffee"), recorded)
    assert comparison.num_recorded == 100
    assert comparison.holds, comparison
    assert (comparison.mask_iou is None) == (architecture.startswith("retinanet"))


META = {"img_shape": (250, 310), "pad_shape": (256, 320), "ori_shape": (125, 155), "scale_factor": (2.0, 2.0)}
"""The image of the recorded post-processing: 310x250 pixels in the network, 155x125 originally."""


class TestPostProcessing:
    """The heads' outputs are random, with many candidates of many classes."""

    @pytest.mark.parametrize("rescale", [False, True])
    @pytest.mark.parametrize("candidates", ["lt10000", "ge10000"])
    def test_retinanet(self, candidates: str, rescale: bool) -> None:
        recorded = read_json("postproc.json")[f"retinanet.{candidates}_candidates.rescale_{rescale}"]
        random = np.random.RandomState(21)
        scores, boxes = [], []
        for height, width in map_sizes(8, 16, 32, 64, 128):
            scores.append(float32(random.standard_normal((1, 720, height, width)) * 1.5 - 5) + recorded["shift"])
            boxes.append(float32(random.standard_normal((1, 36, height, width)) * 0.3))
        head = rule_model("retinanet_dpt_t_1x").bbox_head
        (detected,) = head.predict_by_feat(scores, boxes, batch_img_metas=[META], rescale=rescale)
        assert_same_detections(detected, recorded["dets"])

    def test_proposals(self) -> None:
        recorded = np.load(REFERENCE / "postproc_rpn.npz")["proposals"]
        random = np.random.RandomState(22)
        scores, boxes = [], []
        for height, width in map_sizes(4, 8, 16, 32, 64):
            scores.append(float32(random.standard_normal((1, 3, height, width))))
            boxes.append(float32(random.standard_normal((1, 12, height, width)) * 0.3))
        head = rule_model("mrcnn_dpt_t_1x").rpn_head
        (detected,) = head.predict_by_feat(scores, boxes, batch_img_metas=[META], rescale=False)
        assert np.abs(torch.column_stack([detected.bboxes, detected.scores]).numpy() - recorded).max() < 1e-3

    @pytest.mark.parametrize("rescale", [False, True])
    def test_mask_rcnn_boxes(self, rescale: bool) -> None:
        detected, _ = self.second_stage(rescale)
        assert_same_detections(detected, read_json("postproc.json")[f"rcnn.rescale_{rescale}"]["dets"])

    def test_mask_rcnn_masks(self) -> None:
        recorded = read_json("postproc.json")["rcnn.masks_first30_rescale_True"]
        detected, mask_logits = self.second_stage(rescale=False)  # as in MMDetection, the mask head rescales them
        head = rule_model("mrcnn_dpt_t_1x").roi_head
        (pasted,) = head.mask_head.predict_by_feat((mask_logits,), [detected], [META], head.test_cfg, rescale=True)
        for index, rle in enumerate(recorded):
            mask = coco_mask.decode({"size": rle["size"], "counts": rle["counts"]}).astype(bool)
            ours = pasted.masks[index].numpy()
            assert detected.labels[index] == rle["class_id"]
            assert (ours & mask).sum() > 0.99 * (ours | mask).sum()

    def second_stage(self, rescale: bool) -> tuple[InstanceData, Tensor]:
        """Return detections from 200 random regions, and 100 mask logits."""
        random = np.random.RandomState(23)
        corner = random.uniform(0, 1, (200, 2)) * [260, 200]
        extent = random.uniform(8, 120, (200, 2))
        regions = F.pad(float32(np.concatenate([corner, corner + extent], axis=1)), (1, 0))
        logits = float32(random.standard_normal((200, 81)) * 2)
        deltas = float32(random.standard_normal((200, 320)))
        mask_logits = float32(random.standard_normal((100, 80, 28, 28)))
        head = rule_model("mrcnn_dpt_t_1x").roi_head
        (detected,) = head.bbox_head.predict_by_feat((regions,), (logits,), (deltas,), [META], head.test_cfg, rescale)
        return detected, F.avg_pool2d(mask_logits, 5, stride=1, padding=2)


def map_sizes(*strides: int) -> list[tuple[int, int]]:
    return [(-(-256 // stride), -(-320 // stride)) for stride in strides]


def float32(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def assert_same_detections(detected: InstanceData, recorded: list[list[float]]) -> None:
    """Compare all detections in order of score: class, box and score."""
    expected = torch.tensor(recorded, dtype=torch.float64)
    assert detected.labels.tolist() == expected[:, 0].long().tolist()
    assert (detected.bboxes - expected[:, 1:5]).abs().max() < 1e-3
    assert (detected.scores - expected[:, 5]).abs().max() < 1e-5


@pytest.mark.parametrize("architecture", ["retinanet_dpt_t", "mask_rcnn_dpt_t"])
def test_training_losses_and_gradients(architecture: str, tmp_path: Path) -> None:
    """The config's Runner computes them, from images to gradients."""
    recorded = read_json(f"train_{architecture}.json")
    cfg = load_config(f"configs/{architecture}_fpn_1x_coco.py")
    cfg.work_dir = str(tmp_path)
    cfg.model.backbone.drop_path_rate = 0.0
    cfg.optim_wrapper.accumulative_counts = 2  # keeps the gradients, which are halved
    with quiet_runner(cfg) as runner:
        optimizer = runner.build_optim_wrapper(runner.optim_wrapper)
        model: Any = load_rule_weights(runner.model).train()
        if architecture.startswith("mask_rcnn"):
            take_recorded_proposals(model, architecture)
        mean, std = (torch.tensor(cfg.model.data_preprocessor[key]).view(3, 1, 1) for key in ("mean", "std"))
        images = [(image * std + mean)[[2, 1, 0]] for image in random_images(8, (2, 3, 256, 320))]  # BGR, as read
        losses = model.train_step({"inputs": images, "data_samples": training_samples(recorded)}, optimizer)

    for name, value in recorded["losses_logged"].items():
        assert losses[name].item() == pytest.approx(value, rel=1e-5), name
    parameters = dict(model.named_parameters())
    assert list(parameters) == list(recorded["grad_l2"])
    for name, norm in recorded["grad_l2"].items():
        assert 2 * parameters[name].grad.norm().item() == pytest.approx(norm, rel=5e-3), name


def take_recorded_proposals(model: Any, architecture: str) -> None:
    """Take every candidate, as in the recording, and give the second stage the recorded proposals.

    A difference of 0.003 pixels between proposals can change what NMS keeps.
    """
    for sampler in (model.rpn_head.sampler, model.roi_head.bbox_sampler):
        sampler.num, sampler.pos_fraction = 1_000_000, 1.0
    proposals = np.load(REFERENCE / f"train_{architecture}_proposals.npz")
    instances = [
        InstanceData(bboxes=torch.from_numpy(proposals[image][:, :4]), scores=torch.from_numpy(proposals[image][:, 4]))
        for image in ("img0", "img1")
    ]
    model.rpn_head.predict_by_feat = lambda *args, **kwargs: instances


def training_samples(recorded: dict[str, Any]) -> list[DetDataSample]:
    samples = []
    for ground_truth, meta in zip(recorded["gt"], recorded["img_metas"], strict=True):
        boxes = torch.tensor(ground_truth["boxes"], dtype=torch.float32)
        masks = np.zeros((len(boxes), 256, 320), dtype=np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, ground_truth["boxes"], strict=True):
            mask[y1:y2, x1:x2] = 1
        sample = DetDataSample(
            metainfo={
                "img_shape": tuple(meta["img_shape"][:2]),
                "pad_shape": (256, 320),
                "batch_input_shape": (256, 320),
            }
        )
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.tensor(ground_truth["labels"]), masks=BitmapMasks(masks, 256, 320)
        )
        samples.append(sample)
    return samples
