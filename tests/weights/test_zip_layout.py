"""A zip archive has one directory, whoever reads it."""

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile import call, dictionary, name, number, tensor, zip_file

from dpt_zoo.errors import WeightsError
from dpt_zoo.weights.reading import read_weights, verify_crc

END, ZIP64 = b"PK\5\6", b"PK\6\6"


def saved() -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, file)
    return file.getvalue()


SAVED = saved()
GOOD = zip_file(dictionary(weight=tensor()))
EVIL = zip_file(dictionary(weight=tensor(), meta=call(name("builtins", "bytearray"), number(9))))


def split(archive: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the entries, the directory and the end record of an archive without zip64."""
    end = archive.rfind(END)
    size, offset = struct.unpack("<II", archive[end + 12 : end + 20])
    return archive[:offset], archive[offset : offset + size], archive[end:]


def change(archive: bytes, at: int, form: str, by: int) -> bytes:
    """Add to a number in an archive."""
    changed = bytearray(archive)
    (value,) = struct.unpack_from(form, changed, at)
    struct.pack_into(form, changed, at, (value + by) % 256 ** struct.calcsize(form))
    return bytes(changed)


def polyglot() -> bytes:
    """Return an archive in which some readers find the directory of GOOD, and others that of EVIL."""
    evil, evil_directory, end = split(EVIL)
    good, good_directory, _ = split(GOOD)
    start = evil + evil_directory
    moved, at = good_directory, 0
    while at < len(moved):  # zipfile takes what it does not expect for a prefix, and adds its length
        moved = change(moved, at + 42, "<I", len(start) - len(good) - len(good_directory))
        at += 46 + sum(struct.unpack("<HHH", moved[at + 28 : at + 34]))
    return start + good + moved + change(end, 16, "<I", len(evil) - struct.unpack("<I", end[16:20])[0])


def with_name(plain: bytes, forged: bytes) -> bytes:
    """Return an archive with another name in its directory and before the entry."""
    return GOOD.replace(plain, forged)


def zip64(offset: int) -> bytes:
    """Return what PyTorch saved, with another place of the zip64 record in its locator."""
    return change(SAVED, SAVED.rfind(END) - 12, "<Q", offset)


FORGED: dict[str, Callable[[], bytes]] = {
    "two directories": polyglot,
    "bytes before": lambda: b"PK\3\4" + GOOD,
    "an archive before": lambda: EVIL + GOOD,
    "an archive after": lambda: GOOD + EVIL,
    "a byte after": lambda: GOOD + b"\0",
    "a byte after, saved by PyTorch": lambda: SAVED + b"\n",
    "a comment": lambda: change(GOOD, len(GOOD) - 2, "<H", 4) + b"note",
    "an end record in a comment": lambda: change(GOOD, len(GOOD) - 2, "<H", 22) + GOOD[-22:],
    "bytes after the directory": lambda: GOOD[: GOOD.rfind(END)] + bytes(9) + GOOD[GOOD.rfind(END) :],
    "a directory that ends earlier": lambda: change(GOOD, len(GOOD) - 10, "<I", -46),
    "a directory that begins later": lambda: change(GOOD, len(GOOD) - 6, "<I", 1),
    "more entries than there are": lambda: change(GOOD, len(GOOD) - 12, "<H", 1),
    "fewer entries than there are": lambda: change(GOOD, len(GOOD) - 12, "<H", -1),
    "a zip64 record elsewhere": lambda: zip64(-1),
    "a zip64 record that is none": lambda: SAVED.replace(ZIP64, b"PK\6\5"),
    "more entries in the zip64 record": lambda: change(SAVED, SAVED.rfind(ZIP64) + 32, "<Q", 1),
    "another offset in the zip64 record": lambda: change(SAVED, SAVED.rfind(ZIP64) + 48, "<Q", 1),
    "a first entry that is none": lambda: b"PK\0\0" + GOOD[4:],
    "a name that ends early": lambda: with_name(b"archive/data/0", b"archive/data\0\0"),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_refused(forge: Callable[[], bytes], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(forge())
    for read in (read_weights, verify_crc):
        with pytest.raises(WeightsError) as raised:
            read(path)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [GOOD, SAVED], ids=["plain", "zip64"])
def test_accepted(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    verify_crc(path)
    assert read_weights(path).tensors.keys() == {"weight"}


def test_the_polyglot_has_two_directories() -> None:
    assert zipfile.ZipFile(io.BytesIO(polyglot())).read("archive/data.pkl").find(b"bytearray") < 0
    assert torch.load(io.BytesIO(polyglot()), weights_only=True).keys() == {"weight", "meta"}
