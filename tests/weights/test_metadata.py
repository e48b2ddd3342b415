"""What a weights file says about its model: written, read back, enough to load it, and refused if it is wrong."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import WRITER, HubServer, check_card
from reference_data import ROOT
from running import Run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import dpt_zoo
from dpt_zoo.engine.config import load_config
from dpt_zoo.errors import FetchError, InputError, WeightsError
from dpt_zoo.manifest.metadata import METADATA_KEY, WeightsMetadata
from dpt_zoo.manifest.model_card import own_card
from dpt_zoo.models.metadata import describe
from dpt_zoo.weights.converting import convert
from dpt_zoo.weights.metadata import write_metadata
from dpt_zoo.weights.publishing import hub_config, publish
from dpt_zoo.weights.reading import META_KEY
from dpt_zoo.weights.store import read_metadata

DEMO = "retinanet_dpt_nano_digits"
SHIPPED = ROOT / "configs" / "demo" / f"{DEMO}.safetensors"
SCENE = ROOT / "dpt_zoo" / "app" / "examples" / "digits-1.png"
METADATA = WeightsMetadata(
    architecture="retinanet",
    size="nano",
    classes=tuple("abcdefghij"),
    scale=(192, 192),
    license="MIT",
    metrics={"bbox": {"mAP": 79.4}},
    training={"epoch": 6, "images": 8000},
)


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """Return the demo's weights with metadata."""
    write_metadata(METADATA, SHIPPED, tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


def forge(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the metadata in a file's header."""
    with safe_open(path, "np") as file:
        meta = json.loads(file.metadata()[META_KEY])
    change(meta[METADATA_KEY])
    save_file(load_file(path), path, {META_KEY: json.dumps(meta)})
    return path


class TestWriting:
    def test_only_the_header_changes(self, described: Path) -> None:
        before, after = load_file(SHIPPED), load_file(described)
        assert all(tensor.equal(after[name]) for name, tensor in before.items())
        assert read_metadata(described) == METADATA
        with safe_open(described, "np") as file:
            assert json.loads(file.metadata()[META_KEY])["dataset_meta"]["classes"] == [*"0123456789"]

    def test_a_file_is_replaced_in_place(self, described: Path) -> None:
        write_metadata(replace(METADATA, license="ISC"), described, described)
        assert read_metadata(described).license == "ISC"
        once = described.read_bytes()
        write_metadata(replace(METADATA, license="ISC"), described, described)
        assert described.read_bytes() == once
        assert [path.name for path in described.parent.glob("*mine*")] == [described.name]

    def test_a_conversion_keeps_it(self, described: Path, tmp_path: Path) -> None:
        convert(described, tmp_path / "old.pth", to="mmdet2")
        convert(tmp_path / "old.pth", tmp_path / "new.safetensors", half=True)
        assert read_metadata(tmp_path / "old.pth") == read_metadata(tmp_path / "new.safetensors") == METADATA

    def test_a_checkpoint_is_not_changed(self, tmp_path: Path) -> None:
        torch.save({"a": torch.zeros(2)}, tmp_path / "a.pth")
        with pytest.raises(InputError, match="convert it to safetensors first"):
            write_metadata(METADATA, tmp_path / "a.pth", tmp_path / "b.safetensors")
        assert not (tmp_path / "b.safetensors").exists()

    def test_the_command_adds_it(self, run: Run, tmp_path: Path) -> None:
        output = tmp_path / "out.safetensors"
        assert run("convert", SHIPPED, output, "--model", DEMO, "--license", "MIT")[0] == 0
        metadata = read_metadata(output)
        assert (metadata.name, metadata.license, metadata.metrics) == ("retinanet_dpt_nano", "MIT", {})
        assert run("convert", DEMO, output)[0] == 0
        assert read_metadata(output).metrics == dpt_zoo.get_model_info(DEMO).metrics
        assert (
            "are not mrcnn_dpt_nano_digits's weights"
            in run("convert", SHIPPED, output, "--model", "mrcnn_dpt_nano_digits")[2]
        )
        assert "license must be an SPDX identifier" in run("convert", DEMO, output, "--license", "a b")[2]
        assert "--license needs --model" in run("convert", SHIPPED, output, "--license", "MIT")[2]

    def test_it_is_shown_escaped(self, run: Run, described: Path) -> None:
        status, out, err = run("info", described)
        assert (status, err) == (0, "") and "retinanet" in out and "MIT" in out
        forge(described, lambda content: content.update(classes=["\x1b[2J"] * 10))
        status, out, err = run("info", described)
        assert (status, out) == (2, "") and "\x1b" not in err


class TestDescribing:
    def test_every_config_of_the_zoo(self) -> None:
        for name in dpt_zoo.list_models(include_demos=True):
            record: Any = dpt_zoo.get_model_info(name)
            metadata = describe(load_config(name))
            assert (metadata.architecture, metadata.size) == (record.architecture, record.size)
            assert len(metadata.classes) == record.num_classes

    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            (
                {"model.bbox_head.anchor_generator.octave_base_scale": 8},
                "'model.bbox_head.anchor_generator.octave_base",
            ),
            ({"model.test_cfg.score_thr": 0.5}, "'model.test_cfg.score_thr'"),
            ({"model.data_preprocessor.mean": [1, 2, 3]}, "'model.data_preprocessor.mean.0'"),
            ({"model.type": "FCOS"}, "not a RetinaNet or Mask R-CNN"),
            ({"test_dataloader": None}, "no test_dataloader"),
        ],
    )
    def test_a_config_with_settings_of_its_own(self, settings: dict[str, Any], text: str) -> None:
        cfg = load_config(DEMO)
        cfg.merge_from_dict(settings)
        with pytest.raises(InputError, match=text):
            describe(cfg)

    def test_settings_without_effect_on_detection(self) -> None:
        cfg = load_config(DEMO)
        cfg.merge_from_dict({"model.backbone.drop_path_rate": 0.3, "model.bbox_head.loss_bbox.loss_weight": 1.0})
        assert describe(cfg) == describe(load_config(DEMO))


