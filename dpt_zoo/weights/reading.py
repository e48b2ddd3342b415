"""Read a weights file, whatever its form, without executing anything that it holds."""

import contextlib
import io
import json
import math
import re
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import WeightsError
from .safe_globals import allow_only_plain_values, check_pickle

WRAPPERS = ("state_dict", "model", "state_dict_ema")
"""Keys under which checkpoints keep their state dict: MMCV's and MMEngine's, the ImageNet ones', an average."""

META_KEY = "dpt_zoo.meta"
"""Where a safetensors file of this project keeps its meta, as JSON text."""

MAX_META = 2**20
"""Characters that a meta may have as JSON text; a detector's has some ten thousand."""
MAX_HEADER = 16 * 2**20
"""Bytes that the header of a safetensors file may have; a detector's has some hundred thousand."""

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
"""What weights may be made of."""


@dataclass(frozen=True)
class Weights:
    """What a weights file holds.

    Attributes:
        tensors: by name, on the CPU; a safetensors file or a zip archive is mapped into memory, not read.
        meta: what the file tells about itself (epoch, config, versions, classes, ...), as plain JSON values.
        container: "pth" for a file of `torch.save`, or "safetensors".
    """

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    container: Literal["pth", "safetensors"]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file, as `read_weights` does."""
    return read_weights(path).tensors


def read_weights(path: Path) -> Weights:
    """Read a safetensors file or a PyTorch checkpoint; its first bytes tell which, not its name.

    A checkpoint is a state dict, or has one under one of `WRAPPERS`; the prefix `module.` is taken from names. Of a
    zip archive, nothing else is read. PyTorch's legacy form can only be read as a whole, optimiser and all.

    Raises:
        WeightsError: there is no such file, it is no weights file, it is damaged, or reading it would need to
            execute something.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file: give a .pth or .safetensors file")
    with _one_line_errors(path):
        match _recognise(path):
            case "safetensors":
                return _read_safetensors(path)
            case "zip":
                _check_archive(path)
                return _read_checkpoint(path, mmap=True)
            case "legacy":
                _check_legacy(path)
                return _read_checkpoint(path, mmap=False)
            case other:
                raise WeightsError(f"{path}: this is no weights file, it is {other}: give a .pth or .safetensors file")


def verify_crc(path: Path) -> None:
    """Hold each entry of a zip archive against its checksum; the other forms have none.

    Raises:
        WeightsError: one differs, or the file cannot be read.
    """
    with _one_line_errors(path):
        if _recognise(path) == "zip":
            with zipfile.ZipFile(path) as archive:
                _check_entries(archive, path)
                broken = archive.testzip()
            if broken:
                raise ValueError(f"{broken} is not as it was written")


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in reading into a WeightsError."""
    try:
        yield
    except WeightsError:
        raise
    except UnpicklingError as error:
        raise WeightsError(f"{path}: refused, nothing of it was executed: {_reason(error)}") from error
    except OSError as error:
        raise WeightsError(
            f"{path}: it cannot be read ({_reason(error)}): check the disk, or fetch it again"
        ) from error
    except Exception as error:  # from a forged or damaged file, the readers raise almost anything
        raise WeightsError(f"{path}: the file is damaged ({_reason(error)}): fetch it again") from error


def _reason(error: Exception) -> str:
    """What an error says, in one short line."""
    text = re.sub(r"\A.*WeightsUnpickler error:", "", str(error), flags=re.DOTALL)  # PyTorch's advice comes before
    line = next((line.strip() for line in text.splitlines() if " " in line.strip()), repr(error))
    return "".join(character if character.isprintable() else "?" for character in line[:200])


def _recognise(path: Path) -> str:
    """Name the form that a file has by its first bytes, or else what it may be."""
    with path.open("rb") as file:
        head = file.read(16)
    if head[8:9] == b"{":  # a length of eight bytes, then JSON
        return "safetensors"
    if head.startswith(b"PK"):
        return "zip"
    if head.startswith(b"\x80"):
        return "legacy"
    if not head:
        return "empty"
    if head.lstrip().startswith(b"<"):
        return "an HTML page"
    return "a tar archive" if tarfile.is_tarfile(path) else "of no form known here"


# --- safetensors


def _read_safetensors(path: Path) -> Weights:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError(f"its header claims {length:,} bytes")
        header = file.read(length)
    with safe_open(path, framework="pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  (it is no dict)
    metadata = json.loads(header, object_pairs_hook=_unique).get("__metadata__", {})
    meta = json.loads(metadata[META_KEY], parse_constant=str) if META_KEY in metadata else metadata
    return Weights(_checked(tensors, path), dict(meta), "safetensors")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice in its header")
    return dict(pairs)


# --- torch.save


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        _check_entries(archive, path)
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        root = next(iter(sizes), "").partition("/")[0]
        if f"{root}/constants.pkl" in sizes:
            raise WeightsError(f"{path}: this is a TorchScript program: give the state dict of its model")
        if f"{root}/data.pkl" not in sizes:
            raise WeightsError(f"{path}: this is no weights file, it is a zip archive: give the file that is in it")
        storages = check_pickle(io.BytesIO(archive.read(f"{root}/data.pkl")))
    for key, num_bytes in storages.items():
        if num_bytes > sizes.get(f"{root}/data/{key}", 0):
            raise ValueError(f"it claims {num_bytes:,} bytes of a tensor, and has fewer")


def _check_entries(archive: zipfile.ZipFile, path: Path) -> None:
    """Check that an archive is as `torch.save` writes it, and can unpack to no more than itself."""
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("its entries are compressed, torch.save's are not")
    if len({entry.filename.casefold() for entry in entries}) < len(entries):
        raise ValueError("two of its entries have one name")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("its entries claim more bytes than it has")


def _check_legacy(path: Path) -> None:
    """Check the five pickles that come first: a magic number, a version, a system, the content, the storages' keys."""
    with path.open("rb") as file:
        storages = [check_pickle(file) for _ in range(5)]
    claimed = sum(sum(sizes.values()) for sizes in storages)
    if claimed > path.stat().st_size:
        raise ValueError(f"it claims {claimed:,} bytes of tensors, and has fewer")


