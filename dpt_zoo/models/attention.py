"""Attention to a spatially reduced map, and the transformer block around it (paper section 3, after PVT)."""

import math
from collections.abc import Callable
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
    # In this order the strides of a single image tell the layout, too; PyTorch's operators go by them.
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


def map_to_tokens(x: Tensor) -> Tensor:
    """View a map `(B, C, H, W)` as tokens `(B, H*W, C)`: contiguous where the map is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class PatchConv(nn.Conv2d):
    """A convolution of patches that do not overlap: from any map to a channels-last one."""

    def __init__(self, in_channels: int, out_channels: int, patch_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        # With one of them in another layout PyTorch would reorder the map, and its result back.
        x, weight = (each.contiguous(memory_format=torch.channels_last) for each in (x, self.weight))
        return self._conv_forward(x, weight, self.bias)


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
            self.sr = PatchConv(dim, dim, reduction)
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
    if computes_in_parts(q):
        if torch.is_grad_enabled():
            return _attend_in_equal_parts(q, k, v)
        if q.dtype == torch.bfloat16:
            return _attend_in_products(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def _attend_in_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend by matrix products: in bfloat16, PyTorch's CPU kernel has no use of the instructions that those have."""
    q, k = q.transpose(1, 2) * q.shape[3] ** -0.5, k.transpose(2, 3)  # (B, N, heads, D), (B, heads, D, M)

    def attend_part(part: Tensor) -> Tensor:
        return ((part.transpose(1, 2) @ k).softmax(dim=3) @ v).transpose(1, 2)

    return compute_in_parts(attend_part, q, q.shape[2] * k.shape[3]).transpose(1, 2)


def _attend_in_equal_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend as PyTorch's CPU kernel can share out to threads in its backward pass: by images and heads.

    Where those are too few, a part of the tokens passes for an image.
    """
    batch, heads, num_tokens, _ = q.shape
    threads = torch.get_num_threads()
    parts = math.gcd(num_tokens, threads // math.gcd(batch * heads, threads))
    q = q.unflatten(2, (parts, -1)).transpose(1, 2).flatten(0, 1)
    k, v = (x.unsqueeze(1).expand(-1, parts, -1, -1, -1).flatten(0, 1) for x in (k, v))
    x = F.scaled_dot_product_attention(q, k, v)
    return x.unflatten(0, (batch, parts)).transpose(1, 2).flatten(2, 3)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them, on tokens `(B, N, C)`."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


CACHED_ELEMENTS = 2**19
"""Elements that stay in the cache of a processor's core."""


def computes_in_parts(x: Tensor) -> bool:
    """Whether to compute in parts: on a CPU, which memory slows down, unless a compiler arranges it."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def split_to_cache(x: Tensor, width: int) -> tuple[Tensor, ...]:
    """Split tokens `(B, N, ...)`, few enough in each part to cache `width` elements of each."""
    return x.split(max(1, CACHED_ELEMENTS * torch.get_num_threads() // (len(x) * width)), dim=1)


def compute_in_parts(compute: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """Compute what `compute` makes of tokens `(B, N, ...)`, so many at a time as `split_to_cache` allows."""
    return torch.cat([compute(part) for part in split_to_cache(x, width)], dim=1)


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
        if not computes_in_parts(x):
            return x + self.drop_path(self.feed_forward(x))
        hidden_dim = self.mlp.fc1.out_features
        if torch.is_grad_enabled() or self.training:
            # To compute the hidden layer again takes less time than to write it to memory and read it back.
            feed_forward = partial(checkpoint, self.feed_forward, use_reentrant=False, preserve_rng_state=False)
            return x + self.drop_path(compute_in_parts(feed_forward, x, hidden_dim))
        for part in split_to_cache(x, hidden_dim):
            part += self.feed_forward(part)
        return x

    def feed_forward(self, x: Tensor) -> Tensor:
        """Compute what is added to tokens `(B, N, C)`, each of them by itself."""
        return self.mlp(self.norm2(x))
