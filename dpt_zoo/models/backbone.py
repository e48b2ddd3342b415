"""DPT, the backbone: a pyramid of four transformer stages, three of them behind a DePatch (paper section 3)."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError
from .attention import Block, Shape, map_to_tokens, tokens_to_map
from .cpu import runs_on_cpu
from .depatch import DePatch, PatchEmbed


class Stage(NamedTuple):
    """What sets a stage apart; `position_side` is the side of the square map its position embedding is for."""

    depth: int
    embed_dim: int
    num_heads: int
    mlp_ratio: int
    reduction: int
    position_side: int


def _published(*depths: int) -> tuple[Stage, ...]:
    """The stages of the paper's sizes, which differ in depth alone."""
    return (
        Stage(depths[0], 64, 1, 8, 8, 56),
        Stage(depths[1], 128, 2, 8, 4, 28),
        Stage(depths[2], 320, 5, 4, 2, 14),
        Stage(depths[3], 512, 8, 4, 1, 7),
    )


SIZES = {
    "nano": (
        Stage(1, 32, 1, 4, 8, 48),
        Stage(1, 64, 2, 4, 4, 24),
        Stage(2, 128, 4, 4, 2, 12),
        Stage(1, 192, 6, 4, 1, 6),
    ),
    "tiny": _published(2, 2, 2, 2),
    "small": _published(3, 4, 6, 3),
    "medium": _published(3, 4, 18, 3),
}
"""The four stages of each size."""
STRIDES = (4, 8, 16, 32)


class ResizedPosition(NamedTuple):
    """A position embedding `(1, N, C)`, and what it is on a map of `shape`: `(1, H*W, C)`."""

    embedding: Tensor
    shape: Shape
    resized: Tensor

    def is_of(self, embedding: Tensor, shape: Shape) -> bool:
        """Whether it is this embedding's, by content: what is written through `.data` leaves no other trace."""
        return (
            self.shape == shape and self.embedding.dtype == embedding.dtype and torch.equal(self.embedding, embedding)
        )


