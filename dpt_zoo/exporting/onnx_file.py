"""Write and run ONNX files."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx import ModelProto, StringStringEntryProto
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript import opset18 as op
from onnxscript.optimizer import optimize_ir

from ..runtimes.graph_metadata import INPUTS, METADATA_KEY, OUTPUTS, GraphMetadata
from ..utils.files import hash_file
from .graph import onnx_nms
from .preprocessing import add_preprocessing

NMS = onnx_nms
OPSET = 18
"""Version of ONNX's operators: the lowest that PyTorch writes."""
NMS_OPERATOR: Any = torch.ops.dpt_zoo.nms.default
GELU_OPERATOR: Any = torch.ops.aten.gelu.default
DIGEST_KEY = f"{METADATA_KEY}.sha256"
"""Key of the last entry of the file's metadata: the SHA-256 of all bytes before this entry."""


def write(program: torch.export.ExportedProgram, content: str, path: Path, metadata: GraphMetadata) -> None:
    """Write a traced `program` with its `metadata`, as the JSON `content`."""
    model = to_onnx(program, metadata)
    model.metadata_props[METADATA_KEY] = content
    ir.save(model, path)
    # Concatenated messages are one message in protobuf, so this is an ordinary entry, and the file's last.
    entry = StringStringEntryProto(key=DIGEST_KEY, value=hash_file(path).hexdigest())
    with path.open("ab") as file:
        file.write(ModelProto(metadata_props=[entry]).SerializeToString())


def run(path: Path, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Return the outputs of a file's graph for its `inputs`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return list(session.run(None, dict(zip(names, inputs, strict=True))))


def to_onnx(program: torch.export.ExportedProgram, metadata: GraphMetadata) -> ir.Model:
    """Translate a traced `program`, with what `metadata` says: preprocessing, and weights in float16."""
    exported = torch.onnx.export(
        program,
        input_names=INPUTS,
        output_names=OUTPUTS if metadata.has_masks else OUTPUTS[:-1],
        opset_version=OPSET,
        custom_translation_table={NMS_OPERATOR: _nms, GELU_OPERATOR: _gelu},
        external_data=False,
        optimize=False,
        verbose=False,
    )
    assert exported is not None
    model = exported.model
    optimize_ir(model, num_iterations=1)  # a second one takes as long, and removes 20 of 1,100 nodes
    ClearMetadataAndDocStringPass()(model)  # stack traces with the paths of this machine
    if metadata.has_preprocessing:
        add_preprocessing(model, metadata.scale, metadata.pad_divisor)
    if metadata.precision == "float16":
        store_as_float16(model)
    return model


def store_as_float16(model: ir.Model) -> None:
    """Store the large float32 constants of a model as float16, each with a Cast back."""
    for name, value in list(model.graph.initializers.items()):
        constant = value.const_value
        if constant is None or constant.dtype != ir.DataType.FLOAT or constant.size < 256:
            continue
        stored = ir.Value(name=f"{name}.float16", const_value=ir.tensor(constant.numpy().astype(np.float16)))
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
        value.replace_all_uses_with(cast.outputs[0])
        del model.graph.initializers[name]
        model.graph.register_initializer(stored)
        model.graph.insert_before(model.graph[0], cast)


def _nms(boxes: Any, scores: Any, max_per_class: int, iou_threshold: float, score_threshold: float) -> Any:
    """Translate `onnx_nms`."""
    limit = op.Constant(value_ints=[max_per_class])
    thresholds = (op.Constant(value_floats=[each]) for each in (iou_threshold, score_threshold))
    return op.NonMaxSuppression(boxes, scores, limit, *thresholds)


def _gelu(self: Any, approximate: str = "none") -> Any:  # PyTorch 2.10 wants the names of its own operator's arguments
    """Translate the exact GELU, with its products in the order that ONNX Runtime computes as one operator."""
    one_plus_erf = op.Add(op.Erf(op.Div(self, op.Constant(value_float=math.sqrt(2)))), op.Constant(value_float=1.0))
    return op.Mul(op.Mul(self, one_plus_erf), op.Constant(value_float=0.5))
