"""What the manifest says, and the models' names, shapes, types and parameter counts, are the authors' for all 15."""

import dataclasses
import json
from typing import Any

import jsonschema
import pytest
import torch
from reference_data import read_json

import dpt_zoo
from dpt_zoo.factory import build_detector
from dpt_zoo.manifest import data_path, get_weights_record, read_manifest
from dpt_zoo.models import DPTClassifier
from dpt_zoo.sources import BaiduNetdisk, GoogleDrive, HubFile, LocalFile, WebFile
from dpt_zoo.weights.digests import structure_sha256

PUBLISHED = read_json("published_results.json")
DETECTORS = {entry["name"]: entry for entry in [*PUBLISHED["retinanet"], *PUBLISHED["mask_rcnn"]]}


def test_manifest_says_what_was_published() -> None:
    assert dpt_zoo.list_models() == list(DETECTORS)
    for name, entry in DETECTORS.items():
        checkpoint = dpt_zoo.get_checkpoint(name)
        assert (checkpoint.size, checkpoint.config) == (entry["size"], entry["config"])
        assert {"1x": "1x", "ms3x": "MS+3x"}[checkpoint.schedule] == entry["schedule"]
        assert checkpoint.published == {task: entry[task] for task in ("bbox", "segm") if task in entry}
        assert checkpoint.sources[0] == GoogleDrive(entry["gdrive_id"])
        assert round(checkpoint.num_params / 1e6, 1) == entry["params_m"]


def test_manifest_has_the_classifiers() -> None:
    for entry in PUBLISHED["imagenet_backbones"]:
        classifier = get_weights_record(entry["name"])
        assert classifier.num_params == read_json(f"schema_imagenet_{entry['name']}.json")["parameters_total"]
        assert round(classifier.num_params / 1e6, 1) == entry["params_m"]
        assert classifier.published == {"top1": entry["acc1"], "gflops_224": entry["flops_g_224"]}
        assert classifier.sources[0] == GoogleDrive(entry["gdrive_id"])


def test_what_the_manifest_says_of_all() -> None:
    manifest = read_manifest()
    by_hand = PUBLISHED["other_source"]
    for records, share in ((manifest.checkpoints, "detection_share"), (manifest.classifiers, "classification_share")):
        for record in records.values():
            assert record.sources[-1] == BaiduNetdisk(by_hand[share], by_hand["password"])
            assert record.license == PUBLISHED["license"]
            assert record.paper.rpartition("/")[2] in PUBLISHED["paper"]
            # Nobody published them.
            assert (record.sha256, record.num_bytes, record.tensors_sha256) == (None, None, None)


def test_manifest_follows_its_schema() -> None:
    schema = json.loads(data_path("weights_manifest.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    manifest = json.loads(data_path("weights_manifest.json").read_text())
    validator.validate(manifest)
    for field, value in (("sha256", "abc"), ("config", "../config.py"), ("name", "a/b"), ("sources", []), ("new", 1)):
        wrong = json.loads(json.dumps(manifest))
        wrong["detectors"][0][field] = value
        assert not validator.is_valid(wrong), field


def test_the_schema_allows_what_the_code_reads() -> None:
    sources = json.loads(data_path("weights_manifest.schema.json").read_text())["$defs"]["sources"]["items"]["oneOf"]
    kinds = {kind["properties"]["kind"]["const"]: kind for kind in sources}
    for source in (GoogleDrive, HubFile, WebFile, LocalFile, BaiduNetdisk):
        fields = [field.name for field in dataclasses.fields(source)]
        assert list(kinds[source.kind]["properties"]) == ["kind", *fields]


@pytest.mark.parametrize("name", DETECTORS)
def test_detector(name: str) -> None:
    checkpoint = dpt_zoo.get_checkpoint(name)
    schema = read_json(f"schema_{checkpoint.architecture}_dpt_{checkpoint.size[0]}.json")
    with torch.device("meta"):  # shapes without numbers
        model: Any = build_detector(checkpoint, checkpoint.num_classes)
    assert describe(model) == schema["state_dict"]
    assert structure_sha256(model.state_dict()) == checkpoint.structure_sha256
    assert [parameter for parameter, _ in model.named_parameters()] == schema["parameters"]
    assert count_parameters(model) == schema["params_total"] == checkpoint.num_params
    assert count_parameters(model.backbone) == schema["params_backbone"]


@pytest.mark.parametrize("size", ["tiny", "small", "medium"])
def test_classifier(size: str) -> None:
    schema = read_json(f"schema_imagenet_dpt_{size}.json")
    model = DPTClassifier(size)
    assert sorted(describe(model)) == sorted(schema["state_dict"])
    assert structure_sha256(model.state_dict()) == get_weights_record(f"dpt_{size}").structure_sha256
    assert count_parameters(model) == schema["parameters_total"]


def describe(model: torch.nn.Module) -> list[list[object]]:
    return [[name, list(tensor.shape), str(tensor.dtype)] for name, tensor in model.state_dict().items()]


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
