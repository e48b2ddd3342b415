"""Convert weights files: checkpoints to safetensors, and back to checkpoints for the authors' own software."""

import dataclasses
import json
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError, OutputError
from ..manifest.metadata import METADATA_KEY, WeightsMetadata
from ..utils.files import atomic_path, open_atomic
from .metadata import find_metadata
from .reading import META_KEY, Weights, read_weights


def convert(
    input: Path,
    output: Path,
    *,
    to: Literal["safetensors", "mmdet2"] = "safetensors",
    half: bool = False,
    metadata: WeightsMetadata | None = None,
) -> Weights:
    """Convert a weights file of any supported form, and return its content.

    Args:
        input: the weights file.
        output: the file to write. An existing file is replaced at the end, in one step.
        to: "safetensors", or "mmdet2" for a `.pth` for MMDetection 2 and PyTorch 1.7.
        half: write floating-point numbers as float16; for safetensors only.
        metadata: what the file says about its model; by default what the input says, if it says something.

    Raises:
        InputError: The arguments contradict each other.
        WeightsError: `input` cannot be read, or is refused.
        OutputError: `output` cannot be written, or a number is too large for float16.
    """
    if to not in ("safetensors", "mmdet2"):
        raise InputError(f"to must be 'safetensors' or 'mmdet2', not {to!r}")
    if half and to == "mmdet2":
        raise InputError("MMDetection 2 loads float32 weights: convert to mmdet2 without half")
    if input.exists() and output.exists() and output.samefile(input):
        raise InputError(f"{output} is the input file: give the output another name")
    weights = read_weights(input)
    find_metadata(weights.meta, input)  # invalid metadata is refused, not copied
    if metadata:
        weights = with_metadata(weights, metadata)
    if to == "mmdet2":
        write_mmdet2(weights, output)
    else:
        write_safetensors(weights, output, half=half)
    return weights


def with_metadata(weights: Weights, metadata: WeightsMetadata) -> Weights:
    """Return weights with other metadata."""
    return dataclasses.replace(weights, meta={**weights.meta, METADATA_KEY: metadata.to_json()})


def write_safetensors(weights: Weights, path: Path, *, half: bool = False) -> None:
    """Write a safetensors file with bit-identical tensors and the meta as JSON text. Equal weights give equal bytes.

    With `half`, floating-point numbers become float16.

    Raises:
        OutputError: The file cannot be written, or a number is too large for float16.
    """
    tensors = _standalone(weights.tensors)
    if half:
        tensors = {name: _halve(name, tensor, path) for name, tensor in tensors.items()}
    # One entry only: safetensors writes several in random order.
    metadata = {META_KEY: json.dumps(weights.meta, sort_keys=True)}
    with atomic_path(path) as partial:
        try:
            save_file(tensors, partial, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def write_mmdet2(weights: Weights, path: Path) -> None:
    """Write a `.pth` as MMCV 1.2.7 does, with float32 for float16. Raise OutputError if it cannot be written."""
    halves = (torch.float16, torch.bfloat16)
    tensors = _standalone(weights.tensors)
    state = OrderedDict((name, each.float() if each.dtype in halves else each) for name, each in tensors.items())
    meta = weights.meta
    match meta:  # MMDetection 2 reads the classes from "CLASSES"
        case {"CLASSES": list(classes)} | {"dataset_meta": {"classes": list(classes)}}:
            meta = {**meta, "CLASSES": tuple(map(str, classes))}
    with open_atomic(path) as file:
        try:
            torch.save({"meta": meta, "state_dict": state}, file, pickle_protocol=2)
        except RuntimeError as error:  # PyTorch hides the operating system's error behind its own
            raise (error.__context__ or error) from None


def _standalone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy the tensors that share memory with others, or that are part of a larger storage."""
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
