"""Progress bars on standard error, shown only on a terminal."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

ProgressCallback = Callable[[int, int | None], None]
"""Called with the amount done so far and the total, which is None if it is unknown: bytes, images, ..."""


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[ProgressCallback]:
    """Show a progress bar with a `description`, the rate and the remaining time until the block ends."""
    if not on_terminal():
        yield lambda done, total: None
        return
    from rich import progress
    from rich.text import Text

    class Rate(progress.ProgressColumn):
        def render(self, task: progress.Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "", "progress.data.speed")

    with _bars(progress.MofNCompleteColumn(), Rate(), transient=True) as bars:
        task = bars.add_task(description, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def on_terminal() -> bool:
    """Return whether standard error is a terminal. It may also be closed, or missing."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False


class Downloads:
    """A progress bar for each of `num_files` downloads, and one for all. They appear with the first bytes."""

    def __init__(self, num_files: int = 1) -> None:
        self._num_files = num_files
        self._bars: Progress | None = None
        self._done: dict[str, tuple[int, int | None]] = {}
        self._tasks: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "Downloads":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars:
            self._bars.stop()

    def callback_for(self, name: str) -> ProgressCallback:
        """Return the callback of one file, which any thread may call."""
        if not on_terminal():
            return lambda done, total: None

        def report(done: int, total: int | None) -> None:
            with self._lock:
                self._done[name] = done, total
                if self._num_files > 1:
                    dones, totals = zip(*self._done.values(), strict=True)
                    is_known = len(totals) == self._num_files and None not in totals
                    title = f"all files ({len(totals)} of {self._num_files} begun)"
                    self._show("", title, sum(dones), sum(totals) if is_known else None)
                self._show(name, name, done, total)

        return report

    def _show(self, name: str, title: str, done: int, total: int | None) -> None:
        from rich import progress

        if self._bars is None:
            self._bars = _bars(progress.DownloadColumn(), progress.TransferSpeedColumn())
            self._bars.start()
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(title)
        self._bars.update(self._tasks[name], description=title, completed=done, total=total)


def _bars(*columns: Any, transient: bool = False) -> "Progress":
    from rich import progress
    from rich.console import Console

    start = progress.TextColumn("{task.description}"), progress.BarColumn()
    console = Console(stderr=True)
    return progress.Progress(*start, *columns, progress.TimeRemainingColumn(), console=console, transient=transient)
