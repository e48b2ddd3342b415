"""Errors of the export, without tracing."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import dpt_zoo
from dpt_zoo.errors import DPTZooError, InputError, OutputError
from dpt_zoo.exporting import exporter, onnx_file

NAME = "retinanet_dpt_nano_digits"


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("model.pth", {}, "the suffix must be .onnx, .xml (OpenVINO) or .pt2 (torch.export)"),
        ("model", {}, "the suffix must be"),
        ("model.onnx", {"batch": 0}, "batch must be a whole number from 1 to 1024"),
        ("model.onnx", {"image_size": (100, 64)}, "multiples of 32 pixels, not (100, 64)"),
        ("model.onnx", {"image_size": 64}, "image_size must be a height and a width"),
        ("model.pt2", {"half": True}, "half is only for .onnx and .xml files"),
        ("model.pt2", {"preprocessing": True}, "preprocessing is only for .onnx and .xml files"),
        ("model.onnx", {"int8": "images"}, "int8 is only for .xml files, and excludes half"),
        ("model.xml", {"int8": "images", "half": True}, "int8 is only for .xml files, and excludes half"),
        ("model.xml", {"int8": "missing/*.png"}, "missing/*.png"),
        ("model.xml", {"int8": []}, "int8 needs images of the task, but none were given"),
        ("model.xml", {"force": True}, "force is only for int8"),
        ("model.onnx", {"max_detections": 0}, "max_detections must be a whole number from 1"),
        ("model.onnx", {"nms_iou": 50}, "nms_iou must be a number from 0 to 1, not 50"),
        ("model.onnx", {"preprocessing": True, "batch": 1}, "preprocessing excludes batch and image_size"),
    ],
)
def test_unsupported_arguments(path: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        dpt_zoo.export(NAME, tmp_path / path, **options)
    assert message in str(error.value)


def test_unsupported_models(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model 'mrcnn'"):
        dpt_zoo.export("mrcnn", tmp_path / "model.onnx")
    with pytest.raises(InputError, match="not an object of type Linear"):
        dpt_zoo.export(nn.Linear(1, 1), tmp_path / "model.onnx")
    with pytest.raises(InputError, match="weights can be given only with a model's name"):
        dpt_zoo.export(dpt_zoo.create_model(NAME), tmp_path / "model.onnx", weights="other.safetensors")


def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        dpt_zoo.export(NAME, tmp_path / "model.xml")
    assert str(error.value) == '.xml files need onnx, onnxscript, openvino: pip install "dpt-zoo[export]"'
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else name)
    with pytest.raises(InputError, match="int8 needs nncf"):
        dpt_zoo.export(NAME, tmp_path / "model.xml", int8="images")


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        dpt_zoo.export(NAME, tmp_path / "missing" / "model.onnx")


def test_height_without_width(run: Any, tmp_path: Path) -> None:
    status, _, err = run("export", NAME, tmp_path / "model.onnx", "--height", 64)
    assert (status, err) == (2, "dpt-zoo: --height and --width must be given together\n")


@pytest.mark.parametrize("is_readable", [False, True])
def test_wrong_file(is_readable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that gives other objects than PyTorch is not kept, and the model is not changed."""
    model = dpt_zoo.create_model(NAME).train()
    path = tmp_path / "model.onnx"
    path.write_bytes(b"earlier")
    monkeypatch.setattr(exporter, "trace", lambda *args: None)
    monkeypatch.setattr(onnx_file, "write", lambda program, content, path, metadata: path.write_bytes(b"wrong"))
    if is_readable:
        nothing = [np.zeros(0), np.zeros((0, 4)), np.zeros(0), np.zeros(0)]
        monkeypatch.setattr(onnx_file, "run", lambda path, inputs: nothing)
    message = "only 0 of [0-9]+ objects are PyTorch's" if is_readable else "cannot be run"
    with pytest.raises(DPTZooError, match=message):
        dpt_zoo.export(model, path)
    assert path.read_bytes() == b"earlier"
    assert [each.name for each in tmp_path.iterdir() if each.name != "cache"] == ["model.onnx"]
    assert model.training
