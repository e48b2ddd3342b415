"""Reading weights files: every form of them, and nothing that is not one."""

import lzma
import os
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from hostile import Call
from reference_data import REFERENCE
from safetensors.torch import save_file

import dpt_zoo
from dpt_zoo.errors import WeightsError
from dpt_zoo.weights.reading import read_state_dict

STATE = OrderedDict(weight=torch.arange(6.0).view(2, 3), count=torch.tensor([3]))


@pytest.fixture(scope="session")
def authors_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 299 MB written by MMCV 1.2.7 under torch 1.7.1, with optimiser and meta."""
    path = tmp_path_factory.mktemp("authors") / "retinanet_dpt_t_1x.pth"
    with lzma.open(REFERENCE / "authors_format_retinanet_dpt_t_1x.pth.xz") as packed, path.open("wb") as file:
        shutil.copyfileobj(packed, file)
    return path


def test_an_authors_file_becomes_a_model(authors_file: Path) -> None:
    model = dpt_zoo.create_model("retinanet_dpt_t_1x", weights=authors_file)
    for name, tensor in model.state_dict().items():
        values = np.zeros(tensor.shape, np.int64)
        if tensor.is_floating_point():
            values = (((np.arange(tensor.numel()) + crc32(name.encode())) % 251 - 125) / 1000).reshape(tensor.shape)
        assert np.array_equal(tensor.numpy(), values.astype(tensor.numpy().dtype)), name


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "meta": {"epoch": 12, "lr": np.float64(0.1)}, "optimizer": {"state": {}}},
        {"model": STATE, "epoch": 300},
        {"state_dict": {f"module.{name}": tensor for name, tensor in STATE.items()}},
    ],
    ids=["plain", "mmcv", "imagenet", "data-parallel"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_forms_of_a_checkpoint(tmp_path: Path, content: dict[str, Any], zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert_is_state(read_state_dict(path))


def test_safetensors_by_content_whatever_the_name(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.pth")
    assert_is_state(read_state_dict(tmp_path / "weights.pth"))


def assert_is_state(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><title>Google Drive - Quota exceeded</title>", "it is an HTML page"),
        (b"PK\x03\x04 and then nothing of a zip file", "the file is damaged"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{not a header..}", "the file is damaged"),
        (b"\xff" * 100, "it is of no form known here"),
        (pickle.dumps([1, 2]), "holds no state dict|refused"),
    ],
)
def test_what_is_no_weights_file(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=complaint) as raised:
        read_state_dict(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_cut_short(tmp_path: Path, zipped: bool, share: float) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": STATE}, path, _use_new_zipfile_serialization=zipped)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(WeightsError, match="weights"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [{"state_dict": {"weight": 3}}, {"epoch": 3}, [torch.zeros(1)]])
def test_a_checkpoint_without_a_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        read_state_dict(tmp_path / "weights.pth")


def test_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(WeightsError, match="no such file"):
            read_state_dict(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("attack", ["system", "open", "getattr", "ndarray"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, attack: str, zipped: bool) -> None:
    marker = tmp_path / "marker"
    calls = {
        "system": Call(os.system, f"touch {marker}"),
        "open": Call(open, str(marker), "w"),
        "getattr": Call(getattr, dict, "update"),
        "ndarray": Call(set, Call(np.ndarray, (1,), "O", bytearray(b"A" * 8))),  # an object at 0x4141...
    }
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": STATE, "meta": calls[attack]}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="refused, nothing of it was executed") as raised:
        read_state_dict(path)
    assert "\n" not in str(raised.value)
    assert not marker.exists()
