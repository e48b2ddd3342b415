"""What runs the parts of a plan: processes of this machine. For the actors of a Ray cluster, see `ray_runner`."""

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, NamedTuple, Protocol

from ..errors import InputError
from .process import WorkerProcess
from .results import Counts
from .schedule import Schedule
from .worker import PartError


class Reports(NamedTuple):
    """What a runner reports to: `finished` with the counts of a part, `progress` with a part and its images so far."""

    finished: Callable[[int, Counts], None]
    progress: Callable[[int, int], None]


class Runner(Protocol):
    """Runs the parts of a plan."""

    def describe(self) -> dict[str, Any]:
        """Return what `PartWorker.describe` does, on one of the workers."""

    def run(self, address: str, schedule: Schedule, reports: Reports) -> None:
        """Detect in the parts of `schedule`, with the plan in the folder at `address`, and call `reports`."""

    def close(self) -> None:
        """End the workers."""


class LocalRunner:
    """Detects in processes of this machine, each with a model of its own.

    Args:
        model: see `PartWorker`.
        options: see `PartWorker`.
        num_workers: the number of processes.
        local_rank: the number of this process among those of its machine that have as many workers.
    """

    def __init__(self, model: str, options: Mapping[str, Any], num_workers: int, local_rank: int) -> None:
        numbers = range(local_rank * num_workers, (local_rank + 1) * num_workers)
        self._workers = [WorkerProcess(model, options, number) for number in numbers]

    def describe(self) -> dict[str, Any]:
        """Return what `PartWorker.describe` does."""
        try:
            return self._workers[0].describe()
        except PartError as error:
            raise InputError(f"the model cannot be loaded: {error}") from error

    def run(self, address: str, schedule: Schedule, reports: Reports) -> None:
        """Detect in the parts of `schedule`, with the plan in the folder at `address`, and call `reports`.

        Raises:
            DPTZooError: What `PartWorker.detect` raises, except `PartError`: the run ends.
        """
        with ThreadPoolExecutor(len(self._workers), thread_name_prefix="dpt-zoo-worker") as pool:
            served = [pool.submit(_serve, worker, address, schedule, reports) for worker in self._workers]
            try:
                for each in wait(served, return_when=FIRST_EXCEPTION).done:
                    each.result()
            finally:
                schedule.stop()
                self.close()

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()


def _serve(worker: WorkerProcess, address: str, schedule: Schedule, reports: Reports) -> None:
    """Give a worker one part after the other."""
    while (part := schedule.take()) is not None:
        try:
            counts = worker.detect(address, part, partial(reports.progress, part))
        except PartError as error:
            schedule.fail(part, str(error))
        else:
            schedule.finish()
            reports.finished(part, counts)
