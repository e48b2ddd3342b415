"""Read PyTorch checkpoints without executing anything in them."""

import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import WeightsError
from .raw_tensors import DTYPES
from .safe_globals import allow_only_plain_values, check_pickle

WRAPPERS = ("state_dict", "model", "state_dict_ema")  # keys of a checkpoint's state dict
MAX_META = 2**20  # characters of a meta as JSON text; a detector's has about 10,000
TORCH_DTYPES = tuple(getattr(torch, name) for name in DTYPES.values())


def read_checkpoint(path: Path, *, is_zip: bool) -> tuple[dict[Any, Tensor], dict[str, Any]]:
    """Return the state dict and the meta of a checkpoint; the keys of the state dict are not checked.

    `is_zip` is whether the file at `path` is a zip archive, whose tensors are then memory-mapped, or has PyTorch's
    legacy form. A file that is damaged or refused raises WeightsError, or any error of `torch.load`.
    """
    if path.suffix == ".safetensors":  # torch.load would read it by its name
        raise WeightsError(f"{path}: this is a PyTorch checkpoint, not safetensors: rename it to .pth")
    if is_zip:
        _check_archive(path)
    else:
        _check_legacy(path)
    with allow_only_plain_values():
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    entries = _entries(content)
    wrapper = next((key for key in WRAPPERS if isinstance(entries.get(key), dict)), None)
    state = _entries(entries[wrapper]) if wrapper else entries
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: it has no state dict, neither directly nor under {' or '.join(WRAPPERS)}")
    _check_tensors(state, path)
    return state, _to_json(_find_meta(entries)) if wrapper else {}


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        root = next(iter(sizes), "").partition("/")[0]
        if f"{root}/constants.pkl" in sizes:
            raise WeightsError(f"{path}: this is a TorchScript program: give the state dict of its model")
        if f"{root}/data.pkl" not in sizes:
            raise WeightsError(f"{path}: this is not a weights file, it is a zip archive: give the file in it")
        storages = check_pickle(io.BytesIO(archive.read(f"{root}/data.pkl")))
    for key, num_bytes in storages.items():
        if num_bytes > sizes.get(f"{root}/data/{key}", 0):
            raise ValueError(f"it claims {num_bytes:,} bytes for a tensor and has fewer")


def _check_legacy(path: Path) -> None:
    """Check the five pickles of a legacy file: magic number, version, system, content, keys of the storages."""
    with path.open("rb") as file:
        claimed = sum(sum(check_pickle(file).values()) for _ in range(5))
    if claimed > path.stat().st_size:
        raise ValueError(f"it claims {claimed:,} bytes for tensors and has fewer")


def _entries(content: Any) -> dict[Any, Any]:
    """Copy a dictionary without calling its methods: a pickle can give an OrderedDict other methods."""
    return dict(dict.items(content)) if isinstance(content, dict) else {}


def _find_meta(entries: dict[Any, Any]) -> dict[Any, Any]:
    """Return the meta of MMCV and MMEngine, or else the plain values and the arguments beside the weights."""
    if isinstance(entries.get("meta"), dict):
        return _entries(entries["meta"])
    return {key: each for key, each in entries.items() if key == "args" or isinstance(each, str | int | float | None)}


def _to_json(value: Any) -> Any:
    """Convert a value to JSON values of at most MAX_META characters. A pickle can repeat an object many times."""
    parts, length = [], 0
    for part in json.JSONEncoder(ensure_ascii=False, skipkeys=True, default=_describe).iterencode(value):
        parts.append(part)
        length += len(part)
        if length > MAX_META:
            raise ValueError(f"its meta has more than {MAX_META:,} characters")
    return json.loads("".join(parts), parse_constant=str)


def _describe(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, bytes | complex) else type(value).__name__


def _check_tensors(tensors: Mapping[Any, Tensor], path: Path) -> None:
    claimed = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in TORCH_DTYPES or tensor.is_neg():
            raise ValueError(f"{name} has a type that weights never have")
        if min(tensor.shape, default=0) < 0 or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name} claims the shape {list(tensor.shape)} and has fewer bytes")
        # Not `nbytes`, which can overflow. A tensor without elements may claim impossible sizes too.
        claimed += math.prod(max(size, 1) for size in tensor.shape) * tensor.itemsize
    if claimed > path.stat().st_size:
        raise ValueError(f"its tensors claim {claimed:,} bytes and the file has fewer")
