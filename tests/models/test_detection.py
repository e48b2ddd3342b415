"""The backbone inside MMDetection's detectors."""

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope

from dpt_zoo.errors import InputError
from dpt_zoo.manifest.records import get_detector_info
from dpt_zoo.models.detection import DPT


class TestGradientCheckpointing:
    @pytest.mark.slow
    def test_a_detectors_losses_and_gradients_are_the_same(self) -> None:
        init_default_scope("mmdet")
        cfg = Config.fromfile(get_detector_info("retinanet_dpt_t_1x").config_path)
        cfg.merge_from_dict({"model.backbone.drop_path_rate": 0.5})
        results = []
        for checkpointed in (False, True):
            cfg.merge_from_dict({"model.backbone.gradient_checkpointing": checkpointed})
            torch.manual_seed(0)
            model = MODELS.build(cfg.model).train()
            data = model.data_preprocessor(demo_mm_inputs(2, (3, 64, 96), num_classes=80), True)
            total, losses = model.parse_losses(model(**data, mode="loss"))
            total.backward()
            results.append([*losses.values(), *(parameter.grad for parameter in model.parameters())])
        for without, with_it in zip(*results, strict=True):
            assert torch.equal(without, with_it)


class TestFrozenStages:
    @pytest.mark.parametrize("num_frozen", [-1, 0, 1, 3])
    def test_the_first_stages_are_not_trained(self, num_frozen: int) -> None:
        backbone = DPT("nano", drop_path_rate=0.5, frozen_stages=num_frozen).train()
        sum(each.sum() for each in backbone(torch.randn(1, 3, 64, 64))).backward()
        for stage in range(1, 5):
            is_frozen = stage <= num_frozen
            parts = [backbone.get_submodule(f"{part}{stage}") for part in ("patch_embed", "block")]
            assert all(module.training != is_frozen for part in parts for module in part.modules())
            parameters = [
                backbone.get_parameter(f"pos_embed{stage}"),
                *(p for part in parts for p in part.parameters()),
            ]
            assert all((parameter.grad is None) == is_frozen for parameter in parameters)
        assert not any(module.training for module in backbone.eval().modules())

    @pytest.mark.parametrize("num_frozen", [-2, 5, "2", 1.5])
    def test_impossible_numbers(self, num_frozen: int) -> None:
        with pytest.raises(InputError, match="frozen_stages must be a whole number from -1 to 4"):
            DPT("nano", frozen_stages=num_frozen)
