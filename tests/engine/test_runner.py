"""The Runner uses the given device, prints nothing, and restores the settings of the process."""

import logging
import multiprocessing
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import mmengine.device
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.visualization import Visualizer
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
        resource.getrlimit(resource.RLIMIT_NOFILE),
        random.getstate(),
        str(np.random.get_state()),
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        DefaultScope.get_current_instance(),
        [list(kind._instance_dict) for kind in (MMLogger, MessageHub, Visualizer, DefaultScope)],
        torch.get_deterministic_debug_mode(),
        multiprocessing.get_start_method(allow_none=True),
        cv2.getNumThreads(),
        mmengine.device.get_device(),
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


@pytest.fixture
def unusual() -> Iterator[None]:
    """Settings that a user may have made for the process."""
    before = cv2.getNumThreads(), multiprocessing.get_start_method(allow_none=True)
    try:
        multiprocessing.set_start_method("spawn", force=True)
        cv2.setNumThreads(3)
        torch.set_deterministic_debug_mode("warn")
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        with torch.inference_mode(), DefaultScope.overwrite_default_scope("mmcv"):
            yield
    finally:
        cv2.setNumThreads(before[0])
        multiprocessing.set_start_method(before[1], force=True)
        torch.set_deterministic_debug_mode("default")
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@pytest.mark.filterwarnings("error")
def test_what_a_user_set_stays_and_does_not_matter(unusual: None, tmp_path: Path) -> None:
    before = settings_of_the_process()
    with quiet_runner(small_config(tmp_path), "cpu") as runner:
        weight = runner.model.weight
        assert (weight.dtype, weight.device.type, weight.is_inference()) == (torch.float32, "cpu", False)
        runner.model(torch.ones(())).backward()
        log = runner.logger.handlers[1]
    assert settings_of_the_process() == before
    assert isinstance(log, logging.FileHandler) and log.stream is None  # closed


def test_runs_without_a_seed_differ(tmp_path: Path) -> None:
    seeds = set()
    for _ in range(2):
        with quiet_runner(small_config(tmp_path)) as runner:
            seeds.add(runner.seed)
    assert len(seeds) == 2


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"model": {"type": "NoModel"}}, "KeyError: .*NoModel"),
        ({"model": {"type": "Line", "length": 2}}, "TypeError: .*length"),
        ({"log_level": "LOUD"}, "KeyError: .*LOUD"),
        ({"randomness": {"sed": 1}}, "TypeError: .*seed"),
    ],
)
def test_a_setting_that_a_library_refuses(settings: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    cfg = small_config(tmp_path, **settings)
    with pytest.raises(InputError, match=f"^a setting of the config cannot be used: {complaint}"), quiet_runner(cfg):
        pass


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
