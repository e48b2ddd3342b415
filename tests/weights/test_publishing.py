"""Publishing on the Hugging Face Hub by its real client: the repository, the model card, and errors."""

import dataclasses
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import READER, WRITER, HubServer, check_card
from huggingface_hub import ModelCard, constants, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from mmengine.config import Config
from safetensors.torch import load, load_file, save_file

import dpt_zoo
from dpt_zoo.errors import DPTZooError, InputError, OutputError
from dpt_zoo.manifest.locations import HubFile, HubModel, parse_location
from dpt_zoo.manifest.metadata import parse_config
from dpt_zoo.manifest.model_card import card
from dpt_zoo.manifest.records import read_manifest
from dpt_zoo.models.metadata import describe_record
from dpt_zoo.weights.digests import tensors_sha256
from dpt_zoo.weights.huggingface import fetch_from_hub
from dpt_zoo.weights.publishing import CONFIG_FILE, model_card, publish, resolved_config
from dpt_zoo.weights.store import read_metadata

pytestmark = [
    pytest.mark.network,
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # how the client uses httpx
]

RECORD = read_manifest().published_detectors["mrcnn_dpt_t_1x"]
METADATA = describe_record(RECORD)
REPO = "org/dpt"
DIGEST = "0123456789abcdef" * 4
EVERY_MODEL = pytest.mark.parametrize("name", dpt_zoo.list_models())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub to which this process may write, and without waiting."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with HubServer() as server:
        server.use(monkeypatch, tmp_path / "home", WRITER)
        yield server


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "mrcnn_dpt_t_1x.safetensors"
    save_file({"backbone.weight": torch.arange(50_000.0).view(50, 1000), "steps": torch.tensor([3])}, path)
    return path


class TestRepository:
    def test_what_arrives(self, hub: HubServer, weights: Path) -> None:
        url = publish(weights, METADATA, REPO, record=RECORD)
        assert url == f"{hub.url}/{REPO}/commit/{hub.repositories[REPO].head}"
        assert not hub.repositories[REPO].private
        assert len(hub.repositories[REPO].commits) == 2  # the empty repository's, and ours
        files = hub.files(REPO)
        assert files.keys() == {".gitattributes", "model.safetensors", "config.json", "config.py", "README.md"}
        assert_same_tensors(files["model.safetensors"], weights)
        assert parse_config(files["config.json"], "config.json") == METADATA
        assert files["config.py"].decode() == resolved_config(RECORD)
        assert files["README.md"].decode() == model_card(RECORD, REPO, tensors_sha256(load_file(weights)))

    @pytest.mark.parametrize("part_size", [None, 60_000], ids=["one part", "parts"])
    def test_fetched_again_it_is_the_same(
        self, hub: HubServer, weights: Path, tmp_path: Path, part_size: int | None
    ) -> None:
        hub.part_size = part_size
        publish(weights, METADATA, REPO, record=RECORD)
        path = fetch_from_hub(HubFile(REPO, "model.safetensors"), tmp_path / "staging")
        assert_same_tensors(path.read_bytes(), weights)
        assert read_metadata(path) == METADATA

    def test_published_twice(self, hub: HubServer, weights: Path) -> None:
        assert publish(weights, METADATA, REPO, record=RECORD) == publish(weights, METADATA, REPO, record=RECORD)
        assert len(hub.repositories[REPO].commits) == 2
        assert len(hub.asked("PUT", "/upload/")) == 1

    def test_other_weights_are_another_commit(self, hub: HubServer, weights: Path) -> None:
        publish(weights, METADATA, REPO, record=RECORD)
        save_file({"backbone.weight": torch.zeros(3)}, weights)
        publish(weights, METADATA, REPO, record=RECORD)
        assert len(hub.repositories[REPO].commits) == 3
        assert_same_tensors(hub.files(REPO)["model.safetensors"], weights)

    def test_what_else_is_there_stays(self, hub: HubServer, weights: Path) -> None:
        hub.add(REPO, {"NOTES.md": b"mine", "README.md": b"old"})
        publish(weights, METADATA, REPO, record=RECORD)
        assert hub.files(REPO)["NOTES.md"] == b"mine"
        assert hub.files(REPO)["README.md"] != b"old"

    def test_a_private_one(self, hub: HubServer, weights: Path) -> None:
        for _ in range(2):
            publish(weights, METADATA, REPO, record=RECORD, private=True)
        assert hub.repositories[REPO].private

    def test_nothing_is_said(self, hub: HubServer, weights: Path, tmp_path: Path) -> None:
        hub.warning = "tokens; Yours is old."
        hub.fail("PUT", "/upload/", times=1, status=500)
        code = f"""
from pathlib import Path
import dpt_zoo
from dpt_zoo.manifest.metadata import WeightsMetadata
from dpt_zoo.weights.publishing import publish
record = dpt_zoo.get_model_info("mrcnn_dpt_t_1x")
metadata = WeightsMetadata(architecture="mask_rcnn", size="tiny", classes=("cat",), scale=(1333, 800))
for _ in range(2):
    publish(Path({str(weights)!r}), metadata, "{REPO}", record=record)
"""
        environment = os.environ | hub.environment(tmp_path / "home", WRITER)
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert_same_tensors(hub.files(REPO)["model.safetensors"], weights)


