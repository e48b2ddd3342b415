"""Printing that several subcommands share."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import DPTZooError
from ..utils.streams import show as show
from ..utils.streams import stream_errors
from ..utils.text import printable
from ..weights.cache import CacheEntry

BAD_INPUT = 2  # exit status for input that cannot be used


def is_main_process() -> bool:
    """Return whether this process prints: the only one, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def complain(error: DPTZooError | str) -> None:
    """Print an error to standard error."""
    show(f"dpt-zoo: {error}", to=sys.stderr)


@contextlib.contextmanager
def prepared_streams() -> Iterator[None]:
    """Prepare the standard streams for the block: print logs that nobody handles, and flush standard output at the end.

    A stream that the user closed is replaced by the null device. Otherwise, a file that is opened gets its number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123
    before, logging.lastResort = logging.lastResort, _LogPrinter()
    try:
        yield
    finally:
        logging.lastResort = before
        with stream_errors(sys.stdout):  # of what argparse printed, for example
            sys.stdout.flush()


def print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print `header` and `rows` in aligned columns."""
    lines = [tuple(map(printable, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        show("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def format_size(path: Path) -> str:
    """Return the size of a file in MB, or "-" if it does not exist."""
    return f"{path.stat().st_size / 1e6:.1f} MB" if path.is_file() else "-"


def cache_state(entry: CacheEntry) -> str:
    """Return whether weights are cached: "yes", "unchecked", "partly" (an incomplete download) or "no"."""
    if entry.is_unchanged():
        return "yes"
    if entry.weights.exists():
        return "unchecked"
    return "partly" if entry.part.exists() else "no"


class _LogPrinter(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        show(self.format(record), to=sys.stderr)
