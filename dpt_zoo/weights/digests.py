"""What identifies weights, whatever file they are in: digests of their tensors' form and of their values."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def structure_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of one line for each tensor, in the order of names: its name, type and shape."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(_form(name, tensors[name]))
    return digest.hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all tensors in the order of names: the line of `structure_sha256`, then the values, row by row."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(_form(name, tensors[name]))
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _form(name: str, tensor: Tensor) -> bytes:
    return f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode()
