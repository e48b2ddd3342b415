"""How long work tells how far it is: bars on a terminal, nothing elsewhere."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

ProgressCallback = Callable[[int, int | None], None]
"""Takes what is done and, where it is known, what there is to do: bytes, images, ..."""


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[ProgressCallback]:
    """A bar on standard error for things that are counted, if it is a terminal; it goes when the block ends.

    It shows how many are done, how many in a second, and the time that is left.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich import progress
    from rich.console import Console
    from rich.text import Text

    class Rate(progress.ProgressColumn):
        """What is done in a second."""

        def render(self, task: progress.Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "", "progress.data.speed")

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        Rate(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


class Downloads:
    """A bar for each file that is being fetched and, if they are several, one for all.

    They show on standard error once bytes come in, and only if it is a terminal.
    """

    def __init__(self, num_files: int = 1) -> None:
        self._is_shown = sys.stderr.isatty()
        self._num_files = num_files
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}
        self._totals: dict[str, int | None] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "Downloads":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bars:
            self._bars.stop()

    def callback_for(self, name: str) -> ProgressCallback:
        """The report of one file."""

        def report(done: int, total: int | None) -> None:
            if not self._is_shown:
                return
            with self._lock:
                self._done[name], self._totals[name] = done, total
                bars = self._started()
                if name not in self._tasks:
                    self._tasks[name] = bars.add_task(name)
                bars.update(self._tasks[name], completed=done, total=total)
                if self._num_files > 1:
                    self._update_overall(bars)

        return report

    def _started(self) -> "Progress":
        if self._bars is None:
            from rich import progress
            from rich.console import Console

            columns = (
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.DownloadColumn(),
                progress.TransferSpeedColumn(),
                progress.TimeRemainingColumn(),
            )
            self._bars = progress.Progress(*columns, console=Console(stderr=True))
            self._bars.start()
            if self._num_files > 1:
                self._tasks[""] = self._bars.add_task("all files", total=None)
        return self._bars

    def _update_overall(self, bars: "Progress") -> None:
        totals = [total for total in self._totals.values() if total is not None]
        total = sum(totals) if len(totals) == self._num_files else None  # not known before all have begun
        begun = f"all files ({len(self._done)} of {self._num_files} begun)"
        bars.update(self._tasks[""], description=begun, completed=sum(self._done.values()), total=total)
