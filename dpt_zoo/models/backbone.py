"""The DPT backbone: a pyramid of four transformer stages, three of which begin with DePatch (paper section 3)."""

import math
from typing import NamedTuple

import torch
import torch.fx
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError
from .attention import Block, Shape, map_to_tokens, tokens_to_map
from .depatch import DePatch, PatchEmbed


class Stage(NamedTuple):
    """The hyperparameters of a stage. Its position embedding is for `position_side` x `position_side` cells."""

    depth: int
    embed_dim: int
    num_heads: int
    mlp_ratio: int
    reduction: int
    position_side: int


PAPER = ((64, 128, 320, 512), (1, 2, 5, 8), (8, 8, 4, 4), (8, 4, 2, 1), (56, 28, 14, 7))
"""The hyperparameters of the paper's three sizes, which differ only in their depths."""
SIZES = {
    "nano": tuple(map(Stage, (1, 1, 2, 1), (32, 64, 128, 192), (1, 2, 4, 6), (4,) * 4, (8, 4, 2, 1), (48, 24, 12, 6))),
    "tiny": tuple(map(Stage, (2, 2, 2, 2), *PAPER)),
    "small": tuple(map(Stage, (3, 4, 6, 3), *PAPER)),
    "medium": tuple(map(Stage, (3, 4, 18, 3), *PAPER)),
}
"""The four stages of each size."""
STRIDES = (4, 8, 16, 32)


class DPT(nn.Module):
    """The backbone, with the authors' parameter names.

    Args:
        size: "tiny", "small" or "medium" as in the paper, or "nano", a smaller one of this project.
        drop_path_rate: stochastic depth rate of the last block, in [0, 1); it rises linearly from 0 at the first.
        in_channels: number of channels of an image.
        gradient_checkpointing: in training, recompute blocks and patch embeddings in the backward pass to save memory.

    Raises:
        InputError: The size is unknown.
    """

    def __init__(
        self, size: str, drop_path_rate: float = 0.1, in_channels: int = 3, gradient_checkpointing: bool = False
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise InputError(f"size {size!r} is unknown: choose one of {', '.join(SIZES)}")
        self.size = size
        self.gradient_checkpointing = gradient_checkpointing
        self.stages = dict(enumerate(SIZES[size], 1))
        for index, stage in self.stages.items():
            # The last position embedding starts with an entry for the class token.
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
            # Before training, DePatch samples the regular patches, as `DePatch` itself sees to before `init_linear`.
            nn.init.zeros_(getattr(self, f"patch_embed{index}").offset_predictor.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the four feature maps.

        Args:
            x: normalised images `(B, 3, H, W)`; H and W are at least 32 pixels.

        Returns:
            Maps `(B, C, H//s, W//s)`, channels-last in memory: s is 4, 8, 16, 32; C is 64, 128, 320, 512 in the paper.

        Raises:
            InputError: A side of the images has less than 32 pixels.
        """
        height, width = x.shape[2:]
        if min(height, width) < STRIDES[-1]:
            raise InputError(f"DPT needs images of at least 32x32 pixels, not {width}x{height}: pad them")
        maps = []
        for stage in self.stages:
            x = self.run_stage(x, stage)
            maps.append(x)
        return tuple(maps)

    def run_stage(self, x: Tensor, stage: int) -> Tensor:
        """Compute one stage: from the previous stage's map `(B, C', H', W')` to its own `(B, C, H, W)`."""
        tokens, shape = self.embed(x, stage)
        return tokens_to_map(self.transform(tokens, shape, stage), shape)

    def embed(self, x: Tensor, stage: int) -> tuple[Tensor, Shape]:
        """Embed the patches of a map: return tokens `(B, H*W, C)` with position embeddings added, and `(H, W)`."""
        patch_size = 4 if stage == 1 else 2
        shape = (x.shape[2] // patch_size, x.shape[3] // patch_size)
        tokens = self._run(getattr(self, f"patch_embed{stage}"), x)
        return tokens + self.position_embedding(stage, shape), shape

    def transform(self, tokens: Tensor, shape: Shape, stage: int) -> Tensor:
        """Run the blocks of `stage`, 1 to 4, on `tokens` `(B, N, C)` of a map of `shape`."""
        for block in getattr(self, f"block{stage}"):
            tokens = self._run(block, tokens, shape)
        return tokens

    def _run(self, module: nn.Module, *inputs: Tensor | Shape) -> Tensor:
        """Call a module, with gradient checkpointing if it is on and the backbone is in training mode."""
        if self.gradient_checkpointing and self.training:
            return checkpoint(module, *inputs, use_reentrant=False)
        return module(*inputs)

    def position_embedding(self, stage: int, shape: Shape) -> Tensor:
        """Return a stage's position embedding for a map of `shape`, without the class token's: `(1, H*W, C)`."""
        side = self.stages[stage].position_side
        embedding: Tensor = getattr(self, f"pos_embed{stage}")[:, -(side**2) :]
        # As in the authors' code, stage 1 compares only the number of cells: 56x56 and 28x112 are the same to it.
        return resize_positions(embedding, side, shape, same_area=stage == 1)


@torch.fx.wrap  # symbolic tracing cannot follow a comparison of sizes
def resize_positions(embedding: Tensor, side: int, shape: Shape, same_area: bool) -> Tensor:
    """Resize a position `embedding` `(1, side*side, C)` for a map of `shape`: return `(1, H*W, C)`.

    With `same_area`, it is unchanged for any shape of as many cells.
    """
    # An exported or traced graph always resizes, because a comparison would fix its image size.
    is_recorded = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if not is_recorded and (shape == (side, side) or (same_area and math.prod(shape) == side**2)):
        return embedding
    resized = F.interpolate(tokens_to_map(embedding, (side, side)), shape, mode="bilinear", align_corners=False)
    return map_to_tokens(resized)


def init_linear(module: nn.Module) -> None:
    """Initialise a linear layer as the authors do; leave other modules unchanged."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
