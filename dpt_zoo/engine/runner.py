"""MMEngine's Runner: quiet, on any device, with progress on standard error."""

import contextlib
import copy
import io
import logging
import multiprocessing
import os
import random
import re
import secrets
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import cv2
import mmengine.device.utils as mmengine_device
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import ImgDataPreprocessor, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner, TestLoop, ValLoop
from mmengine.utils import ManagerMixin
from torch import distributed, nn
from torch.utils.data import DataLoader

from .. import mmlab  # noqa: F401  (before mmdet)
from ..errors import DPTZooError, InputError, OutputError
from ..manifest.records import TASK_TITLES
from ..models.factory import find_class_tensors
from ..utils.environment import versions
from ..utils.images import padded_size
from ..utils.streams import show
from ..utils.torch_defaults import torch_defaults
from ..weights.loading import load_weights
from ..weights.store import read_trusted_weights
from .distributed import process_device
from .images import use_own_reader

T = TypeVar("T")

PROGRESS_INTERVAL = 10.0
"""Seconds between two lines of progress."""


@contextlib.contextmanager
def quiet_runner(cfg: Config, device: str | torch.device | None = "auto") -> Iterator[Runner]:
    """Create a Runner on a device, and hide the output of MMEngine and pycocotools within the block.

    Warnings are shown, and the Runner's log file has the complete output. Settings of the process that MMEngine
    changes, such as the start method of worker processes, are restored afterwards. Settings of PyTorch that would
    change the run, such as the default type, do not apply within the block.

    Args:
        cfg: a complete config with a `work_dir`.
        device: as for `find_device`; ignored in a process group, which has chosen the device.

    Raises:
        InputError: The device or a setting of the config cannot be used, or the GPU's memory is too small.
        OutputError: `work_dir` cannot be written.
    """
    # With an earlier run's names, MMEngine would reuse its log, history and visualizer.
    cfg.experiment_name = f"{Path(cfg.work_dir).name}-{uuid.uuid4().hex}"
    cfg.visualizer = {"type": "Visualizer", **(cfg.get("visualizer") or {}), "name": cfg.experiment_name}
    try:
        with _mmengine_on(process_device(device)), contextlib.redirect_stdout(_Nowhere()):
            with _explained_errors():
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
    with contextlib.ExitStack() as stack:
        start_method = multiprocessing.get_start_method(allow_none=True)
        stack.callback(multiprocessing.set_start_method, start_method, force=True)
        multiprocessing.set_start_method(None, force=True)  # MMEngine warns if it replaces one
        stack.callback(cv2.setNumThreads, cv2.getNumThreads())
        stack.callback(torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode())
        for name in ("benchmark", "deterministic"):
            stack.callback(setattr, torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            if distributed.is_initialized() and name not in os.environ:  # otherwise MMEngine sets it to 1 and warns
                os.environ[name] = str(torch.get_num_threads())
                stack.callback(os.environ.pop, name)
        if sys.platform != "win32":  # MMEngine allows more open files
            import resource

            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
        stack.callback(setattr, mmengine_device, "DEVICE", mmengine_device.DEVICE)
        mmengine_device.DEVICE = device.type
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        known = {owner: owner._instance_dict.copy() for owner in _find_managers(ManagerMixin)}
        stack.callback(_forget_instances, known)
        stack.enter_context(torch_defaults())
        yield


def _find_managers(owner: Any) -> set[Any]:
    """Return MMEngine's classes that keep their instances by name: loggers, scopes, visualizers, ..."""
    return {owner}.union(*map(_find_managers, owner.__subclasses__()))


def _forget_instances(known: dict[Any, Any]) -> None:
    """Close the log files of a run, and make the instances current that were so before it."""
    for logger in MMLogger._instance_dict.keys() - known[MMLogger].keys():
        for handler in MMLogger._instance_dict[logger].handlers:
            handler.close()
    for owner in _find_managers(ManagerMixin):
        owner._instance_dict = known.get(owner, type(owner._instance_dict)())


@contextlib.contextmanager
def _explained_errors() -> Iterator[None]:
    """Raise the errors of libraries about a setting, while a run is built from its config, as InputError."""
    try:
        yield
    except (DPTZooError, OSError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each class that a config names checks its arguments in its own way
        reason = next(filter(None, map(str.strip, str(error).splitlines())), "")
        raise InputError(f"a setting of the config cannot be used: {type(error).__name__}: {reason}") from error


class _Runner(Runner):  # type: ignore[misc]
    def train(self) -> nn.Module:
        return self._build_and_run(super().train)

    def test(self) -> dict[str, float]:
        return self._build_and_run(super().test)

    def _build_and_run(self, run: Callable[[], T]) -> T:
        with contextlib.ExitStack() as self._building:
            self._building.enter_context(_explained_errors())
            return run()

    def call_hook(self, fn_name: str, **arguments: Any) -> None:
        if fn_name in ("before_train_epoch", "before_test_epoch"):
            self._building.close()  # later errors are not about settings
        super().call_hook(fn_name, **arguments)

    def set_randomness(self, seed: int | None, **options: Any) -> None:
        # MMEngine would draw the seed from NumPy's generator, whose state is restored after each run.
        drawn = from_main_process(lambda: secrets.randbelow(2**31)) if seed is None else seed
        super().set_randomness(drawn, **options)

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        # MMEngine's own report runs gcc and nvcc, and the shell prints an error if they are missing.
        facts = {**versions(), "device": mmengine_device.DEVICE, "processes": self.world_size, "seed": self.seed}
        lines = [f"    {name}: {value}" for name, value in facts.items()]
        self.logger.info("\n".join(["Environment:", *lines, torch.__config__.show()]))
        self.logger.info(f"Config:\n{self.cfg.pretty_text}")

    def build_val_loop(self, loop: Any) -> Any:
        return super().build_val_loop(_replace_usual(loop, "ValLoop", _SameSizeValLoop))

    def build_test_loop(self, loop: Any) -> Any:
        return super().build_test_loop(_replace_usual(loop, "TestLoop", _SameSizeTestLoop))

    @staticmethod
    def build_dataloader(dataloader: Any, *arguments: Any, **options: Any) -> DataLoader[Any]:
        # Here, and not in the config, which is also written to files that MMDetection's own tools can run.
        settings = copy.deepcopy(dataloader) if isinstance(dataloader, dict) else dataloader
        use_own_reader(settings)
        return cast(DataLoader[Any], Runner.build_dataloader(settings, *arguments, **options))


class _SameSizeIterations:
    """Gives a model only those images of a batch at once whose padded sizes are equal.

    MMDetection would pad all images of a batch to the largest, which changes what is found in the others.
    """

    runner: Runner

    def run_iter(self, idx: int, data_batch: Any) -> None:
        for batch in _divide_by_size(data_batch, unwrapped(self.runner.model)):
            super().run_iter(idx, batch)  # type: ignore[misc]


def _divide_by_size(batch: Any, model: Any) -> list[Any]:
    """Return the parts of a batch whose images have one padded size, or the batch of a model that pads no images."""
    preprocessor = getattr(model, "data_preprocessor", None)
    if not isinstance(preprocessor, ImgDataPreprocessor):
        return [batch]
    groups: dict[tuple[int, int], list[int]] = {}
    for place, image in enumerate(batch["inputs"]):
        groups.setdefault(padded_size(image.shape[-2:], preprocessor.pad_size_divisor), []).append(place)
    return [{name: [values[place] for place in places] for name, values in batch.items()} for places in groups.values()]


class _SameSizeValLoop(_SameSizeIterations, ValLoop):  # type: ignore[misc]
    pass


class _SameSizeTestLoop(_SameSizeIterations, TestLoop):  # type: ignore[misc]
    pass


def _replace_usual(loop: Any, name: str, replacement: type) -> Any:
    """Return the setting of a loop with another class in place of the usual one, its `name`."""
    is_usual = isinstance(loop, dict) and loop.get("type", name) == name
    return {**loop, "type": replacement} if is_usual else loop


@HOOKS.register_module()
class StartingWeightsHook(Hook):  # type: ignore[misc]
    """Loads a detector's weights into the model before the first step, unless the run is resumed.

    Layers that differ in the number of classes keep their initial values.

    Args:
        weights: a model's name, a path, `https://...` or `hf://org/repo/file`.
        is_default: whether they are the model's own. Otherwise a resumed run must have started from them.
    """

    def __init__(self, weights: str, is_default: bool = False) -> None:
        self.weights = weights
        self.is_default = is_default

    def before_train(self, runner: Runner) -> None:
        """Load the weights, and report what was loaded.

        Raises:
            InputError: The run is resumed, and started from other weights.
        """
        if runner.iter:
            started_from = runner.message_hub.runtime_info.get("starting_weights", self.weights)
            if started_from != self.weights and not self.is_default:
                raise InputError(
                    f"the run to resume started from {started_from}, not from {self.weights}: leave the weights out"
                )
            return
        runner.message_hub.update_info("starting_weights", self.weights)
        model = unwrapped(runner.model)
        path, weights = read_trusted_weights(self.weights)
        left_out = load_weights(model, weights.tensors, path, "the config", resized=find_class_tensors(model))
        others = f", left out for other classes: {', '.join(left_out)}" if left_out else ""
        report(runner, f"starting from {len(model.state_dict()) - len(left_out)} tensors of {self.weights}{others}")


@HOOKS.register_module()
class ProgressHook(Hook):  # type: ignore[misc]
    """Reports progress on standard error."""

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
        show(line, to=sys.stderr)


class _Nowhere(io.TextIOBase):
    """Discards text. Loggers may keep it after the run, so it is neither a file to close nor an `io.StringIO`."""

    def write(self, text: str) -> int:
        return len(text)