class TestRefusals:
    @pytest.mark.parametrize(
        ("repo", "text"),
        [
            ("dpt", "'dpt' is not a Hub repository (org/name)"),
            ("https://huggingface.co/org/dpt", "is not a Hub repository (org/name)"),
            ("org/dpt zoo", "is not a Hub repository (org/name)"),
            ("org/dpt--zoo", "Cannot have -- or .. in repo_id"),
        ],
    )
    def test_no_name_of_a_repository(self, hub: HubServer, weights: Path, repo: str, text: str) -> None:
        assert_refused(hub, weights, InputError, re.escape(text), repo)

    @pytest.mark.parametrize(
        ("token", "repo", "text"),
        [
            ("", REPO, "nobody is logged in to the Hub: run `hf auth login`, or set HF_TOKEN"),
            ("hf_expired", REPO, "answered 401 Unauthorized: Invalid credentials .*: run `hf auth login`"),
            (READER, REPO, "answered 403 Forbidden: You don't have the rights"),
            (WRITER, "other/dpt", "other/dpt could not be published: the Hub answered 403 Forbidden: You don't have"),
        ],
        ids=["nobody", "expired", "read only", "other namespace"],
    )
    def test_no_right_to_write(
        self, hub: HubServer, weights: Path, monkeypatch: pytest.MonkeyPatch, token: str, repo: str, text: str
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", token)
        assert_refused(hub, weights, OutputError, text, repo)

    @pytest.mark.parametrize("namespace", ["org", "other"])
    def test_no_right_to_write_to_what_is_there(
        self, hub: HubServer, weights: Path, monkeypatch: pytest.MonkeyPatch, namespace: str
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", READER)
        hub.add(f"{namespace}/dpt", {"README.md": b"theirs"})
        assert_refused(hub, weights, OutputError, "403 Forbidden: You don't have the rights", f"{namespace}/dpt")

    def test_public_already(self, hub: HubServer, weights: Path) -> None:
        hub.add(REPO, {"README.md": b"public"})
        with pytest.raises(InputError, match="org/dpt exists and is public: choose another name"):
            publish(weights, METADATA, REPO, record=RECORD, private=True)
        assert hub.files(REPO) == {"README.md": b"public"}

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("POST", "/api/repos/create", 429),
            ("POST", "/preupload/", 403),
            ("POST", "/objects/batch", 403),
            ("PUT", "/upload/", 413),
            ("PUT", "/upload/", 503),
            ("POST", "/verify", 400),
            ("POST", "/commit/", 403),
            ("POST", "/commit/", 500),
        ],
    )
    def test_an_error_at_any_step(self, hub: HubServer, weights: Path, method: str, path: str, status: int) -> None:
        hub.fail(method, path, status=status, message="Storage limit reached")
        assert_refused(hub, weights, OutputError, f"the Hub answered {status} [A-Z].*: Storage limit reached")

    def test_a_card_that_the_hub_refuses(self, hub: HubServer, weights: Path) -> None:
        unlicensed = dataclasses.replace(RECORD, license="none")
        with pytest.raises(OutputError, match=r"Invalid metadata in README.md. - license: 'none' is not one of"):
            publish(weights, METADATA, REPO, record=unlicensed)
        assert hub.files(REPO).keys() == {".gitattributes"}

    def test_no_connection(self, hub: HubServer, weights: Path) -> None:
        hub.__exit__()
        assert_refused(hub, weights, OutputError, "org/dpt could not be published: .*refused")

    def test_offline(self, hub: HubServer, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert_refused(hub, weights, OutputError, "HF_HUB_OFFLINE is set")


class TestCard:
    @EVERY_MODEL
    def test_the_hub_accepts_it(self, name: str) -> None:
        assert check_card(model_card(read_manifest().published_detectors[name], REPO, DIGEST)) == ([], [])

    @EVERY_MODEL
    def test_its_metrics_are_the_manifests(self, name: str, tmp_path: Path) -> None:
        record = read_manifest().published_detectors[name]
        (tmp_path / "README.md").write_text(model_card(record, REPO, DIGEST))
        metadata: Any = metadata_load(tmp_path / "README.md")
        model_name, results = model_index_to_eval_results(metadata["model-index"])
        assert model_name == name
        tasks = {"object-detection": "bbox", "instance-segmentation": "segm"}
        metrics: dict[str, dict[str, float]] = {}
        for result in results:
            metrics.setdefault(tasks[result.task_type], {})[result.metric_type] = result.metric_value
            assert result.source_name == "published by the authors, not measured again"
            assert result.source_url == record.paper
            assert not result.verified
        assert metrics == record.metrics

    def test_it_is_read_as_it_was_written(self) -> None:
        text = model_card(RECORD, REPO, DIGEST)
        assert str(ModelCard(text)) == text
        assert model_card(RECORD, REPO, DIGEST) == text

    def test_its_metadata(self) -> None:
        masks = ModelCard(model_card(RECORD, REPO, DIGEST)).data.to_dict()
        assert (masks["license"], masks["library_name"]) == ("apache-2.0", "dpt-zoo")
        assert masks["pipeline_tag"] == "image-segmentation"
        record = read_manifest().published_detectors["retinanet_dpt_s_ms3x"]
        boxes = ModelCard(model_card(record, REPO, DIGEST)).data.to_dict()
        assert boxes["pipeline_tag"] == "object-detection"
        assert boxes["tags"] == ["dpt", "retinanet", "object-detection", "mmdetection"]

    @EVERY_MODEL
    def test_its_text_is_the_models_card(self, name: str) -> None:
        record = read_manifest().published_detectors[name]
        text = model_card(record, REPO, DIGEST)
        published = dataclasses.replace(record, tensors_sha256=DIGEST)
        assert text == card(published, location=f"hf://{REPO}")
        assert f"| tensors SHA-256 | `{DIGEST}` |" in text and f"`{CONFIG_FILE}`" in text

    def test_its_examples_load_what_was_published(self) -> None:
        examples = re.findall(r"```python\n(.*?)```", model_card(RECORD, REPO, DIGEST), re.DOTALL)
        assert len(examples) == 2
        for example in examples:
            compile(example, "README.md", "exec")
            location = re.search(r'"(hf://.*?)"', example)
            assert location
            assert parse_location(location[1]) == HubModel(REPO)

    @pytest.mark.parametrize(
        ("right", "wrong"),
        [
            ("license: apache-2.0", "license: Apache-2.0"),
            ("pipeline_tag: image-segmentation", "pipeline_tag: instance-segmentation"),
            ("- coco", "- null"),
            ("- mmdetection", "- 3"),
            ("- name: mrcnn_dpt_t_1x\n  results", "- results"),
            ("    - type: mAP\n      value: 40.2", "    - type: mAP"),
            ("      type: coco\n", ""),
            ("      type: coco\n", "      type: COCO 2017\n"),
            ("      split: validation\n", "      split: 2017\n"),
            ("      url: https://arxiv.org/abs/2107.14467\n", ""),
            ("---\nlicense", "license"),
        ],
    )
    def test_the_check_would_tell(self, right: str, wrong: str) -> None:
        text = model_card(RECORD, REPO, DIGEST)
        assert right in text
        errors, warnings = check_card(text.replace(right, wrong, 1))
        assert errors or warnings


@pytest.mark.parametrize("name", dpt_zoo.list_models("*_t_*"))  # the sizes differ in one word only
def test_the_config_stands_alone(name: str, tmp_path: Path) -> None:
    record = read_manifest().published_detectors[name]
    (tmp_path / "config.py").write_text(resolved_config(record))
    alone = Config.fromfile(tmp_path / "config.py")
    assert alone.to_dict() == Config.fromfile(record.config_path).to_dict()


def assert_same_tensors(content: bytes, weights: Path) -> None:
    """Only the header of a file is another one."""
    assert tensors_sha256(load(content)) == tensors_sha256(load_file(weights))


def assert_refused(hub: HubServer, weights: Path, kind: type[DPTZooError], text: str, repo: str = REPO) -> None:
    """Publishing ends in one line that says so, and nothing of it is in the repository."""
    with pytest.raises(kind, match=text) as raised:
        publish(weights, METADATA, repo, record=RECORD)
    assert "\n" not in str(raised.value)
    assert all("model.safetensors" not in hub.files(each) for each in hub.repositories)
