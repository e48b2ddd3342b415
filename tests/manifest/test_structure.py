"""The manifest and the models agree with the authors' published facts, and the shipped demos with their records."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from mmengine.config import Config
from reference_data import ROOT, read_json
from ship_demo import ship

import dpt_zoo
from dpt_zoo.errors import DPTZooError
from dpt_zoo.manifest import records as manifest
from dpt_zoo.manifest.locations import BaiduNetdisk, GoogleDrive, HubFile, LocalFile, WebFile
from dpt_zoo.manifest.records import data_path, get_detector_info, get_model_info, read_manifest
from dpt_zoo.models import DPTClassifier
from dpt_zoo.models.factory import build_detector
from dpt_zoo.weights.digests import structure_sha256, tensors_sha256
from dpt_zoo.weights.reading import read_weights

PUBLISHED = read_json("published_results.json")
DETECTORS = {entry["name"]: entry for entry in [*PUBLISHED["retinanet"], *PUBLISHED["mask_rcnn"]]}


def test_manifest_says_what_was_published() -> None:
    assert dpt_zoo.list_models() == list(DETECTORS)
    for name, entry in DETECTORS.items():
        record = read_manifest().published_detectors[name]
        assert (record.size, record.config) == (entry["size"], entry["config"])
        assert {"1x": "1x", "ms3x": "MS+3x"}[record.schedule] == entry["schedule"]
        assert record.metrics == {task: entry[task] for task in ("bbox", "segm") if task in entry}
        assert record.locations[0] == GoogleDrive(entry["gdrive_id"])
        assert round(record.num_params / 1e6, 1) == entry["params_m"]


def test_manifest_has_the_classifiers() -> None:
    for entry in PUBLISHED["imagenet_backbones"]:
        classifier = read_manifest().classifiers[entry["name"]]
        assert classifier.num_params == read_json(f"schema_imagenet_{entry['name']}.json")["parameters_total"]
        assert round(classifier.num_params / 1e6, 1) == entry["params_m"]
        assert classifier.metrics == {"top1": entry["acc1"]}
        assert classifier.locations[0] == GoogleDrive(entry["gdrive_id"])


def test_manifest_has_the_common_facts() -> None:
    by_hand = PUBLISHED["other_source"]
    detectors, classifiers = read_manifest().published_detectors, read_manifest().classifiers
    for records, share in ((detectors, "detection_share"), (classifiers, "classification_share")):
        for record in records.values():
            assert record.locations[-1] == BaiduNetdisk(by_hand[share], by_hand["password"])
            assert record.license == PUBLISHED["license"]
            assert record.paper.rpartition("/")[2] in PUBLISHED["paper"]
            # Nobody published them.
            assert (record.sha256, record.num_bytes, record.tensors_sha256) == (None, None, None)


WRONG: dict[str, Any] = {"sha256": "abc", "config": "../config.py", "name": "a/b", "locations": [], "new": 1}
WRONG_IN: dict[str, dict[str, Any]] = {
    "detectors": WRONG,
    "classifiers": {"metrics": {}},
    "demos": {
        **WRONG,
        "num_bytes": 6_000_001,
        "num_params": 3_000_001,
        "metrics": {"bbox": {"mAP": 101}},
        "minutes": 0,
        "versions": {},
    },
}
"""Invalid values of fields, by section of the manifest."""


def test_manifest_follows_its_schema() -> None:
    schema = json.loads(data_path("weights_manifest.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    content = json.loads(data_path("weights_manifest.json").read_text())
    validator.validate(content)
    for section, fields in WRONG_IN.items():
        for field, value in fields.items():
            wrong = json.loads(json.dumps(content))
            wrong[section][0][field] = value
            assert not validator.is_valid(wrong), (section, field)


def test_the_schema_allows_what_the_code_reads() -> None:
    schema = json.loads(data_path("weights_manifest.schema.json").read_text())
    types = {each["properties"]["type"]["const"]: each for each in schema["$defs"]["locations"]["items"]["oneOf"]}
    for location in (GoogleDrive, HubFile, WebFile, LocalFile, BaiduNetdisk):
        fields = [field.name for field in dataclasses.fields(location)]
        assert list(types[location.type]["properties"]) == ["type", *fields]


@pytest.mark.parametrize("name", DETECTORS)
def test_detector(name: str) -> None:
    record = get_detector_info(name)
    schema = read_json(f"schema_{record.architecture}_dpt_{record.size[0]}.json")
    with torch.device("meta"):  # shapes without numbers
        model: Any = build_detector(Config.fromfile(record.config_path), record.num_classes)
    assert describe(model) == schema["state_dict"]
    assert structure_sha256(model.state_dict()) == record.structure_sha256
    assert [parameter for parameter, _ in model.named_parameters()] == schema["parameters"]
    assert count_parameters(model) == schema["params_total"] == record.num_params
    assert count_parameters(model.backbone) == schema["params_backbone"]


@pytest.mark.parametrize("size", ["tiny", "small", "medium"])
def test_classifier(size: str) -> None:
    schema = read_json(f"schema_imagenet_dpt_{size}.json")
    model = DPTClassifier(size)
    assert sorted(describe(model)) == sorted(schema["state_dict"])
    assert structure_sha256(model.state_dict()) == get_model_info(f"dpt_{size}").structure_sha256
    assert count_parameters(model) == schema["parameters_total"]


# --- The shipped demos


def test_demos_are_listed_when_asked_for() -> None:
    demos = ["retinanet_dpt_nano_digits", "mrcnn_dpt_nano_digits"]
    assert list(read_manifest().demos) == demos
    assert dpt_zoo.list_models(include_demos=True) == [*dpt_zoo.list_models(), *demos]
    assert dpt_zoo.list_models("*digits") == []
    assert dpt_zoo.list_models("mrcnn*digits", include_demos=True) == ["mrcnn_dpt_nano_digits"]
    assert set(demos) < read_manifest().records.keys()


@pytest.mark.parametrize("name", list(read_manifest().demos))
def test_demo(name: str) -> None:
    check_demo(name)


def check_demo(name: str) -> None:
    """Check that a demo's record agrees with its files, and that these keep within their limits."""
    demo = read_manifest().demos[name]
    folder = demo.config_path.parent
    assert demo.locations == (LocalFile(folder / f"{name}.safetensors"),)
    content = demo.locations[0].path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == demo.sha256
    assert len(content) == demo.num_bytes
    assert len(content) <= 6_000_000

    weights = read_weights(demo.locations[0].path)
    assert {tensor.dtype for tensor in weights.tensors.values() if tensor.is_floating_point()} == {torch.float16}
    assert tensors_sha256(weights.tensors) == demo.tensors_sha256
    assert structure_sha256(weights.tensors) == demo.structure_sha256
    with torch.device("meta"):
        model: Any = build_detector(Config.fromfile(demo.config_path), demo.num_classes)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert {key: tensor.shape for key, tensor in weights.tensors.items()} == shapes
    assert count_parameters(model) == demo.num_params
    assert demo.num_params <= 3_000_000

    config = Config.fromfile(demo.config_path)
    heads = config.model.get("roi_head", config.model)
    assert {heads[head].num_classes for head in ("bbox_head", "mask_head") if head in heads} == {demo.num_classes}
    classes = list(config.train_dataloader.dataset.metainfo.classes)
    assert len(classes) == demo.num_classes
    assert weights.meta == {"dataset_meta": {"classes": classes}}

    assert demo.metrics.keys() == {"retinanet": {"bbox"}, "mask_rcnn": {"bbox", "segm"}}[demo.architecture]
    assert all(0 <= value <= 100 for values in demo.metrics.values() for value in values.values())
    assert demo.log_path == folder / f"{name}.log.jsonl"
    lines = demo.log_path.read_text().splitlines()
    assert lines
    assert all(isinstance(json.loads(line), dict) for line in lines)


