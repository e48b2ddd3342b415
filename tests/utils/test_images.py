"""Reading images: as OpenCV does, or one clear error."""

import io
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from reference_data import PHOTO, read_json

from dpt_zoo.errors import ImageError
from dpt_zoo.utils import images
from dpt_zoo.utils.images import decode_image, load_image, to_pixels

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


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("orientation", range(9))
def test_bands_of_turned_images(tmp_path: Path, orientation: int, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are converted some rows at a time, into their place in the upright image."""
    pixels = np.random.default_rng(0).integers(0, 256, (23, 37, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    for band in (1, 100, 10_000):
        monkeypatch.setattr(images, "BAND", band)
        with Image.open(path) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        assert np.array_equal(load_image(path), expected)
        assert load_image(path).flags.c_contiguous


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


@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
@pytest.mark.parametrize("highest", [1, 255, 4000, 2**31 - 1])
def test_files_of_32_bits_have_no_range(tmp_path: Path, highest: int, dtype: Any) -> None:
    values = np.linspace(0, highest, 64).reshape(8, 8).astype(np.int32)
    image = Image.fromarray(values)
    image.save(tmp_path / "image.tif")
    with pytest.raises(ImageError, match="32-bit pixels have no fixed range"):
        load_image(tmp_path / "image.tif")
    with Image.open(tmp_path / "image.tif") as opened, pytest.raises(ImageError, match="no fixed range"):
        to_pixels(opened, "image")
    if highest == 4000:  # a 16-bit image in memory
        assert np.array_equal(to_pixels(image, "image")[..., 0], values >> 8)
    else:
        with pytest.raises(ImageError, match="no fixed range"):
            to_pixels(image, "image")


def test_16_bits_in_pgm(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0x1234, np.uint16)).save(tmp_path / "image.pgm")
    assert (load_image(tmp_path / "image.pgm") == 0x12).all()


def sized(width: int, height: int, format: str) -> bytes:
    """Return an image of 8x8 pixels whose header claims another size."""
    file = io.BytesIO()
    Image.new("1" if format == "PNG" else "RGB", (8, 8)).save(file, format)
    content = bytearray(file.getvalue())
    match format:
        case "PNG":
            content[16:24] = struct.pack(">II", width, height)
            content[29:33] = struct.pack(">I", crc32(content[12:29]))
        case "GIF":
            content[6:10] = struct.pack("<HH", width, height)
        case "BMP":
            content[18:26] = struct.pack("<ii", width, height)
        case "TGA":
            content[12:16] = struct.pack("<HH", width, height)
        case "PCX":
            content[8:12] = struct.pack("<HH", width - 1, height - 1)
        case "PPM":
            content = bytearray(content.replace(b"8 8", b"%d %d" % (width, height), 1))
    return bytes(content)


class TestSize:
    """The number of pixels is checked before they are decoded."""

    @pytest.fixture(autouse=True)
    def undecoded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load(self: Image.Image) -> None:
            raise AssertionError("decoded")

        monkeypatch.setattr(ImageFile.ImageFile, "load", load)

    @pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TGA", "PCX", "PPM"])
    @pytest.mark.parametrize("is_limited", [True, False], ids=["Pillow's limit", "no limit in Pillow"])
    def test_formats(self, format: str, is_limited: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        if not is_limited:
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        with pytest.raises(ImageError, match="refused, it would unpack to an enormous image"):
            decode_image(sized(20_000, 9_000, format), "image")

    @pytest.mark.parametrize("format", ["PNG", "BMP", "PPM"])
    def test_a_lower_limit(self, format: str) -> None:
        with pytest.raises(ImageError, match="8,000 x 8,000 pixels, at most 50,000,000 are accepted"):
            decode_image(sized(8_000, 8_000, format), "image", 50_000_000)

    def test_tiles_that_are_larger_than_the_image(self) -> None:
        side, data = 60_000, zlib.compress(bytes(99))
        tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 0, 325: len(data)}
        tags[324] = 8 + 2 + 12 * len(tags) + 4  # the place of the tile
        directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4) + data
        with pytest.raises(ImageError, match="enormous"):
            decode_image(content, "image")

    @pytest.mark.parametrize(("format", "options"), [("WEBP", {}), ("JPEG2000", {}), ("JPEG", {"progressive": True})])
    def test_decoders_that_need_more_memory_have_a_lower_limit(
        self, format: str, options: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64)
        file = io.BytesIO()
        Image.new("RGB", (64, 63)).save(file, format, **options)
        with pytest.raises(ImageError, match=r"at most [0-9,]+ are accepted"):
            decode_image(file.getvalue(), "image", 64 * 64)

    @pytest.mark.filterwarnings("error")
    def test_warnings_that_are_errors(self) -> None:
        with pytest.raises(ImageError, match="enormous"):
            decode_image(sized(10_000, 10_000, "PNG"), "image")


def test_an_icon_with_a_larger_image_than_its_header_says() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (16, 16)).save(file, "ICO", sizes=[(16, 16)])
    png = io.BytesIO()
    Image.new("RGBA", (200, 200)).save(png, "PNG")
    content = bytearray(file.getvalue()[:22]) + png.getvalue()
    content[14:18] = struct.pack("<I", len(png.getvalue()))
    with pytest.warns(UserWarning), pytest.raises(ImageError, match="200 x 200 pixels, at most 1,000 are accepted"):
        decode_image(bytes(content), "icon", 1000)


def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGE", 1000)
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    at_once, most = [], []
    convert = images._to_rgb

    def watched(image: Image.Image, name: str) -> NDArray[np.uint8]:
        at_once.append(name)
        most.append(len(at_once))
        time.sleep(0.01)
        at_once.remove(name)
        return convert(image, name)

    monkeypatch.setattr(images, "_to_rgb", watched)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(partial(decode_image, file.getvalue()), "abcdefgh"))
    assert most == [1] * 8


@pytest.mark.skipif(sys.platform != "linux", reason="measured in /proc")
@pytest.mark.parametrize("mode", ["1", "P", "L", "I;16", "RGB", "RGBA"])
def test_memory(mode: str, tmp_path: Path) -> None:
    """Reading needs at most 8 bytes for a pixel, with the result's 3."""
    side = 2600
    Image.new(mode, (side, side)).save(tmp_path / "image.png")
    code = (
        "import resource, sys; from pathlib import Path; from dpt_zoo.utils.images import load_image\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "load_image(Path(sys.argv[2])); before = peak(); load_image(Path(sys.argv[1])); print(peak() - before)"
    )
    Image.new(mode, (1100, 1100)).save(tmp_path / "small.png")
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "image.png", tmp_path / "small.png"], check=True, capture_output=True
    )
    assert int(done.stdout) < 8 * side**2


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


def test_a_limit_above_pillows(tmp_path: Path) -> None:
    """More pixels than Pillow accepts, if the caller does: the header alone is read here."""
    path = tmp_path / "large.png"
    path.write_bytes(sized(20_000, 10_000, "PNG"))
    with pytest.raises(ImageError, match=r"20,000 x 10,000|decompression bomb"):
        load_image(path)
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match="damaged or unreadable"):  # it has no pixels
        load_image(path, 200_000_000)
    assert limit == Image.MAX_IMAGE_PIXELS