class TestLoading:
    def test_the_path_is_enough(self, described: Path) -> None:
        model: Any = dpt_zoo.create_model(described)
        assert model.dataset_meta["classes"] == METADATA.classes
        expected = dpt_zoo.Detector(DEMO)(SCENE)
        detections = dpt_zoo.Detector(str(described))(SCENE)
        assert len(detections) > 3
        assert np.array_equal(detections.boxes, expected.boxes) and np.array_equal(detections.scores, expected.scores)
        assert detections.names == [METADATA.classes[int(name)] for name in expected.names]

    def test_the_scale_is_the_files(self, described: Path) -> None:
        write_metadata(replace(METADATA, scale=(320, 256)), described, described)
        model: Any = dpt_zoo.create_model(described)
        (resize,) = [each for each in model.cfg.test_dataloader.dataset.pipeline if each.type == "Resize"]
        assert tuple(resize.scale) == (320, 256)

    def test_for_other_classes(self, described: Path) -> None:
        model: Any = dpt_zoo.create_model(described, num_classes=3)
        assert model.dataset_meta["classes"] == ("class 0", "class 1", "class 2")

    @pytest.mark.slow
    def test_moved_and_in_a_new_process(self, described: Path, tmp_path: Path) -> None:
        expected = dpt_zoo.Detector(described)(SCENE)
        moved = tmp_path / "elsewhere" / "any name.safetensors"
        moved.parent.mkdir()
        shutil.move(described, moved)
        code = "import sys, dpt_zoo; print(dpt_zoo.Detector(sys.argv[1])(sys.argv[2]).boxes.tobytes().hex())"
        command = [sys.executable, "-c", code, moved, SCENE]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert bytes.fromhex(done.stdout) == expected.boxes.tobytes()

    def test_a_file_without_it_needs_a_name(self) -> None:
        with pytest.raises(WeightsError, match="does not say which model it is for: give the model's name") as raised:
            dpt_zoo.create_model(SHIPPED)
        assert "\n" not in str(raised.value)
        dpt_zoo.create_model(DEMO, weights=SHIPPED)

    @pytest.mark.parametrize("arguments", [{"weights": SHIPPED}, {"pretrained": False}], ids=["weights", "pretrained"])
    def test_arguments_of_a_name(self, described: Path, arguments: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="are only for a name"):
            dpt_zoo.create_model(described, **arguments)


LIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "format": (lambda content: content.update(format=2), "format 2 of its metadata is not supported"),
    "incomplete": (lambda content: content.pop("size"), "'size' is None"),
    "unknown entry": (lambda content: content.update({"run\x1b[2J": 1}), r"unknown entry: 'run\\x1b\[2J'"),
    "architecture": (lambda content: content.update(architecture="mask_rcnn"), "not mask_rcnn_dpt_nano's weights"),
    "no architecture": (lambda content: content.update(architecture=["a"]), "'architecture' is"),
    "size": (lambda content: content.update(size="tiny"), "not retinanet_dpt_tiny's weights"),
    "no size": (lambda content: content.update(size="../x"), "'size' is"),
    "classes": (lambda content: content.update(classes=["a", "b"]), "2 classes instead of 10"),
    "no classes": (lambda content: content.update(classes=[]), "'classes' is"),
    "control characters": (lambda content: content.update(classes=["a\n"] * 10), r"'classes' is \['a\\n'"),
    "scale": (lambda content: content.update(scale=[10**9, 1]), "'scale' is"),
    "licence": (lambda content: content.update(license="MIT\nx: y"), "'license' is"),
    "metrics": (lambda content: content.update(metrics={"bbox": {"mAP": float("nan")}}), "'metrics' is"),
    "training": (lambda content: content.update(training={"a": {}}), "'training' is"),
    "thresholds": (lambda content: content.update(score_thresholds=[2] * 10), "'score_thresholds' is"),
    "few thresholds": (lambda content: content.update(score_thresholds=[0.5]), "other numbers of classes"),
}


