"""Format text and numbers for people."""

from collections.abc import Mapping
from typing import Any

_LONG = ("weights", "classes", "graph")  # settings whose values are not shown


def printable(text: str) -> str:
    """Escape characters that are not printable in one line, such as control characters."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def format_percent(value: float | None) -> str:
    """Format a percentage with one decimal, or "-" for None."""
    return "-" if value is None else f"{value:.1f}"


def plural(count: int, noun: str) -> str:
    """Format a `count` with its `noun`: "1 image", "1,200 images"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def describe_changes(earlier: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Describe the settings of `ours` that differ from an `earlier` run's, or return "": both are JSON values."""
    changed = [name for name, value in ours.items() if earlier[name] != value]
    return ", ".join(
        f"other {name}" if name in _LONG else f"{name} {earlier[name]} instead of {ours[name]}" for name in changed
    )
