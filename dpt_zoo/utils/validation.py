"""Checks of arguments."""

import numbers

from ..errors import InputError


def check_integer(name: str, value: object, minimum: int, maximum: int | None = None) -> None:
    """Check that the `value` of the argument `name` is a whole number from `minimum` to `maximum`, and not a boolean.

    Raises:
        InputError: The value is invalid.
    """
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or value < minimum or (maximum is not None and value > maximum):  # type: ignore[operator]
        limit = f"from {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise InputError(f"{name} must be a whole number {limit}, not {value!r}")


def check_fraction(name: str, value: object) -> None:
    """Check that the `value` of the argument `name` is a number from 0 to 1.

    Raises:
        InputError: The value is invalid.
    """
    if not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
        raise InputError(f"{name} must be a number from 0 to 1, not {value!r}")


def check_not_empty(name: str, path: object) -> None:
    """Check that the argument `name` is None, or a path, a URL or a name that is not empty.

    Raises:
        InputError: The `path` is empty.
    """
    if path is not None and not str(path):
        raise InputError(f"{name} is empty: give a path, or leave it out")


def check_one_data_set(data_root: object, annotations: object, images: object) -> None:
    """Check that data is chosen by `data_root`, by `annotations` and `images`, or not at all: the others are None.

    Raises:
        InputError: Both were given, or only one of `annotations` and `images`.
    """
    if (annotations is None) != (images is None) or (annotations and data_root):
        raise InputError("choose the data by data_root, or by annotations and images together")
