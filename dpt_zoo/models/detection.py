"""DPT as an MMDetection backbone, `dict(type="DPT", size="tiny")`, and the anchors of its detectors.

The configs name this module as their import.
"""

from collections.abc import Sequence
from typing import Any

import torch

from .. import mmlab  # noqa: F401  # before mmdet: it is what makes mmdet importable

# isort: split
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.logging import print_log
from torch import Tensor

from ..errors import InputError
from ..weights.loading import load_weights
from ..weights.store import read_trusted_weights
from . import backbone
from .classifier import is_classifiers_own

PREFIX = "backbone."
"""What a detector's names of the backbone's tensors begin with."""


@MODELS.register_module()
class DPT(backbone.DPT):
    """The backbone, with MMDetection's way to start from pretrained weights.

    Args:
        size: see `dpt_zoo.models.DPT`.
        drop_path_rate: see `dpt_zoo.models.DPT`.
        gradient_checkpointing: see `dpt_zoo.models.DPT`.
        init_cfg: None, or `dict(type="Pretrained", checkpoint=WEIGHTS)` with the weights of an ImageNet classifier, or
            of a detector with this backbone: a name in the zoo ("dpt_tiny"), a path, `https://...` or
            `hf://org/repo/file`.

    Raises:
        InputError: any other `init_cfg`, or an unknown `size`.
    """

    def __init__(
        self,
        size: str,
        drop_path_rate: float = 0.1,
        gradient_checkpointing: bool = False,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(size, drop_path_rate, gradient_checkpointing=gradient_checkpointing)
        if init_cfg is not None and (init_cfg.get("type") != "Pretrained" or "checkpoint" not in init_cfg):
            raise InputError(f"DPT's init_cfg is dict(type='Pretrained', checkpoint=WEIGHTS) or None, not {init_cfg}")
        self.init_cfg = init_cfg

    def init_weights(self) -> None:
        """Load what `init_cfg` names, if anything; MMEngine's Runner calls this before training.

        Raises:
            FetchError, OutputError: the weights are not here and cannot be fetched.
            WeightsError: the file is missing, unreadable, or another network's.
        """
        if self.init_cfg is None:
            return
        origin = self.init_cfg["checkpoint"]
        path, weights = read_trusted_weights(origin)
        state = weights.tensors
        backbones = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
        if backbones:  # a detector's file
            left_out = [name for name in state if not name.startswith(PREFIX)]
        else:
            backbones = {name: tensor for name, tensor in state.items() if not is_classifiers_own(name)}
            left_out = [name for name in state if name not in backbones]
        load_weights(self, backbones, path, f"DPT-{self.size.capitalize()}")
        parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in left_out)) or "none"
        print_log(f"backbone: {len(backbones)} tensors from {origin}, left out: {parts}", "current")


@TASK_UTILS.register_module()
class CachedAnchorGenerator(AnchorGenerator):  # type: ignore[misc]
    """MMDetection's anchors, made once for images of one size: on a GPU, that is dozens of small operations."""

    _cached: tuple[Any, list[Tensor]] | None = None

    def grid_priors(
        self,
        featmap_sizes: Sequence[tuple[int, ...]],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cuda",
    ) -> list[Tensor]:
        """Return the anchors of each feature map `(H, W)`: `(H*W*A, 4)` xyxy in pixels, not to be written to."""
        if torch.compiler.is_compiling():
            return super().grid_priors(featmap_sizes, dtype, device)
        # Training cannot use what inference mode has made.
        key = ([tuple(size) for size in featmap_sizes], dtype, str(device), torch.is_inference_mode_enabled())
        cached = self._cached
        if cached is None or cached[0] != key:
            cached = self._cached = key, super().grid_priors(featmap_sizes, dtype, device)
        return list(cached[1])
