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