BOX_METRICS = {"mAP": 81.23456, "AP50": 95, "AP75": 90.06, "APl": None, "AR1": 50.0}
METRICS = {"metrics": {"bbox": BOX_METRICS, "segm": {"mAP": 1, "AP50": 2, "AP75": 3}}, "versions": {"torch": "other"}}
MADE = {
    "data": "two scenes",
    "command": "dpt-zoo train",
    "seed": 7,
    "versions": {"python": "3.11"},
    "machine": "two cores",
    "minutes": 1.5,
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the project's data, with the inputs for shipping a demo: a checkpoint, a log, results."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copy(ROOT / "weights_manifest.json", tmp_path)
    model = dpt_zoo.create_model("mrcnn_dpt_nano_digits", pretrained=False)
    torch.save({"state_dict": model.state_dict(), "meta": {"epoch": 3}, "optimizer": {}}, tmp_path / "trained.pth")
    for name, content in {"log": {"loss": 1.0}, "metrics": METRICS, "made": MADE}.items():
        (tmp_path / f"{name}.json").write_text(f"{json.dumps(content)}\n")
    monkeypatch.setattr(manifest, "data_path", tmp_path.joinpath)
    read_manifest.cache_clear()
    yield tmp_path
    read_manifest.cache_clear()


def test_shipping_a_demo(project: Path) -> None:
    before = read_manifest()
    results = [project / "metrics.json", project / "made.json"]
    ship("mrcnn_dpt_nano_digits", project / "trained.pth", project / "log.json", results)
    check_demo("mrcnn_dpt_nano_digits")
    demo = read_manifest().demos["mrcnn_dpt_nano_digits"]
    assert demo.metrics["bbox"] == {"mAP": 81.2, "AP50": 95, "AP75": 90.1}
    assert {field: getattr(demo, field) for field in MADE} == MADE
    assert demo.log_path.read_bytes() == (project / "log.json").read_bytes()
    others = [name for name in before.records if name != demo.name]
    assert [read_manifest().records[name] for name in others] == [before.records[name] for name in others]


@pytest.mark.parametrize(
    ("name", "trained", "log", "results", "complaint"),
    [
        ("mrcnn_dpt_t_1x", "trained.pth", "log.json", ["metrics.json", "made.json"], "'mrcnn_dpt_t_1x' is not a demo"),
        ("retinanet_dpt_nano_digits", "trained.pth", "log.json", ["metrics.json", "made.json"], "these are not retina"),
        ("mrcnn_dpt_nano_digits", "none.pth", "log.json", ["metrics.json", "made.json"], "there is no such file"),
        ("mrcnn_dpt_nano_digits", "trained.pth", "trained.pth", ["metrics.json", "made.json"], "JSON lines"),
        ("mrcnn_dpt_nano_digits", "trained.pth", "log.json", ["metrics.json"], "none of them has data, command"),
        ("mrcnn_dpt_nano_digits", "trained.pth", "log.json", ["none.json"], "is not a results file"),
        ("mrcnn_dpt_nano_digits", "trained.pth", "log.json", ["log.json", "made.json"], "none of them has metrics"),
    ],
)
def test_shipping_refuses_bad_input(
    project: Path, name: str, trained: str, log: str, results: list[str], complaint: str
) -> None:
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    with pytest.raises(DPTZooError, match=complaint):
        ship(name, project / trained, project / log, [project / each for each in results])
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


def describe(model: torch.nn.Module) -> list[list[object]]:
    return [[name, list(tensor.shape), str(tensor.dtype)] for name, tensor in model.state_dict().items()]


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
