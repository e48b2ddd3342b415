"""Runs the parts of a plan in the actors of a Ray cluster."""

from collections.abc import Mapping
from typing import Any

import ray
import ray.exceptions
from ray.util.metrics import Counter

from ..errors import DPTZooError, InputError
from .results import Counts
from .runner import Reports
from .schedule import Schedule
from .worker import PartError, PartWorker

POLL_SECONDS = 1.0  # between looks at the size of the cluster
MAX_FAILED_STARTS = 3  # of actors, one after the other


class RayRunner:
    """Detects in actors of a Ray cluster, each with a model of its own.

    An actor has one part at a time. Their number follows the cluster while parts wait; one that has nothing to do ends.

    Args:
        model: see `PartWorker`.
        options: see `PartWorker`.
        address: the cluster's address; None for that in RAY_ADDRESS, the one that runs on this machine, or a new one.
        num_workers: the largest number of actors; None for as many as the cluster has room for. Ray's autoscaler adds
            machines for those without room.
        num_gpus: the GPUs of an actor, such as 0.25.
    """

    def __init__(
        self, model: str, options: Mapping[str, Any], address: str | None, num_workers: int | None, num_gpus: float
    ) -> None:
        self._arguments = (model, dict(options))
        self._num_workers = num_workers
        self._resources = {"num_cpus": options.get("num_threads") or 1, "num_gpus": num_gpus}
        self._idle: list[Any] = []
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            try:
                ray.init(address, logging_level="WARNING")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(f"address: no Ray cluster at {address or 'this machine'}: {error}") from error
        self._actor_class = ray.remote(**self._resources)(DetectionActor)

    def describe(self) -> dict[str, Any]:
        """Return what `PartWorker.describe` does.

        Raises:
            DPTZooError: The model cannot be loaded.
        """
        actor = self._start()
        try:
            description: dict[str, Any] = ray.get(actor.describe.remote())
        except ray.exceptions.RayTaskError as error:
            raise _cause(error) from error
        except ray.exceptions.RayError as error:
            raise InputError(f"the model cannot be loaded: {error}") from error
        self._idle.append(actor)
        return description

    def run(self, address: str, schedule: Schedule, reports: Reports) -> None:
        """Detect in the parts of `schedule`, with the plan in the folder at `address`, and call `reports`.

        Raises:
            DPTZooError: What `PartWorker.detect` raises, except `PartError`: the run ends.
        """
        calls: dict[Any, tuple[Any, int | None]] = {}  # the actor and the part of each call; None while it starts
        num_failed_starts = 0
        try:
            while schedule.num_left:
                while len(calls) < min(self._find_room(), schedule.num_left):
                    actor = self._idle.pop() if self._idle else self._start()
                    calls[actor.describe.remote()] = actor, None
                for call in _wait(list(calls)):
                    actor, part = calls.pop(call)
                    try:
                        counts = ray.get(call)
                    except ray.exceptions.RayTaskError as error:
                        if part is None or not isinstance(error.cause, PartError):
                            raise _cause(error) from error
                        schedule.fail(part, str(error.cause))
                    except ray.exceptions.RayError as error:  # the actor or its machine died
                        if part is not None:
                            schedule.fail(part, f"its worker died ({type(error).__name__})")
                        elif (num_failed_starts := num_failed_starts + 1) == MAX_FAILED_STARTS:
                            raise InputError(f"the workers do not start: {error}") from error
                        continue
                    else:
                        num_failed_starts = 0
                        if part is not None:
                            schedule.finish()
                            reports.finished(part, counts)
                    next_part = schedule.take()
                    if next_part is None:
                        ray.kill(actor)
                    else:
                        calls[actor.detect.remote(address, next_part)] = actor, next_part
        finally:
            for actor, _ in calls.values():
                ray.kill(actor)

    def close(self) -> None:
        """End the actors, and leave the cluster."""
        for actor in self._idle:
            ray.kill(actor)
        if self._is_ours:
            ray.shutdown()

    def _start(self) -> Any:
        return self._actor_class.remote(*self._arguments)

    def _find_room(self) -> int:
        """Return how many actors there may be now."""
        if self._num_workers is not None:
            return self._num_workers
        there = ray.cluster_resources()
        needed = {"CPU": self._resources["num_cpus"], "GPU": self._resources["num_gpus"]}
        return max(1, min(int(there.get(name, 0) / number) for name, number in needed.items() if number))


class DetectionActor(PartWorker):
    """A `PartWorker` whose images Ray's dashboard counts."""

    def __init__(self, model: str, options: Mapping[str, Any]) -> None:
        super().__init__(model, options)
        self._images = Counter("dpt_zoo_images", description="Images that DPT Zoo has detected in")

    def detect(self, address: str, index: int) -> Counts:  # type: ignore[override]
        """Call `PartWorker.detect` with `address` and `index`."""
        return super().detect(address, index, lambda done: self._images.inc())


def _wait(calls: list[Any]) -> list[Any]:
    """Wait a moment for the end of a call, and return all calls that ended."""
    ended, others = ray.wait(calls, timeout=POLL_SECONDS)
    return ended + (ray.wait(others, num_returns=len(others), timeout=0)[0] if ended and others else [])


def _cause(error: ray.exceptions.RayTaskError) -> Exception:
    """Return what the actor raised: an error of this package, or Ray's with the actor's stack."""
    return error.cause if isinstance(error.cause, DPTZooError) else error
