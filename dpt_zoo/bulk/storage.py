"""Files by their address: a path of this machine, or a URL of object storage (s3://, gs://, az://, hf://, ...)."""

import contextlib
import glob
import itertools
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from ..errors import DependencyError, DPTZooError, InputError, OutputError
from ..utils.files import atomic_path, exists, expand_user, is_clutter, make_folder
from ..utils.urls import redact, redact_all


def is_local(address: str) -> bool:
    """Return whether an address is a path of this machine, and not a URL."""
    return re.match(r"[A-Za-z][\w+.-]+://", address) is None


def normalize(address: str) -> str:
    """Return the one spelling of an address: an absolute path without `~`, "." and links above it; a URL as it is."""
    address = address.removeprefix("file://")
    if not is_local(address):
        return address
    path = expand_user(address).absolute()
    return str(path.parent.resolve() / path.name)


def is_folder(address: str) -> bool:
    """Return whether an address is that of a folder."""
    if is_local(address):
        return os.path.isdir(address)  # noqa: PTH112  (Path.is_dir raises an error for a name that is too long)
    files, path = _file_system(address)
    with storage_errors(address):
        return bool(files.isdir(path))


def file_exists(address: str) -> bool:
    """Return whether there is a file or a folder at an address."""
    if is_local(address):
        return exists(Path(address))
    files, path = _file_system(address)
    with storage_errors(address):
        files.invalidate_cache()
        return bool(files.exists(path))


def walk(folder: str) -> Iterator[str]:
    """Yield the addresses of the files in a folder and its subfolders, without clutter and linked folders.

    They are sorted in each folder. The memory that it needs depends on the largest folder, not on the number of files.
    """
    if is_local(folder):
        yield from _walk_local(folder)
        return
    files, path = _file_system(folder)
    with storage_errors(folder):
        for parent, folders, names in files.walk(path):
            folders[:] = sorted(name for name in folders if not is_clutter(name))
            for name in sorted(name for name in names if not is_clutter(name)):
                yield files.unstrip_protocol(f"{parent}/{name}")
        files.invalidate_cache()  # it keeps what it lists


def match(pattern: str) -> list[str]:
    """Return the addresses of the files and folders that match a pattern such as "s3://bucket/*.tar", sorted."""
    if is_local(pattern):
        parts = Path(pattern).parts
        folder = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), parts))
        found = folder.glob("/".join(parts[len(folder.parts) :]))
        return sorted(str(path) for path in found if not is_clutter(path.name))
    files, path = _file_system(pattern)
    with storage_errors(pattern):
        return sorted(files.unstrip_protocol(each) for each in files.glob(path))


def open_file(address: str) -> BinaryIO:
    """Open a file for reading.

    Raises:
        InputError: The file cannot be read.
    """
    with storage_errors(address):
        if is_local(address):
            return Path(address).open("rb")
        files, path = _file_system(address)
        return files.open(path, "rb")


def read_object(address: str) -> bytes:
    """Return the content of a file in object storage.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The storage cannot be reached, or refuses access.
    """
    files, path = _file_system(address)
    return files.cat_file(path)


class Folder:
    """A folder in which files appear whole or not at all.

    Args:
        address: a path, or a URL of object storage; the folder need not exist.
    """

    def __init__(self, address: str) -> None:
        self.address = normalize(address).rstrip("/")

    def names(self) -> set[str]:
        """Return the names of the files in the folder.

        Raises:
            InputError: The folder cannot be read.
        """
        with storage_errors(self.address), contextlib.suppress(FileNotFoundError):
            if is_local(self.address):
                return {entry.name for entry in os.scandir(self.address)}
            files, path = _file_system(self.address)
            files.invalidate_cache()
            return {each.rpartition("/")[2] for each in files.ls(path, detail=False)}
        return set()

    def has(self, name: str) -> bool:
        """Return whether the folder has a file of this name."""
        return file_exists(f"{self.address}/{name}")

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading. Raise `InputError` if it cannot be read."""
        return open_file(f"{self.address}/{name}")

    @contextlib.contextmanager
    def create(self, name: str, *, private: bool = False) -> Iterator[Path]:
        """Yield the path of a new file of this machine. When the block succeeds, it gets its `name` in the folder.

        A `private` file is readable only by its owner, unless it is in object storage.

        Raises:
            OutputError: The file cannot be written.
        """
        if is_local(self.address):
            make_folder(Path(self.address), "output")
            with atomic_path(Path(self.address, name), 0o600 if private else None) as path:
                yield path
            return
        files, folder = _file_system(self.address)
        with tempfile.TemporaryDirectory(prefix="dpt-zoo-") as temporary:
            path = Path(temporary, name)
            yield path
            try:
                files.put_file(str(path), f"{folder}/{name}")
            except Exception as error:  # each storage has its own
                reason = redact_all(str(error))
                raise OutputError(f"{redact(self.address)}/{name} cannot be written: {reason}") from error

    def share(self, name: str, like: str) -> None:
        """Give the private file `name` the permissions of the file `like`."""
        if is_local(self.address):
            Path(self.address, name).chmod(Path(self.address, like).stat().st_mode)

    def remove_partial(self, prefix: str) -> None:
        """Remove what interrupted writers left of files whose names begin with `prefix`."""
        if is_local(self.address):
            for path in Path(self.address).glob(f".{glob.escape(prefix)}*.partial"):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_errors(address: str) -> Iterator[None]:
    """Turn the errors of reading at an address into `InputError`."""
    try:
        yield
    except DPTZooError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{redact(address)}: there is no such file or folder") from error
    except Exception as error:  # each storage has its own
        raise InputError(f"{redact(address)}: it cannot be read: {redact_all(str(error))}") from error


def _walk_local(folder: str) -> Iterator[str]:
    with os.scandir(folder) as found:
        entries = sorted((entry for entry in found if not is_clutter(entry.name)), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk_local(entry.path)
        elif entry.is_file():
            yield entry.path


def _file_system(address: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path in it.

    Raises:
        DependencyError: The package for this storage is not installed.
        InputError: There is no such storage.
    """
    try:
        files, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise DependencyError(f"{redact(address)}: {error}") from error
    except ValueError as error:
        raise InputError(f"{redact(address)}: {redact_all(str(error))}") from error
    return files, path.rstrip("/")
