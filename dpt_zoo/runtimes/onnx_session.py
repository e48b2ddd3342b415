"""Exported detectors in ONNX Runtime, which gets only files that are whole and need nothing outside them."""

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import DependencyError, InputError, WeightsError
from .graph_checks import RefusedError, Run, Tensor, check_digest, check_signature, read_bounded, runtime_errors
from .graph_metadata import METADATA_KEY, GraphMetadata

DIGEST = re.compile(rb"\x72\x52\x0a\x0edpt_zoo\.sha256\x12\x40([0-9a-f]{64})", re.DOTALL)
"""The end of the file: one `metadata_props` entry of ModelProto, with the SHA-256 of all bytes before it."""
DIGEST_LENGTH = 84
ERRORS = (Exception,)  # those of ONNX Runtime have no common base class
MAX_BYTES = 1 << 31  # of a protobuf message
MAX_FIELDS = 1_000_000
"""Maximum number of protobuf fields. A detector has 100,000; ONNX Runtime needs much memory for each."""
MAX_METADATA = 1 << 22  # bytes
MAX_DEPTH = 16  # of messages; a graph in a graph is three of them

_CHILDREN: Mapping[tuple[str, int], str] = {
    ("model", 7): "graph",
    ("graph", 1): "node",
    ("graph", 5): "tensor",
    ("node", 5): "attribute",
    ("attribute", 5): "tensor",
    ("attribute", 6): "graph",
    ("attribute", 10): "tensor",
    ("attribute", 11): "graph",
}
"""The message in a field of a message, by its number in onnx.proto."""
_REFUSED: Mapping[tuple[str, int], str] = {
    ("model", 20): "a training graph",
    ("model", 25): "functions of its own",
    ("graph", 15): "sparse tensors",
    ("attribute", 22): "sparse tensors",
    ("attribute", 23): "sparse tensors",
    ("tensor", 13): "external data",
}
"""What no exported detector has. External data could be any file of this machine, or an address in memory."""
_ELEMENT_TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}