def _read_checkpoint(path: Path, mmap: bool) -> Weights:
    if path.suffix == ".safetensors":  # torch.load goes by the name
        raise WeightsError(f"{path}: this is a PyTorch checkpoint with another form's name: rename it to .pth")
    with allow_only_plain_values():
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    entries = _entries(content)
    wrapper = next((key for key in WRAPPERS if isinstance(entries.get(key), dict)), None)
    state = _entries(entries[wrapper]) if wrapper else entries
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: it holds no state dict, neither by itself nor under {' or '.join(WRAPPERS)}")
    return Weights(_checked(state, path), _to_json(_find_meta(entries)) if wrapper else {}, "pth")


def _entries(content: Any) -> dict[Any, Any]:
    """The entries of a dictionary; a pickle can give an OrderedDict methods of its own, so none is called."""
    return dict(dict.items(content)) if isinstance(content, dict) else {}


def _find_meta(entries: dict[Any, Any]) -> dict[Any, Any]:
    """MMCV's and MMEngine's meta; where there is none, the epoch, arguments and such beside the weights."""
    if isinstance(entries.get("meta"), dict):
        return _entries(entries["meta"])
    plain = str | int | float | None
    return {key: value for key, value in entries.items() if key == "args" or isinstance(value, plain)}


def _to_json(value: Any) -> Any:
    """Turn values into those that JSON has, and others into text; the same object may be in many places."""
    parts, length = [], 0
    for part in json.JSONEncoder(ensure_ascii=False, skipkeys=True, default=_describe).iterencode(value):
        parts.append(part)
        length += len(part)
        if length > MAX_META:
            raise ValueError(f"its meta has more than {MAX_META:,} characters")
    return json.loads("".join(parts), parse_constant=str)


def _describe(value: Any) -> Any:
    match value:
        case np.generic():
            return value.item()
        case bytes() | complex():
            return str(value)
    return type(value).__name__


# --- Either


def _checked(tensors: dict[Any, Tensor], path: Path) -> dict[str, Tensor]:
    """Check names and tensors, and give both as a model has them."""
    checked: dict[str, Tensor] = {}
    claimed = 0
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not name.isprintable():
            raise ValueError(f"{name!r} is no tensor's name")
        plain = name.removeprefix("module.")
        if plain in checked:
            raise ValueError(f"{plain} is there with and without 'module.'")
        if tensor.dtype not in DTYPES or tensor.is_neg():
            raise ValueError(f"{name} is of a kind that no weights are of")
        if min(tensor.shape, default=0) < 0 or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name} claims to be {list(tensor.shape)}, and has not so many bytes")
        # Not `nbytes`, which can overflow; a tensor of no elements may yet claim sizes that no one can handle.
        claimed += math.prod(max(size, 1) for size in tensor.shape) * tensor.itemsize
        checked[plain] = tensor.detach()
    if claimed > path.stat().st_size:
        raise ValueError(f"its tensors claim {claimed:,} bytes, and it has fewer")
    return checked
