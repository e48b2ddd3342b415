"""The ImageNet classifier, as a timm model: `timm.create_model("dpt_small")`."""

from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..errors import InputError
from .backbone import DPT, STRIDES, init_linear
from .depatch import patch_centres


def is_classifiers_own(name: str) -> bool:
    """Whether an entry of a classifier's state dict is one that the backbone does not have."""
    own = ("cls_token", "norm.", "head.")
    return name.startswith(own) or name.endswith((".value_spatial_shapes", ".box_coder.anchor"))


class DPTClassifier(DPT):
    """DPT with a class token in the last stage and a linear head on it, behind timm's interface.

    Args:
        size: see `DPT`.
        num_classes: outputs of the head; 0 leaves the head out.
        drop_path_rate: see `DPT`.
        in_chans: channels of an image.

    Raises:
        InputError: an unknown `size`.
    """

    pos_embed4: nn.Parameter

    def __init__(self, size: str, num_classes: int = 1000, drop_path_rate: float = 0.1, in_chans: int = 3) -> None:
        super().__init__(size, drop_path_rate, in_chans)
        self.num_features = self.head_hidden_size = self.stages[4].embed_dim
        self.feature_info = [
            {"num_chs": stage.embed_dim, "reduction": stride, "module": f"block{index}"}
            for (index, stage), stride in zip(self.stages.items(), STRIDES, strict=True)
        ]
        self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, self.num_features), std=0.02))
        self.norm: nn.Module = nn.LayerNorm(self.num_features, eps=1e-6)
        self.reset_classifier(num_classes)
        self._register_unused_buffers()

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # the classifier is no detector's backbone
        """Classify normalised images `(B, 3, H, W)`: logits `(B, num_classes)`. Trained at 224x224."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage's normalised tokens `(B, 1 + N, 512)`, the class token first."""
        for stage in (1, 2, 3):
            x = self.run_stage(x, stage)
        return self._last_tokens(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits `(B, num_classes)` of tokens `(B, 1 + N, 512)`, or the class token itself `(B, 512)`."""
        return x[:, 0] if pre_logits else self.head(x[:, 0])

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The feature maps that a detector sees, for timm's `features_only=True`: no class token in them.

        Raises:
            InputError: a norm or a format that these maps do not have.
        """
        if norm or output_fmt != "NCHW":
            raise InputError("DPT's feature maps come without a final norm and as NCHW: norm=False, output_fmt='NCHW'")
        taken, _ = feature_take_indices(len(self.stages), indices)
        maps = super().forward(x)
        intermediates = [maps[index] for index in taken]
        return intermediates if intermediates_only else (self._last_tokens(maps[2]), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the feature maps do not need; called by timm's `features_only=True`."""
        taken, _ = feature_take_indices(len(self.stages), indices)
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return taken

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one of `num_classes` outputs, or by none.

        Raises:
            InputError: another pooling than the class token is asked for.
        """
        if global_pool not in (None, "", "token"):
            raise InputError(f"DPT classifies by its class token: global_pool={global_pool!r} is not supported")
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        init_linear(self.head)

    def _last_tokens(self, x: Tensor) -> Tensor:
        tokens, shape = self.embed(x, 4)
        class_token = (self.cls_token + self.pos_embed4[:, :1]).expand(len(tokens), -1, -1)
        return self.norm(self.transform(torch.cat((class_token, tokens), dim=1), shape, 4))

    def _register_unused_buffers(self) -> None:
        """Add what the authors' classifier files hold besides: the shapes and patch centres of a 224x224 image."""
        for index in (2, 3, 4):
            depatch = getattr(self, f"patch_embed{index}")
            side = self.stages[index].position_side
            depatch.register_buffer("value_spatial_shapes", torch.tensor([[2 * side, 2 * side]]))
            anchor = patch_centres((side, side), torch.float32, torch.device("cpu"))
            depatch.box_coder.register_buffer("anchor", anchor)


def _cfg() -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed1.proj",
        "classifier": "head",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs({"dpt_tiny": _cfg(), "dpt_small": _cfg(), "dpt_medium": _cfg()})


def _create(size: str, pretrained: bool, **kwargs: Any) -> DPTClassifier:
    feature_cfg = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
    return build_model_with_cfg(DPTClassifier, f"dpt_{size}", pretrained, feature_cfg=feature_cfg, size=size, **kwargs)


@register_model
def dpt_tiny(pretrained: bool = False, **kwargs: Any) -> DPTClassifier:
    """DPT-Tiny: 15.2 M parameters, 77.4 % top-1 on ImageNet-1k."""
    return _create("tiny", pretrained, **kwargs)


@register_model
def dpt_small(pretrained: bool = False, **kwargs: Any) -> DPTClassifier:
    """DPT-Small: 26.4 M parameters, 81.0 % top-1 on ImageNet-1k."""
    return _create("small", pretrained, **kwargs)


@register_model
def dpt_medium(pretrained: bool = False, **kwargs: Any) -> DPTClassifier:
    """DPT-Medium: 46.1 M parameters, 81.9 % top-1 on ImageNet-1k."""
    return _create("medium", pretrained, **kwargs)
