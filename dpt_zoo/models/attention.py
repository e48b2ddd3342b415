"""Attention to a spatially reduced map, and the transformer block around it (paper section 3, after PVT)."""

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from . import cpu

Shape = tuple[int, int]
"""Height and width of a feature map, in cells."""


def tokens_to_map(tokens: Tensor, shape: Shape) -> Tensor:
    """View tokens `(B, H*W, C)` as a channels-last map `(B, C, H, W)`, without a copy."""
    # `unflatten`, then `permute`: so the strides say channels-last even for one image, and PyTorch's operators see it.
    return tokens.unflatten(1, shape).permute(0, 3, 1, 2)


def map_to_tokens(x: Tensor) -> Tensor:
    """View a map `(B, C, H, W)` as tokens `(B, H*W, C)`: without a copy if the map is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class PatchConv(nn.Conv2d):
    """A convolution of patches that do not overlap, whose output is channels-last."""

    def __init__(self, in_channels: int, out_channels: int, patch_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        # If the layouts of map and weight differed, PyTorch would reorder the map, and its result back.
        x, weight = (each.contiguous(memory_format=torch.channels_last) for each in (x, self.weight))
        return self._conv_forward(x, weight, self.bias)


class SpatialReductionAttention(nn.Module):
    """Multi-head attention of all tokens to the same tokens on a map `reduction` times smaller."""

    def __init__(self, dim: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.reduction = reduction
        self.q = cpu.Linear(dim, dim)
        self.kv = cpu.Linear(dim, 2 * dim)
        self.proj = cpu.Linear(dim, dim)
        if reduction > 1:
            self.sr = PatchConv(dim, dim, reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, shape: Shape) -> Tensor:  # (B, N, C)
        """Attend with the tokens of a map of `shape`, which is not used if nothing is reduced."""
        context = x
        if self.reduction > 1:
            context = self.norm(map_to_tokens(self.sr(tokens_to_map(x, shape))))  # (B, M, C)
        q = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, C/heads)
        k, v = self.kv(context).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, M, C/heads)
        x = cpu.attend(q, k, v)  # (B, heads, N, C/heads)
        return self.proj(x.transpose(1, 2).flatten(2))  # (B, N, C)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = cpu.Linear(dim, hidden_dim)
        self.fc2 = cpu.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, C)
        return cpu.per_token(self.compute, x, width=self.fc1.out_features)

    def compute(self, x: Tensor) -> Tensor:  # (B, n, C), all tokens or a part of them
        return cpu.recompute(self.activate_and_project, self.fc1(x))

    def activate_and_project(self, hidden: Tensor) -> Tensor:  # (B, n, hidden_dim)
        return self.fc2(F.gelu(hidden))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SpatialReductionAttention(dim, num_heads, reduction)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, mlp_ratio * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, shape: Shape) -> Tensor:  # (B, N, C)
        """Transform the tokens of a map of `shape`."""
        x = x + self.drop_path(self.attn(self.norm1(x), shape))
        return x + self.drop_path(self.mlp(self.norm2(x)))