@pytest.mark.parametrize(("change", "text"), LIES.values(), ids=LIES)
def test_a_header_that_lies_is_refused(described: Path, change: Callable[[dict[str, Any]], object], text: str) -> None:
    with pytest.raises(WeightsError, match=text) as raised:
        dpt_zoo.create_model(forge(described, change))
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("part", [0.999, 0.5, 0.001])
def test_a_truncated_file_is_refused(described: Path, part: float) -> None:
    content = described.read_bytes()
    described.write_bytes(content[: int(part * len(content))])
    with pytest.raises(WeightsError) as raised:
        dpt_zoo.create_model(described)
    assert str(raised.value).isprintable()


@pytest.mark.network
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
class TestHub:
    REPO = "org/mine"

    @pytest.fixture
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        with HubServer() as server:
            server.use(monkeypatch, tmp_path / "home", WRITER)
            yield server

    def test_own_weights_are_published_and_loaded(
        self, hub: HubServer, described: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(described, METADATA, self.REPO)
        assert hub.files(self.REPO).keys() == {".gitattributes", "model.safetensors", "config.json", "README.md"}
        hub.requests.clear()
        detector = dpt_zoo.Detector.from_pretrained(self.REPO, score_threshold=0.1)
        assert (detector.classes, detector.score_threshold) == (METADATA.classes, 0.1)
        assert len(hub.asked("GET", "config.json")) == 1
        hub.requests.clear()
        assert dpt_zoo.create_model(f"hf://{self.REPO}").dataset_meta["classes"] == METADATA.classes  # type: ignore[union-attr]
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        dpt_zoo.Detector(f"hf://{self.REPO}")
        assert hub.requests == []

    def test_offline_and_not_cached(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(FetchError, match="HF_HUB_OFFLINE is set"):
            dpt_zoo.Detector.from_pretrained(self.REPO)
        assert hub.requests == []

    def test_config_json_is_enough(self, hub: HubServer) -> None:
        hub.add(self.REPO, {"model.safetensors": SHIPPED.read_bytes(), "config.json": hub_config(METADATA).encode()})
        assert dpt_zoo.Detector.from_pretrained(self.REPO).classes == METADATA.classes

    @pytest.mark.parametrize(
        ("config", "text"),
        [
            (
                b'{"architectures": ["DetrForObjectDetection"]}',
                "not the config of a model that `dpt-zoo publish` wrote",
            ),
            (b"[" * 100_000, "not the config of a model"),
            (
                hub_config(replace(METADATA, license="ISC")).encode(),
                "its config.json contradicts its model.safetensors",
            ),
        ],
        ids=["another library", "deep", "contradiction"],
    )
    def test_a_wrong_config(self, hub: HubServer, described: Path, config: bytes, text: str) -> None:
        hub.add(self.REPO, {"model.safetensors": described.read_bytes(), "config.json": config})
        with pytest.raises(FetchError, match=text):
            dpt_zoo.Detector.from_pretrained(self.REPO)

    def test_the_command(self, hub: HubServer, described: Path, run: Run) -> None:
        status, out, err = run("publish", described, "--repo", self.REPO)
        assert (status, err) == (0, "") and out.startswith(hub.url)
        assert "does not say which model" in run("publish", SHIPPED, "--repo", self.REPO)[2]

    @pytest.mark.parametrize("license", ["MIT", "NOASSERTION", "LicenseRef-mine"])
    @pytest.mark.parametrize("metrics", [{}, METADATA.metrics], ids=["not measured", "measured"])
    def test_the_hub_accepts_the_card(self, license: str, metrics: Any) -> None:
        metadata = replace(METADATA, license=license, metrics=metrics, classes=("<b>|`", "- a: b"))
        text = own_card(metadata, location="hf://org/mine", tensors_sha256="ab" * 32)
        assert check_card(text) == ([], [])
        assert r"\<b\>\|\`, - a: b" in text
