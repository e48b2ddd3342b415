"""Read images as RGB pixels from files and from memory, and write pictures."""

import contextlib
import io
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import ImageError, InputError
from .files import open_atomic

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO", "PCX")
"""Pillow's names of the supported formats. EPS is not supported, because Pillow runs another program to read it."""

ORIENTATION, BITS_PER_SAMPLE, TILE_WIDTH, TILE_HEIGHT = 0x0112, 258, 322, 323  # tags of EXIF and TIFF
BAND = 1 << 20  # pixels that are converted at once

DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, RuntimeError, LookupError, ArithmeticError, MemoryError),
    *(struct.error, zlib.error),
)
"""The exceptions that Pillow's and tifffile's decoders raise for damaged files."""


MAX_PIXELS = 178_956_970
"""The default limit of pixels in an image, at which Pillow refuses an image, too, unless its settings were changed."""

DECODER_BYTES = {"WEBP": 16, "JPEG2000": 20, "AVIF": 10}
"""Bytes of memory for a pixel while an image of a format is decoded. It is at most 8 for other formats, but 10 for
progressive JPEG files. Images that need more in all than one with the largest number of pixels are refused."""

LARGE = 16_000_000
"""Pixels of an image from which on only one thread decodes at a time."""

_large_images = threading.Lock()
_pillows_limit = threading.Lock()


