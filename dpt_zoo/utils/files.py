"""Write files completely or not at all, and other helpers for files and folders."""

import contextlib
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError, OutputError

_CLUTTER = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"}


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing. It appears at `path` when the block succeeds, and is removed when the block fails.

    Raises:
        OutputError: The file cannot be written: no such folder, no permission, no space, ...
    """
    with atomic_path(path) as partial, partial.open("wb") as file:
        yield file


@contextlib.contextmanager
def atomic_path(path: Path, mode: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`. When the block succeeds, the file is synced to disk and renamed to `path`.

    If `path` is a link, the file that it points to is replaced. `mode` are the file's permissions, by default the usual
    ones.

    Raises:
        OutputError: The file cannot be written: no such folder, no permission, no space, ...
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        if target.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.is_symlink() or (target.exists() and not target.is_file()):
            raise OSError("it is not a regular file")
        partial.touch(mode or 0o666)
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # a library may have replaced it by a file that only the user can read
        _sync(partial, os.O_RDWR)
        partial.replace(target)
        if os.name == "posix":  # elsewhere, a folder cannot be opened
            with contextlib.suppress(OSError):  # the file is complete; some network disks cannot sync folders
                _sync(target.parent, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}: choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def make_folder(folder: Path, role: str = "folder") -> None:
    """Create a folder and its parents if they do not exist. `role` is the argument's name in the error text.

    Raises:
        OutputError: The folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}: choose another {role}") from error


def expand_user(path: str | Path) -> Path:
    """Replace a leading `~` or `~user` by the home folder. If there is no such home, the path stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  (Path.expanduser raises RuntimeError)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with its content. A missing one is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of an existing folder. The system releases it when the process ends.

    On Windows, and on disks without locks, other processes are not noticed.

    Raises:
        InputError: Another process, or another block of this one, holds the lock.
        OutputError: The folder cannot be opened.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{folder} cannot be opened: {error.strerror}: choose another folder") from error
    _lock_descriptors.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder} is in use by another run: wait for its end, or use another folder") from error
        except OSError:  # the disk has no locks
            pass
        yield
    finally:
        if descriptor in _lock_descriptors:  # not in a forked process
            _lock_descriptors.remove(descriptor)
            os.close(descriptor)


_lock_descriptors: set[int] = set()


def _release_in_child() -> None:
    """Close the locks in a forked process, such as a data loader's worker: it may outlive the process that has them."""
    while _lock_descriptors:
        os.close(_lock_descriptors.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


def check_space(folder: Path, needed: int) -> None:
    """Check that a folder's disk has `needed` bytes of free space.

    Raises:
        OutputError: The free space is smaller.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(f"{folder} has {free:,} bytes free, {needed:,} are needed: free some, or choose another")


def hash_file(path: Path) -> "hashlib._Hash":
    """Return the SHA-256 object of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest


def exists(path: Path) -> bool:
    """Return whether a file or folder exists; `Path.exists` raises an exception for some impossible names."""
    return os.path.exists(path)  # noqa: PTH110


def is_clutter(name: str) -> bool:
    """Return whether a file or folder is hidden, or belongs to an operating system or an archive: `._a.jpg`, ..."""
    return name.startswith(".") or name.lower() in _CLUTTER


def list_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files that match a glob `pattern` in a folder, sorted, without clutter (see `is_clutter`)."""
    paths = (path for path in folder.glob(pattern) if not any(map(is_clutter, path.relative_to(folder).parts)))
    return sorted(path for path in paths if path.is_file())


def walk_files(folder: Path) -> list[Path]:
    """Return the files in a folder and its subfolders, sorted, without clutter and linked folders."""
    paths: list[Path] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_clutter(name)]
        paths += [Path(parent, name) for name in files if not is_clutter(name)]
    return sorted(paths)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
