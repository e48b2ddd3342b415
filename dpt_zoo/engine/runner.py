"""MMEngine's Runner: quiet, on any device, with progress on standard error."""

import contextlib
import io
import logging
import math
import multiprocessing
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import cv2
import mmengine.device.utils as mmengine_device
import torch
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, init_default_scope
from mmengine.runner import Runner
from torch import distributed, nn

from .. import mmlab  # noqa: F401  (before mmdet)
from ..errors import DPTZooError, InputError, OutputError
from ..manifest.records import TASK_TITLES
from ..models.factory import find_class_tensors
from ..utils.environment import versions
from ..weights.loading import load_weights
from ..weights.store import read_trusted_weights
from .distributed import process_device

T = TypeVar("T")

PROGRESS_INTERVAL = 10.0
"""Seconds between two lines of progress."""


@contextlib.contextmanager
def quiet_runner(cfg: Config, device: str | torch.device = "auto") -> Iterator[Runner]:
    """Create a Runner on a device, and hide the output of MMEngine and pycocotools within the block.

    Warnings are shown, and the Runner's log file has the complete output. Settings of the process that MMEngine
    changes, such as the start method of worker processes, are restored afterwards.

    Args:
        cfg: a complete config with a `work_dir`.
        device: as for `find_device`; ignored in a process group, which has chosen the device.

    Raises:
        InputError: The device cannot be used, or the GPU's memory is too small.
        OutputError: `work_dir` cannot be written.
    """
    init_default_scope("mmdet")
    # With an earlier run's names, MMEngine would reuse its log, history and visualizer.
    cfg.experiment_name = cfg.visualizer.name = f"{Path(cfg.work_dir).name}-{uuid.uuid4().hex}"
    try:
        with _mmengine_on(process_device(device)), contextlib.redirect_stdout(_Nowhere()):
            runner = _Runner.from_cfg(cfg)
            handler = logging.StreamHandler()
            handler.setLevel(logging.WARNING)
            # FileClient and HardDiskBackend are deprecated names, which MMEngine uses itself.
            handler.addFilter(lambda record: not re.search('"(FileClient|HardDiskBackend)"', record.getMessage()))
            runner.logger.addHandler(handler)
            yield runner
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"this needs more memory than the GPU has ({reason}): try a smaller batch_size") from error
    except OSError as error:
        raise OutputError(f"the run in {cfg.work_dir} failed: {error}: fix the cause and start it again") from error


@contextlib.contextmanager
def _mmengine_on(device: torch.device) -> Iterator[None]:
    """Make MMEngine use a device, and restore the settings of the process afterwards."""
    start_method = multiprocessing.get_start_method(allow_none=True)
    with contextlib.ExitStack() as stack:
        stack.callback(multiprocessing.set_start_method, start_method, force=True)
        stack.callback(cv2.setNumThreads, cv2.getNumThreads())
        stack.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
        for name in ("benchmark", "deterministic"):
            stack.callback(setattr, torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            if distributed.is_initialized() and name not in os.environ:  # otherwise MMEngine sets it to 1 and warns
                os.environ[name] = str(torch.get_num_threads())
                stack.callback(os.environ.pop, name)
        stack.callback(setattr, mmengine_device, "DEVICE", mmengine_device.DEVICE)
        mmengine_device.DEVICE = device.type
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        yield


class _Runner(Runner):  # type: ignore[misc]
    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        # MMEngine's own report runs gcc and nvcc, and the shell prints an error if they are missing.
        facts = {**versions(), "device": mmengine_device.DEVICE, "processes": self.world_size, "seed": self.seed}
        lines = [f"    {name}: {value}" for name, value in facts.items()]
        self.logger.info("\n".join(["Environment:", *lines, torch.__config__.show()]))
        self.logger.info(f"Config:\n{self.cfg.pretty_text}")


@HOOKS.register_module()
class StartingWeightsHook(Hook):  # type: ignore[misc]
    """Loads a detector's weights into the model before the first step, unless the run is resumed.

    Layers that differ in the number of classes keep their initial values.

    Args:
        weights: a model's name, a path, `https://...` or `hf://org/repo/file`.
    """

    def __init__(self, weights: str) -> None:
        self.weights = weights

    def before_train(self, runner: Runner) -> None:
        """Load the weights, and report what was loaded."""
        if runner.iter:
            return
        model = unwrapped(runner.model)
        path, weights = read_trusted_weights(self.weights)
        left_out = load_weights(model, weights.tensors, path, "the config", resized=find_class_tensors(model))
        others = f", left out for other classes: {', '.join(left_out)}" if left_out else ""
        report(runner, f"starting from {len(model.state_dict()) - len(left_out)} tensors of {self.weights}{others}")


@HOOKS.register_module()
class ProgressHook(Hook):  # type: ignore[misc]
    """Reports progress on standard error, and stops training with `DPTZooError` if the loss is not finite."""

    priority = "VERY_LOW"  # after the hooks that measure

    def __init__(self) -> None:
        self._last_time = time.monotonic()

    def _after_iter(self, runner: Runner, batch_idx: int, mode: str, **_: Any) -> None:
        """MMEngine calls this in the modes "train", "val" and "test"."""
        if time.monotonic() - self._last_time < PROGRESS_INTERVAL:
            return
        self._last_time = time.monotonic()
        batch = f"{batch_idx + 1}/{len(getattr(runner, f'{mode}_dataloader'))}"
        match mode:
            case "train":
                report(runner, self._describe_step(runner, batch))
            case "val":
                report(runner, f"epoch {runner.epoch}/{runner.max_epochs}  validating {batch}")
            case _:
                report(runner, f"batch {batch}")

    def _describe_step(self, runner: Runner, step: str) -> str:
        loss = runner.message_hub.get_scalar("train/loss").current()
        if not math.isfinite(loss):
            raise DPTZooError(
                f"the loss is {loss} in epoch {runner.epoch + 1}: resume from an earlier checkpoint with a lower "
                "learning rate (cfg_options), or check the data"
            )
        seconds = runner.message_hub.get_scalar("train/time").mean(window_size=50)
        minutes, left = divmod(round((runner.max_iters - runner.iter - 1) * seconds), 60)
        return (
            f"epoch {runner.epoch + 1}/{runner.max_epochs}  step {step}  loss {loss:.3f}  {seconds:.2f} s/step  "
            f"{minutes // 60}:{minutes % 60:02}:{left:02} left"
        )

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Report the metrics."""
        values = {title: (metrics or {}).get(f"coco/{task}_mAP") for task, title in TASK_TITLES.items()}
        parts = [f"{title} AP {100 * value:.1f}" for title, value in values.items() if value is not None]
        report(runner, f"epoch {runner.epoch}/{runner.max_epochs}  {', '.join(parts) or 'no detections yet'}")


def unwrapped(model: Any) -> nn.Module:
    """Return the model without its wrapper for distributed training."""
    return cast(nn.Module, model.module if is_model_wrapper(model) else model)


def from_main_process(make: Callable[[], T]) -> T:
    """Return in every process what `make` returns in the main process; the others wait for it."""
    results = [make() if is_main_process() else None]
    broadcast_object_list(results)
    return cast(T, results[0])


def report(runner: Runner, line: str) -> None:
    """Write a line to the run's log and, in the main process, to standard error."""
    runner.logger.info(line)
    if is_main_process():
        print(line, file=sys.stderr, flush=True)


class _Nowhere(io.TextIOBase):
    """Discards text. Loggers may keep it after the run, so it is neither a file to close nor an `io.StringIO`."""

    def write(self, text: str) -> int:
        return len(text)
