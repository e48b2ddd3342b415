"""DPT as the backbone of torchvision's detectors."""

from typing import Any

import pytest
import torch
from reference_data import random_images
from torch import Tensor
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import dpt_zoo
from dpt_zoo.errors import InputError, UnknownModelError
from dpt_zoo.models import torchvision_backbone

DEMO = "retinanet_dpt_nano_digits"
SIZES = {"min_size": 64, "max_size": 96}


def make_mask_rcnn() -> MaskRCNN:
    few = {"box_batch_size_per_image": 16, "rpn_post_nms_top_n_train": 50, "rpn_post_nms_top_n_test": 50}
    return MaskRCNN(torchvision_backbone(DEMO, out_channels=32), num_classes=4, **SIZES, **few)


def make_retinanet() -> RetinaNet:
    backbone = torchvision_backbone(
        DEMO, out_indices=(1, 2, 3), out_channels=32, extra_blocks=LastLevelP6P7(32, 32), drop_path_rate=0.0
    )
    anchors = AnchorGenerator(tuple((side,) for side in (16, 32, 64, 128, 256)), ((0.5, 1.0, 2.0),) * 5)
    return RetinaNet(backbone, num_classes=4, anchor_generator=anchors, **SIZES)


@pytest.mark.parametrize("make", [make_mask_rcnn, make_retinanet])
def test_detectors_learn_save_load_and_detect(make: Any) -> None:
    torch.manual_seed(0)
    model = make()
    image = torch.rand(3, 64, 96)
    image[:, 20:50, 30:70] += 2
    masks = torch.zeros(1, 64, 96, dtype=torch.uint8)
    masks[:, 20:50, 30:70] = 1
    target = {"boxes": torch.tensor([[30.0, 20, 70, 50]]), "labels": torch.tensor([2]), "masks": masks}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        loss: Tensor = torch.stack([*model([image], [target]).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-2:]) < 0.9 * losses[0]
    copy = make()
    copy.load_state_dict(model.state_dict())
    with torch.inference_mode():
        (detected,), (expected,) = copy.eval()([image]), model.eval()([image])
    assert detected.keys() == expected.keys() >= {"boxes", "scores", "labels"}
    assert all(torch.equal(detected[name], expected[name]) for name in expected)


def test_its_maps_are_those_of_the_zoos_detector() -> None:
    backbone = torchvision_backbone(DEMO, out_indices=(0, 3)).eval()
    assert isinstance(backbone, BackboneWithFPN) and backbone.out_channels == 256
    detector: Any = dpt_zoo.create_model(DEMO)
    images = random_images(7, (1, 3, 64, 96))
    with torch.inference_mode():
        maps, expected = backbone.body(images), detector.backbone(images)
        levels = backbone(images)
    assert [*maps] == ["0", "1"]
    assert torch.equal(maps["0"], expected[0]) and torch.equal(maps["1"], expected[3])
    assert [*levels] == ["0", "1", "pool"]


def test_without_weights() -> None:
    first, second = (torchvision_backbone("dpt_tiny", pretrained=False, gradient_checkpointing=True) for _ in range(2))
    assert first.body.backbone.size == "tiny" and first.body.backbone.gradient_checkpointing
    assert not torch.equal(first.body.backbone.pos_embed1, second.body.backbone.pos_embed1)


def test_wrong_arguments() -> None:
    with pytest.raises(UnknownModelError, match="did you mean dpt_small"):
        torchvision_backbone("dpt_smal")
    with pytest.raises(InputError, match="out_indices must be a whole number from 0 to 3, not 4"):
        torchvision_backbone("dpt_small", pretrained=False, out_indices=(1, 4))
