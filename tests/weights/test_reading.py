"""Reading weights files of all forms, and refusing other files. For hostile files, see test_hostile_files.py."""

import argparse
import json
import os
import pickle
import subprocess
import sys
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from reference_data import ROOT, read_json
from safetensors.torch import save_file

import dpt_zoo
from dpt_zoo.errors import WeightsError
from dpt_zoo.weights.digests import structure_sha256, tensors_sha256
from dpt_zoo.weights.reading import read_weights, verify_crc

STATE = OrderedDict(weight=torch.arange(6.0).view(2, 3), count=torch.tensor([3]))

both_containers = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@pytest.mark.slow
def test_an_authors_file_becomes_a_model(authors_file: Path) -> None:
    model = dpt_zoo.create_model("retinanet_dpt_t_1x", weights=authors_file)
    for name, tensor in model.state_dict().items():
        values = np.zeros(tensor.shape, np.int64)
        if tensor.is_floating_point():
            values = (((np.arange(tensor.numel()) + crc32(name.encode())) % 251 - 125) / 1000).reshape(tensor.shape)
        assert np.array_equal(tensor.numpy(), values.astype(tensor.numpy().dtype)), name


def test_what_an_authors_file_tells_about_itself(authors_file: Path) -> None:
    weights = read_weights(authors_file)
    assert weights.container == "pth"
    assert weights.meta.keys() == {
        "env_info", "config", "seed", "exp_name", "mmdet_version", "CLASSES",
        "epoch", "iter", "hook_msgs", "mmcv_version", "time",
    }  # fmt: skip
    assert (weights.meta["epoch"], weights.meta["mmcv_version"], weights.meta["seed"]) == (12, "1.2.7", None)
    assert len(weights.meta["CLASSES"]) == 80
    assert weights.meta["config"].startswith("model = dict(\n")
    assert {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in weights.tensors.items()} == {
        name: [dtype, shape] for name, shape, dtype in read_json("schema_retinanet_dpt_t.json")["state_dict"]
    }


# --- Forms of a checkpoint

MMCV = {"state_dict": STATE, "meta": {"epoch": 12, "CLASSES": ("person", "car")}, "optimizer": {"lr": torch.ones(9)}}
MMENGINE = {
    "state_dict": STATE,
    "meta": {"epoch": 1, "dataset_meta": {"classes": ("a", "b"), "palette": [(1, 2, 3)]}, "best": np.float64(0.5)},
    "message_hub": {"log_scalars": OrderedDict(loss=HistoryBuffer([2.0, 1.0], [1, 1])), "lr": np.float32(0.1)},
    "param_schedulers": [{"milestones": Counter([8, 11])}],
}
ARGUMENTS = argparse.Namespace(lr=0.1, drop=None, sizes=(224, 224), output_dir=Path("runs/1"))
IMAGENET = {"model": STATE, "epoch": 300, "args": ARGUMENTS, "optimizer": {"lr": 1}, "max_accuracy": 81.0}
FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "bare": (STATE, {}),
    "MMCV": (MMCV, {"epoch": 12, "CLASSES": ["person", "car"]}),
    "MMEngine": (
        MMENGINE,
        {"epoch": 1, "dataset_meta": {"classes": ["a", "b"], "palette": [[1, 2, 3]]}, "best": 0.5},
    ),
    "ImageNet": (
        IMAGENET,
        {
            "epoch": 300,
            "args": {"lr": 0.1, "drop": None, "sizes": [224, 224], "output_dir": "runs/1"},
            "max_accuracy": 81.0,
        },
    ),
    "average only": ({"state_dict_ema": STATE, "epoch": 3}, {"epoch": 3}),
    "weights and their average": ({"state_dict_ema": {"weight": torch.zeros(1)}, "state_dict": STATE}, {}),
    "data-parallel": ({"model": {f"module.{name}": tensor for name, tensor in STATE.items()}}, {}),
    "parameters": ({name: torch.nn.Parameter(tensor, False) for name, tensor in STATE.items()}, {}),
}


