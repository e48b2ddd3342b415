"""Small exported files, written by hand: graphs with the contract's inputs and outputs, made in milliseconds."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dpt_zoo.runtimes.openvino_session import shared_core

CLASSES = ("red", "green", "blue")
BOXES = np.array([[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 0.75], [0.6, 0.1, 0.7, 1]], np.float32)
"""The three objects of each image, xyxy as fractions of its sides. Their scores are the first pixel's channels."""
MASKS = np.clip(np.linspace(-0.5, 1.5, 28 * 28 * 3).reshape(3, 28, 28), 0, 1).astype(np.float32)
METADATA: dict[str, Any] = {
    "format": 2,
    "name": "first_pixel",
    "classes": list(CLASSES),
    "has_masks": True,
    "has_preprocessing": False,
    "scale": [192, 128],
    "pad_divisor": 32,
    "batch": None,
    "image_size": None,
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
    "lowest_score": 0.05,
    "max_detections": 100,
    "nms_iou": 0.5,
    "class_agnostic_nms": False,
    "mask_threshold": 0.5,
    "weights_sha256": "0" * 64,
    "license": "Apache-2.0",
    "precision": "float32",
    "versions": {"dpt_zoo": "0.1.0"},
    "score_thresholds": None,
}


def first_pixel_model(**changes: Any) -> onnx.ModelProto:
    """Return a graph that detects three objects in each image, see `BOXES`, with metadata that has these `changes`."""
    metadata = {**METADATA, **changes}
    has_masks, raw = metadata["has_masks"], metadata["has_preprocessing"]
    batch, size = metadata["batch"], metadata["image_size"] or ["height", "width"]
    constants: dict[str, NDArray[Any]] = {
        "boxes_01": BOXES,
        "masks_3": MASKS,
        "two": np.array(2),
        "ends": np.array([1, 1], np.int64),
        "starts": np.array([0, 0], np.int64),
        "axes": np.array([0, 1] if raw else [2, 3], np.int64),
        "last_dims": np.array([-1], np.int64),
        "boxes_shape": np.array([-1, 4], np.int64),
        "three": np.array([3], np.int64),
        "ones": np.array([1, 1], np.int64),
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "max": np.array(255, np.float32),
        "axis0": np.array([0], np.int64),
        "swap": np.array([1, 0, 1, 0], np.int64),
        "labels_3": np.arange(3, dtype=np.int64),
    }
    nodes: list[tuple[str, list[str], str, dict[str, Any]]] = []
    if raw:
        nodes += [
            ("Cast", ["image"], "pixels", {"to": TensorProto.FLOAT}),
            ("Slice", ["pixels", "starts", "ends", "axes"], "first", {}),
            ("Shape", ["image"], "image_shape", {"end": 2}),
            ("Cast", ["image_shape"], "sides", {"to": TensorProto.FLOAT}),
            ("Unsqueeze", ["sides", "axis0"], "image_sizes", {}),
        ]
    else:
        nodes += [("Slice", ["images", "starts", "ends", "axes"], "first", {})]
    nodes += [
        ("Reshape", ["first", "last_dims"], "channels", {}),
        ("Div", ["channels", "max"], "all_scores", {}),
        ("Shape", ["image_sizes"], "num_images", {"end": 1}),
        ("Squeeze", ["num_images", "axis0"], "count", {}),
        ("Range", ["zero", "count", "one"], "indices", {}),
        ("Unsqueeze", ["indices", "last_dims"], "index_column", {}),
        ("Concat", ["num_images", "three"], "per_image", {"axis": 0}),
        ("Expand", ["index_column", "per_image"], "index_grid", {}),
        ("Reshape", ["index_grid", "last_dims"], "all_indices", {}),
        ("Expand", ["labels_3", "per_image"], "label_grid", {}),
        ("Reshape", ["label_grid", "last_dims"], "all_labels", {}),
        ("Gather", ["image_sizes", "swap"], "limits", {"axis": 1}),
        ("Unsqueeze", ["limits", "one"], "limits_3", {}),
        ("Mul", ["limits_3", "boxes_01"], "box_grid", {}),
        ("Reshape", ["box_grid", "boxes_shape"], "all_boxes", {}),
        ("GreaterOrEqual", ["all_scores", "score_threshold"], "is_kept", {}),
        ("Compress", ["all_indices", "is_kept"], "image_indices", {"axis": 0}),
        ("Compress", ["all_boxes", "is_kept"], "boxes", {"axis": 0}),
        ("Compress", ["all_scores", "is_kept"], "scores", {"axis": 0}),
        ("Compress", ["all_labels", "is_kept"], "labels", {"axis": 0}),
        ("Concat", ["num_images", "ones"], "repeats", {"axis": 0}),
        ("Tile", ["masks_3", "repeats"], "all_masks", {}),
        ("Compress", ["all_masks", "is_kept"], "masks", {"axis": 0}),
    ]
    inputs: dict[str, tuple[int, list[Any]]] = {
        "images": (TensorProto.FLOAT, [batch or "batch", 3, *size]),
        "image_sizes": (TensorProto.FLOAT, [batch or "batch", 2]),
    }
    if raw:
        inputs = {"image": (TensorProto.UINT8, ["height", "width", 3])}
    inputs["score_threshold"] = (TensorProto.FLOAT, [])
    outputs: dict[str, tuple[int, list[Any]]] = {
        "image_indices": (TensorProto.INT64, ["n"]),
        "boxes": (TensorProto.FLOAT, ["n", 4]),
        "scores": (TensorProto.FLOAT, ["n"]),
        "labels": (TensorProto.INT64, ["n"]),
        **({"masks": (TensorProto.FLOAT, ["n", 28, 28])} if has_masks else {}),
    }
    graph = helper.make_graph(
        [helper.make_node(kind, names, [output], **attributes) for kind, names, output, attributes in nodes],
        "first_pixel",
        [helper.make_tensor_value_info(name, *info) for name, info in inputs.items()],
        [helper.make_tensor_value_info(name, *info) for name, info in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"dpt_zoo": json.dumps(metadata)})
    return model


