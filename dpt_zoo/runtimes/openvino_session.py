"""Exported detectors in OpenVINO: a graph in an .xml file, its weights in the .bin file beside it."""

import hashlib
import re
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from xml.parsers import expat

from numpy.typing import NDArray

from ..errors import DependencyError, InputError, WeightsError
from .graph_checks import RefusedError, Run, Tensor, check_digest, check_signature, read_bounded, runtime_errors
from .graph_metadata import METADATA_KEY, GraphMetadata

WEIGHTS_KEY = "dpt_zoo_bin_sha256"
DIGEST = re.compile(rb"<!-- sha256:([0-9a-f]{64}) -->")
"""The end of the .xml file, with the SHA-256 of all bytes before it."""
DIGEST_LENGTH = 80
MAX_XML_BYTES = 1 << 26
MAX_WEIGHTS_BYTES = 1 << 31
MAX_ELEMENTS = 2_000_000
"""Maximum number of XML elements. A detector has 100,000; OpenVINO needs much memory for each."""
MAX_DEPTH = 64
ERRORS = (RuntimeError, MemoryError)  # of OpenVINO
OPTIONS = {"INFERENCE_PRECISION_HINT": "f32"}
"""What each model is compiled with: by default, some CPUs would compute in bfloat16, with other objects."""


def open_openvino(path: Path, device: str, num_threads: int | None) -> tuple[GraphMetadata, Run]:
    """Return the metadata of an exported .xml file, and a function that runs its graph.

    Args:
        path: the file.
        device: "auto" for the CPU, or one of OpenVINO's devices, such as "cpu", "gpu" or "openvino:GPU.1".
        num_threads: by default one for each core.

    Raises:
        DependencyError: OpenVINO is not installed.
        InputError: The device is not available.
        WeightsError: The file is missing, damaged, not from `dpt_zoo.export`, or unsafe.
    """
    graph, weights, metadata = read_openvino(path)
    try:
        core = shared_core()
    except ImportError as error:
        raise DependencyError(f'{path} needs OpenVINO ({error}): pip install "dpt-zoo[openvino]"') from error
    name = "CPU" if device == "auto" else device.removeprefix("openvino:").upper()
    if not any(name in (each, each.partition(".")[0]) for each in core.available_devices):
        available = ", ".join(core.available_devices)
        raise InputError(f"device {device!r} is not available in OpenVINO here, only {available}")
    options: dict[str, Any] = dict(OPTIONS)
    if num_threads is not None:
        options["INFERENCE_NUM_THREADS"] = num_threads
    with runtime_errors(path, "OpenVINO cannot load it", ERRORS):
        model = core.read_model(graph, weights)
        inputs, outputs = (
            [Tensor(each.any_name, each.element_type.to_dtype().name, _shape(each.partial_shape)) for each in values]
            for values in (model.inputs, model.outputs)
        )
        check_signature(path, metadata, inputs, outputs)
        compiled = core.compile_model(model, name, options)
    lock = threading.Lock()  # the model has memory for one call at a time

    def run(values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with runtime_errors(path, "OpenVINO cannot run it", ERRORS), lock:
            results = compiled(values)
        return {output.name: results[output.name] for output in outputs}

    return metadata, run


@cache
def shared_core() -> Any:
    """Return the only `openvino.Core` of this process, which must not be destroyed.

    OpenVINO 2026.4 replaces the stack of signal handlers for each core that compiles a model. If the first of two cores
    is destroyed first, a stack is freed that stays in use, and the next Ctrl-C is a segmentation fault.
    """
    import openvino

    return openvino.Core()


def read_openvino(path: Path) -> tuple[bytes, bytes, GraphMetadata]:
    """Read and check an exported .xml file and its .bin file: their digests, the metadata, and the operators.

    Raises:
        WeightsError: A file is missing, damaged, not from `dpt_zoo.export`, or unsafe.
    """
    graph = read_bounded(path, MAX_XML_BYTES)
    check_digest(path, graph, DIGEST, DIGEST_LENGTH)
    try:
        entries = _check_graph(graph)
    except (expat.ExpatError, UnicodeError) as error:
        raise WeightsError(f"{path}: refused, it is no OpenVINO model: {error}") from error
    except RefusedError as error:
        raise WeightsError(f"{path}: refused, {error}") from error
    if entries.keys() != {METADATA_KEY, WEIGHTS_KEY}:
        raise WeightsError(f"{path}: this file was not written by dpt_zoo.export: its metadata is missing")
    metadata = GraphMetadata.parse(entries[METADATA_KEY], path)
    weights_path = path.with_suffix(".bin")
    weights = read_bounded(weights_path, MAX_WEIGHTS_BYTES)
    if hashlib.sha256(weights).hexdigest() != entries[WEIGHTS_KEY]:
        raise WeightsError(f"{weights_path}: this file does not belong to {path.name}: copy both, or export again")
    return graph, weights, metadata


def _check_graph(graph: bytes) -> dict[str, str]:
    """Check everything in a graph that could be unsafe, and return the entries that `dpt_zoo.export` wrote."""
    if not graph.startswith(b'<?xml version="1.0"?>'):  # other encodings could hide something
        raise RefusedError("it is no OpenVINO model")
    entries: dict[str, str] = {}
    parents: list[str] = []
    num_elements = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal num_elements
        num_elements += 1
        if num_elements > MAX_ELEMENTS or len(parents) >= MAX_DEPTH:
            raise RefusedError("its graph is too large or nested too deeply")
        if name == "layer" and not re.fullmatch(r"opset[0-9]{1,2}", attributes.get("version", "")):
            raise RefusedError("it contains operators that are not from OpenVINO's standard")
        if parents == ["net", "rt_info"] and name in (METADATA_KEY, WEIGHTS_KEY):
            if name in entries:
                raise RefusedError("it has its metadata twice")
            entries[name] = attributes.get("value", "")
        parents.append(name)

    def refuse(*_: object) -> None:
        raise RefusedError("it defines XML entities")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda name: parents.pop()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(graph, True)
    return entries


def _shape(shape: Any) -> tuple[int | None, ...]:
    """Return a shape with None for what is not fixed."""
    return tuple(None if side.is_dynamic else side.get_length() for side in shape)
