"""Exported files that are damaged, foreign, lying or hostile: each is refused in one line, before it can do harm."""

import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exported_files import METADATA, first_pixel_model, make_onnx, make_openvino, seal_onnx, seal_openvino
from onnx import TensorProto, helper, numpy_helper

from dpt_zoo import Detector
from dpt_zoo.errors import WeightsError
from dpt_zoo.inference.graph_metadata import GraphMetadata

IMAGE = np.full((100, 150, 3), (255, 128, 60), np.uint8)
NOT_OURS = "was not written by dpt_zoo.export"
Change = Callable[[onnx.ModelProto], Any]


def refused(path: Path, complaint: str) -> None:
    """Check that loading a file, or detecting with it, fails with one line that names the file."""
    with pytest.raises(WeightsError, match=complaint) as raised:
        Detector(path)(IMAGE)
    text = str(raised.value)
    assert path.stem in text and "\n" not in text and text.isprintable() and len(text) < 1000


def cut(fraction: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(len(content) * fraction)]


def flip(position: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize("make", [make_onnx, make_openvino])
@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda content: b"", NOT_OURS),
        (lambda content: b"this is text\n", NOT_OURS),
        (cut(0.1), NOT_OURS),
        (cut(0.5), NOT_OURS),
        (cut(0.99), NOT_OURS),
        (lambda content: content[:-1], NOT_OURS),
        (lambda content: content + b"\0", NOT_OURS),
        (lambda content: content[1:], "damaged or altered"),
        (flip(300), "damaged or altered"),
        (flip(1000), "damaged or altered"),
        (lambda content: content[:500] + content[600:], "damaged or altered"),
    ],
)
def test_damaged(tmp_path: Path, make: Any, damage: Callable[[bytes], bytes], complaint: str) -> None:
    path = make(tmp_path / ("model.onnx" if make is make_onnx else "model.xml"))
    path.write_bytes(damage(path.read_bytes()))
    refused(path, complaint)


@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_other_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    refused(path, "cannot be read: No such file")
    path.write_bytes((8).to_bytes(8, "little") + b"{}      ")  # an empty safetensors file
    refused(path, NOT_OURS)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    refused(path, NOT_OURS)
    path.unlink()
    path.mkdir()
    refused(path, "cannot be read: Is a directory")


def test_of_other_tools(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = first_pixel_model()
    path.write_bytes(model.SerializeToString())
    refused(path, NOT_OURS)
    del model.metadata_props[:]
    refused(seal_onnx(path, model.SerializeToString()), NOT_OURS)
    path = make_openvino(tmp_path / "model.xml", lambda graph: graph.replace("<dpt_zoo ", "<other "))
    refused(path, NOT_OURS)


def add_node(domain: str, kind: str = "Custom", **attributes: Any) -> Change:
    node = helper.make_node(kind, ["images"], ["extra"], domain=domain, **attributes)
    return lambda model: (
        model.graph.node.append(node),
        model.opset_import.append(helper.make_opsetid(domain, 1)) if domain else None,
    )


def external(location: str, where: str = "initializer") -> Change:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "extra")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    if where == "initializer":
        return lambda model: model.graph.initializer.append(tensor)
    constant = helper.make_node("Constant", [], ["inner"], value=tensor)
    if where == "constant":
        return lambda model: model.graph.node.append(constant)
    return lambda model: model.graph.node.append(nested(constant, 1))


def nested(node: onnx.NodeProto, depth: int) -> onnx.NodeProto:
    """Put a node into a branch of an `If`, several times."""
    for _ in range(depth):
        output = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
        branch = helper.make_graph([node], "branch", [], [output])
        node = helper.make_node("If", ["condition"], [f"{node.output[0]}_"], then_branch=branch, else_branch=branch)
        if depth > 2:
            node.attribute.pop()  # else, the size would be 2**depth
    return node


