"""Trackers of experiments, on the small model: each logs offline, and none ends a run."""

import contextlib
import json
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from resuming_process import Plan, config_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dpt_zoo.engine.runner import quiet_runner
from dpt_zoo.errors import DependencyError, InputError
from dpt_zoo.training.loggers import add_loggers

pytestmark = pytest.mark.slow

NUM_STEPS = 5


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the trackers' own files and settings in the test's folder, and the trackers off the network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("CLEARML_OFFLINE_MODE", "1")
    monkeypatch.setenv("CLEARML_CACHE_DIR", str(tmp_path / "clearml"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield


def run(work_dir: Path, *loggers: str) -> None:
    """Train the small model for one epoch of five iterations."""
    cfg = config_of(Plan(str(work_dir), num_epochs=1))
    cfg.visualizer = {"type": "Visualizer", "vis_backends": [{"type": "LocalVisBackend"}]}
    add_loggers(cfg, loggers)
    with quiet_runner(cfg, "cpu") as runner:
        runner.train()
    assert (work_dir / "epoch_1.pth").exists()


def local_losses(work_dir: Path) -> list[float]:
    (log,) = work_dir.glob("*/vis_data/scalars.json")
    return [line["loss"] for line in map(json.loads, log.read_text().splitlines()) if "loss" in line]


def test_all_of_them_at_once(tmp_path: Path, quick_python: Path) -> None:
    """In a process of its own, because ClearML changes argparse for the whole process."""
    path = [str(Path(__file__).parent), *sys.path]
    call = f"run(Path({str(tmp_path / 'run')!r}), 'tensorboard', 'wandb', 'mlflow', 'clearml')"
    code = f"import sys; sys.path[:0] = {path!r}; from test_loggers import Path, run; {call}"
    finished = subprocess.run([quick_python, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "logs no more of this run" not in finished.stderr
    losses = local_losses(tmp_path / "run")
    assert len(losses) == NUM_STEPS

    (events,) = (tmp_path / "run").glob("*/vis_data/events.*")
    accumulator = EventAccumulator(str(events)).Reload()
    assert [event.value for event in accumulator.Scalars("loss")] == pytest.approx(losses)

    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        rows = database.execute("SELECT value FROM metrics WHERE key = 'loss' ORDER BY step").fetchall()
    assert [value for (value,) in rows] == pytest.approx(losses)

    (wandb,) = (tmp_path / "run").glob("*/vis_data/wandb/offline-run-*/run-*.wandb")
    assert b"optim_wrapper" in wandb.read_bytes()

    (archive,) = (tmp_path / "clearml").rglob("*.zip")
    with zipfile.ZipFile(archive) as files:
        metrics = "".join(files.read(name).decode() for name in files.namelist() if "metrics" in name)
    assert metrics.count('"metric": "loss"') == NUM_STEPS


def test_one_that_fails_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://server")
    run(tmp_path / "run", "mlflow", "tensorboard")
    assert capfd.readouterr().err.count("mlflow logs no more of this run: ") == 1
    assert list((tmp_path / "run").glob("*/vis_data/events.*"))
    assert len(local_losses(tmp_path / "run")) == NUM_STEPS


def test_unknown_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config_of(Plan(str(tmp_path)))
    with pytest.raises(InputError, match=r"^loggers: there is no 'neptune': choose among tensorboard, wandb, "):
        add_loggers(cfg, ["neptune"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r'needs wandb, which is not installed: pip install "dpt-zoo\[loggers\]"'):
        add_loggers(cfg, ["wandb"])
