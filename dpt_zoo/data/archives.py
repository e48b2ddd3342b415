"""Zip archives of data sets: unpacked safely, completely and once."""

import contextlib
import json
import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any

from ..errors import DataError, OutputError
from ..utils.files import check_space, exists, remove
from ..utils.json_files import DAMAGE
from .completion import leaves_folder

MARKER = ".unpacked.json"
"""The file in an unpacked folder that says of which archive it is."""
MAX_RATIO = 200
"""How many times larger than the archive its files may be. Images do not become smaller in an archive, and JSON files
become about 20 times smaller; so a larger ratio is an attack."""


def unpack(archive: Path, folder: Path | None = None) -> Path:
    """Unpack a zip archive, unless this was done before, and return the folder.

    Args:
        archive: the file.
        folder: the new folder; by default, the archive's path without `.zip`.

    Raises:
        DataError: The archive is damaged or unsafe, has changed since it was unpacked, or the folder is another one.
        OutputError: The folder cannot be written, or the disk has too little space.
    """
    folder = folder or archive.with_suffix("")
    state = {"archive": archive.name, "bytes": archive.stat().st_size, "mtime_ns": archive.stat().st_mtime_ns}
    if exists(folder):
        _check_unpacked(archive, folder, state)
        return folder
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        remove(partial)
        partial.mkdir()
        with zipfile.ZipFile(archive) as content:
            _check_entries(content, archive.stat().st_size)
            check_space(partial, sum(entry.file_size for entry in content.infolist()))
            content.extractall(partial)
        (partial / MARKER).write_text(json.dumps(state))
        with contextlib.suppress(FileExistsError):  # another process was faster
            partial.rename(folder)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(f"{archive} cannot be unpacked: {error}: download or export it again") from error
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error.strerror or error}: unpack {archive} elsewhere"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _check_unpacked(archive: Path, folder: Path, state: dict[str, Any]) -> None:
    try:
        before = json.loads((folder / MARKER).read_text())
    except (OSError, *DAMAGE) as error:
        raise DataError(
            f"{archive}: {folder} exists, but is not this archive: use that folder, or rename it"
        ) from error
    if before != state:
        raise DataError(f"{archive} is not what was unpacked to {folder}: remove that folder, or use it as the data")


def _check_entries(content: zipfile.ZipFile, num_bytes: int) -> None:
    """Raise `ValueError` if an entry would be written elsewhere, is no file, or if all are much larger than packed."""
    for entry in content.infolist():
        mode = entry.external_attr >> 16
        if leaves_folder(entry.filename) or stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"its entry {entry.filename!r} is not a file below the folder")
    total = sum(entry.file_size for entry in content.infolist())
    if total > MAX_RATIO * num_bytes:
        raise ValueError(f"{num_bytes:,} bytes would become {total:,}")
