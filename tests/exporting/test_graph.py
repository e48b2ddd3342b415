"""The graph in PyTorch: the objects of MMDetection and of Detector."""

import dataclasses
from typing import Any

import mmcv
import numpy as np
import pytest
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.structures import DetDataSample
from numpy.typing import NDArray
from reference_data import PHOTO, rule_model
from torch import Tensor
from torch.nn import functional as F

import dpt_zoo
from dpt_zoo import Detector
from dpt_zoo.exporting.graph import build_graph, onnx_nms, torchvision_nms
from dpt_zoo.inference.limits import Limits
from dpt_zoo.utils.images import load_image

SIZES = [(192, 192), (170, 192), (192, 161), (165, 192)]
"""Height and width of images that have one size once they are padded, and that the demos' configs do not resize."""
NO_LIMITS = Limits()


def pad(images: list[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
    """Return the graph's `images` and `image_sizes`."""
    sizes = torch.tensor([image.shape[:2] for image in images])
    height, width = (-(-int(side) // 32) * 32 for side in sizes.amax(0))
    padded = torch.zeros(len(images), 3, height, width)
    for target, image in zip(padded, images, strict=True):
        target[:, : image.shape[0], : image.shape[1]] = torch.from_numpy(image.copy()).permute(2, 0, 1)
    return padded, sizes.float()


@torch.no_grad()
def run(
    model: Any, images: list[NDArray[np.uint8]], threshold: float, nms: Any = onnx_nms, limits: Limits = NO_LIMITS
) -> list[dict[str, Tensor]]:
    """Return the objects of each image: boxes, scores, labels, and masks if the model has them."""
    dtype = next(model.parameters()).dtype
    inputs = (each.to(dtype) for each in pad(images))
    image, *outputs = build_graph(model, nms, limits)(*inputs, torch.tensor(threshold, dtype=dtype))
    names = ("boxes", "scores", "labels", "masks")
    return [{name: each[image == i] for name, each in zip(names, outputs, strict=False)} for i in range(len(images))]


def paste(masks: Tensor, boxes: Tensor, image: NDArray[np.uint8]) -> Tensor:
    return _do_paste_mask(masks[:, None], boxes, *image.shape[:2], skip_empty=False)[0] >= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("nms", [onnx_nms, torchvision_nms])
def test_objects_are_mmdetections_in_float64(demo: str, nms: Any, scenes: list[NDArray[np.uint8]]) -> None:
    model: Any = dpt_zoo.create_model(demo).double()
    images = [scene[:height, :width] for scene, (height, width) in zip(scenes, SIZES, strict=False)]
    for ours, theirs in zip(run(model, images, 0.1, nms), detect(model, images), strict=True):
        certain = theirs["scores"] >= 0.1  # below, boxes without extent have equal scores, in any order
        theirs = {name: each[certain] for name, each in theirs.items()}
        assert ours["labels"].equal(theirs["labels"]) and certain.any()
        for name in ours.keys() - {"labels"}:
            assert (ours[name] - theirs[name]).abs().max() < 1e-9, name


@torch.no_grad()
def detect(model: Any, images: list[NDArray[np.uint8]]) -> list[dict[str, Tensor]]:
    """Return what `run` returns, computed by MMDetection; it cannot paste masks in float64."""
    inputs = [torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1) for image in images]
    samples = [DetDataSample(metainfo={"img_shape": image.shape[:2], "scale_factor": (1.0, 1.0)}) for image in images]
    data = model.data_preprocessor({"inputs": inputs, "data_samples": samples}, False)
    features, samples = model.extract_feat(data["inputs"]), data["data_samples"]
    if not hasattr(model, "roi_head"):
        detected = model.bbox_head.predict(features, samples, rescale=False)
        return [{"boxes": each.bboxes, "scores": each.scores, "labels": each.labels} for each in detected]
    head = model.roi_head
    proposals = model.rpn_head.predict(features, samples, rescale=False)
    metas = [sample.metainfo for sample in samples]
    objects = []
    for index, each in enumerate(head.predict_bbox(features, metas, proposals, head.test_cfg, rescale=False)):
        logits = head._mask_forward(features, F.pad(each.bboxes, (1, 0), value=index))["mask_preds"]
        masks = logits[range(len(each)), each.labels].sigmoid()
        objects.append({"boxes": each.bboxes, "scores": each.scores, "labels": each.labels, "masks": masks})
    return objects


@pytest.mark.parametrize(
    "limits",
    [
        Limits(0.3),
        Limits(0.1, max_detections=150, nms_iou=0.7),
        Limits(0.1, max_detections=5, nms_iou=0.1, class_agnostic_nms=True),
    ],
    ids=["usual", "more", "fewer"],
)
def test_objects_are_detectors(demo: str, limits: Limits, scenes: list[NDArray[np.uint8]]) -> None:
    detector = Detector(demo, **dataclasses.asdict(limits))
    images = [scene[:height, :width] for scene, (height, width) in zip(scenes, SIZES, strict=False)]
    images = images[:2] if limits.max_detections else images
    for image, ours in zip(images, run(detector.model, images, detector.score_threshold, limits=limits), strict=True):
        theirs = detector(image)
        assert np.array_equal(ours["labels"], theirs.labels) and len(theirs)
        assert np.abs(ours["boxes"].numpy() - theirs.boxes).max() < 0.005
        assert np.abs(ours["scores"].numpy() - theirs.scores).max() < 5e-5
        if theirs.masks is not None:
            masks = paste(ours["masks"], ours["boxes"], image).numpy()
            assert ((masks & theirs.masks).sum((1, 2)) > 0.99 * (masks | theirs.masks).sum((1, 2))).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet_dpt_t_1x", "mrcnn_dpt_t_1x"])
def test_objects_with_the_rule_weights(name: str) -> None:
    photo = load_image(PHOTO)
    detector = Detector(rule_model(name), score_threshold=0.05)
    resized, factors = mmcv.imrescale(photo, (1333, 800)), [1067 / 320, 800 / 240] * 2
    (ours,), theirs = run(detector.model, [resized], 0), detector(photo)
    assert len(theirs) == len(ours["labels"]) == 100
    distances = np.abs(ours["boxes"].numpy()[:, None] / factors - theirs.boxes).max(2)
    distances[ours["labels"].numpy()[:, None] != theirs.labels] = np.inf
    nearest = distances.argmin(0)
    assert sorted(nearest) == list(range(100))
    assert distances.min(0).max() < 0.005
    assert np.abs(ours["scores"].numpy()[nearest] - theirs.scores).max() < 5e-5


def test_nothing_is_detected(demo: str, scenes: list[NDArray[np.uint8]]) -> None:
    (objects,) = run(dpt_zoo.create_model(demo), scenes[:1], 1.0)
    assert {name: len(each) for name, each in objects.items()} == dict.fromkeys(objects, 0)
