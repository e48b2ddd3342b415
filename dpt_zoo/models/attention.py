"""Attention to a spatially reduced map, and the transformer block around it (paper section 3, after PVT)."""

import torch
from timm.layers import DropPath, register_notrace_module
from torch import Tensor, nn

from . import cpu

Shape = tuple[int, int]
"""Height and width of a feature map, in cells."""


def tokens_to_map(tokens: Tensor, shape: Shape) -> Tensor:
    """View `tokens` `(B, H*W, C)` as a channels-last map `(B, C, H, W)`, without a copy."""
    # With `unflatten` before `permute`, the strides are channels-last also for one image, and operators detect it.
    return tokens.unflatten(1, shape).permute(0, 3, 1, 2)


def map_to_tokens(x: Tensor) -> Tensor:
    """View a map `(B, C, H, W)` as tokens `(B, H*W, C)`: without a copy if the map is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class PatchConv(nn.Conv2d):
    """A convolution of patches that do not overlap. Its output is channels-last."""

    def forward(self, x: Tensor) -> Tensor:
        # If the layouts of map and weight differed, PyTorch would reorder the map, and its result back.
        x, weight = (each.contiguous(memory_format=torch.channels_last) for each in (x, self.weight))
        return self._conv_forward(x, weight, self.bias)


class SpatialReductionAttention(nn.Module):
    """Attention with `num_heads` heads from all tokens `(B, N, dim)` to those of a map `reduction` times smaller."""

    def __init__(self, dim: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.reduction = reduction
        self.q = cpu.Linear(dim, dim)
        self.kv = cpu.Linear(dim, 2 * dim)
        self.proj = cpu.Linear(dim, dim)
        if reduction > 1:
            self.sr = PatchConv(dim, dim, kernel_size=reduction, stride=reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, shape: Shape) -> Tensor:  # (B, N, C)
        """Compute attention for the tokens of a map of `shape`; the shape is not used if `reduction` is 1."""
        context = x
        if self.reduction > 1:
            context = self.norm(map_to_tokens(self.sr(tokens_to_map(x, shape))))  # (B, M, C)
        q = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, C/heads)
        kv = self.kv(context).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        k, v = kv.unbind(0)  # (B, heads, M, C/heads)
        x = cpu.attend(q, k, v)  # (B, heads, N, C/heads)
        return self.proj(x.transpose(1, 2).flatten(2))  # (B, N, C)


class Mlp(nn.Module):
    """A linear layer from `dim` to `hidden_dim` channels, an exact GELU, and a linear layer back."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = cpu.Linear(dim, hidden_dim)
        self.fc2 = cpu.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, C)
        return cpu.per_token(self._compute, x, width=self.fc1.out_features)

    def _compute(self, x: Tensor) -> Tensor:  # (B, n, C), all tokens or a part of them
        return cpu.recompute(lambda hidden: self.fc2(cpu.gelu_(hidden)), self.fc1(x))


@register_notrace_module  # what a CPU computes in another way depends on the tensors
class Block(nn.Module):
    """A pre-norm transformer block for tokens `(B, N, dim)`.

    The attention has `num_heads` heads and a `reduction`; the MLP has `mlp_ratio * dim` hidden channels. `drop_path` is
    the stochastic depth rate of both.
    """

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
        return cpu.add_(x, self.drop_path(self.mlp(self.norm2(x))))
