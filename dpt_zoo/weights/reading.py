"""Read a weights file, whatever its form, without executing anything that it holds."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import WeightsError
from .safe_globals import allow_numpy_values

WRAPPERS = ("state_dict", "model")
"""Keys under which checkpoint files keep their state dict: MMCV's and MMEngine's, and the ImageNet ones'."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a `.safetensors` file or of a PyTorch checkpoint, on the CPU.

    A checkpoint's optimiser and meta are left where they are. Which form a file has is told by its first
    bytes, not by its name.

    Raises:
        WeightsError: there is no such file, it is no weights file, it is damaged, or reading it would need to
            execute something.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file: give a .pth or .safetensors file")
    with path.open("rb") as file:
        head = file.read(16)
    try:
        if head[8:9] == b"{":  # safetensors: a length of eight bytes, then JSON
            return load_file(path)
        if head.startswith((b"PK", b"\x80")):  # torch.save's zip archive, or its pickle of old
            return _unwrap(_load_checkpoint(path), path)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path}: refused, nothing of it was executed: {_reason(error)}") from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, LookupError, OSError) as error:
        raise WeightsError(f"{path}: the file is damaged ({_reason(error)}): fetch it again") from error
    what = "empty" if not head else "an HTML page" if head.lstrip().startswith(b"<") else "of no form known here"
    raise WeightsError(f"{path}: this is no weights file, it is {what}: give a .pth or .safetensors file")


def _load_checkpoint(path: Path) -> Any:
    allow_numpy_values()
    # Memory-mapped, a zip archive's optimiser is never read.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path}: it holds no state dict, neither by itself nor under {' or '.join(WRAPPERS)}")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _reason(error: Exception) -> str:
    """The line of a long text that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0])
