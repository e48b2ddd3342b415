"""Convert weights files: the authors' checkpoints to safetensors, and back to what their own software loads."""

import json
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError, OutputError
from ..utils.files import atomic_path, open_atomic
from .reading import META_KEY, Weights, read_weights


def convert(
    source: Path, target: Path, *, to: Literal["safetensors", "mmdet2"] = "safetensors", half: bool = False
) -> Weights:
    """Convert a weights file of any form; what was at `target` is replaced at the end, in one step.

    Args:
        to: "safetensors", or "mmdet2" for a `.pth` that MMDetection 2 loads under PyTorch 1.7.
        half: write floating-point numbers as float16, in safetensors.

    Returns:
        What `source` holds.

    Raises:
        InputError: the arguments do not go together.
        WeightsError: `source` cannot be read, or is refused.
        OutputError: `target` cannot be written, or the weights not in that form.
    """
    if to not in ("safetensors", "mmdet2"):
        raise InputError(f"weights are converted to 'safetensors' or 'mmdet2', not to {to!r}")
    if half and to == "mmdet2":
        raise InputError("MMDetection 2 takes float32 weights: convert to mmdet2 without half")
    if source.exists() and target.exists() and target.samefile(source):
        raise InputError(f"{target} is the file to convert: give the converted one another name")
    weights = read_weights(source)
    if to == "mmdet2":
        write_mmdet2(weights, target)
    else:
        write_safetensors(weights, target, half=half)
    return weights


def write_safetensors(weights: Weights, path: Path, *, half: bool = False) -> None:
    """Write a safetensors file: tensors bit for bit, meta as JSON text in the header; equal weights, equal bytes.

    Args:
        half: write floating-point numbers as float16.

    Raises:
        OutputError: it cannot be written, or a number is too large for float16.
    """
    tensors = _standalone(weights.tensors)
    if half:
        tensors = {name: _halve(name, tensor, path) for name, tensor in tensors.items()}
    # One entry only: safetensors writes several in any order.
    metadata = {META_KEY: json.dumps(weights.meta, sort_keys=True)}
    with atomic_path(path) as partial:
        try:
            save_file(tensors, partial, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def write_mmdet2(weights: Weights, path: Path) -> None:
    """Write a `.pth` as MMCV 1.2.7 does, for PyTorch 1.7 and MMDetection 2.8 to load; float16 becomes float32.

    Raises:
        OutputError: it cannot be written.
    """
    state = OrderedDict((name, _widen(tensor)) for name, tensor in _standalone(weights.tensors).items())
    with open_atomic(path) as file:
        try:
            torch.save({"meta": _mmdet2_meta(weights.meta), "state_dict": state}, file, pickle_protocol=2)
        except RuntimeError as error:  # PyTorch puts its own words before the disk's
            raise (error.__context__ or error) from None


def _mmdet2_meta(meta: dict[str, Any]) -> dict[str, Any]:
    """A meta in which the classes are where MMDetection 2 looks for them."""
    match meta:
        case {"CLASSES": list(classes)} | {"dataset_meta": {"classes": list(classes)}}:
            return {**meta, "CLASSES": tuple(map(str, classes))}
    return meta


def _standalone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy those tensors that share memory with others, or lie in more of it than they need."""
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())

    def copied(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if users[storage.data_ptr()] == 1 and storage.nbytes() == tensor.nbytes and tensor.is_contiguous():
            return tensor
        return tensor.clone(memory_format=torch.contiguous_format)

    return {name: copied(tensor) for name, tensor in tensors.items()}


def _halve(name: str, tensor: Tensor, path: Path) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    halved = tensor.half()
    if not torch.equal(halved.isfinite(), tensor.isfinite()):
        raise OutputError(f"{path} cannot be written: {name} has numbers too large for float16: convert without half")
    return halved


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
