"""DPT as the backbone of torchvision's detectors."""

from pathlib import Path
from typing import Any

import pytest
import torch
import train_torchvision_detectors
from reference_data import random_images
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from train_torchvision_detectors import DEMO, evaluate, make_mask_rcnn, make_retinanet, open_scenes, train

import dpt_zoo
from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.errors import InputError, UnknownModelError
from dpt_zoo.models import torchvision_backbone

SIDE = 64  # of a scene, in pixels


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    make_digit_scenes(folder, num_train=8, num_test=1, size=SIDE)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_mask_rcnn, make_retinanet])
def test_detectors_learn_save_load_and_detect(make: Any, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_torchvision_detectors, "INTERVAL", 2)
    torch.manual_seed(0)
    model = make(SIDE)
    losses = [line["loss"] for line in train(model, open_scenes(scenes, "train2017"), epochs=2, batch_size=2)]
    assert len(losses) == 4 and losses[-1] < 0.9 * losses[0]
    copy = make(SIDE)
    copy.load_state_dict(model.state_dict())
    test_scenes: Any = open_scenes(scenes, "val2017")
    with torch.inference_mode():
        (detected,), (expected,) = (each.eval()([test_scenes[0][0]]) for each in (copy, model))
    assert detected.keys() == expected.keys() >= {"boxes", "scores", "labels"}
    assert all(torch.equal(detected[name], expected[name]) for name in expected)
    aps = evaluate(copy, test_scenes, scenes / "annotations" / "instances_val2017.json")
    assert [*aps] == (["bbox", "segm"] if make is make_mask_rcnn else ["bbox"])


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
