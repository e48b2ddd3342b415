"""Read weights files of all supported forms without executing anything in them.

PyTorch is imported only to read a PyTorch checkpoint, or to return PyTorch's tensors.
"""

import contextlib
import json
import math
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

import numpy as np
from safetensors import safe_open

from ..errors import DependencyError, WeightsError
from .raw_tensors import DTYPES, RawTensor
from .zip_layout import check_layout

if TYPE_CHECKING:
    from torch import Tensor

META_KEY = "dpt_zoo.meta"  # in the metadata of a safetensors file; the value is JSON text
MAX_HEADER = 16 * 2**20  # bytes of a safetensors header; a detector's has about 100,000
Container = Literal["pth", "safetensors"]  # "pth" for a file of `torch.save`
_Tensor = TypeVar("_Tensor")


@dataclass(frozen=True)
class Weights:
    """The content of a weights file."""

    tensors: dict[str, "Tensor"]  # by name, on the CPU; memory-mapped from a safetensors file or a zip archive
    meta: dict[str, Any]  # epoch, config, versions, classes, ... as plain JSON values
    container: Container


@dataclass(frozen=True)
class RawWeights:
    """The content of a weights file, with tensors that need no PyTorch."""

    tensors: dict[str, RawTensor]
    meta: dict[str, Any]
    container: Container

    def to_torch(self) -> Weights:
        """Return the same content with PyTorch's tensors, which use the same memory."""
        return Weights({name: tensor.to_torch() for name, tensor in self.tensors.items()}, self.meta, self.container)


def read_weights(path: Path) -> Weights:
    """Read a safetensors file or a PyTorch checkpoint as PyTorch's tensors. See `read_raw_weights`.

    Raises:
        WeightsError: The file does not exist, is not a weights file, is damaged, or needs code to be executed.
    """
    return read_raw_weights(path).to_torch()


def read_raw_weights(path: Path) -> RawWeights:
    """Read a safetensors file or a PyTorch checkpoint. Its first bytes decide which of them it is, not its name.

    A checkpoint is a state dict, or has one under a key in `checkpoints.WRAPPERS`. The prefix `module.` is removed from
    names. Only the weights of a zip archive are read. A file of PyTorch's legacy form is read completely.

    Raises:
        WeightsError: The file does not exist, is not a weights file, is damaged, or needs code to be executed.
        DependencyError: The file is a PyTorch checkpoint, and PyTorch is not installed.
    """
    if not os.path.isfile(path):  # noqa: PTH113  (Path.is_file raises an error for a name that is too long)
        raise WeightsError(f"{path}: there is no such file: give a .pth or .safetensors file")
    with _one_line_errors(path):
        form = _detect_form(path)
        if form == "safetensors":
            return _read_safetensors(path)
        if form not in ("zip", "legacy"):
            raise WeightsError(f"{path}: this is not a weights file, it is {form}: give a .pth or .safetensors file")
        if form == "zip":
            with zipfile.ZipFile(path) as archive:
                _check_entries(archive, path)
    try:
        from .checkpoints import read_checkpoint
    except ModuleNotFoundError as error:
        needed = f"{path}: this is a checkpoint of PyTorch, which is needed to read it"
        raise DependencyError(f'{needed}: pip install "dpt-zoo[torch]"') from error
    with _one_line_errors(path):
        state, meta = read_checkpoint(path, is_zip=form == "zip")
        return RawWeights({name: RawTensor.of(each) for name, each in _plain_names(state).items()}, meta, "pth")


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


def _read_safetensors(path: Path) -> RawWeights:
    with path.open("rb") as file:
        entries = read_header(file)
        offset_of_tensors = file.seek(0, 1)
    with safe_open(path, framework="np"):
        pass  # the library checks that types, shapes and bytes agree, and that no byte belongs to two tensors or none
    metadata = entries.pop("__metadata__", {})
    meta = json.loads(metadata[META_KEY], parse_constant=str) if META_KEY in metadata else metadata
    content = np.asarray(np.memmap(path, np.uint8, "c"))  # copy-on-write: the file never changes
    tensors = {}
    for name, entry in entries.items():
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{name} has a type that weights never have")
        if math.prod(max(size, 1) for size in entry["shape"]) > len(content):  # possible without elements
            raise ValueError(f"{name} claims the shape {entry['shape']}")
        start, end = (offset_of_tensors + offset for offset in entry["data_offsets"])
        tensors[name] = RawTensor(DTYPES[entry["dtype"]], tuple(entry["shape"]), content[start:end])
    return RawWeights(_plain_names(tensors), dict(meta), "safetensors")


def read_header(file: BinaryIO) -> dict[str, Any]:
    """Read the header of a safetensors file up to its first tensor: tensors by name, and `__metadata__`.

    Raises:
        ValueError: The header is too long, or is not JSON with unique names.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise ValueError(f"the header claims to have {length:,} bytes")
    entries: dict[str, Any] = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice in the header")
    return dict(pairs)


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


def _plain_names(tensors: Mapping[Any, _Tensor]) -> dict[str, _Tensor]:
    """Check the names, and remove the prefix `module.`."""
    plain: dict[str, _Tensor] = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not name.isprintable():
            raise ValueError(f"{name!r} is not a tensor name")
        short = name.removeprefix("module.")
        if short in plain:
            raise ValueError(f"{short} occurs with and without 'module.'")
        plain[short] = tensor
    return plain
