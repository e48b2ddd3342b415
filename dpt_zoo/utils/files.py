"""Files that are either whole or not there."""

import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import OutputError


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing; it appears under its name when the block ends well, and not at all otherwise.

    Raises:
        OutputError: it cannot be written: no such folder, no permission, no space, ...
    """
    with atomic_path(path) as partial, partial.open("wb") as file:
        yield file


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; what was written becomes `path`, on the disk, when the block ends well.

    Raises:
        OutputError: it cannot be written: no such folder, no permission, no space, ...
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # a writer may have put a file of its own there, for the user alone
        _sync(partial, os.O_RDWR)
        partial.replace(path)
        if os.name == "posix":  # only there can a folder be opened
            with contextlib.suppress(OSError):  # the file stands; some network disks cannot sync folders
                _sync(path.parent, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}: choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def make_folder(folder: Path, role: str = "folder") -> None:
    """Make a folder, and those that it is in, where they are not there.

    Args:
        folder: the folder.
        role: what the error's text calls it.

    Raises:
        OutputError: that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}: choose another {role}") from error


def check_space(folder: Path, needed: int) -> None:
    """Check that there is room in a folder, before work that needs so many bytes.

    Raises:
        OutputError: there is not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(f"{folder} has {free:,} bytes free, {needed:,} are needed: make room, or choose another")


def hash_file(path: Path) -> "hashlib._Hash":
    """The SHA-256 of what is in a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
