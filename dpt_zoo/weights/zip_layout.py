"""Check that all readers of a zip archive find the same entries in it."""

import struct
import zipfile
from pathlib import Path

_END = struct.Struct("<4s4H2LH")  # signature, 2 disks, 2 numbers of entries, size and offset of the directory, comment
_LOCATOR = struct.Struct("<4sLQL")  # signature, disk, offset of the zip64 record, disks
_END64 = struct.Struct("<4sQ2H2L4Q")  # signature, size, 2 versions, then as in _END but for the comment


def check_layout(archive: zipfile.ZipFile, path: Path) -> None:
    """Check that nothing is before, after or between the parts of an archive's end, and that its names are plain.

    Readers search for the directory of a damaged or forged archive in different ways, and may find different ones.
    `torch.save` writes no such archive.

    Raises:
        ValueError: The archive has another layout.
    """
    with path.open("rb") as file:
        start = file.read(4)
        end = file.seek(-_END.size, 2)
        signature, *_, number, size, offset, comment = _END.unpack(file.read(_END.size))
        if signature != b"PK\5\6" or comment:
            raise ValueError("it does not end with the zip archive's end record")
        file.seek(max(0, end - _LOCATOR.size - _END64.size))
        record, locator = file.read(_END64.size), file.read(_LOCATOR.size)
    if locator.startswith(b"PK\6\7"):
        end -= _LOCATOR.size + _END64.size
        signature, *_, number, size, offset = _END64.unpack(record)
        if signature != b"PK\6\6" or _LOCATOR.unpack(locator)[2] != end:
            raise ValueError("its zip64 record is not directly before its end record")
    entries = archive.infolist()
    first = min((entry.header_offset for entry in entries), default=0)
    if first != 0 or (entries and start != b"PK\3\4") or offset + size != end or number != len(entries):
        raise ValueError("its directory is not directly before its end record, or something is before its first entry")
    if any(entry.filename != entry.orig_filename for entry in entries):
        raise ValueError("an entry has two names")
