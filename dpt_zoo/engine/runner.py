"""MMEngine's Runner as this project uses it: quiet, telling how far it is, starting from trusted weights."""

import contextlib
import io
import logging
import math
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from .. import mmlab  # noqa: F401  (before mmdet)
from ..errors import DPTZooError, InputError, OutputError
from ..models.factory import CLASS_LAYERS
from ..weights.loading import load_weights
from ..weights.store import read_trusted_weights

T = TypeVar("T")

SECONDS = 10.0
"""Between two lines of progress."""


@contextlib.contextmanager
def quiet_runner(cfg: Config, device: str = "auto") -> Iterator[Runner]:
    """Make a Runner, and have it and pycocotools print nothing within the block but warnings; its log file has it all.

    Raises:
        OutputError: the run's folder cannot be written.
        InputError: the GPU's memory is too small.
    """
    init_default_scope("mmdet")
    # By their names MMEngine finds the log, history and visualizer of an earlier run in this process again.
    cfg.experiment_name = cfg.visualizer.name = f"{Path(cfg.work_dir).name}-{uuid.uuid4().hex}"
    try:
        with contextlib.redirect_stdout(_Nowhere()):
            runner = Runner.from_cfg(cfg)
            runner.logger.addHandler(_warnings())
            yield runner
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"this needs more memory than the GPU has ({reason}): try a smaller batch_size") from error
    except OSError as error:
        raise OutputError(f"the run in {cfg.work_dir} has ended: {error}: make it right, and start again") from error


def load_detector(runner: Runner, weights: str | Path, *, for_any_classes: bool = False) -> list[str]:
    """Put a detector's weights into a Runner's model.

    Args:
        weights: the name of a zoo's detector, a path, `https://...` or `hf://org/repo/file`.
        for_any_classes: layers of another number of classes than the model's are left as they are.

    Returns:
        The names of the tensors that were left so.

    Raises:
        FetchError, OutputError: the weights are not here and cannot be fetched.
        WeightsError: they cannot be read, or are another model's.
    """
    model = unwrapped(runner.model)
    path, trusted = read_trusted_weights(weights)
    names = [f"{layer}.{kind}" for layers in CLASS_LAYERS.values() for layer in layers for kind in ("weight", "bias")]
    own = model.state_dict()
    resized = [name for name in names if name in own] if for_any_classes else []
    return load_weights(model, trusted.tensors, path, "the recipe", resized=resized)


@HOOKS.register_module()
class StartingWeightsHook(Hook):  # type: ignore[misc]
    """Puts a detector's weights into the model before the first step.

    Args:
        weights: see `load_detector`.
    """

    def __init__(self, weights: str) -> None:
        self.weights = weights

    def before_train(self, runner: Runner) -> None:
        """Load them, unless a run is resumed."""
        if runner.iter:
            return
        left_out = load_detector(runner, self.weights, for_any_classes=True)
        others = f", left out, for other classes: {', '.join(left_out)}" if left_out else ""
        num_taken = len(runner.model.state_dict()) - len(left_out)
        tell(runner, f"start: {num_taken} tensors from {self.weights}{others}")


@HOOKS.register_module()
class ProgressHook(Hook):  # type: ignore[misc]
    """Tells on standard error how far training and validation are.

    Raises:
        DPTZooError: the loss is no longer finite.
    """

    priority = "VERY_LOW"  # after the hooks that measure

    def __init__(self) -> None:
        self._last_time = time.monotonic()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Tell of the step, if it is time."""
        if not self._is_due():
            return
        loss = runner.message_hub.get_scalar("train/loss").current()
        if not math.isfinite(loss):
            raise DPTZooError(
                f"the loss is {loss} in epoch {runner.epoch + 1}: go on from a checkpoint before it with a lower "
                "learning rate (cfg_options), or check the data"
            )
        seconds = runner.message_hub.get_scalar("train/time").mean(window_size=50)
        left = (runner.max_iters - runner.iter - 1) * seconds
        tell(
            runner,
            f"epoch {runner.epoch + 1}/{runner.max_epochs}  step {batch_idx + 1}/{len(runner.train_dataloader)}  "
            f"loss {loss:.3f}  {seconds:.2f} s/step  {_clock(left)} left",
        )

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: list[Any] | None = None
    ) -> None:
        """Tell of the batch, if it is time."""
        if self._is_due():
            tell(
                runner,
                f"epoch {runner.epoch}/{runner.max_epochs}  validating {batch_idx + 1}/{len(runner.val_dataloader)}",
            )

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: list[Any] | None = None
    ) -> None:
        """Tell of the batch, if it is time."""
        if self._is_due():
            tell(runner, f"batch {batch_idx + 1}/{len(runner.test_dataloader)}")

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Tell what was found."""
        figures = [
            f"{noun} AP {100 * metrics[key]:.1f}"
            for noun, key in (("box", "coco/bbox_mAP"), ("mask", "coco/segm_mAP"))
            if metrics and key in metrics
        ]
        tell(runner, f"epoch {runner.epoch}/{runner.max_epochs}  {', '.join(figures) or 'nothing found yet'}")

    def _is_due(self) -> bool:
        if time.monotonic() - self._last_time < SECONDS:
            return False
        self._last_time = time.monotonic()
        return True


def unwrapped(model: Any) -> nn.Module:
    """The model itself, without what shares it among processes."""
    inner: nn.Module = model.module if is_model_wrapper(model) else model
    return inner


def from_main_process(make: Callable[[], T]) -> T:
    """What the main process makes, in all of them; the others wait for it."""
    made = [make() if is_main_process() else None]
    broadcast_object_list(made)
    return cast(T, made[0])


def tell(runner: Runner, line: str) -> None:
    """Write a line to the run's log, and on standard error; the main process alone does."""
    runner.logger.info(line)
    if is_main_process():
        print(line, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _warnings() -> logging.Handler:
    """Shows a log's warnings, but for those that concern MMEngine's own code alone."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.addFilter(lambda record: not re.search('"(FileClient|HardDiskBackend)"', record.getMessage()))
    return handler


class _Nowhere(io.TextIOBase):
    """Takes text, and keeps none; loggers may hold it for ever."""

    def write(self, text: str) -> int:
        return len(text)
