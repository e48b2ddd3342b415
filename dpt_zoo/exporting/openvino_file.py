"""Write and run OpenVINO files: an .xml file with the graph, and a .bin file with the weights."""

from pathlib import Path
from typing import Any

import onnx_ir as ir
import openvino
import torch
from numpy.typing import NDArray

from ..runtimes.graph_metadata import METADATA_KEY, GraphMetadata
from ..runtimes.openvino_session import OPTIONS, WEIGHTS_KEY, shared_core
from ..utils.files import hash_file
from . import onnx_file
from .graph import onnx_nms

NMS = onnx_nms


def write(program: torch.export.ExportedProgram, content: str, path: Path, metadata: GraphMetadata) -> None:
    """Write a traced `program` with its `metadata`, as the JSON `content`."""
    onnx_path = path.with_suffix(".onnx")
    ir.save(onnx_file.to_onnx(program, metadata), onnx_path)
    convert(onnx_path, content, path, half=metadata.precision == "float16")


def convert(onnx_path: Path, content: str, path: Path, half: bool = False) -> None:
    """Convert an ONNX file at `onnx_path`; `content`, `path` and `half` are those of `save`."""
    save(openvino.convert_model(onnx_path), content, path, half)


def save(model: openvino.Model, content: str, path: Path, half: bool = False) -> None:
    """Write a `model` with the JSON `content` as metadata, and weights in float16 if `half`.

    The .xml file ends with the SHA-256 of all bytes before, and contains that of the .bin file.
    """
    model.set_rt_info(content, METADATA_KEY)
    openvino.save_model(model, path, compress_to_fp16=half)
    model.set_rt_info(hash_file(path.with_suffix(".bin")).hexdigest(), WEIGHTS_KEY)
    openvino.save_model(model, path, compress_to_fp16=half)  # again, because the .bin file did not exist before
    digest = hash_file(path).hexdigest()
    with path.open("a", encoding="ascii") as file:
        file.write(f"<!-- sha256:{digest} -->")


def run(path: Path, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Return the outputs of a file's graph for its `inputs`."""
    results = shared_core().compile_model(path, "CPU", OPTIONS)(inputs)
    return list(results.to_tuple())
