"""Tensors without PyTorch: the same types, values, digests and checks as with it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference_data import ROOT
from safetensors.torch import save_file

from dpt_zoo.errors import WeightsError
from dpt_zoo.weights.checkpoints import TORCH_DTYPES
from dpt_zoo.weights.digests import structure_sha256, tensors_sha256
from dpt_zoo.weights.raw_tensors import RawTensor, check_finite
from dpt_zoo.weights.reading import read_raw_weights, read_weights

STATE = {str(dtype): torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype) for dtype in TORCH_DTYPES}
STATE |= {"scalar": torch.tensor(0.5), "empty": torch.zeros(0, 3)}

without_torch = """
import sys
sys.modules["torch"] = None
from pathlib import Path
from dpt_zoo.errors import DependencyError
from dpt_zoo.weights.digests import structure_sha256, tensors_sha256
from dpt_zoo.weights.raw_tensors import check_finite
from dpt_zoo.weights.reading import read_raw_weights
tensors = read_raw_weights(Path("a.safetensors")).tensors
check_finite(tensors, Path("a.safetensors"))
print(structure_sha256(tensors), tensors_sha256(tensors))
try:
    read_raw_weights(Path("b.pth"))
except DependencyError as error:
    print(error)
"""


def test_without_pytorch(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save(STATE, tmp_path / "b.pth")
    environment = {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", without_torch]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    digests, error = done.stdout.splitlines()
    assert digests.split() == [structure_sha256(STATE), tensors_sha256(STATE)]
    needed = "this is a checkpoint of PyTorch, which is needed to read it"
    assert error == f'b.pth: {needed}: pip install "dpt-zoo[torch]"'


def test_every_type_is_read_in_both_forms(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save(STATE, tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth"):
        tensors = read_weights(tmp_path / name).tensors
        assert tensors.keys() == STATE.keys()
        assert all(torch.equal(tensors[key], STATE[key]) for key in STATE)
        assert all(tensors[key].dtype == STATE[key].dtype for key in STATE)
        assert tensors_sha256(read_raw_weights(tmp_path / name).tensors) == tensors_sha256(STATE)


def test_a_changed_tensor_leaves_its_file_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    before = path.read_bytes()
    read_weights(path).tensors["weight"].add_(1)
    assert path.read_bytes() == before


@pytest.mark.parametrize("dtype", [dtype for dtype in TORCH_DTYPES if dtype.is_floating_point], ids=str)
def test_numbers_that_are_not_finite(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype)
    finite = torch.tensor([largest.max, largest.min, largest.tiny, 0.0], dtype=dtype)
    check_finite({"weight": RawTensor.of(finite)}, Path("a"))
    for value in (torch.inf, -torch.inf, torch.nan):
        tensors = {"weight": RawTensor.of(torch.cat([finite, torch.tensor([value], dtype=dtype)]))}
        with pytest.raises(WeightsError, match="a: weight holds numbers that are not finite"):
            check_finite(tensors, Path("a"))
