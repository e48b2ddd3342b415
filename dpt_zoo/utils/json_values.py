"""Checks of the JSON values with which a file describes itself. The file is untrusted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import WeightsError
from .text import printable

Check = Callable[[Any], bool]
"""Whether a value is valid."""
MAX_SIDE = 1 << 14
"""Longest side of an image for the network, in pixels."""


def parse_entries(content: Any, format: int, checks: Mapping[str, Check], path: object) -> dict[str, Any]:
    """Return the entries of the JSON value `content` of the file at `path`, which are exactly those of `checks`.

    Lists become tuples. The entry "format", which must be `format`, is left out.

    Raises:
        WeightsError: An entry is missing, invalid or unknown, or the format is another one.
    """
    if not isinstance(content, Mapping) or "format" not in content:
        raise WeightsError(f"{path}: its metadata is incomplete: write the file again")
    if content["format"] != format:
        version = printable(repr(content["format"]))[:20]
        raise WeightsError(f"{path}: format {version} of its metadata is not supported, only {format}")
    for name, is_valid in checks.items():
        if name not in content or not is_valid(content[name]):
            value = printable(repr(content.get(name)))[:80]
            raise WeightsError(f"{path}: its metadata is damaged or altered: {name!r} is {value}")
    if unknown := content.keys() - checks.keys() - {"format"}:
        raise WeightsError(f"{path}: its metadata has an unknown entry: {printable(repr(min(unknown)))[:80]}")
    values = ((name, content[name]) for name in checks)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values}


def check_thresholds(thresholds: Sequence[float] | None, classes: Sequence[str], path: object) -> None:
    """Raise `WeightsError` if the file at `path` has `thresholds`, but not one for each of its `classes`."""
    if thresholds is not None and len(thresholds) != len(classes):
        raise WeightsError(f"{path}: its metadata contradicts itself: other numbers of classes and thresholds")


def is_bool(value: Any) -> bool:
    """Return whether a value is true or false."""
    return isinstance(value, bool)


def is_text(value: Any) -> bool:
    """Return whether a value is a printable text of 1 to 200 characters."""
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def is_number(minimum: float, maximum: float) -> Check:
    """Return a check for numbers from `minimum` to `maximum`."""
    return lambda value: isinstance(value, int | float) and not is_bool(value) and minimum <= value <= maximum


def is_integer(maximum: int) -> Check:
    """Return a check for whole numbers from 1 to `maximum`."""
    return lambda value: isinstance(value, int) and not is_bool(value) and 1 <= value <= maximum


def is_list(length: int, is_valid: Check) -> Check:
    """Return a check for a `length` of values that pass the check `is_valid`."""
    return lambda value: isinstance(value, list | tuple) and len(value) == length and all(map(is_valid, value))


def or_none(is_valid: Check) -> Check:
    """Return a check for None and valid values."""
    return lambda value: value is None or is_valid(value)


def is_classes(value: Any) -> bool:
    """Return whether a value is a list of 1 to 10,000 class names."""
    return isinstance(value, list | tuple) and 0 < len(value) <= 10_000 and all(map(is_text, value))


def is_scores(value: Any) -> bool:
    """Return whether a value is a list of 1 to 10,000 numbers from 0 to 1."""
    return isinstance(value, list | tuple) and 0 < len(value) <= 10_000 and all(map(is_number(0, 1), value))


def is_mapping(is_key: Check, is_valid: Check) -> Check:
    """Return a check for objects of at most 100 keys and values that pass the checks `is_key` and `is_valid`."""
    return lambda value: (
        isinstance(value, Mapping)
        and len(value) <= 100
        and all(map(is_key, value))
        and all(map(is_valid, value.values()))
    )


is_versions = is_mapping(is_text, is_text)
"""Whether a value is an object of texts, such as package names and versions."""
