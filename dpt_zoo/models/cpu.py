"""Faster operators for CPUs, with the same results. Where `is_used` returns False, they are PyTorch's ordinary ones.

docs/performance.md has the gain of each.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from ..utils.environment import processor_name

CACHED_ELEMENTS = 2**20
"""Number of float32 elements that stay in the cache of one core."""
WINOGRAD_PIXELS = 3000
"""Minimum number of pixels of a map for Winograd's algorithm, which first transforms the weights."""


def is_used(x: Tensor) -> bool:
    """Return whether `x` is an ordinary tensor on a CPU, and PyTorch does not compile, export or trace."""
    is_recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return x.device.type == "cpu" and type(x) is Tensor and not is_recorded


def per_token(function: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """Apply a `function` that processes each token of `x` `(B, N, ...)` separately.

    On a CPU, it processes as many tokens at once as fit in the cache, with `width` elements each.
    """
    if not is_used(x):
        return function(x)
    num_parts = math.ceil(x.shape[0] * x.shape[1] * width / (CACHED_ELEMENTS * torch.get_num_threads()))
    return torch.cat([function(part) for part in x.tensor_split(num_parts, dim=1)], dim=1)


def recompute(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return `function(x)`. On a CPU, only `x` is kept for the backward pass, which computes the rest again."""
    if not (is_used(x) and torch.is_grad_enabled()):
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)


def gelu_(x: Tensor) -> Tensor:
    """Return the exact GELU of `x`, which must not be used again: on a CPU, without gradients, it is overwritten."""
    return torch.ops.aten.gelu_(x) if is_used(x) and not torch.is_grad_enabled() else F.gelu(x)


def add_(x: Tensor, y: Tensor) -> Tensor:
    """Return `x + y`. `x` must not be used again: on a CPU, without gradients, it is overwritten."""
    return x.add_(y) if is_used(x) and not torch.is_grad_enabled() else x + y


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention from queries `q` `(B, heads, N, D)` to keys `k` and values `v` `(B, heads, M, D)`."""
    if is_used(q) and torch.is_grad_enabled():
        return _attend_in_shares(q, k, v)
    if is_used(q) and q.dtype == torch.bfloat16:
        return _attend_by_products(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def _attend_in_shares(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Pass equal parts of the tokens as images, because in the backward pass a thread takes whole images and heads."""
    batch, heads, num_tokens, _ = q.shape
    shares = _count_shares(batch * heads, num_tokens)
    q = q.unflatten(2, (shares, -1)).transpose(1, 2).flatten(0, 1)
    k, v = (x.unsqueeze(1).expand(-1, shares, -1, -1, -1).flatten(0, 1) for x in (k, v))
    x = F.scaled_dot_product_attention(q, k, v)
    return x.unflatten(0, (batch, shares)).transpose(1, 2).flatten(2, 3)


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Use matrix products, which use a CPU's bfloat16 instructions; PyTorch's attention kernel does not."""
    k = k.transpose(2, 3) * q.shape[3] ** -0.5  # (B, heads, D, M)

    def attend_part(q: Tensor) -> Tensor:
        return ((q.transpose(1, 2) @ k).softmax(dim=3) @ v).transpose(1, 2)

    return per_token(attend_part, q.transpose(1, 2), width=q.shape[1] * k.shape[3]).transpose(1, 2)


def sample(x: Tensor, grid: Tensor) -> Tensor:
    """Sample maps `(B, C, H, W)` bilinearly at `grid` `(B, P, N, 2)`, zero outside: return `(B, C, P, N)`."""
    # A thread takes whole images: equal parts of the channels are passed as images.
    shares = _count_shares(*x.shape[:2]) if is_used(x) else 1
    x, grid = x.unflatten(1, (shares, -1)).flatten(0, 1), grid.repeat_interleave(shares, dim=0)
    samples = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return samples.unflatten(0, (-1, shares)).flatten(1, 2)


def _count_shares(num_images: int, length: int) -> int:
    """Return the number of equal parts of `length` per image with which every thread gets the same number of parts."""
    threads = torch.get_num_threads()
    return math.gcd(length, threads // math.gcd(num_images, threads))


class Linear(nn.Linear):
    """A linear layer. On an AMD CPU it is computed as a 1x1 convolution, which is faster there."""

    def forward(self, x: Tensor) -> Tensor:  # (..., in_features)
        if not (is_used(x) and x.dtype == torch.float32 and _convolves_faster()):
            return super().forward(x)
        tokens = x.reshape(1, 1, -1, self.in_features).permute(0, 3, 1, 2)  # a channels-last map, one pixel high
        y = F.conv2d(tokens, self.weight[:, :, None, None], self.bias)
        return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)


@cache
def _convolves_faster() -> bool:
    """Return whether a convolution (by oneDNN) is faster than a matrix product (by MKL), as on AMD CPUs."""
    return "AMD" in processor_name() and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


class FastConvolutions(TorchFunctionMode):
    """A mode in which convolutions of contiguous float32 maps on a CPU, without gradients, are faster.

    1x1 convolutions are matrix products. 3x3 convolutions of large maps use NNPACK's Winograd algorithm (Lavin and
    Gray, arXiv 1509.09308): a fifth of the multiplications, and rounding errors below 1e-4 standard deviations.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.conv2d and not kwargs and (convolve := _find_faster(*args)):
            maps, weight, bias = args[:3]
            convolved = [convolve(each, weight, bias) for each in maps.split(1)]
            return convolved[0] if len(convolved) == 1 else torch.cat(convolved)
        return func(*args, **kwargs or {})


def _find_faster(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *geometry: Any
) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Return a faster function than `F.conv2d` for these arguments, or None. It takes one map, weight and bias."""
    is_plain = x.dtype == weight.dtype == torch.float32 and x.ndim == 4 and x.is_contiguous() and is_used(x)
    if bias is None or not is_plain or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return None
    if weight.shape[2:] == (1, 1) and geometry == ((1, 1), (0, 0), (1, 1), 1):
        return _multiply
    if weight.shape[2:] == (3, 3) and geometry == ((1, 1), (1, 1), (1, 1), 1):
        has_nnpack = hasattr(torch, "_nnpack_spatial_convolution") and torch._nnpack_available()
        if has_nnpack and x.shape[2] * x.shape[3] >= WINOGRAD_PIXELS:
            return partial(torch._nnpack_spatial_convolution, padding=1)
    return None


def _multiply(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias[:, None], weight.flatten(1), x[0].flatten(1)).view(1, -1, *x.shape[2:])
