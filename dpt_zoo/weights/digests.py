"""Digests that identify weights by their tensors, in any file format. Imports no PyTorch."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .raw_tensors import RawTensor

if TYPE_CHECKING:
    from torch import Tensor


def structure_sha256(tensors: Mapping[str, "Tensor | RawTensor"]) -> str:
    """Return the SHA-256 of one line per tensor, sorted by name: name, type and shape."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(_describe(name, tensors[name]))
    return digest.hexdigest()


def tensors_sha256(tensors: Mapping[str, "Tensor | RawTensor"]) -> str:
    """Return the SHA-256 of all tensors, sorted by name: the line of `structure_sha256`, then the values row by row."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(_describe(name, tensors[name]))
        digest.update(RawTensor.of(tensors[name]).content.data)
    return digest.hexdigest()


def _describe(name: str, tensor: "Tensor | RawTensor") -> bytes:
    return f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode()
