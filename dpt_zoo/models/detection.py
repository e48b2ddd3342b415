"""DPT as an MMDetection backbone, `dict(type="DPT", size="tiny")`; the configs import this module."""

from typing import Any

from .. import mmlab  # noqa: F401  # before mmdet, which it makes importable

# isort: split
from mmdet.registry import MODELS
from mmengine.logging import print_log
from torch import nn

from ..errors import InputError
from ..utils.validation import check_integer
from ..weights.loading import load_weights
from ..weights.store import read_trusted_weights
from . import backbone
from .classifier import is_classifiers_own

PREFIX = "backbone."
"""Prefix of the backbone's tensors in a detector's state dict."""


def head_configs(model: Any) -> Any:
    """Return the `test_cfg` of a detector's head: of RetinaNet's, or "rpn" and "rcnn" of Mask R-CNN's."""
    if hasattr(model, "roi_head"):
        return {"rpn": model.rpn_head.test_cfg, "rcnn": model.roi_head.test_cfg}
    return model.bbox_head.test_cfg


@MODELS.register_module()
class DPT(backbone.DPT):
    """The backbone, with MMDetection's `init_cfg` for pretrained weights.

    `size`, `drop_path_rate` and `gradient_checkpointing` are those of `dpt_zoo.models.DPT`. The first `frozen_stages`
    stages are not trained, 0 to 4; -1 is the same as 0. `init_cfg` is None, or
    `dict(type="Pretrained", checkpoint=WEIGHTS)` with the weights of a classifier or a detector: a model's name
    ("dpt_tiny"), a path, `https://...` or `hf://org/repo/file`.

    Raises:
        InputError: `init_cfg` has another form, the size is unknown, or the number of stages is impossible.
    """

    def __init__(
        self,
        size: str,
        drop_path_rate: float = 0.1,
        gradient_checkpointing: bool = False,
        frozen_stages: int = 0,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(size, drop_path_rate, gradient_checkpointing=gradient_checkpointing)
        check_integer("frozen_stages", frozen_stages, -1, len(self.stages))
        self.frozen_stages = frozen_stages
        for module in self._frozen_modules():
            module.requires_grad_(False)
        for stage in range(1, frozen_stages + 1):
            self.get_parameter(f"pos_embed{stage}").requires_grad_(False)
        if init_cfg is not None and (init_cfg.get("type") != "Pretrained" or "checkpoint" not in init_cfg):
            raise InputError(f"init_cfg must be None or dict(type='Pretrained', checkpoint=WEIGHTS), not {init_cfg}")
        self.init_cfg = init_cfg

    def train(self, mode: bool = True) -> "DPT":
        """Set the mode as any module does, but keep frozen stages in eval mode, without stochastic depth."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        stages = range(1, self.frozen_stages + 1)
        return [self.get_submodule(f"{part}{stage}") for stage in stages for part in ("patch_embed", "block")]

    def init_weights(self) -> None:
        """Load the weights that `init_cfg` names. MMEngine's Runner calls this method before training.

        Raises:
            FetchError: The weights are not in the cache and cannot be fetched.
            OutputError: The cache cannot be written.
            WeightsError: The file is missing, unreadable, or of another network.
        """
        if self.init_cfg is None:
            return
        location = self.init_cfg["checkpoint"]
        path, weights = read_trusted_weights(location)
        state = weights.tensors
        is_detectors = any(name.startswith(PREFIX) for name in state)
        taken = [name for name in state if (name.startswith(PREFIX) if is_detectors else not is_classifiers_own(name))]
        own = {name.removeprefix(PREFIX): state[name] for name in taken}
        load_weights(self, own, path, f"DPT-{self.size.capitalize()}")
        left_out = ", ".join(sorted({name.split(".")[0] for name in state if name not in taken})) or "none"
        print_log(f"backbone: {len(own)} tensors from {location}, left out: {left_out}", "current")
