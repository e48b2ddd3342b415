"""DPT in the detectors of configs/more: they learn, validate, save, load and detect."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from reference_data import random_images
from train_more_detectors import DEMO, digit_options, find_configs

import dpt_zoo
from dpt_zoo.data.digits import CLASSES, make_digit_scenes
from dpt_zoo.models.factory import find_num_classes

CONFIGS = {path.stem: path for path in find_configs()}
NUM_STEPS = 10
SIDE = 64  # of a scene, in pixels
LOG_EACH_STEP = {
    "default_hooks.logger.interval": 1,
    "log_processor.window_size": 1,
    "param_scheduler": [{"type": "ConstantLR", "factor": 1.0}],
}
FC = "fc_out_channels"
SMALL: dict[str, dict[str, int]] = {
    "atss": {"model.bbox_head.stacked_convs": 1},
    "cascade": {f"model.roi_head.bbox_head.{stage}.{FC}": 64 for stage in range(3)},
    "detr": {"model.encoder.num_layers": 1, "model.decoder.num_layers": 1},
    "faster": {f"model.roi_head.bbox_head.{FC}": 64},
    "fcos": {"model.bbox_head.stacked_convs": 1},
}
"""Fewer and narrower layers of each head."""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "scenes"
    make_digit_scenes(folder, num_train=2 * NUM_STEPS, num_test=2, size=SIDE)
    return folder


def read_losses(work_dir: Path) -> list[float]:
    (log,) = work_dir.glob("*/vis_data/scalars.json")
    return [entry["loss"] for entry in map(json.loads, log.read_text().splitlines()) if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_it_learns_and_detects(name: str, scenes: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data_root": scenes, "workers": 0, "device": "cpu"}
    weights = dpt_zoo.train(
        CONFIGS[name],
        work_dir=tmp_path / "run",
        epochs=1,
        batch_size=2,
        seed=0,
        cfg_options=digit_options(CONFIGS[name], SIDE) | SMALL[name.split("_")[0]] | LOG_EACH_STEP,
        **settings,
    )
    losses = read_losses(tmp_path / "run")
    assert len(losses) == NUM_STEPS and sum(losses[-3:]) < 0.9 * sum(losses[:3])

    (config,) = (tmp_path / "run").glob("*.py")
    evaluation = dpt_zoo.evaluate(config, weights=weights, **settings)
    assert [*evaluation.per_class] == (["bbox", "segm"] if "mask" in name else ["bbox"])
    assert tuple(evaluation.per_class["bbox"]) == CLASSES

    (checkpoint,) = (tmp_path / "run").glob("epoch_1.pth")
    model = init_detector(str(config), str(checkpoint), device="cpu")
    detected = inference_detector(model, str(scenes / "val2017" / "000001.png")).pred_instances
    assert detected.bboxes.shape == (len(detected.scores), 4)

    # The backbone is the zoo's: with the weights of a detector of the zoo, the maps are that detector's.
    demo: Any = dpt_zoo.create_model(DEMO)
    model.backbone.load_state_dict(demo.backbone.state_dict())
    images = random_images(7, (1, 3, 64, 96))
    with torch.inference_mode():
        expected = demo.backbone(images)
        for index, given in zip(model.backbone.out_indices, model.backbone(images), strict=True):
            assert torch.equal(given, expected[index])


def test_every_head_gets_the_number_of_classes() -> None:
    heads = {name: find_num_classes(Config.fromfile(path).model) for name, path in CONFIGS.items()}
    assert heads["cascade_mask_rcnn_dpt_s_fpn_1x_coco"] == {
        **{f"model.roi_head.bbox_head.{stage}": 80 for stage in range(3)},
        "model.roi_head.mask_head": 80,
    }
    assert heads["faster_rcnn_dpt_s_fpn_1x_coco"] == {"model.roi_head.bbox_head": 80}
    assert all(heads[name] == {"model.bbox_head": 80} for name in heads if "rcnn" not in name)
