"""Printing that several subcommands share."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import DPTZooError
from ..weights.cache import CacheEntry

BAD_INPUT = 2  # exit status for input that cannot be used


def is_main_process() -> bool:
    """Return whether this process prints: the only one, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def complain(error: DPTZooError) -> None:
    """Print an error to standard error."""
    print(f"dpt-zoo: {error}", file=sys.stderr)


def print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print `header` and `rows` in aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


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
