"""The bookkeeping of a run, whatever runs it: which part comes next, and what is done."""

import threading
from collections import Counter, deque
from collections.abc import Iterable

from ..utils.progress import ProgressCallback
from .results import Counts

MAX_TRIES = 3
"""A part is set aside after it has failed as often: it may hold an image that ends the process."""


class Schedule:
    """Hands out parts until each is finished or set aside. Any thread may call it.

    Attributes:
        num_left: the number of parts that are neither finished nor set aside.
        set_aside: the reason for each part that was set aside.
    """

    def __init__(self, parts: Iterable[int]) -> None:
        self._waiting = deque(parts)
        self._tries = Counter[int]()
        self._lock = threading.Lock()
        self.num_left = len(self._waiting)
        self.set_aside: dict[int, str] = {}
        self._is_stopped = False

    @property
    def num_waiting(self) -> int:
        """The number of parts that no worker has."""
        return len(self._waiting)

    def take(self) -> int | None:
        """Return a part to detect in, or None if none waits. One that a worker has may fail and wait again."""
        with self._lock:
            return self._waiting.popleft() if self._waiting and not self._is_stopped else None

    def finish(self) -> None:
        """Note that a part is finished."""
        with self._lock:
            self.num_left -= 1

    def fail(self, part: int, reason: str) -> None:
        """Let a `part` wait again, or set it aside with this `reason` after MAX_TRIES."""
        with self._lock:
            self._tries[part] += 1
            if self._tries[part] < MAX_TRIES:
                self._waiting.append(part)
            else:
                self.num_left -= 1
                self.set_aside[part] = reason

    def stop(self) -> None:
        """Hand out no more parts."""
        with self._lock:
            self._is_stopped = True


class Tally:
    """Adds up what the workers report, and shows it. Any thread may call it.

    Args:
        num_images: the number of all images, if it is known.
        progress: called with the number of images that are done, and `num_images`.

    Attributes:
        counts: those of the finished parts.
    """

    def __init__(self, num_images: int | None, progress: ProgressCallback) -> None:
        self.counts = Counts()
        self._num_images = num_images
        self._progress = progress
        self._done: dict[int, int] = {}  # in the parts that are not finished
        self._lock = threading.Lock()

    def finish(self, part: int, counts: Counts) -> None:
        """Add the `counts` of a finished `part`."""
        with self._lock:
            self._done.pop(part, None)
            self.counts += counts
            self._show()

    def show(self, part: int, done: int) -> None:
        """Note how many images of a `part` are `done`."""
        with self._lock:
            self._done[part] = done
            self._show()

    def _show(self) -> None:
        self._progress(self.counts.num_images + sum(self._done.values()), self._num_images)