def load_image(path: Path, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image file as `(H, W, 3)` RGB pixels from 0 to 255, as OpenCV (and so MMDetection) does.

    The image is turned upright by its EXIF orientation and loses its alpha channel. 16-bit values keep their upper
    byte. Of an animation, the first frame is read. An image with more than `max_pixels` is refused.

    Raises:
        ImageError: The file is missing, damaged, not an image, too large, or has no 8-bit or 16-bit pixels.
    """
    try:
        if path.is_dir():
            raise ImageError(f"{path}: this is a folder: name the image files in it")
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty")
        with path.open("rb") as file:
            return _decode(file, str(path), max_pixels)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: there is no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise ImageError(f"{path}: the file cannot be read: {error}") from error


def decode_image(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode an image file's `content` as `load_image` does. Error texts start with `name`.

    An image with more than `max_pixels` is refused before it is decoded.
    """
    if not content:
        raise ImageError(f"{name}: there is nothing in it")
    return _decode(io.BytesIO(content), name, max_pixels)


def to_pixels(image: Any, name: str) -> NDArray[np.uint8]:
    """Convert an image in memory to `(H, W, 3)` RGB pixels from 0 to 255.

    Args:
        image: a PIL image; a NumPy array `(H, W)`, `(H, W, 1)`, `(H, W, 3)` RGB or `(H, W, 4)` RGBA; or a PyTorch
            tensor `(H, W)` or `(C, H, W)` with as many channels. Values are 8-bit, 16-bit (the upper byte is kept) or
            floating-point from 0 to 1. Alpha is dropped.
        name: the image's name in error texts.

    Raises:
        ImageError: The type, shape or range is unsupported, or there are NaNs.
    """
    if isinstance(image, Image.Image):
        with _image_errors(name):
            return _to_rgb(image, name)
    if isinstance(image, np.ndarray):
        return _from_array(image, name, f"(H, W, 3), not {image.shape}")
    if hasattr(image, "detach"):  # a tensor, recognised without importing torch
        array = (image.float() if image.is_floating_point() else image).detach().cpu().numpy()  # NumPy has no bfloat16
        expected = f"(3, H, W), not {array.shape}"
        return _from_array(array.transpose(1, 2, 0) if array.ndim == 3 else array, name, expected)
    types = "a path, a URL, a PIL image, an array, a tensor or bytes"
    raise ImageError(f"{name}: {type(image).__name__} is not an image: give {types}")


def padded_size(size: Sequence[int], divisor: int) -> tuple[int, int]:
    """Return the height and width of an image of `size` that is padded to multiples of `divisor`, in pixels."""
    height, width = (-(-side // divisor) * divisor for side in size)
    return height, width


def encode_png(image: Image.Image) -> bytes:
    """Return an image as a PNG file, for which speed counts more than size."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)  # a higher level takes longer than drawing
    return file.getvalue()


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture as JPEG or PNG, by the suffix of its path.

    Raises:
        InputError: The suffix is not .jpg, .jpeg or .png.
        OutputError: The file cannot be written.
    """
    format = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}.get(path.suffix.lower())
    if format is None:
        raise InputError(f"{path}: pictures are written as .jpg or .png, not {path.suffix!r}")
    with open_atomic(path) as file:
        picture.save(file, format, quality=95)  # PNG ignores the quality


def _decode(file: BinaryIO, name: str, max_pixels: int) -> NDArray[np.uint8]:
    Image.init()
    formats = [format for format in FORMATS if format in Image.OPEN]  # those that this build of Pillow reads
    with _image_errors(name), _open(file, formats, max_pixels) as image:
        num_pixels = _check_size(image, name, max_pixels)
        with _large_images if num_pixels > LARGE else contextlib.nullcontext():
            image.load()
            _check_size(image, name, max_pixels)  # an icon can contain a larger image than its header says
            return _to_rgb(image, name)


def _open(file: BinaryIO, formats: list[str], max_pixels: int) -> Image.Image:
    """Open an image file with `max_pixels` in place of Pillow's own limit, if that is lower."""
    if max_pixels <= MAX_PIXELS:
        return Image.open(file, formats=formats)
    with _pillows_limit:  # a setting of the process
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            return Image.open(file, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def check_num_pixels(num_pixels: int, limit: int, size: tuple[int, int], name: str) -> None:
    """Raise `ImageError` if the image `name` of a `size` (height, width) has `num_pixels` above the `limit`."""
    if num_pixels > limit:
        height, width = size
        raise ImageError(
            f"{name}: refused, it would unpack to an enormous image: {width:,} x {height:,} pixels, at most {limit:,} "
            "are accepted, because a small file can fill the memory: raise max_pixels if you trust it"
        )


def _check_size(image: Image.Image, name: str, max_pixels: int) -> int:
    """Return the number of pixels that decoding needs, or raise `ImageError`. The tiles of a TIFF can be larger."""
    width, height = image.size
    tags = getattr(image, "tag_v2", {})
    tile = int(tags.get(TILE_WIDTH, 0)) * int(tags.get(TILE_HEIGHT, 0))
    num_bytes = 10 if image.info.get("progressive") else DECODER_BYTES.get(image.format or "", 8)
    limit = min(max_pixels, max(MAX_PIXELS, max_pixels) * 8 // num_bytes)
    check_num_pixels(max(width * height, tile), limit, (height, width), name)
    return max(width * height, tile)


@contextlib.contextmanager
def _image_errors(name: str) -> Iterator[None]:
    """Turn Pillow's exceptions into `ImageError`."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: this is not an image of a known format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: refused, it would unpack to an enormous image: {error}") from error
    except DECODER_ERRORS as error:
        raise ImageError(f"{name}: the image is damaged or unreadable: {error}") from error


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """Convert an image to RGB pixels, a band at a time: Pillow's own conversion needs several copies in memory."""
    image.load()
    if image.mode == "F" or (image.mode == "I" and not _is_16_bit(image)):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise ImageError(f"{name}: {kind} pixels have no fixed range: save the image with 8 or 16 bits")
    orientation = image.getexif().get(ORIENTATION, 1)
    width, height = image.size
    pixels = np.empty((width, height, 3) if orientation in (5, 6, 7, 8) else (height, width, 3), np.uint8)
    as_stored = _as_stored(pixels, orientation)
    num_rows, num_bits = max(1, BAND // max(1, width)), _tiff_bits(image) or 16
    for top in range(0, height, num_rows):
        band = image.crop((0, top, width, min(top + num_rows, height)))
        as_stored[top : top + num_rows] = _band_to_rgb(band, num_bits)
    return pixels


def _is_16_bit(image: Image.Image) -> bool:
    """Return whether an image in a mode of 32 bits has 16-bit values, and not small ones of an unknown range."""
    minimum: Any
    maximum: Any
    minimum, maximum = image.getextrema()
    is_known = image.format in ("PNG", "PPM") or _tiff_bits(image) == 16 or (image.format is None and maximum > 0xFF)
    return minimum >= 0 and maximum <= 0xFFFF and is_known


def _tiff_bits(image: Image.Image) -> int | None:
    """Return the bits of a grey TIFF file's values: Pillow has those of 12 and 16, and 16 and 32 bits, in one mode."""
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE)
    return int(bits[0]) if bits else None


def _as_stored(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return a view of an upright image in which the rows are those of its file, by its EXIF orientation."""
    match orientation:
        case 2:
            return upright[:, ::-1]
        case 3:
            return upright[::-1, ::-1]
        case 4:
            return upright[::-1]
        case 5:
            return upright.swapaxes(0, 1)
        case 6:
            return np.rot90(upright)
        case 7:
            return upright[::-1, ::-1].swapaxes(0, 1)
        case 8:
            return np.rot90(upright, -1)
    return upright


def _band_to_rgb(band: Image.Image, num_bits: int) -> NDArray[Any]:
    if band.mode.startswith("I"):
        return (np.asarray(band) >> num_bits - 8).astype(np.uint8)[..., None]
    if band.mode == "P":
        band = band.convert("RGBA")  # a palette can have transparency, which is dropped below
    return np.asarray(band.convert("RGB"))


def _from_array(array: NDArray[Any], name: str, expected: str) -> NDArray[np.uint8]:
    """Convert an array, whose last dimension is the channels, if any. Error texts have the `expected` shape."""
    if array.ndim == 4:
        raise ImageError(f"{name}: these are several images, {array.shape}: give them as a list")
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise ImageError(f"{name}: an image is {expected}")
    array = array[..., :3] if array.shape[2] > 1 else array.repeat(3, axis=2)
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise ImageError(f"{name}: pixels are uint8, uint16 or floating-point from 0 to 1, not {array.dtype}")
    minimum, maximum = array.min(), array.max()
    if not (minimum >= 0 and maximum <= 1):  # NaN, too
        values = "NaN is among them" if np.isnan(minimum) else f"these go from {minimum:g} to {maximum:g}"
        raise ImageError(f"{name}: floating-point pixels are from 0 to 1, {values}: undo the normalisation")
    return (array * 255).round().astype(np.uint8)
