"""Exported files: the objects of the graph in PyTorch, metadata and digests."""

import functools
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx_ir.tape import Tape

import dpt_zoo
from dpt_zoo import Detector
from dpt_zoo.exporting import exporter, onnx_file, openvino_file
from dpt_zoo.exporting.graph import build_graph, onnx_nms
from dpt_zoo.exporting.preprocessing import add_preprocessing, prepare
from dpt_zoo.inference.limits import Limits
from dpt_zoo.runtimes.openvino_session import shared_core
from dpt_zoo.weights.digests import tensors_sha256

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("exported")]  # tracing a demo takes a minute

SHAPES = [(1, 320, 256), (8, 64, 96), (1, 32, 32)]
"""Number, height and width of images."""


def read_content(path: Path) -> Any:
    """Return the JSON that an ONNX file has about itself."""
    (text,) = (each.value for each in onnx.load(path).metadata_props if each.key == "dpt_zoo")
    return json.loads(text)


def make_inputs(shape: tuple[int, int, int], threshold: float = 0.05) -> list[NDArray[Any]]:
    """Return images of noise, in which the demos detect objects, and their sizes."""
    batch, height, width = shape
    random = np.random.default_rng(height)
    images = random.uniform(0, 255, (batch, 3, height, width))
    sizes = np.array([[height - 3 * i, width - 2 * i] for i in range(batch)])
    return [images.astype(np.float32), sizes.astype(np.float32), np.array(threshold, np.float32)]


