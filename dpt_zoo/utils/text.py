"""Format text and numbers for people."""


def printable(text: str) -> str:
    """Escape characters that are not printable in one line, such as control characters."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def format_percent(value: float | None) -> str:
    """Format a percentage with one decimal, or "-" for None."""
    return "-" if value is None else f"{value:.1f}"


def plural(count: int, noun: str) -> str:
    """Format a `count` with its `noun`: "1 image", "1,200 images"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
