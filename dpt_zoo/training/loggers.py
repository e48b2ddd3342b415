"""Trackers of experiments (TensorBoard, Weights & Biases, MLflow, ClearML) through MMEngine's backends."""

import functools
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import VISBACKENDS
from mmengine.visualization import WandbVisBackend
from mmengine.visualization.vis_backend import BaseVisBackend, force_init_env

from ..errors import InputError
from ..utils.dependencies import explain_imports
from ..utils.streams import show

PROJECT = "dpt-zoo"
"""The project, or experiment, in which the trackers list the runs."""


@VISBACKENDS.register_module()
class OptionalBackend(BaseVisBackend):  # type: ignore[misc]
    """Another backend that never ends a run: after its first error, there is a warning, and it gets nothing more.

    Args:
        save_dir: the folder for its files.
        tracker: the tracker's name, for the warning.
        backend: the config of the backend.
    """

    def __init__(self, save_dir: str, tracker: str, backend: dict[str, Any]) -> None:
        super().__init__(save_dir)
        self._tracker = tracker
        self._backend: Any = VISBACKENDS.build({"save_dir": save_dir, **backend})

    def _init_env(self) -> None:
        """MMEngine requires this method. The backend is initialised by its first call."""

    @property
    def experiment(self) -> Any:
        """Return what the backend logs to."""
        return self._backend and self._backend.experiment

    def _call(self, name: str, *args: Any, **kwargs: Any) -> None:
        if self._backend is None:
            return
        try:
            getattr(self._backend, name)(*args, **kwargs)
        except Exception as error:  # of the network, a server, an account, a full disk, ...
            self._backend = None
            reason = (str(error).strip().splitlines() or [""])[0]
            line = f"{self._tracker} logs no more of this run: {type(error).__name__}: {reason}"
            print_log(line, logger="current")
            show(line, to=sys.stderr)

    add_config: Any = functools.partialmethod(_call, "add_config")
    add_graph: Any = functools.partialmethod(_call, "add_graph")
    add_image: Any = functools.partialmethod(_call, "add_image")
    add_scalar: Any = functools.partialmethod(_call, "add_scalar")
    add_scalars: Any = functools.partialmethod(_call, "add_scalars")
    close: Any = functools.partialmethod(_call, "close")


@VISBACKENDS.register_module()
class WandbBackend(WandbVisBackend):  # type: ignore[misc]
    """MMEngine's backend for current versions of wandb. It uploads no code, of which MMEngine's takes all it finds."""

    @force_init_env
    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Record the config."""
        self._wandb.config.update(config.to_dict())

    def close(self) -> None:
        """Finish the run. MMEngine calls `wandb.join`, which no longer exists."""
        if hasattr(self, "_wandb"):
            self._wandb.finish()


def add_loggers(cfg: Config, names: Sequence[str]) -> None:
    """Also log with these trackers: "tensorboard", "wandb", "mlflow" or "clearml".

    Accounts and servers are set as each tracker documents it, by its environment variables or its files.

    Raises:
        InputError: There is no such tracker.
        DependencyError: Its package is not installed.
    """
    run = Path(cfg.work_dir).name
    server = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")  # MLflow's default, which MMEngine replaces
    task = {"project_name": PROJECT, "task_name": run, "reuse_last_task_id": False}
    quiet = dict.fromkeys(("auto_connect_frameworks", "auto_connect_arg_parser", "auto_resource_monitoring"), False)
    # MMEngine's suffixes would upload checkpoints and annotation files.
    backends: dict[str, dict[str, Any]] = {
        "tensorboard": {"type": "TensorboardVisBackend"},
        "wandb": {"type": "WandbBackend", "init_kwargs": {"project": PROJECT, "name": run}},
        "mlflow": {
            "type": "MLflowVisBackend",
            "exp_name": PROJECT,
            "run_name": run,
            "tracking_uri": server,
            "artifact_suffix": (".py", ".log"),
        },
        "clearml": {"type": "ClearMLVisBackend", "init_kwargs": {**task, **quiet}, "artifact_suffix": (".py",)},
    }
    for name in dict.fromkeys(names):
        if name not in backends:
            raise InputError(f"loggers: there is no {name!r}: choose among {', '.join(backends)}")
        if importlib.util.find_spec(name) is None:
            with explain_imports():
                raise ModuleNotFoundError(name=name)
        settings = {"type": "OptionalBackend", "name": name, "tracker": name, "backend": backends[name]}
        cfg.visualizer.vis_backends = [*(cfg.visualizer.get("vis_backends") or []), settings]