def huge(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer.add(name="huge", data_type=TensorProto.FLOAT, raw_data=b"\0" * 8)
    tensor.dims.extend([1 << 20, 1 << 20])


def huge_output(model: onnx.ModelProto) -> None:
    """The scores get more elements than a computer has bytes."""
    shape = numpy_helper.from_array(np.array([1 << 60]), "huge_shape")
    model.graph.initializer.append(shape)
    last = next(node for node in model.graph.node if list(node.output) == ["scores"])
    last.CopyFrom(helper.make_node("ConstantOfShape", ["huge_shape"], ["scores"]))


def sparse(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 40]))


def own_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    model.functions.append(helper.make_function("", "Relu", ["x"], ["y"], [node], [helper.make_opsetid("", 18)]))


def rename_input(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = ["pictures" if name == "images" else name for name in node.input]
    model.graph.input[0].name = "pictures"


def constant_output(name: str, value: Any) -> Change:
    """Make an output one constant."""

    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if list(node.output) == [name])
        node.CopyFrom(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value))))

    return change


def two_metadata(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="dpt_zoo", value="{}")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (external("/etc/passwd"), "refused, it contains external data"),
        (external("../secret", "constant"), "refused, it contains external data"),
        (external("*/_ORT_MEM_ADDR_/*", "subgraph"), "refused, it contains external data"),
        (add_node("com.microsoft", "EPContext"), "operators that are not from the ONNX standard"),
        (add_node("evil"), "operators that are not from the ONNX standard"),
        (add_node("ai.onnx.ml", "Binarizer"), "operators that are not from the ONNX standard"),
        (add_node(""), "ONNX Runtime cannot load it"),
        (lambda model: model.graph.node.append(nested(helper.make_node("Neg", ["images"], ["x"]), 9)), "too deeply"),
        (huge, "a tensor is larger than its data"),
        (huge_output, "ONNX Runtime cannot (load|run) it"),
        (sparse, "sparse tensors"),
        (own_function, "functions of its own"),
        (lambda model: model.training_info.add(), "a training graph"),
        (two_metadata, "its metadata"),
        (rename_input, "inputs pictures, image_sizes, score_threshold instead of images, image_sizes"),
        (lambda model: model.graph.output.pop(), "outputs .* instead of"),
        (lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 11), "cannot load it|contradicts"),
        (constant_output("labels", [0, 7]), "labels of another type or shape|labels that contradict|cannot run"),
        (constant_output("labels", [0, 3]), "its graph returns labels that contradict its metadata"),
        (constant_output("labels", [0, -1]), "its graph returns labels that contradict its metadata"),
        (constant_output("image_indices", [0, 1]), "its graph returns image_indices that contradict"),
        (constant_output("scores", np.array([1, np.nan], np.float32)), "its graph returns scores that contradict"),
        (constant_output("scores", np.array([7, 7], np.float32)), "its graph returns scores that contradict"),
        (constant_output("scores", np.ones(3, np.float32)), "scores of another type or shape"),
        (constant_output("boxes", np.full((2, 4), 1e30, np.float32)), "boxes outside the image"),
        (constant_output("boxes", np.full((2, 4), np.nan, np.float32)), "boxes outside the image"),
        (constant_output("masks", np.full((2, 28, 28), np.inf, np.float32)), "its graph returns masks that contradict"),
    ],
)
def test_hostile_graphs(tmp_path: Path, change: Change, complaint: str) -> None:
    refused(make_onnx(tmp_path / "model.onnx", change), complaint)


