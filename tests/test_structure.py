"""Names, shapes, types and parameter counts are the authors', for all twelve detectors and three classifiers."""

import json
from typing import Any

import pytest
import torch
from reference_data import read_json

import dpt_zoo
from dpt_zoo.factory import build_detector
from dpt_zoo.manifest import data_path
from dpt_zoo.models import DPTClassifier

PUBLISHED = read_json("published_results.json")
DETECTORS = {entry["name"]: entry for entry in [*PUBLISHED["retinanet"], *PUBLISHED["mask_rcnn"]]}


def test_manifest_says_what_was_published() -> None:
    assert dpt_zoo.list_models() == list(DETECTORS)
    for name, entry in DETECTORS.items():
        checkpoint = dpt_zoo.get_checkpoint(name)
        assert (checkpoint.size, checkpoint.config) == (entry["size"], entry["config"])
        assert {"1x": "1x", "ms3x": "MS+3x"}[checkpoint.schedule] == entry["schedule"]
        assert checkpoint.published == {task: entry[task] for task in ("bbox", "segm") if task in entry}
        assert [source.id for source in checkpoint.sources] == [entry["gdrive_id"]]
        assert round(checkpoint.num_params / 1e6, 1) == entry["params_m"]
        assert checkpoint.sha256 is None and checkpoint.num_bytes is None  # nobody published them


def test_manifest_has_the_classifiers() -> None:
    backbones = json.loads(data_path("weights_manifest.json").read_text())["backbones"]
    for backbone, entry in zip(backbones, PUBLISHED["imagenet_backbones"], strict=True):
        schema = read_json(f"schema_imagenet_{entry['name']}.json")
        assert backbone == {
            "name": entry["name"],
            "num_params": schema["parameters_total"],
            "published": {"top1": entry["acc1"], "gflops_224": entry["flops_g_224"]},
            "sources": [{"kind": "gdrive", "id": entry["gdrive_id"]}],
            "sha256": None,
            "num_bytes": None,
        }
        assert round(backbone["num_params"] / 1e6, 1) == entry["params_m"]


@pytest.mark.parametrize("name", DETECTORS)
def test_detector(name: str) -> None:
    checkpoint = dpt_zoo.get_checkpoint(name)
    schema = read_json(f"schema_{checkpoint.architecture}_dpt_{checkpoint.size[0]}.json")
    with torch.device("meta"):  # shapes without numbers
        model: Any = build_detector(checkpoint, checkpoint.num_classes)
    assert describe(model) == schema["state_dict"]
    assert [parameter for parameter, _ in model.named_parameters()] == schema["parameters"]
    assert count_parameters(model) == schema["params_total"] == checkpoint.num_params
    assert count_parameters(model.backbone) == schema["params_backbone"]


@pytest.mark.parametrize("size", ["tiny", "small", "medium"])
def test_classifier(size: str) -> None:
    schema = read_json(f"schema_imagenet_dpt_{size}.json")
    model = DPTClassifier(size)
    assert sorted(describe(model)) == sorted(schema["state_dict"])
    assert count_parameters(model) == schema["parameters_total"]


def describe(model: torch.nn.Module) -> list[list[object]]:
    return [[name, list(tensor.shape), str(tensor.dtype)] for name, tensor in model.state_dict().items()]


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
