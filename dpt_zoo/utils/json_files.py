"""JSON files that are written item by item: lists, and JSON lines."""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import OutputError


class JsonListWriter:
    """Writes a JSON list to a file, one item a line, without holding the items in memory.

    Args:
        file: where to write. The list is complete when the `with` block ends.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._is_empty = True

    def __enter__(self) -> "JsonListWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.write(b"[]" if self._is_empty else b"\n]")

    def append(self, item: Any) -> None:
        """Write an item."""
        self._file.write((b"[\n" if self._is_empty else b",\n") + json.dumps(item).encode())
        self._is_empty = False


def write_json_list(file: BinaryIO, items: Iterable[Any]) -> None:
    """Write a JSON list, one item a line, without holding all items in memory."""
    with JsonListWriter(file) as writer:
        for item in items:
            writer.append(item)


class JsonLine(NamedTuple):
    """The content of one line of a JSON lines file, and its byte offsets."""

    content: Any
    start: int
    end: int


def read_json_lines(path: Path) -> Iterator[JsonLine]:
    """Yield the complete lines of a JSON lines file. A last line without a line break is incomplete and left out.

    Raises:
        ValueError: A complete line is not JSON.
    """
    end = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            start, end = end, end + len(line)
            yield JsonLine(json.loads(line), start, end)


class JsonLinesWriter:
    """Appends JSON objects to a file, one per line. Each line is written completely or not at all.

    Args:
        path: the file; it is created if missing.
        size: bytes of an existing file to keep; the rest is removed.

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

    def __enter__(self) -> "JsonLinesWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

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
