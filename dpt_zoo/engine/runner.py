"""MMEngine's Runner as this project uses it: quiet, on any device, with progress on standard error."""

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
    """Make a Runner that computes on a device, and hide what it and pycocotools print until the block ends.

    Warnings are shown, and the Runner's log file has everything. What MMEngine changes in the whole process, such as
    the start method of worker processes, is restored afterwards.

    Args:
        cfg: a complete config with a `work_dir`.
        device: as for `find_device`; in a process group, each process computes on its own GPU or on the CPU.

    Raises:
        InputError: The device cannot be used, or the GPU's memory is too small.
        OutputError: `work_dir` cannot be written.
    """
    init_default_scope("mmdet")
    # MMEngine would find the log, history and visualizer of an earlier run in this process by their names.
    cfg.experiment_name = cfg.visualizer.name = f"{Path(cfg.work_dir).name}-{uuid.uuid4().hex}"
    try:
        with _mmengine_on(process_device(device)), contextlib.redirect_stdout(_Nowhere()):
            runner = _Runner.from_cfg(cfg)
            runner.logger.addHandler(_warnings_handler())
            yield runner
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"this needs more memory than the GPU has ({reason}): try a smaller batch_size") from error
    except OSError as error:
        raise OutputError(f"the run in {cfg.work_dir} failed: {error}: fix the cause and start it again") from error


@contextlib.contextmanager
def _mmengine_on(device: torch.device) -> Iterator[None]:
    """Let MMEngine compute on a device, and restore afterwards what it changes in the whole process."""
    start_method = multiprocessing.get_start_method(allow_none=True)
    with contextlib.ExitStack() as stack:
        stack.callback(multiprocessing.set_start_method, start_method, force=True)
        stack.callback(cv2.setNumThreads, cv2.getNumThreads())
        stack.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
        for name in ("benchmark", "deterministic"):
            stack.callback(setattr, torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            if distributed.is_initialized() and name not in os.environ:  # MMEngine would set it to 1, with a warning
                os.environ[name] = str(torch.get_num_threads())
                stack.callback(os.environ.pop, name)
        stack.callback(setattr, mmengine_device, "DEVICE", mmengine_device.DEVICE)
        mmengine_device.DEVICE = device.type
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        yield


class _Runner(Runner):  # type: ignore[misc]
    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        # MMEngine's own report runs gcc and nvcc; where they are missing, the shell complains on the terminal.
        facts = {**versions(), "device": mmengine_device.DEVICE, "processes": self.world_size, "seed": self.seed}
        lines = [f"    {name}: {value}" for name, value in facts.items()]
        self.logger.info("\n".join(["Environment:", *lines, torch.__config__.show()]))
        self.logger.info(f"Config:\n{self.cfg.pretty_text}")


@HOOKS.register_module()
class StartingWeightsHook(Hook):  # type: ignore[misc]
    """Loads a detector's weights into the model before the first step, unless the run is resumed.

    Layers whose number of classes differs keep their initial values.

    Args:
        weights: a model's name, a path, `https://...` or `hf://org/repo/file`.

    Raises:
        FetchError, OutputError: The weights are not on this machine and cannot be fetched.
        WeightsError: The weights cannot be read, or belong to another model.
    """

    def __init__(self, weights: str) -> None:
        self.weights = weights

    def before_train(self, runner: Runner) -> None:
        """Load the weights, and report what was loaded."""
        if runner.iter:
            return
        model = unwrapped(runner.model)
        path, weights = read_trusted_weights(self.weights)
        resized = find_class_tensors(model)
        left_out = load_weights(model, weights.tensors, path, "the config", resized=resized)
        others = f", left out for other classes: {', '.join(left_out)}" if left_out else ""
        num_loaded = len(model.state_dict()) - len(left_out)
        report(runner, f"starting from {num_loaded} tensors of {self.weights}{others}")


@HOOKS.register_module()
class ProgressHook(Hook):  # type: ignore[misc]
    """Reports the progress of training, validation and tests on standard error.

    Raises:
        DPTZooError: The loss is no longer finite.
    """

    priority = "VERY_LOW"  # after the hooks that measure

    def __init__(self) -> None:
        self._last_time = time.monotonic()

    def after_train_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Report the step, its loss and the time that is left."""
        if not self._is_due():
            return
        loss = runner.message_hub.get_scalar("train/loss").current()
        if not math.isfinite(loss):
            raise DPTZooError(
                f"the loss is {loss} in epoch {runner.epoch + 1}: resume from an earlier checkpoint with a lower "
                "learning rate (cfg_options), or check the data"
            )
        seconds = runner.message_hub.get_scalar("train/time").mean(window_size=50)
        minutes, left = divmod(round((runner.max_iters - runner.iter - 1) * seconds), 60)
        report(
            runner,
            f"epoch {runner.epoch + 1}/{runner.max_epochs}  step {batch_idx + 1}/{len(runner.train_dataloader)}  "
            f"loss {loss:.3f}  {seconds:.2f} s/step  {minutes // 60}:{minutes % 60:02}:{left:02} left",
        )

    def after_val_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Report the batch."""
        if self._is_due():
            batch = f"{batch_idx + 1}/{len(runner.val_dataloader)}"
            report(runner, f"epoch {runner.epoch}/{runner.max_epochs}  validating {batch}")

    def after_test_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Report the batch."""
        if self._is_due():
            report(runner, f"batch {batch_idx + 1}/{len(runner.test_dataloader)}")

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Report the metrics."""
        values = {title: (metrics or {}).get(f"coco/{task}_mAP") for task, title in TASK_TITLES.items()}
        parts = [f"{title} AP {100 * value:.1f}" for title, value in values.items() if value is not None]
        report(runner, f"epoch {runner.epoch}/{runner.max_epochs}  {', '.join(parts) or 'no detections yet'}")

    def _is_due(self) -> bool:
        if time.monotonic() - self._last_time < PROGRESS_INTERVAL:
            return False
        self._last_time = time.monotonic()
        return True


def unwrapped(model: Any) -> nn.Module:
    """Return the model itself, without the wrapper that distributes it over processes."""
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


def _warnings_handler() -> logging.Handler:
    """Return a handler that shows warnings, except those about MMEngine's own code."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.addFilter(lambda record: not re.search('"(FileClient|HardDiskBackend)"', record.getMessage()))
    return handler


class _Nowhere(io.TextIOBase):
    """Discards text; unlike an `io.StringIO`, it can live as long as the loggers that keep it."""

    def write(self, text: str) -> int:
        return len(text)
