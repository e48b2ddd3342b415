"""Image files are found, and measured as they are read."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from reference_data import PHOTO

from dpt_zoo.errors import ImageError
from dpt_zoo.utils.image_files import find_images, read_size
from dpt_zoo.utils.images import load_image

ORIENTATION = 0x0112


def test_find_images(tmp_path: Path) -> None:
    expected = ["a.jpg", "b.PNG", "c/d.avif", "c/e.tga", "f.jfif", "g.ico"]
    others = [".h.jpg", "._a.jpg", "i.txt", "j.eps", ".k/l.jpg", "__MACOSX/._a.jpg", "c/@eaDir/d.jpg", "#recycle/m.jpg"]
    for name in expected + others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "c")
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] == expected


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_the_size_in_the_header_is_that_of_the_pixels(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.open(PHOTO).convert("RGB").resize((40, 30)).save(tmp_path / f"image.{suffix}", exif=exif)
    assert read_size(tmp_path / f"image.{suffix}") == load_image(tmp_path / f"image.{suffix}").shape[:2]


def test_the_size_of_a_format_that_is_not_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "image.jpg", "EPS")
    for read in (read_size, load_image):
        with pytest.raises(ImageError):
            read(tmp_path / "image.jpg")


def tiff_of_12_bits(values: NDArray[np.uint16]) -> bytes:
    """Encode an even number of pixels, as Pillow cannot."""
    pairs = values.reshape(-1, 2).tolist()
    pixels = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    height, width = values.shape
    sizes = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(pixels)}
    tags = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in sizes.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + struct.pack("<H", len(sizes)) + tags + bytes(4)


def test_12_bits_keep_the_upper_byte(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**12, (8, 6), dtype=np.uint16)
    (tmp_path / "image.tif").write_bytes(tiff_of_12_bits(values))
    assert np.array_equal(load_image(tmp_path / "image.tif")[..., 0], values >> 4)


def test_signed_16_bits_keep_the_upper_byte(tmp_path: Path) -> None:
    """Pillow opens them in the mode of 32 bits."""
    values = np.arange(64, dtype=np.int32).reshape(8, 8) * 500
    content = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(content, "TIFF", tiffinfo={339: 2})  # SampleFormat: signed
    (tmp_path / "image.tif").write_bytes(content.getvalue())
    assert np.array_equal(load_image(tmp_path / "image.tif")[..., 0], values >> 8)
