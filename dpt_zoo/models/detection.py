"""DPT as an MMDetection backbone, `dict(type="DPT", size="tiny")`; the configs import this module."""

from collections.abc import Sequence
from typing import Any

from .. import mmlab  # noqa: F401  # before mmdet, which it makes importable

# isort: split
from mmdet.registry import MODELS
from mmengine.logging import print_log
from torch import Tensor, nn

from ..errors import InputError
from ..utils.validation import check_integer
from . import backbone
from .pretrained import load_backbone


def head_configs(model: Any) -> Any:
    """Return the `test_cfg` of a detector's head: of RetinaNet's, or "rpn" and "rcnn" of Mask R-CNN's."""
    if hasattr(model, "roi_head"):
        return {"rpn": model.rpn_head.test_cfg, "rcnn": model.roi_head.test_cfg}
    return model.bbox_head.test_cfg


@MODELS.register_module()
class DPT(backbone.DPT):
    """The backbone, with MMDetection's `init_cfg` for pretrained weights.

    `size`, `drop_path_rate` and `gradient_checkpointing` are those of `dpt_zoo.models.DPT`. The first `frozen_stages`
    stages are not trained, 0 to 4; -1 is the same as 0. `out_indices` are the maps to return, 0 to 3. `init_cfg` is
    None, or `dict(type="Pretrained", checkpoint=WEIGHTS)` with the weights of a classifier or a detector: a model's
    name ("dpt_tiny"), a path, `https://...` or `hf://org/repo/file`; or those of a PVT, see `pretrained.to_zoo_names`.

    Raises:
        InputError: `init_cfg` has another form, the size is unknown, or the number of stages is impossible.
    """

    def __init__(
        self,
        size: str,
        drop_path_rate: float = 0.1,
        gradient_checkpointing: bool = False,
        frozen_stages: int = 0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        init_cfg: Any = None,
    ) -> None:
        super().__init__(size, drop_path_rate, gradient_checkpointing=gradient_checkpointing)
        check_integer("frozen_stages", frozen_stages, -1, len(self.stages))
        self.frozen_stages = frozen_stages
        for index in out_indices:
            check_integer("out_indices", index, 0, len(self.stages) - 1)
        self.out_indices = tuple(out_indices)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        for stage in range(1, frozen_stages + 1):
            self.get_parameter(f"pos_embed{stage}").requires_grad_(False)
        if init_cfg is not None and (init_cfg.get("type") != "Pretrained" or "checkpoint" not in init_cfg):
            raise InputError(f"init_cfg must be None or dict(type='Pretrained', checkpoint=WEIGHTS), not {init_cfg}")
        self.init_cfg = init_cfg

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of `out_indices` as `dpt_zoo.models.DPT` does."""
        maps = super().forward(x)
        return tuple(maps[index] for index in self.out_indices)

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
        print_log(f"backbone: {load_backbone(self, self.init_cfg['checkpoint'])}", "current")
