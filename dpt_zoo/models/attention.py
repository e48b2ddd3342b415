"""Attention to a spatially reduced map, and the transformer block around it (paper section 3, after PVT)."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from `(B, heads, N, D)` to `(B, heads, M, D)`."""
    batch, heads, num_tokens, _ = q.shape
    if not torch.is_grad_enabled() or q.device.type != "cpu" or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v)
    # In the backward pass PyTorch's CPU kernel shares images and heads out to threads, not tokens: where those are too
    # few, a part of the tokens passes for an image.
    threads = torch.get_num_threads()
    parts = math.gcd(num_tokens, threads // math.gcd(batch * heads, threads))
    q = q.unflatten(2, (parts, -1)).transpose(1, 2).flatten(0, 1)
    k, v = (x.unsqueeze(1).expand(-1, parts, -1, -1, -1).flatten(0, 1) for x in (k, v))
    x = F.scaled_dot_product_attention(q, k, v)
    return x.unflatten(0, (batch, parts)).transpose(1, 2).flatten(2, 3)


CACHED_ELEMENTS = 2**21
"""Elements of a hidden layer that stay in a processor's cache."""


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them, on tokens `(B, N, C)`."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return self.run(x)
        # A CPU is bound by memory here. In parts, the hidden layer, eight times its input, never leaves the cache; the
        # backward pass computes it again, which takes less time than to write it to memory and read it back.
        tokens = max(1, CACHED_ELEMENTS // (len(x) * self.fc1.out_features))
        parts = x.split(tokens, dim=1)
        if not torch.is_grad_enabled():
            return torch.cat([self.run(part) for part in parts], dim=1)
        again = partial(checkpoint, self.run, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([again(part) for part in parts], dim=1)

    def run(self, x: Tensor) -> Tensor:
        """Compute both layers at once."""
        return self.fc2(F.gelu(self.fc1(x)))


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