def seal_onnx(path: Path, content: bytes) -> Path:
    """Write an .onnx file with its digest at the end."""
    digest = hashlib.sha256(content).hexdigest().encode()
    path.write_bytes(content + b"\x72\x52\x0a\x0edpt_zoo.sha256\x12\x40" + digest)
    return path


def make_onnx(path: Path, change: Callable[[onnx.ModelProto], Any] = lambda model: None, **changes: Any) -> Path:
    """Write an .onnx file, after `change` was called with the model; `changes` are those of its metadata."""
    model = first_pixel_model(**changes)
    change(model)
    return seal_onnx(path, model.SerializeToString())


def make_openvino(path: Path, change: Callable[[str], str] = lambda graph: graph, **changes: Any) -> Path:
    """Write an .xml and a .bin file, after `change` was called with the text of the .xml file."""
    import openvino

    model = first_pixel_model(**changes)
    converted = shared_core().read_model(model.SerializeToString(), b"")
    plain = path.with_name(f"plain-{path.name}")
    openvino.save_model(converted, plain, compress_to_fp16=False)
    weights = plain.with_suffix(".bin").read_bytes()
    path.with_suffix(".bin").write_bytes(weights)
    converted.set_rt_info(json.dumps({**METADATA, **changes}), "dpt_zoo")
    converted.set_rt_info(hashlib.sha256(weights).hexdigest(), "dpt_zoo_bin_sha256")
    openvino.save_model(converted, plain, compress_to_fp16=False)
    return seal_openvino(path, change(plain.read_text()))


def seal_openvino(path: Path, graph: str) -> Path:
    """Write an .xml file with its digest at the end."""
    path.write_text(f"{graph}<!-- sha256:{hashlib.sha256(graph.encode()).hexdigest()} -->")
    return path
