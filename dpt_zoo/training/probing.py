"""Short runs before the run: they measure the memory of a step, and test a range of learning rates.

A probe is the run itself, on its device and its data, for a few steps; its weights are thrown away.
"""

import copy
import math
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..engine.runner import quiet_runner
from ..errors import InputError
from ..utils.devices import free_memory
from .defaults import Memory

RANGE_STEPS = 100
RANGE = 1e-3, 1e2
"""The lowest and the highest learning rate of a range test, relative to the config's."""
WINDOW = 10
"""The number of steps over which a range test averages the loss, because that of small batches varies."""
DIVERGENCE = 2.0
"""The average loss has diverged if it is this many times its minimum."""
SIGNIFICANCE = 4.0
"""A fall of the average loss from one window to the next counts if it is this many times its standard error."""


def measure_memory(cfg: Config, device: str | torch.device | None) -> Memory:
    """Measure the memory that training on one image needs, and what is free, in the process that has the least.

    Args:
        cfg: the complete config of a run.
        device: as for `quiet_runner`.
    """
    cfg = copy.deepcopy(cfg)
    cfg.train_dataloader.update(batch_size=1, num_workers=0, persistent_workers=False)
    cfg.custom_hooks, cfg.param_scheduler = [], None
    hook = MemoryHook()
    _probe(cfg, hook, 2, device)  # the peak is in the second step: the first creates the optimizer's state
    everywhere = all_gather_object((hook.needed, hook.free))
    return Memory(needed=max(needed for needed, _ in everywhere), free=min(free for _, free in everywhere))


class MemoryHook(Hook):  # type: ignore[misc]
    """Measures memory in bytes: `needed`, what the steps add to what is used before them, and `free` before them.

    On a GPU, this is the peak. On a CPU, where freed memory stays with the process, it is what the forward pass keeps
    for the backward pass, the gradients and the optimizer's state.
    """

    needed = free = 0

    def before_train(self, runner: Runner) -> None:
        """Measure before the first step."""
        parameters = [each for each in runner.model.parameters() if each.requires_grad]
        device = parameters[0].device
        self._gpu = device if device.type == "cuda" else None
        if self._gpu:
            torch.cuda.reset_peak_memory_stats(self._gpu)
            self._before = torch.cuda.memory_allocated(self._gpu)
        self.free = free_memory(device) // (1 if self._gpu else get_world_size())  # processes share that of the CPU
        self._state = sum(3 * each.nbytes for each in parameters)  # a gradient and Adam's two moments
        self._model = {each.untyped_storage().data_ptr() for each in runner.model.state_dict().values()}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Record what is kept for the backward pass."""
        self._kept: dict[int, int] = {}
        self._recorder = saved_tensors_hooks(self._record, lambda tensor: tensor)
        self._recorder.__enter__()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Measure a step."""
        self._recorder.__exit__()
        if self._gpu:
            self.needed = torch.cuda.max_memory_allocated(self._gpu) - self._before
        else:
            self.needed = max(self.needed, self._state + sum(self._kept.values()))

    def _record(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._model:
            self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor


def tune_lr(cfg: Config, device: str | torch.device | None) -> tuple[float, str]:
    """Test a range of learning rates (arXiv 1506.01186): train while the rate rises exponentially.

    Args:
        cfg: the complete config of a run.
        device: as for `quiet_runner`.

    Returns:
        The learning rate, see `pick_lr`, and a line of text with the reason.

    Raises:
        InputError: The loss is not finite from the beginning.
    """
    cfg = copy.deepcopy(cfg)
    lowest, highest = (factor * cfg.optim_wrapper.optimizer.lr for factor in RANGE)
    growth = (highest / lowest) ** (1 / (RANGE_STEPS - 1))
    cfg.optim_wrapper.optimizer.lr = lowest
    cfg.param_scheduler = [{"type": "ExponentialLR", "gamma": growth, "by_epoch": False}]
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook["type"] == "StartingWeightsHook"]
    hook = RangeTestHook()
    _probe(cfg, hook, RANGE_STEPS, device)
    rates = lowest * growth ** np.arange(len(hook.losses))
    lr, divergence = pick_lr(rates.tolist(), hook.losses)
    end = f"diverges at {divergence:.2g}" if divergence else f"does not diverge up to {rates[-1]:.2g}"
    return lr, f"learning rate {lr:.2g}: in a range test of {len(rates)} steps, the loss {end}"


class RangeTestHook(Hook):  # type: ignore[misc]
    """Records the `losses` of all steps, and ends a range test in which they diverge."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Record the mean loss of all processes."""
        loss = outputs["loss"].detach().clone()
        all_reduce(loss, op="mean")
        self.losses.append(loss.item())
        runner.train_loop.stop_training = find_divergence(self.losses) is not None


def pick_lr(rates: Sequence[float], losses: Sequence[float]) -> tuple[float, float | None]:
    """Pick a learning rate from the rising `rates` and the `losses` of a range test.

    Returns:
        The rate at which the average loss falls most steeply, but at most a tenth of that at which it diverges, or of
        the highest; this tenth if the loss falls nowhere. And the rate at which it diverges, or None.

    Raises:
        InputError: There are no three finite losses before it diverges.
    """
    end = find_divergence(losses)
    before = losses[:end]
    window = min(WINDOW, len(before) // 3)
    if not window:
        raise InputError("the learning rate cannot be tuned: the loss diverges at once: check the data")
    divergence = None if end is None else rates[end]
    highest = (rates[-1] if divergence is None else divergence) / 10
    averages = _average(before, window)
    changes = averages[window:] - averages[:-window]  # from one window to the next
    deviation = np.median(np.abs(np.diff(before))) / 0.95  # of a single loss, if it is normal
    steepest = int(np.argmin(changes))
    if -changes[steepest] <= SIGNIFICANCE * deviation * math.sqrt(2 / window):
        return highest, divergence
    return min(rates[steepest + window], highest), divergence


def find_divergence(losses: Sequence[float]) -> int | None:
    """Return the index of the first of the `losses` that is not finite, or whose average is far above its minimum."""
    for index, loss in enumerate(losses):
        if not math.isfinite(loss):
            return index
    if len(losses) < WINDOW:
        return None
    averages = _average(losses, WINDOW)
    far = np.flatnonzero(averages > DIVERGENCE * np.minimum.accumulate(averages))
    return int(far[0]) + WINDOW - 1 if far.size else None


def _average(losses: Sequence[float], window: int) -> NDArray[np.float64]:
    return np.convolve(losses, np.full(window, 1 / window), "valid")


def _probe(cfg: Config, hook: Hook, num_steps: int, device: str | torch.device | None) -> None:
    """Train for some steps, without validation, checkpoints and logs."""
    cfg.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": num_steps}
    for split in ("val", "test"):
        cfg.update({f"{split}_{part}": None for part in ("dataloader", "cfg", "evaluator")})
    cfg.train_dataloader.update(sampler={"type": "InfiniteSampler"}, batch_sampler=None)
    cfg.default_hooks = {"checkpoint": None, "logger": None}
    cfg.visualizer, cfg.resume = None, False
    with tempfile.TemporaryDirectory() as cfg.work_dir, quiet_runner(cfg, device) as runner:
        runner.register_hook(hook)
        runner.train()
