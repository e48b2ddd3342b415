"""Print to the standard streams, whatever the text and the state of the stream."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from ..errors import OutputError
from .text import printable


def show(text: object = "", *, to: TextIO | None = None) -> None:
    """Print a `text` to the stream `to`, by default standard output. All printing passes through here.

    What a terminal would obey, such as escape sequences in file names, and what the stream cannot encode is escaped.
    If nobody reads the stream any longer (`dpt-zoo list | head -1`), the rest is dropped, and the work goes on.

    Raises:
        OutputError: Standard output cannot be written, for example on a full disk.
    """
    stream = to or sys.stdout
    escaped = "\n".join(map(printable, str(text).split("\n")))
    encoding = getattr(stream, "encoding", None) or "utf-8"
    with stream_errors(stream):
        print(escaped.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


@contextlib.contextmanager
def stream_errors(stream: TextIO) -> Iterator[None]:
    """After an error of a stream, drop what is written to it. Raise OutputError, unless nobody reads the stream."""
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):  # Python flushes the stream when it ends
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, stream.fileno())
            os.close(devnull)
        if stream is sys.stdout and not isinstance(error, BrokenPipeError):
            raise OutputError(f"standard output cannot be written: {error.strerror or error}") from error
