"""Parse JSON without losing anything, and write JSON files item by item: lists, and JSON lines."""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import OutputError

DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What parsing JSON and using its content raise if a file is damaged, or has another form than expected."""


def parse_json(text: str) -> Any:
    """Parse JSON in which no object has a key twice with different values; Python's parser would drop the first.

    Raises:
        ValueError: This is not JSON, or a key occurs twice.
        RecursionError: The lists and objects are nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        for key, value in pairs:
            if value is not content[key] and value != content[key]:
                raise ValueError(f"one object has the key {key!r} twice, with different values")
    return content


@contextlib.contextmanager
def json_list(file: BinaryIO) -> Iterator[Callable[[Any], None]]:
    """Write a JSON list, which ends with the block. Yield the function that writes an item, one per line."""
    start = separator = b"[\n"

    def append(item: Any) -> None:
        nonlocal separator
        file.write(separator + json.dumps(item).encode())
        separator = b",\n"

    yield append
    file.write(b"[]" if separator == start else b"\n]")


def write_json_list(file: BinaryIO, items: Iterable[Any]) -> None:
    """Write `items` to a `file` as a JSON list, one per line, without holding all of them in memory."""
    with json_list(file) as append:
        for item in items:
            append(item)


def read_json_lines(path: Path) -> Iterator[tuple[Any, int]]:
    """Yield the content of each complete line in a JSON lines file, and the byte offset of its end.

    A last line without a line break is incomplete and left out.

    Raises:
        ValueError: A complete line is not JSON.
    """
    end = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield json.loads(line), end


class JsonLinesWriter:
    """A writer that appends JSON values to a file, one per line. Each line is written completely or not at all.

    Args:
        path: the file; it is created if missing.
        size: the number of bytes of an existing file to keep; the rest is removed.

    Raises:
        OutputError: The file cannot be written.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self._path = path
        try:
            self._file = path.open("ab", buffering=0)
            self._file.truncate(size)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def append(self, content: Any) -> None:
        """Write one line.

        Raises:
            OutputError: The line cannot be written. The lines before it are unchanged.
        """
        line = json.dumps(content).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._file.truncate(end)
            raise OutputError(f"{self._path} cannot be written: {error.strerror}: make room, then resume") from error
