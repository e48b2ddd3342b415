"""Markdown tables and text."""

import re
from collections.abc import Iterable, Sequence

from .text import printable


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str | None = None) -> str:
    """Return a Markdown table.

    Args:
        header: the titles of the columns.
        rows: the cells, as Markdown.
        align: one letter per column, "l" for left or "r" for right; all left by default.
    """
    rules = ["---:" if letter == "r" else "---" for letter in align or "l" * len(header)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rules, *rows))


def escape(text: str) -> str:
    """Escape text of unknown origin, such as a class name, so that Markdown shows it literally in one line."""
    return re.sub(r"([\\`*_|\[\]<>])", r"\\\1", printable(text))