@pytest.mark.parametrize(("content", "meta"), FORMS.values(), ids=FORMS)
@both_containers
def test_forms_of_a_checkpoint(tmp_path: Path, content: Any, meta: dict[str, Any], zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    weights = read_weights(path)
    assert weights.container == "pth"
    assert weights.meta == meta
    assert json.loads(json.dumps(weights.meta)) == weights.meta
    assert_is_state(weights.tensors)
    assert all(type(tensor) is torch.Tensor for tensor in weights.tensors.values())


@pytest.mark.slow
def test_an_mmengine_checkpoint_is_read_without_mmengine(tmp_path: Path) -> None:
    torch.save(MMENGINE, tmp_path / "weights.pth")
    code = (
        "import sys; from pathlib import Path; from dpt_zoo.weights.reading import read_weights;"
        "print(*read_weights(Path(sys.argv[1])).tensors, 'mmengine' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "weights.pth")]
    assert subprocess.check_output(command, cwd=ROOT, text=True) == "weight count False\n"


def test_what_json_has_not_becomes_text(tmp_path: Path) -> None:
    meta = {
        "infinite": float("inf"),
        "bytes": b"b",
        "number": np.int64(3),
        "array": np.ones(3),
        "tensor": torch.ones(3),
        5: "five",
    }
    torch.save({"state_dict": STATE, "meta": meta}, tmp_path / "weights.pth")
    assert read_weights(tmp_path / "weights.pth").meta == {
        "infinite": "Infinity",
        "bytes": "b'b'",
        "number": 3,
        "array": "ndarray",
        "tensor": "Tensor",
        "5": "five",
    }


def test_safetensors_by_content_whatever_the_name(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.pth", metadata={"format": "pt"})
    weights = read_weights(tmp_path / "weights.pth")
    assert (weights.container, weights.meta) == ("safetensors", {"format": "pt"})
    assert_is_state(weights.tensors)


def test_a_checkpoint_under_the_name_of_safetensors(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="rename it"):
        read_weights(tmp_path / "weights.safetensors")


def assert_is_state(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


# --- What is no weights file, or no whole one


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><title>Google Drive - Quota exceeded</title>", "it is an HTML page"),
        (b"\n <html>", "it is an HTML page"),
        (b"PK\x03\x04 and then nothing of a zip file", "the file is damaged"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{not a header..}", "the file is damaged"),
        (b"\xff" * 100, "it is of an unknown form"),
        (pickle.dumps([1, 2]), "refused"),
        (pickle.dumps([1, 2], 2), "the file is damaged"),
    ],
)
def test_what_is_no_weights_file(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=complaint) as raised:
        read_weights(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


@both_containers
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_cut_short(tmp_path: Path, zipped: bool, share: float) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": STATE}, path, _use_new_zipfile_serialization=zipped)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(WeightsError, match="weights"):
        read_weights(path)


@pytest.mark.parametrize("content", [{"state_dict": {"weight": 3}}, {"epoch": 3}, {}, [torch.zeros(1)]])
def test_a_checkpoint_without_a_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="it has no state dict"):
        read_weights(tmp_path / "weights.pth")


def test_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(WeightsError, match="no such file"):
            read_weights(path)


def test_a_file_that_cannot_be_read() -> None:
    with pytest.raises(WeightsError, match=r"^/proc/self/mem: it cannot be read .*Input/output error"):
        read_weights(Path("/proc/self/mem"))


def test_a_flipped_bit_is_found_by_the_checksums_of_a_zip_archive(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.full((1000,), 0.5)}, path)
    verify_crc(path)
    content = bytearray(path.read_bytes())
    content[content.index(np.float32(0.5).tobytes() * 1000) + 500] ^= 1
    path.write_bytes(content)
    assert read_weights(path).tensors.keys() == {"weight"}
    with pytest.raises(WeightsError, match=r"damaged .*the checksum of .*/data/0 is wrong"):
        verify_crc(path)


def test_files_without_checksums_have_none_to_differ(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.safetensors")
    verify_crc(tmp_path / "weights.safetensors")
    torch.save(STATE, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    verify_crc(tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="cannot be read"):
        verify_crc(tmp_path / "none.pth")


# --- Digests


def test_digests_depend_on_the_tensors_alone() -> None:
    other_order = {"count": STATE["count"], "weight": STATE["weight"].T.contiguous().T}
    assert structure_sha256(other_order) == structure_sha256(STATE)
    assert tensors_sha256(other_order) == tensors_sha256(STATE)


@pytest.mark.parametrize(
    ("changed", "same_structure"),
    [
        ({"weight": STATE["weight"] + 1}, True),
        ({"weight": STATE["weight"].view(3, 2)}, False),
        ({"weight": STATE["weight"].view(torch.int32)}, False),
        ({"weights": STATE["weight"]}, False),
    ],
    ids=["value", "shape", "type", "more"],
)
def test_digests_tell_what_differs(changed: dict[str, torch.Tensor], same_structure: bool) -> None:
    other = {**STATE, **changed}
    assert (structure_sha256(other) == structure_sha256(STATE)) is same_structure
    assert tensors_sha256(other) != tensors_sha256(STATE)
