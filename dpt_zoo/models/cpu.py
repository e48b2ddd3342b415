"""What a CPU computes in another order than a GPU: in parts that stay in the cache, and shared out to its threads."""

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..environment import processor_name

CACHED_ELEMENTS = 2**20
"""Elements that stay in the cache of a processor's core."""


def runs_on_cpu(x: Tensor) -> bool:
    """Whether a CPU computes with `x` operator by operator; a compiler would arrange things by itself."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def split_to_cache(x: Tensor, width: int) -> tuple[Tensor, ...]:
    """Split tokens `(B, N, ...)`, few enough in each part to cache `width` elements of each."""
    return x.split(max(1, CACHED_ELEMENTS * torch.get_num_threads() // (len(x) * width)), dim=1)


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