def test_one_that_looks_like_another_format(tmp_path: Path) -> None:
    """ONNX Runtime recognises its own format, which is not checked, by "ORTM" at byte 4."""
    content = b"\x32\x08\0\0ORTM\0\0" + first_pixel_model().SerializeToString()  # field 6: the documentation
    assert len(Detector(seal_onnx(tmp_path / "model.onnx", content))(IMAGE)) == 2


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty nodes take two bytes each in the file, but a thousand in ONNX Runtime."""
    monkeypatch.setattr("dpt_zoo.inference.onnx_session.MAX_FIELDS", 20_000)
    graph = b"\x3a\x80\xf1\x04" + b"\x0a\x00" * 40_000  # field 7, 80,000 bytes
    path = seal_onnx(tmp_path / "model.onnx", first_pixel_model().SerializeToString() + graph)
    tracemalloc.start()
    refused(path, "its graph is too large")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * path.stat().st_size


@pytest.mark.parametrize(
    "end", [b"\x3a\xff", b"\x3a\x05ab", b"\xff" * 11, b"\x3b\x00", b"\x3a\x80\x80\x80\x80\x80\x01"]
)
def test_no_protobuf(tmp_path: Path, end: bytes) -> None:
    refused(seal_onnx(tmp_path / "model.onnx", first_pixel_model().SerializeToString() + end), "it is no ONNX model")


BAD_METADATA: dict[str, tuple[Any, str]] = {
    "another format": ({"format": 1}, "format 1 of its metadata is not supported, only 2"),
    "no format": ({"format": ...}, "incomplete"),
    "a missing entry": ({"license": ...}, "'license' is None"),
    "an unknown entry": ({"code": "x"}, "an unknown entry: 'code'"),
    "NaN": ({"lowest_score": float("nan")}, "'lowest_score' is nan"),
    "infinity": ({"mean": [0, 0, float("inf")]}, "'mean' is"),
    "a huge number": ({"scale": [10**400, 1]}, "'scale' is 1?\\[?10000"),
    "a huge size": ({"scale": [1 << 30, 1 << 30]}, "'scale' is"),
    "a negative size": ({"scale": [-1, 800]}, "'scale' is"),
    "a boolean as a number": ({"pad_divisor": True}, "'pad_divisor' is True"),
    "no divisor": ({"pad_divisor": 0}, "'pad_divisor' is 0"),
    "no deviation": ({"std": [1, 0, 1]}, "'std' is"),
    "two channels": ({"mean": [1, 2]}, "'mean' is"),
    "text as a number": ({"mask_threshold": "0.5"}, "'mask_threshold' is '0.5'"),
    "control characters": ({"name": "a\x1b[2Jb"}, r"'name' is 'a\\x1b"),
    "control characters in a class": ({"classes": ["red", "green", "bl\nue"]}, "'classes' is"),
    "no classes": ({"classes": []}, "'classes' is"),
    "a class that is a number": ({"classes": ["red", 2, "blue"]}, "'classes' is"),
    "a very long name": ({"name": "a" * 10_000}, "'name' is 'aaa"),
    "another digest": ({"weights_sha256": "x" * 64}, "'weights_sha256' is"),
    "another precision": ({"precision": "int4"}, "'precision' is 'int4'"),
    "versions": ({"versions": {"onnx": 1}}, "'versions' is"),
    "a contradiction": ({"image_size": [64, 100]}, "contradicts itself"),
    "another contradiction": ({"image_size": [64, 64], "has_preprocessing": True}, "contradicts itself"),
}


@pytest.mark.parametrize("kind", BAD_METADATA)
def test_bad_metadata(kind: str) -> None:
    change, complaint = BAD_METADATA[kind]
    content = {name: value for name, value in {**METADATA, **change}.items() if value is not ...}
    with pytest.raises(WeightsError, match=complaint) as raised:
        GraphMetadata.from_json(content, "model.onnx")
    assert str(raised.value).isprintable() and len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"format": 1', "[" * 20_000, "\ud800", "1" * 5_000, b"\xff\xfe"], ids=range(9)
)
def test_metadata_that_is_not_json(text: str | bytes) -> None:
    with pytest.raises(WeightsError, match=r"not JSON|incomplete"):
        GraphMetadata.parse(text, "model.onnx")


def test_metadata_and_back() -> None:
    metadata = GraphMetadata.from_json(METADATA, "model.onnx")
    assert GraphMetadata.parse(json.dumps(metadata.to_json()), "model.onnx") == metadata
    assert metadata.classes == ("red", "green", "blue") and metadata.scale == (192, 128)


@pytest.mark.parametrize(
    ("changes", "other", "complaint"),
    [
        ({"has_masks": False}, {"has_masks": True}, "outputs image_indices, boxes, scores, labels instead of"),
        ({"has_masks": True}, {"has_masks": False}, "outputs .* instead of image_indices, boxes, scores, labels$"),
        ({}, {"batch": 4}, r"images is float32 \(any, 3, any, any\) instead of float32 \(4, 3, any, any\)"),
        ({}, {"image_size": [64, 96]}, r"instead of float32 \(any, 3, 64, 96\)"),
        (
            {"batch": 2, "image_size": [64, 96]},
            {"batch": None, "image_size": None},
            r"float32 \(2, 3, 64, 96\) instead of",
        ),
        ({}, {"has_preprocessing": True}, "inputs images, image_sizes, score_threshold instead of image, score_thr"),
        ({}, {"classes": ["red"]}, "its graph returns labels that contradict its metadata"),
    ],
)
@pytest.mark.parametrize("kind", ["onnx", "xml"])
def test_lying_metadata(
    tmp_path: Path, changes: dict[str, Any], other: dict[str, Any], complaint: str, kind: str
) -> None:
    """The graph was made with some `changes` of the metadata, but says `other` ones."""
    lie = {**METADATA, **changes, **other}
    if kind == "onnx":
        model = first_pixel_model(**changes)
        helper.set_model_props(model, {"dpt_zoo": json.dumps(lie)})
        path = seal_onnx(tmp_path / "model.onnx", model.SerializeToString())
    else:

        def change(graph: str) -> str:
            true, false = (json.dumps(each).replace('"', "&quot;") for each in ({**METADATA, **changes}, lie))
            assert true in graph
            return graph.replace(true, false)

        path = make_openvino(tmp_path / "model.xml", change, **changes)
    refused(path, complaint)


ENTITIES = '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda graph: graph.replace('<?xml version="1.0"?>', '<?xml version="1.0"?>' + ENTITIES), "XML entities"),
        (lambda graph: graph.replace("opset1", "evil", 1), "operators that are not from OpenVINO's standard"),
        (lambda graph: graph.replace(' version="opset1"', "", 1), "operators that are not from OpenVINO's standard"),
        (lambda graph: graph.replace("</net>", ""), "it is no OpenVINO model"),
        (lambda graph: graph.replace('"1.0"?>', '"1.0" encoding="utf-7"?>'), "it is no OpenVINO model"),
        (lambda graph: graph.replace("<layers>", "<layers>" + "<a>" * 100 + "</a>" * 100), "nested too deeply"),
        (lambda graph: graph.replace("</rt_info>", '<dpt_zoo value="{}"/></rt_info>'), "its metadata twice"),
        (lambda graph: graph.replace('size="16"', 'size="1600000000"'), "OpenVINO cannot load it"),
        (lambda graph: graph.replace("<edges>", '<edges><edge from-layer="99"/>'), "OpenVINO cannot load it"),
    ],
)
def test_hostile_openvino_files(tmp_path: Path, change: Callable[[str], str], complaint: str) -> None:
    refused(make_openvino(tmp_path / "model.xml", change), complaint)


def test_openvino_weights_are_checked(tmp_path: Path) -> None:
    path = make_openvino(tmp_path / "model.xml")
    weights = path.with_suffix(".bin").read_bytes()
    path.with_suffix(".bin").write_bytes(flip(100)(weights))
    refused(path, r"model\.bin: this file does not belong to model\.xml: copy both, or export again")
    path.with_suffix(".bin").unlink()
    refused(path, r"model\.bin cannot be read: No such file")
    other = make_openvino(tmp_path / "other.xml", has_masks=False)
    other.with_suffix(".bin").replace(path.with_suffix(".bin"))
    refused(path, "does not belong")
    refused(seal_openvino(path, "\xff"), "it is no OpenVINO model")
