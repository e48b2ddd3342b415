"""The objects besides tensors that `torch.load(weights_only=True)` may read from a checkpoint.

`numpy.ndarray` and `numpy.dtype` are unsafe: they give access to arbitrary memory (an array of objects over the bytes
of the file, a type with forged fields). Stand-ins replace them. PyTorch's own list is unsafe too: calls of `bytearray`
or of a codec allocate any amount of memory, and a tuple of tuples as a key crashes Python. Therefore `check_pickle`
first follows a pickle step by step without creating any object.
"""

import contextlib
import pickletools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from pickle import UnpicklingError
from typing import IO, Any, NoReturn

import numpy as np
import torch

MAX_OPERATIONS = 500_000  # of one pickle; a detector with its optimizer has about 10,000
NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
STORAGES = {  # the supported types, and the bytes of one element
    **dict.fromkeys(("torch.DoubleStorage", "torch.LongStorage"), 8),
    **dict.fromkeys(("torch.FloatStorage", "torch.IntStorage"), 4),
    **dict.fromkeys(("torch.HalfStorage", "torch.BFloat16Storage", "torch.ShortStorage"), 2),
    **dict.fromkeys(("torch.CharStorage", "torch.ByteStorage", "torch.BoolStorage"), 1),
}
_alone = threading.Lock()


def allow_numpy_values() -> None:
    """Allow `torch.load(weights_only=True)` to read NumPy scalars and arrays of numbers from now on."""
    torch.serialization.add_safe_globals([(value, name) for name, value in _NUMPY.items()])


@contextlib.contextmanager
def allow_only_plain_values() -> Iterator[None]:
    """Allow `torch.load(weights_only=True)` in this block to read only the objects in this module.

    A script's arguments and MMEngine's history of losses become dictionaries. Other objects that the process has
    allowed are removed for the block: of two objects with one name, PyTorch uses a random one.
    """
    with _alone:
        others = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([(value, name) for name, value in _STAND_INS.items()])
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(others)


def check_pickle(pickled: IO[bytes]) -> dict[str, int]:
    """Follow a pickle to its end without creating any object, and return the bytes of its storages, by key.

    Operations and names that checkpoints do not need raise UnpicklingError. Damaged pickles also raise other errors.
    """
    storages: dict[str, int] = {}
    stack: list[Any] = []  # text, numbers and tuples themselves, None for None and booleans, else _Name or _Made
    below: list[list[Any]] = []  # the stacks below each open mark
    memo: dict[Any, Any] = {}
    argument: Any
    for count, (operation, argument, _) in enumerate(pickletools.genops(pickled)):
        if count == MAX_OPERATIONS:
            raise UnpicklingError(f"it has more than {MAX_OPERATIONS:,} operations")
        match operation.name:
            case "BINUNICODE" | "SHORT_BINSTRING" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(operation.name[-1])
                stack[-length:] = [tuple(stack[-length:])]
            case "TUPLE":
                items, stack = stack, below.pop()
                stack.append(tuple(items))
            case "APPEND":
                stack.pop()
            case "APPENDS":
                stack = below.pop()
            case "SETITEM":
                _, key = stack.pop(), stack.pop()
                _check_keys([key])
            case "SETITEMS":
                items, stack = stack, below.pop()
                _check_keys(items[::2])
            case "MARK":
                below.append(stack)
                stack = []
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                dotted = argument.replace("__builtin__ ", "builtins ").replace(" ", ".", 1)
                if dotted not in _NAMES:
                    raise UnpicklingError(f"it asks for {dotted}")
                stack.append(_Name(dotted))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_check_call(function, arguments))
            case "BUILD":
                state = stack.pop()
                _check_state(stack[-1], state)
            case "BINPERSID":
                key, num_bytes = _check_storage(stack.pop())
                storages[key] = max(num_bytes, storages.get(key, 0))
                stack.append(_Made("storage"))
            case "PROTO" if argument != 2:
                raise UnpicklingError(f"its pickle protocol is {argument}, not torch.save's 2")
            case "PROTO" | "STOP":
                pass
            case other:
                raise UnpicklingError(f"it has the pickle operation {other}")
    return storages


@dataclass(frozen=True)
class _Name:
    dotted: str  # what the pickle imports


@dataclass(frozen=True)
class _Made:
    kind: str  # of the created object: "list", "dict", "storage", or the name that was called


_CONSTANTS: dict[str, Any] = {"EMPTY_TUPLE": (), "EMPTY_LIST": _Made("list"), "EMPTY_DICT": _Made("dict")}
_CONSTANTS |= {"NONE": None, "NEWFALSE": None, "NEWTRUE": None}


