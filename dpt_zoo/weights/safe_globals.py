"""What checkpoints may hold besides tensors when `torch.load(weights_only=True)` reads them: NumPy's numbers.

To allow `numpy.ndarray` and `numpy.dtype` themselves would undo what `weights_only=True` is for: they reach any
memory (an array of objects laid over bytes of the file, a type with forged fields). So stand-ins get their names.
"""

from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any, NoReturn

import numpy as np
import torch

NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")


def allow_numpy_values() -> None:
    """Let `torch.load(weights_only=True)` read NumPy scalars and arrays of numbers, from now on."""
    named: dict[str, Callable[..., Any]] = {"numpy.ndarray": _Array, "numpy.dtype": _dtype}
    for core in ("numpy.core", "numpy._core"):  # as NumPy 1 and NumPy 2 write it
        named[f"{core}.multiarray._reconstruct"] = _reconstruct
        named[f"{core}.multiarray.scalar"] = _scalar
    # Instances of these have their state set. No pickle can name a type whose name has a line break.
    kinds: list[type] = [np.ndarray, *(type(np.dtype(code)) for code in NUMBERS)]
    named |= {f"\n{kind.__name__}": kind for kind in kinds}
    torch.serialization.add_safe_globals([(value, name) for name, value in named.items()])


class _Array(np.ndarray[Any, Any]):
    """Stands in for `numpy.ndarray`: the array type that `_reconstruct` is given, and nothing to call."""

    def __new__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise UnpicklingError("Unsupported in a checkpoint: a call of numpy.ndarray")

    def __reduce__(self) -> Any:
        return np.asarray(self).__reduce__()


def _reconstruct(*args: Any) -> np.ndarray[Any, Any]:
    """Stand in for NumPy's `_reconstruct`: the pickle sets type, shape and contents afterwards."""
    return np.empty(0)


def _dtype(code: str, *args: Any) -> np.dtype[Any]:
    """Stand in for `numpy.dtype`: return NumPy's own instance of a type of number, whose state is fixed."""
    if code not in NUMBERS:
        raise UnpicklingError(f"Unsupported in a checkpoint: NumPy type {code!r}")
    return np.dtype(code)


def _scalar(dtype: np.dtype[Any], data: bytes) -> Any:
    """Stand in for NumPy's `scalar`."""
    return np.frombuffer(data, dtype, count=1)[0]
