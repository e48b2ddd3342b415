"""A training loop that can stop after any iteration, and continue later with exactly the same losses.

The random choices for a sample (flips, scales, ...) depend only on seed, epoch and index, so the batches of an earlier
run need not be loaded again, and the number of workers may change. A checkpoint holds the states of the random
generators of each process, which the model uses (dropout, sampling of proposals, ...).
"""

import functools
import itertools
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank
from mmengine.registry import DATA_SAMPLERS, DATASETS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset

from .. import mmlab  # noqa: F401  (before mmdet, whose data set a spawned worker imports after this module)
from ..errors import InputError
from .settings import describe_differences, read_settings

Sample = tuple[int, int, int]
"""Seed, epoch, index in the data set."""


class TrainingInterrupted(SystemExit):
    """SIGINT or SIGTERM stopped training. If uncaught, the process exits with 128 + the signal's `number`.

    `checkpoint` is the file to resume from, or None if there is none yet.
    """

    def __init__(self, number: int, checkpoint: Path | None) -> None:
        super().__init__(128 + number)
        self.checkpoint = checkpoint


class StopSignals:
    """A context that records SIGINT and SIGTERM instead of ending the process; a second SIGINT ends it at once.

    An ignored signal stays ignored, such as SIGINT in a background job of a shell. A second SIGTERM has no effect,
    since launchers repeat signals that their processes have already received.

    Attributes:
        received: the number of the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # other threads cannot handle signals
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: object) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):  # type: ignore[misc]
    """MMEngine's loop over epochs, which can also start in the middle of an epoch.

    `ResumableCheckpointHook` saves and restores its state. A run that is resumed at the end of an epoch starts with
    the validation of that epoch.
    """

    dataloader: DataLoader[Any]

    def __init__(self, runner: Runner, dataloader: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        others = {key: value for key, value in dataloader.items() if key != "drop_last"}
        batches = {"type": SeededBatches, "batches": dataloader.get("batch_sampler")}
        batches["drop_last"] = dataloader.get("drop_last", False)
        dataset = {"type": SeededDataset, "dataset": dataloader["dataset"]}
        super().__init__(runner, {**others, "dataset": dataset, "batch_sampler": batches}, *args, **kwargs)
        self._batches = cast(SeededBatches, self.dataloader.batch_sampler)
        self.stop = StopSignals()
        self._generators: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from, without epoch and iteration. All processes must call this."""
        generators = _get_cpu_generators()
        if torch.cuda.is_initialized():
            generators["cuda"] = torch.cuda.get_rng_state()
        state = {**self._layout(), "settings": self._settings, "seed": self._batches.sampler.seed}
        return {**state, "generators": all_gather_object(generators)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state that `run` starts from.

        Raises:
            InputError: The number of processes or of batches per epoch differs, which would change the order of images,
                or another setting differs that the result depends on.
        """
        saved, current = {key: state[key] for key in self._layout()}, self._layout()
        if saved != current:
            form = "{processes} processes with {batches} batches in an epoch"
            raise InputError(
                f"the run to resume has {form.format(**saved)}, this one has {form.format(**current)}: "
                "resume it with the same processes, batch size and data, or start a new run from its weights"
            )
        seed, several = (self.runner._randomness_cfg.get(name) for name in ("seed", "diff_rank_seed"))
        if seed not in (None, state["seed"]) and not several:
            raise InputError(f"the run to resume has seed {state['seed']}, this one has {seed}: leave the seed out")
        # Checkpoints of earlier versions have no settings.
        if differences := describe_differences(state.get("settings", self._settings), self._settings):
            raise InputError(
                f"the run to resume has other settings ({differences}): "
                "resume it with the same data and options, or start a new run from its weights"
            )
        self._batches.sampler.seed = state["seed"]
        self._generators = state["generators"][get_rank()]

    def run(self) -> nn.Module:
        """Train until the end of the last epoch. A signal raises `TrainingInterrupted`."""
        for loop in filter(None, (self, self.runner.val_loop)):
            # Its own generator keeps a loader from drawing from training's.
            loop.dataloader.generator = torch.Generator()
            loop.dataloader.worker_init_fn = functools.partial(_start_worker, loop.dataloader.worker_init_fn)
        with self.stop:
            self.runner.call_hook("before_train")
            if self._generators is not None:
                _set_generators(self._generators)
            if self._iter and not self._num_done():
                self._validate()
            while self._epoch < self._max_epochs and not self.stop_training:
                self.run_epoch()
                self._validate()
            self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        """Train on the rest of an epoch."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        self._batches.epoch, self._batches.num_skipped = self._epoch, self._num_done()
        for number, batch in enumerate(self.dataloader, self._batches.num_skipped):
            self.run_iter(number, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def _num_done(self) -> int:
        return self._iter - self._epoch * len(self.dataloader)

    @functools.cached_property
    def _settings(self) -> dict[str, str]:
        return read_settings(self.runner)

    def _layout(self) -> dict[str, int]:
        return {"processes": self.runner.world_size, "batches": len(self.dataloader)}

    def _validate(self) -> None:
        self._decide_current_val_interval()
        due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        if self.runner.val_loop is not None and self._epoch >= self.val_begin and due:
            self.runner.val_loop.run()


class SeededBatches(BatchSampler):
    """Another sampler's batches without the first `num_skipped`, with the seed and epoch of each sample.

    Args:
        sampler: the sampler of the images, whose epoch MMEngine's hook sets.
        batch_size: number of images in a batch.
        batches: the config of the other batch sampler, or None for PyTorch's own.
        drop_last: whether PyTorch's own leaves out a last batch that is smaller than the others.
    """

    sampler: Any

    def __init__(self, sampler: Any, batch_size: int, batches: dict[str, Any] | None, drop_last: bool) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.epoch = 0
        self.num_skipped = 0
        self._all = BatchSampler(sampler, batch_size, drop_last)
        if batches:
            self._all = DATA_SAMPLERS.build(batches, default_args={"sampler": sampler, "batch_size": batch_size})

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[list[Sample]]:  # type: ignore[override]
        for indices in itertools.islice(self._all, self.num_skipped, None):
            yield [(self.sampler.seed, self.epoch, index) for index in indices]


class SeededDataset(Dataset[Any]):
    """A data set in which the random choices for a sample depend only on its `Sample` from `SeededBatches`.

    Args:
        dataset: the data set, or its config.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # missing while it is unpickled; Python's own
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, sample: Sample) -> Any:
        states = _get_cpu_generators()  # a worker must not use the GPU
        seeds = map(int, np.random.SeedSequence(sample).generate_state(3))
        random.seed(next(seeds))
        np.random.seed(next(seeds))
        torch.default_generator.manual_seed(next(seeds))
        try:
            return self.dataset[sample[-1]]
        finally:
            _set_generators(states)


def _start_worker(init: Callable[[int], None] | None, number: int) -> None:
    if os.name == "posix":  # Ctrl-C and torchrun signal the whole process group: keep the worker out of it
        os.setpgid(0, 0)
    if init:
        init(number)


def _set_generators(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"].cpu())  # MMEngine loads a checkpoint to the GPU
    if "cuda" in states and torch.cuda.is_initialized():  # a run may be resumed on another device
        torch.cuda.set_rng_state(states["cuda"].cpu())


def _get_cpu_generators() -> dict[str, Any]:
    """Return states in types that `torch.load(weights_only=True)` reads."""
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
