"""What a CPU computes otherwise than a GPU: in parts that it can cache, shared out to threads, by other algorithms."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..utils.environment import processor_name

CACHED_ELEMENTS = 2**20
"""Elements that stay in the cache of a processor's core."""

WINOGRAD_PIXELS = 3000
"""From so many on, a map takes less time by Winograd's algorithm; its weights have to be transformed first."""


def runs_on_cpu(x: Tensor) -> bool:
    """Whether a CPU computes with `x` operator by operator; a compiler would arrange things by itself.

    Tensors of another class, such as those without values that PyTorch traces with, only seem to be on a CPU.
    """
    return x.device.type == "cpu" and type(x) is Tensor and not torch.compiler.is_compiling()


def split_to_cache(x: Tensor, width: int) -> tuple[Tensor, ...]:
    """Split tokens `(B, N, ...)` equally, few enough in each part to cache `width` elements of each."""
    elements = len(x) * x.shape[1] * width
    return x.tensor_split(math.ceil(elements / (CACHED_ELEMENTS * torch.get_num_threads())), dim=1)


def compute_in_parts(compute: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """Compute what `compute` makes of tokens `(B, N, ...)`, so many at a time as `split_to_cache` allows."""
    return torch.cat([compute(part) for part in split_to_cache(x, width)], dim=1)


def count_shares(num_units: int, length: int) -> int:
    """Count the equal parts of `length` in which to cut each of `num_units`, so that all threads get as many.

    For operators of PyTorch that share out whole images, or heads, to threads.
    """
    threads = torch.get_num_threads()
    return math.gcd(length, threads // math.gcd(num_units, threads))


class Linear(nn.Linear):
    """A linear layer, computed as a convolution of 1x1 patches where that takes less time."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute `(..., in_features)` to `(..., out_features)`."""
        if not (runs_on_cpu(x) and x.dtype == torch.float32 and _convolves_faster()):
            return super().forward(x)
        tokens = x.reshape(1, 1, -1, self.in_features).permute(0, 3, 1, 2)  # a channels-last map, one token high
        y = F.conv2d(tokens, self.weight[:, :, None, None], self.bias)
        return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)


@cache
def _convolves_faster() -> bool:
    """Whether oneDNN, which convolves, is faster than MKL, which multiplies: on AMD's processors, to MKL strangers."""
    return "AMD" in processor_name() and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


class FastConvolutions(TorchFunctionMode):
    """Within it, a CPU takes less time for convolutions of contiguous float32 maps without gradients.

    Those of 1x1 patches are matrix products; those of 3x3 patches of large maps take NNPACK's Winograd algorithm, with
    a fifth of the multiplications, and ten times the rounding errors, which are below 1e-4 of the standard deviation.
    Source: Lavin and Gray, arXiv 1509.09308.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.conv2d and not kwargs and (convolve := _fast_convolution(*args)):
            maps, weight, bias = args[:3]
            convolved = [convolve(each, weight, bias) for each in maps.split(1)]
            return convolved[0] if len(convolved) == 1 else torch.cat(convolved)
        return func(*args, **kwargs or {})


def _fast_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *geometry: Any
) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Return what computes `F.conv2d` of these arguments faster, if anything does: of one map, its weight and bias."""
    if (
        bias is None
        or not (x.dtype == weight.dtype == torch.float32 and x.ndim == 4 and x.is_contiguous() and runs_on_cpu(x))
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
    ):
        return None
    if weight.shape[2:] == (1, 1) and geometry == ((1, 1), (0, 0), (1, 1), 1):
        return _multiply
    is_large = x.shape[2] * x.shape[3] >= WINOGRAD_PIXELS
    if weight.shape[2:] == (3, 3) and geometry == ((1, 1), (1, 1), (1, 1), 1) and is_large and _has_nnpack():
        return partial(torch._nnpack_spatial_convolution, padding=1)
    return None


def _multiply(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = torch.addmm(bias[:, None], weight.flatten(1), x[0].flatten(1))
    return y.view(1, -1, *x.shape[2:])


@cache
def _has_nnpack() -> bool:
    return hasattr(torch, "_nnpack_spatial_convolution") and torch._nnpack_available()