class DPT(nn.Module):
    """The backbone, with the authors' parameter names.

    Args:
        size: "nano", which is ours, or the paper's "tiny", "small" and "medium".
        drop_path_rate: stochastic depth of the last block, in [0, 1); it rises linearly from 0 at the first.
        in_channels: channels of an image.
        gradient_checkpointing: in training, keep only what goes into each block and patch embedding, and compute the
            rest again in the backward pass: less memory, more time, the same gradients.

    Raises:
        InputError: `size` is none of these.
    """

    def __init__(
        self, size: str, drop_path_rate: float = 0.1, in_channels: int = 3, gradient_checkpointing: bool = False
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise InputError(f"there is no DPT of size {size!r}: choose one of {', '.join(SIZES)}")
        self.size = size
        self.gradient_checkpointing = gradient_checkpointing
        self._resized_positions: dict[int, ResizedPosition] = {}
        self.stages = dict(enumerate(SIZES[size], 1))
        for index, stage in self.stages.items():
            # The last position embedding has one more entry, in front: the class token's.
            num_positions = stage.position_side**2 + (index == 4)
            position = nn.Parameter(trunc_normal_(torch.empty(1, num_positions, stage.embed_dim), std=0.02))
            self.register_parameter(f"pos_embed{index}", position)
        self.patch_embed1 = PatchEmbed(in_channels, self.stages[1].embed_dim, patch_size=4)
        for index in (2, 3, 4):
            patch_embed = DePatch(self.stages[index - 1].embed_dim, self.stages[index].embed_dim)
            self.add_module(f"patch_embed{index}", patch_embed)
        last = sum(stage.depth for stage in self.stages.values()) - 1
        drop_path = (drop_path_rate * block / last for block in range(last + 1))
        for index, stage in self.stages.items():
            blocks = (
                Block(stage.embed_dim, stage.num_heads, stage.mlp_ratio, stage.reduction, next(drop_path))
                for _ in range(stage.depth)
            )
            self.add_module(f"block{index}", nn.ModuleList(blocks))
        self.apply(init_linear)
        for index in (2, 3, 4):
            # A fresh DePatch samples every patch from a box of the initial size at the patch's centre.
            nn.init.zeros_(getattr(self, f"patch_embed{index}").offset_predictor.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the four feature maps.

        Args:
            x: `(B, 3, H, W)` normalised images, H and W at least 32.

        Returns:
            Maps `(B, C, H//s, W//s)`, channels-last in memory: s 4, 8, 16, 32; C 64, 128, 320, 512 in the paper.

        Raises:
            InputError: an image has less than 32 pixels on a side.
        """
        if min(x.shape[2:]) < STRIDES[-1]:
            height, width = x.shape[2:]
            raise InputError(f"DPT needs images of at least 32x32 pixels, not {width}x{height}: pad them")
        maps = []
        for stage in self.stages:
            x = self.run_stage(x, stage)
            maps.append(x)
        return tuple(maps)

    def run_stage(self, x: Tensor, stage: int) -> Tensor:
        """Compute one stage: from the map before it, `(B, C', H', W')`, to its own, `(B, C, H, W)`."""
        tokens, shape = self.embed(x, stage)
        return tokens_to_map(self.transform(tokens, shape, stage), shape)

    def embed(self, x: Tensor, stage: int) -> tuple[Tensor, Shape]:
        """Cut the map `x` into this stage's patches: tokens `(B, H*W, C)` that know their place, and `(H, W)`."""
        patch_size = 4 if stage == 1 else 2
        shape = (x.shape[2] // patch_size, x.shape[3] // patch_size)
        tokens = self._run(getattr(self, f"patch_embed{stage}"), x)
        return tokens + self.position_embedding(stage, shape), shape

    def transform(self, tokens: Tensor, shape: Shape, stage: int) -> Tensor:
        """Run this stage's blocks on the tokens `(B, N, C)` of a map of `shape`."""
        for block in getattr(self, f"block{stage}"):
            tokens = self._run(block, tokens, shape)
        return tokens

    def _run(self, module: nn.Module, *inputs: Tensor | Shape) -> Tensor:
        """Run a part of the network, which in training may be checkpointed."""
        if self.gradient_checkpointing and self.training:
            return checkpoint(module, *inputs, use_reentrant=False)
        return module(*inputs)

    def position_embedding(self, stage: int, shape: Shape) -> Tensor:
        """A stage's position embedding on a map of `shape`, without the class token's: `(1, H*W, C)`.

        On a CPU, without gradients, each stage's is kept for the next map of that size.
        """
        side = self.stages[stage].position_side
        embedding: Tensor = getattr(self, f"pos_embed{stage}")[:, -(side**2) :]
        # The authors compare cell counts with stage 1's, not shapes: there, a map of 28x112 takes the
        # embedding of 56x56 as it stands.
        if shape == (side, side) or (stage == 1 and math.prod(shape) == side**2):
            return embedding
        if torch.is_grad_enabled() or not runs_on_cpu(embedding):
            return resize_tokens(embedding, (side, side), shape)
        kept = self._resized_positions.get(stage)
        if kept is None or not kept.is_of(embedding, shape):
            kept = ResizedPosition(embedding.clone(), shape, resize_tokens(embedding, (side, side), shape))
            self._resized_positions[stage] = kept
        return kept.resized

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_resized_positions": {}}  # a copy, or a file, can make its own


def resize_tokens(tokens: Tensor, shape: Shape, new_shape: Shape) -> Tensor:
    """Resize the map that tokens `(B, H*W, C)` make, bilinearly: to `(B, H'*W', C)`."""
    resized = F.interpolate(tokens_to_map(tokens, shape), new_shape, mode="bilinear", align_corners=False)
    return map_to_tokens(resized)


def init_linear(module: nn.Module) -> None:
    """Draw a linear layer's weight as the authors do; other modules are left as they are."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
