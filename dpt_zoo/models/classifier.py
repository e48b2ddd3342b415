"""The ImageNet classifier, as a timm model: `timm.create_model("dpt_small", pretrained=True)`."""

from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..errors import InputError
from ..weights.store import read_trusted_weights
from .backbone import DPT, STRIDES, init_linear
from .depatch import patch_centres
from .pretrained import is_classifiers_own, to_zoo_names


class DPTClassifier(DPT):
    """DPT with a class token in the last stage and a linear head on it, behind timm's interface.

    Args:
        size: see `DPT`.
        num_classes: number of outputs of the head; 0 for no head.
        drop_rate: dropout before the head, in [0, 1).
        drop_path_rate: see `DPT`.
        in_chans: number of channels of an image.
        global_pool: "token", the class token. There is no other pooling.

    Raises:
        InputError: The size or the pooling is unknown.
    """

    pos_embed4: nn.Parameter

    def __init__(
        self,
        size: str,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        in_chans: int = 3,
        global_pool: str = "token",
    ) -> None:
        super().__init__(size, drop_path_rate, in_chans)
        self.num_features = self.head_hidden_size = self.stages[4].embed_dim
        self.feature_info = [
            {"num_chs": stage.embed_dim, "reduction": stride, "module": f"block{index}"}
            for (index, stage), stride in zip(self.stages.items(), STRIDES, strict=True)
        ]
        self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, self.num_features), std=0.02))
        self.norm: nn.Module = nn.LayerNorm(self.num_features, eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        # Buffers that the authors' classifier files contain and nothing reads: shapes and centres at 224x224.
        for index in (2, 3, 4):
            depatch, side = getattr(self, f"patch_embed{index}"), self.stages[index].position_side
            depatch.register_buffer("value_spatial_shapes", torch.tensor([[2 * side, 2 * side]]))
            anchor = patch_centres((side, side), torch.float32, torch.device("cpu"))
            depatch.box_coder.register_buffer("anchor", anchor)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # logits, not feature maps
        """Classify normalised images `(B, 3, H, W)`, trained at 224x224: return logits `(B, num_classes)`."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's normalised tokens `(B, 1 + N, 512)`, the class token first."""
        for stage in (1, 2, 3):
            x = self.run_stage(x, stage)
        return self._last_tokens(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits `(B, num_classes)` for tokens `(B, 1 + N, 512)`, or with `pre_logits` `(B, 512)`."""
        x = self.head_drop(x[:, 0])
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the last tokens and the maps of `DPT`, as timm expects; `stop_early` has no effect.

        Raises:
            InputError: `norm` is True, or `output_fmt` is not "NCHW".
        """
        if norm or output_fmt != "NCHW":
            raise InputError("DPT's feature maps have no final norm and are NCHW: use norm=False, output_fmt='NCHW'")
        taken, _ = feature_take_indices(len(self.stages), indices)
        maps = super().forward(x)
        intermediates = [maps[index] for index in taken]
        return intermediates if intermediates_only else (self._last_tokens(maps[2]), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the final norm and the head, which the feature maps do not need."""
        taken, _ = feature_take_indices(len(self.stages), indices)
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return taken

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that timm's optimizers do not decay."""
        return {"cls_token", *(f"pos_embed{stage}" for stage in self.stages)}

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the patterns by which timm groups parameters in layers, which are the stages."""
        return {"stem": r"^(?:pos_embed1|patch_embed1)", "blocks": r"^(?:pos_embed|patch_embed|block)(\d)"}

    def get_classifier(self) -> nn.Module:
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.gradient_checkpointing = enable

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a newly initialised one with `num_classes` outputs, or by none if that is 0.

        Raises:
            InputError: `global_pool` is not the class token.
        """
        if global_pool not in (None, "", "token"):
            raise InputError(f"DPT classifies by its class token: global_pool={global_pool!r} is not supported")
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        init_linear(self.head.to(self.cls_token))

    def __prepare_scriptable__(self) -> nn.Module:
        """Return what `torch.jit.script` compiles: a traced graph for inference, for images of any number and size.

        TorchScript cannot read the code of the network, which passes functions as arguments.

        Raises:
            InputError: The model is in training mode, whose randomness a graph cannot keep.
        """
        if self.training:
            raise InputError("torch.jit.script makes a graph for inference: call model.eval() before")
        images = self.cls_token.new_zeros(2, self.patch_embed1.proj.in_channels, 64, 64)
        with torch.no_grad():
            return nn.Sequential(torch.jit.trace(self, images, check_trace=False))

    def _last_tokens(self, x: Tensor) -> Tensor:
        tokens, shape = self.embed(x, 4)
        class_token = (self.cls_token + self.pos_embed4[:, :1]).expand(tokens.shape[0], -1, -1)
        return self.norm(self.transform(torch.cat((class_token, tokens), dim=1), shape, 4))


CFG = {"pool_size": (7, 7), "first_conv": "patch_embed1.proj", "classifier": "head", "license": "apache-2.0"}
"""timm's defaults add the rest: 1000 classes, 224x224 pixels, ImageNet's mean and standard deviation."""
default_cfgs = generate_default_cfgs({f"dpt_{size}": CFG for size in ("tiny", "small", "medium")})


def adapt_checkpoint(state: dict[str, Tensor], model: DPTClassifier) -> dict[str, Tensor]:
    """Rename the tensors of another code's checkpoint, and add the buffers that only the authors' files contain."""
    named = to_zoo_names(state)
    buffers = {name: buffer for name, buffer in model.named_buffers() if is_classifiers_own(name)}
    return {**buffers, **named}


def _create(
    size: str, pretrained: bool, pretrained_cfg: Any = None, pretrained_cfg_overlay: Any = None, **kwargs: Any
) -> DPTClassifier:
    """Build a classifier as timm does. Pretrained weights come from the zoo, unless the configs name others."""
    name = f"dpt_{size}"
    overlay = dict(pretrained_cfg_overlay or {})
    given = resolve_pretrained_cfg(name, pretrained_cfg, overlay)
    if pretrained and not (given.has_weights or given.state_dict):
        overlay["file"] = str(read_trusted_weights(name)[0])
    return build_model_with_cfg(
        DPTClassifier,
        name,
        pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=overlay,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        pretrained_filter_fn=adapt_checkpoint,
        size=size,
        **kwargs,
    )


@register_model
def dpt_tiny(pretrained: bool = False, **kwargs: Any) -> DPTClassifier:
    """DPT-Tiny: 15.2 M parameters, 77.4 % ImageNet-1k top-1 accuracy."""
    return _create("tiny", pretrained, **kwargs)


@register_model
def dpt_small(pretrained: bool = False, **kwargs: Any) -> DPTClassifier:
    """DPT-Small: 26.4 M parameters, 81.0 % ImageNet-1k top-1 accuracy."""
    return _create("small", pretrained, **kwargs)


@register_model
def dpt_medium(pretrained: bool = False, **kwargs: Any) -> DPTClassifier:
    """DPT-Medium: 46.1 M parameters, 81.9 % ImageNet-1k top-1 accuracy."""
    return _create("medium", pretrained, **kwargs)
