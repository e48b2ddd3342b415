"""A training loop that can be left after any iteration, and resumed as if it had not been.

Two things make that exact. A sample's random choices (flips, scales, ...) follow from seed, epoch and index alone,
whichever process loads it and whatever was loaded before: so the batches already trained on need not be loaded again,
and the number of workers may change. And a checkpoint holds each process's random generators, which the model draws
from (dropout, the choice of proposals, ...).
"""

import contextlib
import functools
import itertools
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset

from ..errors import InputError

Sample = tuple[int, int, int]
"""Seed, epoch, index in the data set."""


class TrainingInterrupted(SystemExit):
    """Training was left for SIGINT or SIGTERM; uncaught, it ends the process with 128 + the signal's number.

    Attributes:
        checkpoint: from which to resume; None if there is none yet.
    """

    def __init__(self, number: int, checkpoint: Path | None) -> None:
        super().__init__(128 + number)
        self.checkpoint = checkpoint


class StopSignals:
    """Notes SIGINT and SIGTERM, within the block, instead of ending the process; a SIGINT after that ends it at once.

    A signal that was ignored before, as SIGINT is in a shell's background job, stays ignored. A second SIGTERM is the
    same as the first: launchers pass on what reached their processes too.

    Attributes:
        received: the signal's number, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # no other can handle signals
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):  # type: ignore[misc]
    """MMEngine's loop over epochs, that can begin in the middle of one.

    It needs `ResumableCheckpointHook`, which saves its state, and gives it back when a run is resumed. What is
    resumed at the end of an epoch begins with that epoch's validation.
    """

    dataloader: DataLoader[Any]

    def __init__(self, runner: Runner, dataloader: DataLoader[Any] | dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(runner, dataloader, *args, **kwargs)
        self.dataloader, self._batches = _with_seeded_samples(self.dataloader)
        self.stop = StopSignals()
        self._generators: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Gather what the loop resumes from, besides epoch and iteration, from all processes; all have to call it."""
        return {**self._layout(), "seed": self._batches.seed, "generators": all_gather_object(get_generators())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Have `run` begin from a state.

        Raises:
            InputError: it is of another number of processes, or of batches in an epoch: their order would differ.
        """
        then, now = {key: state[key] for key in self._layout()}, self._layout()
        if then != now:
            raise InputError(
                f"the run to be resumed had {_describe(then)}, this one has {_describe(now)}: "
                "resume it with the same processes, batch size and data, or begin a new run from its weights"
            )
        self._batches.seed = state["seed"]
        self._generators = state["generators"][get_rank()]

    def run(self) -> nn.Module:
        """Train until the last epoch's end, or until a signal.

        Raises:
            TrainingInterrupted: there was a signal.
        """
        for loop in filter(None, (self, self.runner.val_loop)):
            _keep_apart(loop.dataloader)
        with self.stop:
            self.runner.call_hook("before_train")
            if self._generators is not None:
                set_generators(self._generators)
            if self._iter and not self._num_done():
                self._validate()
            while self._epoch < self._max_epochs and not self.stop_training:
                self.run_epoch()
                self._validate()
            self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        """Train on what is left of an epoch."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        self._batches.epoch, self._batches.num_skipped = self._epoch, self._num_done()
        for number, batch in enumerate(self.dataloader, self._batches.num_skipped):
            self.run_iter(number, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def _num_done(self) -> int:
        """How many batches of the epoch have been trained on."""
        return self._iter - self._epoch * len(self.dataloader)

    def _layout(self) -> dict[str, int]:
        return {"processes": self.runner.world_size, "batches": len(self.dataloader)}

    def _validate(self) -> None:
        self._decide_current_val_interval()
        due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        if self.runner.val_loop is not None and self._epoch >= self.val_begin and due:
            self.runner.val_loop.run()


def _describe(layout: dict[str, int]) -> str:
    return f"{layout['processes']} processes with {layout['batches']} batches in an epoch"


# --- Data


class SeededBatches(BatchSampler):
    """The batches of another sampler from a certain one on, each index with what its sample is seeded from.

    Attributes:
        sampler: of indices; MMEngine's hook tells it the epoch.
    """

    def __init__(self, batches: BatchSampler) -> None:
        self.sampler: Any = batches.sampler
        self.epoch = 0
        self.num_skipped = 0
        self._all = batches

    @property
    def seed(self) -> int:
        """What the order of the indices follows from, the same in all processes."""
        return self.sampler.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self.sampler.seed = seed

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[list[Sample]]:  # type: ignore[override]
        for indices in itertools.islice(self._all, self.num_skipped, None):
            yield [(self.seed, self.epoch, index) for index in indices]


class SeededDataset(Dataset[Any]):
    """Another data set, whose samples' random choices follow from what `SeededBatches` gives with each index."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # not there yet while it is unpickled; Python's own
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, sample: Sample) -> Any:
        with _seeded_generators(sample):
            return self.dataset[sample[-1]]


def _with_seeded_samples(loader: Any) -> tuple[DataLoader[Any], SeededBatches]:
    batches = SeededBatches(loader.batch_sampler)
    seeded = DataLoader(
        SeededDataset(loader.dataset),
        batch_sampler=batches,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )
    return seeded, batches


def _keep_apart(loader: DataLoader[Any]) -> None:
    """Have a loader not draw from the generators of training, and its workers not get training's signals."""
    loader.generator = torch.Generator()
    loader.worker_init_fn = functools.partial(_start_worker, loader.worker_init_fn)


def _start_worker(init: Callable[[int], None] | None, number: int) -> None:
    if os.name == "posix":
        os.setpgid(0, 0)  # a terminal's Ctrl-C and torchrun's signals go to the whole group of the parent
    if init:
        init(number)


# --- Random generators


def get_generators() -> dict[str, Any]:
    """The states of this process's random generators, as values that `torch.load(weights_only=True)` reads."""
    states = _get_cpu_generators()
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_generators(states: dict[str, Any]) -> None:
    """Set this process's random generators back to what `get_generators` gave."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"].cpu())  # a checkpoint is loaded to the GPU
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu())


def _get_cpu_generators() -> dict[str, Any]:
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}


@contextlib.contextmanager
def _seeded_generators(entropy: Sample) -> Iterator[None]:
    """Seed the generators within the block; afterwards they stand where they stood."""
    states = _get_cpu_generators()  # of the CPU alone: a worker may not touch the GPU
    seeds = map(int, np.random.SeedSequence(entropy).generate_state(3))
    random.seed(next(seeds))
    np.random.seed(next(seeds))
    torch.default_generator.manual_seed(next(seeds))
    try:
        yield
    finally:
        set_generators(states)
