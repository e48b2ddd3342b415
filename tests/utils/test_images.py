"""Reading images: as OpenCV does, or one clear error."""

import struct
from pathlib import Path
from typing import Any
from zlib import crc32

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from reference_data import PHOTO, read_json

from dpt_zoo.errors import ImageError
from dpt_zoo.utils.images import load_image

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.open(PHOTO).convert("RGB")


def as_opencv(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image[..., ::-1], dtype=np.uint8)


def test_the_photograph_is_the_references() -> None:
    recorded = read_json("resize_check.json")["img_coffee_320x240.png"]
    bgr = np.ascontiguousarray(load_image(PHOTO)[..., ::-1])
    assert list(bgr.shape) == recorded["src_shape"]
    assert crc32(bgr.tobytes()) == recorded["src_crc32"]
    resized = cv2.resize(bgr, (1067, 800), interpolation=cv2.INTER_LINEAR)
    assert resized.sum() == recorded["resized_sum"]
    assert crc32(resized.tobytes()) == recorded["resized_crc32"]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_modes(photo: Image.Image, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.png"
    photo.convert(mode).save(path)
    assert np.array_equal(load_image(path), as_opencv(path))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [40, 95])
def test_jpeg_pixels_are_opencvs_to_the_bit(photo: Image.Image, tmp_path: Path, quality: int, subsampling: int) -> None:
    path = tmp_path / "image.jpg"
    photo.save(path, quality=quality, subsampling=subsampling, progressive=quality > 50)
    assert np.array_equal(load_image(path), as_opencv(path))


@pytest.mark.parametrize("suffix", ["bmp", "tiff", "webp", "ppm"])
def test_formats(photo: Image.Image, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    photo.save(path)
    assert np.array_equal(load_image(path), as_opencv(path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(photo: Image.Image, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "image.jpg"
    photo.save(path, exif=exif)
    assert np.array_equal(load_image(path), as_opencv(path))


def test_cmyk(photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    photo.convert("CMYK").save(path)
    assert np.abs(load_image(path).astype(int) - as_opencv(path)).max() <= 1  # they round differently


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_keep_the_upper_byte(tmp_path: Path, suffix: str, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (20, 30, channels), dtype=np.uint16)
    path = tmp_path / f"image.{suffix}"
    cv2.imwrite(str(path), values)
    assert np.array_equal(load_image(path), np.broadcast_to((values >> 8)[..., ::-1], (20, 30, 3)))


@pytest.mark.parametrize("size", [(1, 1), (20000, 10)])
def test_extreme_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "image.png")
    image = load_image(tmp_path / "image.png")
    assert image.shape == (size[1], size[0], 3) and (image == (1, 2, 3)).all()


def test_first_frame_of_an_animation(photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "still.gif")
    photo.save(tmp_path / "moving.gif", save_all=True, append_images=[photo.rotate(180)])
    assert np.array_equal(load_image(tmp_path / "moving.gif"), load_image(tmp_path / "still.gif"))


def damaged(path: Path, kind: str) -> Any:
    """Make an invalid image file."""
    match kind:
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "text":
            path.write_text("no image at all")
        case "truncated PNG":
            path.write_bytes(PHOTO.read_bytes()[:60_000])
        case "truncated JPEG":
            Image.open(PHOTO).convert("RGB").save(path, "JPEG")
            path.write_bytes(path.read_bytes()[:5_000])
        case "float":
            Image.new("F", (8, 8)).save(path, "TIFF")
        case "32 bits":
            Image.fromarray(np.full((8, 8), 2**20, dtype=np.int32)).save(path, "TIFF")
        case "bomb":
            Image.new("1", (8, 8)).save(path, "PNG")
            content = bytearray(path.read_bytes())
            content[16:24] = struct.pack(">II", 20_000, 20_000)  # width and height
            content[29:33] = struct.pack(">I", crc32(content[12:29]))
            path.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("missing", "there is no such file"),
        ("empty", "the file is empty"),
        ("folder", "this is a folder"),
        ("text", "not an image of a known format"),
        ("truncated PNG", "damaged"),
        ("truncated JPEG", "damaged"),
        ("float", "floating-point pixels have no fixed range"),
        ("32 bits", "32-bit pixels have no fixed range"),
        ("bomb", "refused, it would unpack to an enormous image"),
    ],
)
def test_one_clear_line(tmp_path: Path, kind: str, complaint: str) -> None:
    path = tmp_path / "image.png"
    damaged(path, kind)
    with pytest.raises(ImageError, match=complaint) as raised:
        load_image(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)
