"""Settings that a user changes are merged with those of the project, or refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config

from dpt_zoo.engine import config as configs
from dpt_zoo.errors import InputError

CONFIG = "configs/demo/retinanet_dpt_nano_digits.py"


@pytest.fixture
def cfg() -> Config:
    return configs.load_config(CONFIG)


def types_of_hooks(cfg: Config) -> list[str]:
    return [hook["type"] for hook in cfg.custom_hooks]


@pytest.mark.parametrize("hooks", [[], None, [{"type": "EarlyStoppingHook", "monitor": "coco/bbox_mAP"}]])
def test_hooks_of_the_project_stay(cfg: Config, hooks: list[dict[str, Any]] | None) -> None:
    configs.set_starting_weights(cfg, "retinanet_dpt_nano_digits")
    configs.add_hook(cfg, type="EMAHook")
    configs.merge_cfg_options(cfg, {"custom_hooks": hooks})
    assert types_of_hooks(cfg) == [*(hook["type"] for hook in hooks or ()), "StartingWeightsHook", "EMAHook"]


def test_a_hook_of_the_project_can_be_changed(cfg: Config) -> None:
    configs.add_hook(cfg, type="EMAHook", momentum=0.1)
    configs.merge_cfg_options(cfg, {"custom_hooks.0.momentum": 0.2})
    assert cfg.custom_hooks == [{"type": "EMAHook", "momentum": 0.2}]
    configs.merge_cfg_options(cfg, {"custom_hooks": [{"type": "EMAHook", "momentum": 0.3}]})
    assert cfg.custom_hooks == [{"type": "EMAHook", "momentum": 0.3}]


@pytest.mark.parametrize("hooks", [{"type": "EMAHook"}, ["EMAHook"], [{"momentum": 1}], "EMAHook"])
def test_hooks_of_another_form(cfg: Config, hooks: Any) -> None:
    configs.add_hook(cfg, type="ProgressHook")
    with pytest.raises(InputError, match=r"^(custom_hooks must be a list of dicts|cfg_options: )"):
        configs.merge_cfg_options(cfg, {"custom_hooks": hooks})


@pytest.mark.parametrize("key", ["data_root", "classes", "norm_cfg.type", "modle.backbone.size", "custom_imports", ""])
def test_settings_that_nothing_reads(cfg: Config, key: str) -> None:
    with pytest.raises(InputError, match=f"^cfg_options: '{key}' would have no effect"):
        configs.merge_cfg_options(cfg, {key: 1})


@pytest.mark.parametrize("key", ["model.backbone.size", "find_unused_parameters", "compile", "load_from", "env_cfg.x"])
def test_settings_that_mmengine_reads(cfg: Config, key: str) -> None:
    configs.merge_cfg_options(cfg, {key: "a"})
    assert cfg.to_dict()[key.split(".")[0]]


def test_values_can_be_written_into_a_config(cfg: Config) -> None:
    options = {
        "optim_wrapper.optimizer.lr": np.float32(0.5),
        "train_cfg.max_epochs": np.int64(3),
        "model.bbox_head.anchor_generator.strides": np.array([8, 16]),
        "model.backbone": {"frozen_stages": np.uint8(1)},
        "load_from": Path("a.pth"),
    }
    configs.merge_cfg_options(cfg, options)
    again = Config.fromstring(cfg.pretty_text, ".py")
    assert (again.optim_wrapper.optimizer.lr, again.train_cfg.max_epochs, again.load_from) == (0.5, 3, "a.pth")
    assert again.model.bbox_head.anchor_generator.strides == [8, 16]
    assert again.model.backbone.frozen_stages == 1


def test_what_a_user_gives_is_not_changed(cfg: Config) -> None:
    options = {"model.backbone": {"_delete_": True, "type": "ResNet"}}
    for _ in range(2):
        configs.merge_cfg_options(cfg, options)
    assert options == {"model.backbone": {"_delete_": True, "type": "ResNet"}}
    assert cfg.model.backbone == {"type": "ResNet"}


@pytest.mark.parametrize("pair", ["a", "a=", "=1", "a=[1,(2]"])
def test_text_that_is_no_setting(pair: str) -> None:
    with pytest.raises(InputError, match=r"^cfg_options: "):
        configs.parse_cfg_options([pair])


def test_every_part_of_a_schedule_that_counts_epochs_is_scaled(cfg: Config) -> None:
    cfg.train_cfg.max_epochs = 10
    cfg.param_scheduler = [
        {"type": "LinearLR", "by_epoch": False, "begin": 0, "end": 500},
        {"type": "CosineAnnealingLR", "T_max": 5, "begin": 5, "end": 10},
        {"type": "MultiStepLR", "milestones": [4, 8], "gamma": 0.1},
    ]
    configs.set_num_epochs(cfg, 20)
    warm_up, cosine, steps = cfg.param_scheduler
    assert (warm_up.end, cosine.T_max, cosine.begin, cosine.end, steps.milestones) == (500, 10, 10, 20, [8, 16])
    assert steps.gamma == 0.1


def test_a_schedule_of_iterations_has_no_epochs(cfg: Config) -> None:
    cfg.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": 10}
    with pytest.raises(InputError, match="has no max_epochs"):
        configs.set_num_epochs(cfg, 2)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            {"model.backbone.init_cfg": {"type": "Pretrained", "checkpoint": "dpt_tiny"}},
            "model.backbone.init_cfg",
        ),
        ({"model.init_cfg": {"type": "Pretrained", "checkpoint": "a.pth"}}, "model.init_cfg would have no effect"),
        ({"default_hooks.checkpoint": None}, "default_hooks.checkpoint is missing"),
        ({"default_hooks": None}, "default_hooks.checkpoint is missing"),
        ({"model.bbox_head.num_classes": 9}, "model.bbox_head.num_classes is 9, but the data has 10 classes"),
    ],
)
def test_settings_that_contradict_each_other(cfg: Config, settings: dict[str, Any], complaint: str) -> None:
    configs.set_starting_weights(cfg, "retinanet_dpt_nano_digits")
    configs.check_training_config(cfg)
    configs.merge_cfg_options(cfg, settings)
    with pytest.raises(InputError, match=f"^{complaint}"):
        configs.check_training_config(cfg)


@pytest.mark.parametrize(
    "settings", [{"optim_wrapper.clip_grad.max_norm": 35}, {"optim_wrapper.clip_grad": {"max_norm": 35}}]
)
def test_a_dict_takes_the_place_of_none(cfg: Config, settings: dict[str, Any]) -> None:
    cfg.optim_wrapper.clip_grad = None
    configs.merge_cfg_options(cfg, settings)
    assert cfg.optim_wrapper.clip_grad == {"max_norm": 35}


def test_loading_in_the_training_process_keeps_no_other(cfg: Config) -> None:
    configs.merge_cfg_options(cfg, {"train_dataloader.num_workers": 0})
    configs.check_training_config(cfg)
    assert not cfg.train_dataloader.persistent_workers
    assert cfg.val_dataloader.persistent_workers
