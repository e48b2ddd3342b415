"""Read weights files of all supported forms without executing anything in them."""

import contextlib
import io
import json
import math
import os
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
from .zip_layout import check_layout

WRAPPERS = ("state_dict", "model", "state_dict_ema")  # keys of a checkpoint's state dict
META_KEY = "dpt_zoo.meta"  # in the metadata of a safetensors file; the value is JSON text
MAX_META = 2**20  # characters of a meta as JSON text; a detector's has about 10,000
MAX_HEADER = 16 * 2**20  # bytes of a safetensors header; a detector's has about 100,000
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


@dataclass(frozen=True)
class Weights:
    """The content of a weights file."""

    tensors: dict[str, Tensor]  # by name, on the CPU; memory-mapped from a safetensors file or a zip archive
    meta: dict[str, Any]  # epoch, config, versions, classes, ... as plain JSON values
    container: Literal["pth", "safetensors"]  # "pth" for a file of `torch.save`


def read_weights(path: Path) -> Weights:
    """Read a safetensors file or a PyTorch checkpoint. Its first bytes decide which of them it is, not its name.

    A checkpoint is a state dict, or has one under a key in `WRAPPERS`. The prefix `module.` is removed from names.
    Only the weights of a zip archive are read. A file of PyTorch's legacy form is read completely.

    Raises:
        WeightsError: The file does not exist, is not a weights file, is damaged, or needs code to be executed.
    """
    if not os.path.isfile(path):  # noqa: PTH113  (Path.is_file raises an error for a name that is too long)
        raise WeightsError(f"{path}: there is no such file: give a .pth or .safetensors file")
    with _one_line_errors(path):
        form = _detect_form(path)
        if form == "safetensors":
            return _read_safetensors(path)
        if form == "zip":
            _check_archive(path)
        elif form == "legacy":
            _check_legacy(path)
        else:
            raise WeightsError(f"{path}: this is not a weights file, it is {form}: give a .pth or .safetensors file")
        return _read_checkpoint(path, mmap=form == "zip")


def verify_crc(path: Path) -> None:
    """Raise WeightsError if the checksum of an entry of a zip archive is wrong. Other forms have no checksums."""
    with _one_line_errors(path):
        if _detect_form(path) != "zip":
            return
        with zipfile.ZipFile(path) as archive:
            _check_entries(archive, path)
            if broken := archive.testzip():
                raise ValueError(f"the checksum of {broken} is wrong")


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Raise each error in the block as a WeightsError with a text of one line."""
    try:
        yield
    except WeightsError:
        raise
    except UnpicklingError as error:
        raise WeightsError(f"{path}: refused, nothing of it was executed: {_reason(error)}") from error
    except OSError as error:
        raise WeightsError(f"{path}: it cannot be read ({_reason(error)}): check the disk or fetch it again") from error
    except Exception as error:  # the libraries raise many types of errors for a forged or damaged file
        raise WeightsError(f"{path}: the file is damaged ({_reason(error)}): fetch it again") from error


def _reason(error: Exception) -> str:
    text = re.sub(r"\A.*WeightsUnpickler error:", "", str(error), flags=re.DOTALL)  # PyTorch's advice comes first
    line = next((line.strip() for line in text.splitlines() if " " in line.strip()), repr(error))
    return "".join(character if character.isprintable() else "?" for character in line[:200])


def _detect_form(path: Path) -> str:
    """Return "safetensors", "zip" or "legacy", or else a description of the file."""
    with path.open("rb") as file:
        head = file.read(16)
    if head[8:9] == b"{":  # a length in eight bytes, then JSON
        return "safetensors"
    if head.startswith(b"PK"):
        return "zip"
    if head.startswith(b"\x80"):
        return "legacy"
    if not head:
        return "empty"
    if head.lstrip().startswith(b"<"):
        return "an HTML page"
    return "a tar archive" if tarfile.is_tarfile(path) else "of an unknown form"


def _read_safetensors(path: Path) -> Weights:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError(f"the header claims to have {length:,} bytes")
        header = file.read(length)
    with safe_open(path, framework="pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  (not a dict)
    metadata = json.loads(header, object_pairs_hook=_unique).get("__metadata__", {})
    meta = json.loads(metadata[META_KEY], parse_constant=str) if META_KEY in metadata else metadata
    return Weights(_checked(tensors, path), dict(meta), "safetensors")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice in the header")
    return dict(pairs)


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        _check_entries(archive, path)
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


def _check_entries(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse an archive that `torch.save` cannot have written, or that claims more bytes than it has."""
    check_layout(archive, path)
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("its entries are compressed, which torch.save never does")
    if len({entry.filename.casefold() for entry in entries}) < len(entries):
        raise ValueError("two of its entries have the same name")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("its entries claim more bytes than the file has")


def _check_legacy(path: Path) -> None:
    """Check the five pickles of a legacy file: magic number, version, system, content, keys of the storages."""
    with path.open("rb") as file:
        claimed = sum(sum(check_pickle(file).values()) for _ in range(5))
    if claimed > path.stat().st_size:
        raise ValueError(f"it claims {claimed:,} bytes for tensors and has fewer")


def _read_checkpoint(path: Path, mmap: bool) -> Weights:
    if path.suffix == ".safetensors":  # torch.load would read it by its name
        raise WeightsError(f"{path}: this is a PyTorch checkpoint, not safetensors: rename it to .pth")
    with allow_only_plain_values():
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    entries = _entries(content)
    wrapper = next((key for key in WRAPPERS if isinstance(entries.get(key), dict)), None)
    state = _entries(entries[wrapper]) if wrapper else entries
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: it has no state dict, neither directly nor under {' or '.join(WRAPPERS)}")
    return Weights(_checked(state, path), _to_json(_find_meta(entries)) if wrapper else {}, "pth")


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


def _checked(tensors: dict[Any, Tensor], path: Path) -> dict[str, Tensor]:
    """Check names and tensors, and remove the prefix `module.`."""
    checked: dict[str, Tensor] = {}
    claimed = 0
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not name.isprintable():
            raise ValueError(f"{name!r} is not a tensor name")
        plain = name.removeprefix("module.")
        if plain in checked:
            raise ValueError(f"{plain} occurs with and without 'module.'")
        if tensor.dtype not in DTYPES or tensor.is_neg():
            raise ValueError(f"{name} has a type that weights never have")
        if min(tensor.shape, default=0) < 0 or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name} claims the shape {list(tensor.shape)} and has fewer bytes")
        # Not `nbytes`, which can overflow. A tensor without elements may claim impossible sizes too.
        claimed += math.prod(max(size, 1) for size in tensor.shape) * tensor.itemsize
        checked[plain] = tensor.detach()
    if claimed > path.stat().st_size:
        raise ValueError(f"its tensors claim {claimed:,} bytes and the file has fewer")
    return checked
