"""The backbone inside MMDetection's detectors."""

import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope

from dpt_zoo.manifest.records import get_detector_info


class TestGradientCheckpointing:
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