def open_onnx(path: Path, device: str, num_threads: int | None) -> tuple[GraphMetadata, Run]:
    """Return the metadata of an exported .onnx file, and a function that runs its graph.

    Args:
        path: the file.
        device: "auto", or the name of an execution provider such as "cpu", "cuda", "cuda:1" or "openvino:GPU".
        num_threads: by default one for each core.

    Raises:
        DependencyError: ONNX Runtime is not installed.
        InputError: The device is not available.
        WeightsError: The file is missing, damaged, not from `dpt_zoo.export`, or unsafe.
    """
    content, metadata = read_onnx(path)
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise DependencyError(f"{path} needs ONNX Runtime ({error}): pip install onnxruntime") from error
    provider, options = _find_provider(device, ort.get_available_providers())
    settings = ort.SessionOptions()
    settings.log_severity_level = 4  # errors are raised
    settings.add_session_config_entry("session.load_model_format", "ONNX")  # not its own format, which is not checked
    settings.intra_op_num_threads = num_threads or 0
    if _bound_memory(ort):
        settings.add_session_config_entry("session.use_env_allocators", "1")
    providers = {provider: options, "CPUExecutionProvider": {}}  # the second for operators that the first lacks
    with runtime_errors(path, "ONNX Runtime cannot load it", ERRORS):
        session = ort.InferenceSession(content, settings, list(providers.items()))
    session._model_bytes = None  # kept only to create the session anew
    if device != "auto" and session.get_providers()[0] != provider:
        raise InputError(f"device {device!r} cannot be used by ONNX Runtime: its libraries or drivers are missing")
    inputs, outputs = (
        [Tensor(each.name, _ELEMENT_TYPES.get(each.type, each.type), _shape(each.shape)) for each in values]
        for values in (session.get_inputs(), session.get_outputs())
    )
    check_signature(path, metadata, inputs, outputs)
    names = [output.name for output in outputs]

    def run(values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with runtime_errors(path, "ONNX Runtime cannot run it", ERRORS):
            return dict(zip(names, session.run(names, values), strict=True))

    return metadata, run


def read_onnx(path: Path) -> tuple[bytes, GraphMetadata]:
    """Read and check an exported .onnx file: its digest, its metadata, and that it needs nothing outside it.

    Raises:
        WeightsError: The file is missing, damaged, not from `dpt_zoo.export`, or unsafe.
    """
    content = read_bounded(path, MAX_BYTES)
    check_digest(path, content, DIGEST, DIGEST_LENGTH)
    try:
        texts = _check_model(memoryview(content))
    except RefusedError as error:
        raise WeightsError(f"{path}: refused, {error}") from error
    if len(texts) != 1:
        raise WeightsError(f"{path}: this file was not written by dpt_zoo.export: its metadata is missing")
    return content, GraphMetadata.parse(texts[0], path)


def _check_model(model: memoryview) -> list[bytes]:
    """Check everything in a ModelProto that could be unsafe, and return its metadata."""
    num_fields = 0
    texts = []

    def check(kind: str, message: memoryview, depth: int) -> None:
        nonlocal num_fields
        if depth > MAX_DEPTH:
            raise RefusedError("its graphs are nested too deeply")
        num_elements, has_data_elsewhere = 1, False
        for number, value in _fields(message):
            num_fields += 1
            if num_fields > MAX_FIELDS:
                raise RefusedError("its graph is too large")
            if what := _REFUSED.get((kind, number)):
                raise RefusedError(f"it contains {what}")
            if child := _CHILDREN.get((kind, number)):
                if isinstance(value, memoryview):
                    check(child, value, depth + 1)
            elif (kind, number) == ("node", 7):
                if isinstance(value, int) or bytes(value[:8]) not in (b"", b"ai.onnx"):
                    raise RefusedError("it contains operators that are not from the ONNX standard")
            elif (kind, number) == ("tensor", 14) and value:
                has_data_elsewhere = True
            elif (kind, number) == ("tensor", 1):
                for side in [value] if isinstance(value, int) else _packed(value):
                    num_elements *= side
                    if num_elements > 4 * len(message):  # the smallest elements have 2 bits
                        raise RefusedError("a tensor is larger than its data")
            elif (kind, number) == ("model", 14) and isinstance(value, memoryview):
                fields = _fields(value) if len(value) <= MAX_METADATA else ()
                entry = {number: bytes(each) for number, each in fields if isinstance(each, memoryview)}
                if entry.get(1) == METADATA_KEY.encode():
                    texts.append(entry.get(2, b""))
        if has_data_elsewhere:
            raise RefusedError("it contains external data")

    check("model", model, 0)
    return texts


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and the value of each field of a protobuf message: bytes, or an unsigned integer."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _read_integer(message, position)
        value: int | memoryview
        if tag & 7 == 0:
            value, position = _read_integer(message, position)
        else:
            length = {1: 8, 5: 4}.get(tag & 7)
            if tag & 7 == 2:
                length, position = _read_integer(message, position)
            if length is None or length > end - position:
                raise RefusedError("it is no ONNX model")
            value = message[position : position + length]
            position += length
        yield tag >> 3, value


def _packed(values: memoryview) -> Iterator[int]:
    position = 0
    while position < len(values):
        value, position = _read_integer(values, position)
        yield value


def _read_integer(message: memoryview, position: int) -> tuple[int, int]:
    """Read a variable-length integer, and return it and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position == len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise RefusedError("it is no ONNX model")


@cache
def _bound_memory(ort: Any) -> bool:
    """Make an allocator for at most half of this machine's memory, if its size is known. A graph could ask for all."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return False
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, ort.OrtArenaCfg(limit, -1, -1, -1))  # the rest by default
    return True


def _find_provider(device: str, available: list[str]) -> tuple[str, dict[str, str]]:
    """Return the execution provider of a device, and its options."""
    names = {provider.removesuffix("ExecutionProvider").lower(): provider for provider in available}
    names.pop("azure", None)  # it sends images to a server
    name, _, part = device.lower().partition(":")
    if device == "auto":
        name = "cuda" if "cuda" in names else "cpu"
    if name not in names or (part and name == "cpu") or (part and name != "openvino" and not part.isdecimal()):
        raise InputError(f"device {device!r} is not available in ONNX Runtime here, only {', '.join(sorted(names))}")
    if not part:
        return names[name], {}
    return names[name], {"device_type": part.upper()} if name == "openvino" else {"device_id": part}


def _shape(shape: list[Any]) -> tuple[int | None, ...]:
    """Return a shape with None for what is not fixed."""
    return tuple(side if isinstance(side, int) else None for side in shape)
