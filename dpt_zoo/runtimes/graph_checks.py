"""Checks of exported files that both runtimes need: the file is read whole, and its graph fits its metadata."""

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from ..errors import WeightsError
from ..utils.text import printable
from .graph_metadata import INPUTS, OUTPUTS, GraphMetadata

Run = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
"""A function that runs a graph: from inputs to outputs, by their names. It raises `WeightsError` if the graph fails."""
MASK_SIDE = 28


class RefusedError(Exception):
    """The reason why a file is refused."""


class Tensor(NamedTuple):
    """An input or output of a graph. Its shape has None for what is not fixed."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a file of less than `limit` bytes, or raise `WeightsError`."""
    try:
        if path.stat().st_size >= limit:
            raise WeightsError(f"{path}: refused, no exported model has {limit:,} bytes")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise WeightsError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def check_digest(path: Path, content: bytes, end: re.Pattern[bytes], length: int) -> None:
    """Check that a file ends with the SHA-256 of all bytes before it.

    Args:
        path: the file, for the error.
        content: its content.
        end: matches the last bytes of the file; its first group is the digest.
        length: the number of these bytes.

    Raises:
        WeightsError: The file has another end, or the digest is another one.
    """
    digest = end.fullmatch(content, max(0, len(content) - length))
    if digest is None:
        raise WeightsError(f"{path}: this file was not written by dpt_zoo.export, or is cut off")
    if hashlib.sha256(memoryview(content)[:-length]).hexdigest().encode() != digest[1]:
        raise WeightsError(f"{path}: this file is damaged or altered: export the model again")


@contextlib.contextmanager
def runtime_errors(path: Path, what: str, kinds: tuple[type[Exception], ...]) -> Iterator[None]:
    """Raise the errors of a runtime as `WeightsError`.

    Args:
        path: the exported file.
        what: the runtime and what it does, such as "OpenVINO cannot load it".
        kinds: the errors.
    """
    try:
        yield
    except kinds as error:
        raise WeightsError(f"{path}: {what}: {_first_line(error)}") from error


def expected_inputs(metadata: GraphMetadata) -> list[Tensor]:
    """Return the inputs of a graph with this metadata."""
    height, width = metadata.image_size or (None, None)
    threshold = Tensor(INPUTS[2], "float32", ())
    if metadata.has_preprocessing:
        return [Tensor("image", "uint8", (None, None, 3)), threshold]
    images = Tensor(INPUTS[0], "float32", (metadata.batch, 3, height, width))
    return [images, Tensor(INPUTS[1], "float32", (metadata.batch, 2)), threshold]


def expected_outputs(metadata: GraphMetadata) -> list[Tensor]:
    """Return the outputs of a graph with this metadata."""
    shapes: list[tuple[int | None, ...]] = [(None,), (None, 4), (None,), (None,), (None, MASK_SIDE, MASK_SIDE)]
    dtypes = ("int64", "float32", "float32", "int64", "float32")
    outputs = [Tensor(*values) for values in zip(OUTPUTS, dtypes, shapes, strict=True)]
    return outputs if metadata.has_masks else outputs[:-1]


def check_signature(path: Path, metadata: GraphMetadata, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Check that a graph has the `inputs` and `outputs` that its `metadata` implies.

    Raises:
        WeightsError: It has others.
    """
    sides = (("input", inputs, expected_inputs(metadata)), ("output", outputs, expected_outputs(metadata)))
    for kind, actual, expected in sides:
        names, expected_names = ([each.name for each in tensors] for tensors in (actual, expected))
        if sorted(names) != sorted(expected_names):
            listed = printable(", ".join(names))[:200]
            raise WeightsError(f"{path}: its graph has the {kind}s {listed} instead of {', '.join(expected_names)}")
        by_name = {tensor.name: tensor for tensor in actual}
        for tensor in expected:
            if not _fits(by_name[tensor.name], tensor, is_exact=kind == "input"):
                text = f"{kind} {tensor.name} is {_describe(by_name[tensor.name])} instead of {_describe(tensor)}"
                raise WeightsError(f"{path}: its graph contradicts its metadata: {text}")


def _first_line(error: Exception) -> str:
    """Return the printable start of a runtime's error text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[-1] if lines else type(error).__name__)[:300]


def _fits(actual: Tensor, expected: Tensor, is_exact: bool) -> bool:
    """Return whether types and shapes agree. The shapes of outputs are often not known before the graph runs."""
    if actual.dtype != expected.dtype or len(actual.shape) != len(expected.shape):
        return False
    pairs = zip(actual.shape, expected.shape, strict=True)
    return all(ours == theirs or (not is_exact and None in (ours, theirs)) for ours, theirs in pairs)


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} ({', '.join('any' if side is None else str(side) for side in tensor.shape)})"
