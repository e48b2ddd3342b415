"""Attention to a spatially reduced map, and the transformer block around it (paper section 3, after PVT)."""

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

Size = tuple[int, int]
"""Height and width of a feature map, in cells."""


def tokens_to_map(tokens: Tensor, size: Size) -> Tensor:
    """View tokens `(B, H*W, C)` as a channels-last map `(B, C, H, W)`, without a copy."""
    return tokens.transpose(1, 2).unflatten(2, size)


def map_to_tokens(x: Tensor) -> Tensor:
    """View a map `(B, C, H, W)` as tokens `(B, H*W, C)`: contiguous where the map is channels-last."""
    return x.flatten(2).transpose(1, 2)


class SpatialReductionAttention(nn.Module):
    """Multi-head attention of all tokens to the same tokens on a map `reduction` times smaller."""

    def __init__(self, dim: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.reduction = reduction
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, kernel_size=reduction, stride=reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Attend; `x` is `(B, N, C)`, `size` its map's height and width (unused where nothing is reduced)."""
        context = x  # (B, M, C)
        if self.reduction > 1:
            context = self.norm(map_to_tokens(self.sr(tokens_to_map(x, size))))
        q = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, C/heads)
        k, v = self.kv(context).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


CACHED_ELEMENTS = 2**20
"""Elements of a hidden layer that stay in a processor's cache."""


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them, on tokens `(B, N, C)`."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return self.fc2(F.gelu(self.fc1(x)))
        # A CPU is bound by memory here. In parts, the hidden layer, eight times its input, never leaves the cache.
        tokens = max(1, CACHED_ELEMENTS // (len(x) * self.fc1.out_features))
        return torch.cat([self.fc2(F.gelu(self.fc1(part))) for part in x.split(tokens, dim=1)], dim=1)


class Block(nn.Module):
    """Pre-norm transformer block on tokens `(B, N, C)`."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SpatialReductionAttention(dim, num_heads, reduction)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, mlp_ratio * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x)))