def _check_call(function: Any, arguments: Any) -> _Made:
    if not isinstance(function, _Name):
        raise UnpicklingError("it calls an object that is not an imported name")
    match function.dotted, arguments:
        case ("_codecs.encode", (str(), "latin1")) | ("collections.OrderedDict", ()):  # bytes are pickled by encode
            pass
        case "collections.Counter", (_Made("dict"),):
            pass
        case (("_codecs.encode" | "collections.OrderedDict" | "collections.Counter"), _):
            raise UnpicklingError(f"it calls {function.dotted} in an unusual way")
    return _Made(function.dotted)  # the other names check their arguments themselves


def _check_state(owner: Any, state: Any) -> None:
    match owner, state:
        case _Made(kind), _Made("dict") if kind in ("collections.OrderedDict", *_ATTRIBUTES):
            return
        case _Made(kind), tuple() if kind.startswith("numpy."):
            return
    raise UnpicklingError("it sets the state of an object that has none")


def _check_keys(keys: list[Any]) -> None:
    """Refuse tuples as keys: hashing them can take any time and overflow the stack."""
    if not all(isinstance(key, str | int | float) for key in keys):
        raise UnpicklingError("it has a key that is neither text nor number")


def _check_storage(reference: Any) -> tuple[str, int]:
    match reference:
        # In a legacy file, None follows: the storage is not a view of another one.
        case ("storage", _Name(kind), str(key), str(), int(count), *_) if kind in STORAGES and count >= 0:
            return key, count * STORAGES[kind]
    raise UnpicklingError("it refers to a storage in an unknown way")


class _Attributes(dict[str, Any]):
    """Stands in for classes of plain attributes: a dictionary of them."""

    def __new__(cls, *args: Any) -> "_Attributes":
        if args:
            raise UnpicklingError("Unsupported in a checkpoint: an instance made from arguments")
        return super().__new__(cls)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.update(state)


def _history_method(owner: Any, name: str) -> None:
    """Stand in for `getattr`, with which MMEngine's history of losses pickles four of its methods."""
    if owner is not _Attributes or name not in ("min", "max", "current", "mean"):
        raise UnpicklingError("Unsupported in a checkpoint: a call of getattr")


class _Array(np.ndarray[Any, Any]):
    """Stands in for `numpy.ndarray` as an argument of `_reconstruct`. It cannot be called."""

    def __new__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise UnpicklingError("Unsupported in a checkpoint: a call of numpy.ndarray")

    def __reduce__(self) -> Any:
        return np.asarray(self).__reduce__()


def _reconstruct(*args: Any) -> np.ndarray[Any, Any]:
    """Stand in for NumPy's `_reconstruct`. The pickle sets type, shape and values afterwards."""
    return np.empty(0)


def _dtype(code: str, *args: Any) -> np.dtype[Any]:
    """Stand in for `numpy.dtype`: return NumPy's own instance of a number type. Its state cannot be changed."""
    if code not in NUMBERS:
        raise UnpicklingError("Unsupported in a checkpoint: a NumPy type that is not a number")
    return np.dtype(code)


_NUMPY: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _dtype,
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},  # NumPy 1 and NumPy 2
    **dict.fromkeys(
        ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
        lambda dtype, data: np.frombuffer(data, dtype, count=1)[0],
    ),
    # Types whose instances may have their state set. No pickle can import a name that contains a line break.
    "\nndarray": np.ndarray,
    **{f"\n{code}": type(np.dtype(code)) for code in NUMBERS},
}
_ATTRIBUTES = ("argparse.Namespace", "mmengine.logging.history_buffer.HistoryBuffer")
_STAND_INS: dict[str, Callable[..., Any]] = {
    **_NUMPY,
    **dict.fromkeys(_ATTRIBUTES, _Attributes),
    "builtins.getattr": _history_method,
    # `_local`: Python 3.13
    **{f"pathlib.{module}PosixPath": lambda *parts: str(PurePosixPath(*parts)) for module in ("", "_local.")},
    **{f"pathlib.{module}WindowsPath": lambda *parts: str(PureWindowsPath(*parts)) for module in ("", "_local.")},
}
_OF_TORCH = {f"torch._utils._rebuild_{kind}" for kind in ("parameter", "tensor_v2")}
_OF_PYTHON = {"_codecs.encode", "collections.Counter", "collections.OrderedDict"}
_NAMES = _STAND_INS.keys() | STORAGES.keys() | _OF_TORCH | _OF_PYTHON
