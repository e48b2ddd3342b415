"""Tensors as their bytes, which is enough to check weights and to compute their digests. Imports no PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = {  # the supported types: their names in safetensors files and in PyTorch
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_EXPONENTS = {  # the type of equally long integers, and the bits that are all set in infinities and NaNs
    "float64": (np.uint64, 0x7FF0 << 48),
    "float32": (np.uint32, 0x7F80 << 16),
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),  # NumPy has no such type
}


@dataclass(frozen=True)
class RawTensor:
    """The type, the shape and the bytes of a tensor.

    Attributes:
        dtype: the type as PyTorch names it, e.g. "float32" or "bfloat16".
        shape: the size of each dimension.
        content: the values row by row, little-endian, `(num_bytes,)` uint8. It may be mapped from a file.
    """

    dtype: str
    shape: tuple[int, ...]
    content: NDArray[np.uint8]

    @classmethod
    def of(cls, tensor: "Tensor | RawTensor") -> "RawTensor":
        """Return the bytes of a PyTorch tensor on the CPU, without copying a contiguous one."""
        if isinstance(tensor, RawTensor):
            return tensor
        import torch

        content = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
        return cls(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), content)

    def to_torch(self) -> "Tensor":
        """Return a PyTorch tensor that uses the same memory."""
        import torch

        dtype = getattr(torch, self.dtype)
        if not self.content.size:  # PyTorch cannot change the type of an empty array of bytes
            return torch.empty(self.shape, dtype=dtype)
        return torch.from_numpy(self.content).view(dtype).view(self.shape)

    def is_finite(self) -> bool:
        """Return whether no value is NaN or infinite."""
        if self.dtype not in _EXPONENTS:
            return True
        integer, exponent = _EXPONENTS[self.dtype]
        return not (self.content.view(integer) & integer(exponent) == exponent).any()


def check_finite(tensors: Mapping[str, RawTensor], path: Path) -> None:
    """Raise WeightsError if a tensor of the file at `path` contains NaN or infinity."""
    for name, tensor in tensors.items():
        if not tensor.is_finite():
            raise WeightsError(f"{path}: {name} holds numbers that are not finite: fetch the file again")
