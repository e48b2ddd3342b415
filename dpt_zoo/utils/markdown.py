"""Markdown tables and text."""

import re
from collections.abc import Iterable, Sequence

from .text import printable


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str | None = None) -> str:
    """Return a table of a `header` and `rows` of Markdown. `align` has "l" or "r" for each column; default: all "l"."""
    rules = ["---:" if letter == "r" else "---" for letter in align or "l" * len(header)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rules, *rows))


def escape(text: str) -> str:
    """Escape untrusted text, for example a class name, so that Markdown shows it literally in one line."""
    return re.sub(r"([\\`*_|\[\]<>])", r"\\\1", printable(text))