def run_graph(name: str, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    graph = build_graph(dpt_zoo.create_model(name), onnx_nms, Limits())
    with torch.no_grad():
        return [each.numpy() for each in graph(*map(torch.from_numpy, inputs))]


def assert_same(ours: list[NDArray[Any]], theirs: list[NDArray[Any]]) -> None:
    """Check the outputs of a graph: the same objects in the same order."""
    assert [(each.shape, each.dtype) for each in ours] == [(each.shape, each.dtype) for each in theirs]
    assert np.array_equal(ours[0], theirs[0]) and np.array_equal(ours[3], theirs[3])
    assert np.abs(ours[1] - theirs[1]).max(initial=0) < 0.005
    assert np.abs(ours[2] - theirs[2]).max(initial=0) < 5e-5
    assert len(ours) == 4 or np.abs(ours[4] - theirs[4]).max(initial=0) < 1e-3


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that returns the first call's result each time."""
    results: list[Any] = []

    def call(*arguments: Any) -> Any:
        if not results:
            results.append(function(*arguments))
        return results[0]

    return call


def test_onnx_runtime_computes_gelu_as_one_operator(exported_demo: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(exported_demo, options, providers=["CPUExecutionProvider"])
    operators = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
    assert operators & {"Gelu", "BiasGelu"} and "Erf" not in operators


class TestObjects:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_any_shape(self, demo: str, shape: tuple[int, int, int], exported: Callable[..., Path]) -> None:
        inputs = make_inputs(shape)
        expected = run_graph(demo, inputs)
        assert len(expected[0])
        assert_same(onnx_file.run(exported(demo), inputs), expected)
        assert_same(openvino_file.run(exported(demo, ".xml"), inputs), expected)

    def test_any_number_of_objects(self, demo: str, exported: Callable[..., Path]) -> None:
        best = run_graph(demo, make_inputs((1, 160, 192)))[2][0]
        for threshold, number in ((best, 1), (1.0, 0)):
            inputs = make_inputs((1, 160, 192), threshold)
            expected = run_graph(demo, inputs)
            assert len(expected[0]) == number
            inputs[2] -= np.float32(5e-5)  # a runtime may give the best object a slightly lower score
            assert_same(onnx_file.run(exported(demo), inputs), expected)
            assert_same(openvino_file.run(exported(demo, ".xml"), inputs), expected)

    def test_torch_export(
        self, tmp_path: Path, scenes: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name, content = "mrcnn_dpt_nano_digits", {"dpt_zoo": ""}
        load = functools.partial(torch.export.load, extra_files=content)
        monkeypatch.setattr(torch.export, "load", once(load))  # the export loads the file to check it
        path = dpt_zoo.export(name, tmp_path / "model.pt2")
        module = torch.export.load(path).module()
        assert json.loads(content["dpt_zoo"])["name"] == name
        images = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).float()
        inputs = [images.numpy(), np.full((8, 2), 192, np.float32), np.array(0.3, np.float32)]
        with torch.no_grad():
            assert_same([each.numpy() for each in module(*map(torch.from_numpy, inputs))], run_graph(name, inputs))


class TestOptions:
    def test_fixed_shapes_and_half_precision(self, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        name = "retinanet_dpt_nano_digits"
        monkeypatch.setattr(exporter, "trace", once(exporter.trace))
        monkeypatch.setattr(onnx_file, "to_onnx", once(onnx_file.to_onnx))  # both formats are made from its result
        for suffix in (".onnx", ".xml"):
            path = tmp_path / suffix[1:] / f"model{suffix}"
            path.parent.mkdir()
            status, out, err = run("export", name, path, "--batch", 2, "--height", 64, "--width", 96, "--half")
            assert (status, err) == (0, "") and out.startswith(f"{path} (")
            graph = shared_core().read_model(path)
            assert list(graph.inputs[0].shape) == [2, 3, 64, 96]
            num_weights = sum(each.numel() for each in dpt_zoo.create_model(name).parameters())
            assert sum(each.stat().st_size for each in path.parent.glob("model.[ob]*")) < 2 * num_weights + 500_000
            metadata = Detector(path).metadata
            assert metadata is not None
            assert (metadata.batch, metadata.image_size, metadata.precision) == (2, (64, 96), "float16")

    def test_preprocessing(self, exported: Callable[..., Path], scenes: list[NDArray[np.uint8]]) -> None:
        name = "mrcnn_dpt_nano_digits"
        model = ir.load(exported(name))
        add_preprocessing(model, (192, 192), 32)
        path = exported(name).with_name("preprocessing.onnx")
        ir.save(model, path)
        detector = dpt_zoo.Detector(name)
        for image in (scenes[0], scenes[1][:120, :150], scenes[2].repeat(2, 0)):
            expected = detector(image)
            for run in (onnx_file.run, openvino_file.run):
                _, boxes, scores, labels, _ = run(path, [image, np.array(0.3, np.float32)])
                assert np.array_equal(labels, expected.labels) and len(labels)
                assert np.abs(boxes - expected.boxes).max() < 0.5
                assert np.abs(scores - expected.scores).max() < 0.02

    @pytest.mark.parametrize("size", [(48, 64), (33, 50), (120, 100), (5, 90), (80, 133), (20, 31)])
    def test_resizing_is_opencvs(self, size: tuple[int, int]) -> None:
        image, tape = ir.val("image", ir.DataType.UINT8, ["height", "width", 3]), Tape()
        outputs = prepare(tape, image, (133, 80), 32)
        for output in outputs:
            output.dtype = ir.DataType.FLOAT
        graph = ir.Graph([image], outputs, nodes=tape.nodes, initializers=tape.initializers, opset_imports={"": 18})
        graph.name = "prepare"
        session = onnxruntime.InferenceSession(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        padded, sizes, factors = session.run(None, {"image": pixels})
        expected = mmcv.imrescale(pixels, (133, 80))
        height, width = expected.shape[:2]
        assert sizes.tolist() == [[height, width]]
        assert padded.shape == (1, 3, -(-height // 32) * 32, -(-width // 32) * 32)
        assert np.abs(padded[0, :, :height, :width].transpose(1, 2, 0) - expected).max() <= 1
        assert padded[0, :, height:].sum() == padded[0, :, :, width:].sum() == 0
        assert np.allclose(factors, [width / size[1], height / size[0]] * 2)


class TestMetadata:
    def test_content(self, demo: str, exported: Callable[..., Path]) -> None:
        content = read_content(exported(demo))
        rt_info = shared_core().read_model(exported(demo, ".xml")).get_rt_info("dpt_zoo").astype(str)
        assert json.loads(rt_info) == content
        assert content["classes"] == [str(digit) for digit in range(10)]
        assert content["has_masks"] == demo.startswith("mrcnn")
        assert (content["name"], content["scale"], content["license"]) == (demo, [192, 192], "Apache-2.0")
        assert content["weights_sha256"] == tensors_sha256(dpt_zoo.create_model(demo).state_dict())
        assert {"dpt-zoo", "torch", "onnxscript"} <= content["versions"].keys()

    def test_digests(self, demo: str, exported: Callable[..., Path]) -> None:
        content = exported(demo).read_bytes()
        digest = onnx.load(exported(demo)).metadata_props[-1]
        assert (digest.key, digest.value) == ("dpt_zoo.sha256", hashlib.sha256(content[:-84]).hexdigest())
        graph = exported(demo, ".xml").read_bytes()
        (digest_at_end,) = re.findall(rb"<!-- sha256:([0-9a-f]{64}) -->$", graph)
        assert digest_at_end.decode() == hashlib.sha256(graph[:-80]).hexdigest()
        weights = exported(demo, ".xml").with_suffix(".bin").read_bytes()
        assert f'dpt_zoo_bin_sha256 value="{hashlib.sha256(weights).hexdigest()}"'.encode() in graph

    def test_nothing_of_this_machine(self, demo: str, exported: Callable[..., Path]) -> None:
        assert str(Path(dpt_zoo.__file__).parent).encode() not in exported(demo).read_bytes()
