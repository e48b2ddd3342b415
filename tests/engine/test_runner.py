"""The Runner uses the given device, prints nothing, and restores the settings of the process."""

import multiprocessing
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import mmengine.device
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from reference_data import ROOT
from torch import Tensor, nn

from dpt_zoo.engine.runner import quiet_runner
from dpt_zoo.errors import InputError, OutputError
from dpt_zoo.utils.devices import find_device


@MODELS.register_module()
class Line(nn.Module):
    """A model with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.weight * inputs


def small_config(work_dir: Path, **settings: Any) -> Config:
    return Config(
        {"model": {"type": "Line"}, "work_dir": str(work_dir), "visualizer": {"type": "Visualizer"}, **settings}
    )


def settings_of_the_process() -> tuple[Any, ...]:
    """Return the settings of the process that MMEngine's Runner changes."""
    return (
        multiprocessing.get_start_method(allow_none=True),
        cv2.getNumThreads(),
        mmengine.device.get_device(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        dict(os.environ),
    )


def test_the_settings_of_the_process_are_restored(tmp_path: Path) -> None:
    before = settings_of_the_process()
    cfg = small_config(tmp_path, randomness={"seed": 0, "deterministic": True}, env_cfg={"cudnn_benchmark": True})
    with quiet_runner(cfg):
        assert multiprocessing.get_start_method() == "fork"
        assert torch.are_deterministic_algorithms_enabled()
    assert settings_of_the_process() == before
    with pytest.raises(OutputError, match=r"the run in .* failed: "), quiet_runner(cfg):
        raise OSError("no space left")
    assert settings_of_the_process() == before


def test_the_cpu_of_a_machine_with_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmengine.device.utils.DEVICE", "cuda")  # as on a machine with a GPU
    with quiet_runner(small_config(tmp_path), "cpu") as runner:
        assert mmengine.device.get_device() == "cpu"
        assert runner.model.weight.device.type == "cpu"
    assert mmengine.device.get_device() == "cuda"


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "auto"] if torch.cuda.is_available() else ["auto"])
def test_the_best_device(device: str, tmp_path: Path) -> None:
    with quiet_runner(small_config(tmp_path), device) as runner:
        assert runner.model.weight.device.type == find_device("auto").type


def test_a_device_that_does_not_exist(tmp_path: Path) -> None:
    cfg = small_config(tmp_path)
    with pytest.raises(InputError, match="device 'cuda:99' cannot be used"), quiet_runner(cfg, "cuda:99"):
        pass


@pytest.mark.slow
def test_no_compiler_is_looked_for(tmp_path: Path) -> None:
    """MMEngine's own report runs gcc, and the shell prints an error if it is missing."""
    (tmp_path / "empty").mkdir()
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_runner; from pathlib import Path\n"
        "with test_runner.quiet_runner(test_runner.small_config(Path(sys.argv[2]))): pass\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(Path(__file__).parent), str(tmp_path / "run")]
    paths = os.pathsep.join(str(ROOT / folder) for folder in (".", "scripts", "tests/support"))
    environment = {**os.environ, "PATH": str(tmp_path / "empty"), "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (log,) = (tmp_path / "run").glob("*/*.log")
    assert f"torch: {version('torch')}" in log.read_text()
