"""Read and write what a weights file says about its model. Imports no PyTorch."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, WeightsError
from ..manifest.metadata import METADATA_KEY, WeightsMetadata
from ..utils.files import open_atomic
from .reading import META_KEY, read_header, read_raw_weights


def find_metadata(meta: Mapping[str, Any], path: object) -> WeightsMetadata | None:
    """Return the metadata in the `meta` of an untrusted weights file at `path`, or None if it has none.

    Raises:
        WeightsError: The metadata is invalid.
    """
    return WeightsMetadata.from_json(meta[METADATA_KEY], path) if METADATA_KEY in meta else None


def require_metadata(meta: Mapping[str, Any], path: object) -> WeightsMetadata:
    """Return the metadata in the `meta` of an untrusted weights file at `path`.

    Raises:
        WeightsError: The metadata is missing or invalid.
    """
    metadata = find_metadata(meta, path)
    if metadata is None:
        raise WeightsError(
            f"{path}: this file does not say which model it is for: give the model's name and this file as weights, "
            "or add what is missing by `dpt-zoo convert FILE OUT.safetensors --model NAME`"
        )
    return metadata


def write_metadata(metadata: WeightsMetadata, input: Path, output: Path) -> None:
    """Copy a safetensors file with other `metadata`. No tensor is loaded; `output` may be the `input`.

    Raises:
        InputError: The input is a PyTorch checkpoint.
        WeightsError: The input cannot be read, or is refused.
        OutputError: The output cannot be written. An existing file is unchanged.
    """
    weights = read_raw_weights(input)
    if weights.container != "safetensors":
        raise InputError(f"{input} is a checkpoint, which is not changed: convert it to safetensors first")
    meta = {**weights.meta, METADATA_KEY: metadata.to_json()}
    with open_atomic(output) as target, input.open("rb") as source:
        entries = read_header(source)
        # One entry only, as `converting.write_safetensors` writes.
        entries["__metadata__"] = {META_KEY: json.dumps(meta, sort_keys=True)}
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)  # tensors are aligned to 8 bytes
        target.write(len(header).to_bytes(8, "little") + header)
        shutil.copyfileobj(source, target, 1 << 20)
