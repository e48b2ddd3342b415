"""Read images as RGB pixels from files and from memory, and write pictures."""

import contextlib
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import ImageError, InputError
from .files import open_atomic

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO", "PCX")
"""Pillow's names of the supported formats. EPS is not supported, because Pillow runs another program to read it."""

DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, EOFError, RuntimeError, struct.error)
"""The exceptions that Pillow's decoders raise for damaged files."""


def load_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as `(H, W, 3)` RGB pixels from 0 to 255, as OpenCV (and so MMDetection) does.

    The image is turned upright by its EXIF orientation and loses its alpha channel. 16-bit values keep their upper
    byte. Of an animation, the first frame is read.

    Raises:
        ImageError: The file is missing, damaged, not an image, or has no 8-bit or 16-bit pixels.
    """
    try:
        if path.is_dir():
            raise ImageError(f"{path}: this is a folder: name the image files in it")
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty")
        with path.open("rb") as file:
            return _decode(file, str(path))
    except FileNotFoundError as error:
        raise ImageError(f"{path}: there is no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise ImageError(f"{path}: the file cannot be read: {error}") from error


def decode_image(content: bytes, name: str) -> NDArray[np.uint8]:
    """Decode an image file's `content` as `load_image` does. Error texts start with `name`."""
    if not content:
        raise ImageError(f"{name}: there is nothing in it")
    return _decode(io.BytesIO(content), name)


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


def _decode(file: BinaryIO, name: str) -> NDArray[np.uint8]:
    Image.init()
    formats = [format for format in FORMATS if format in Image.OPEN]  # those that this build of Pillow reads
    with _image_errors(name), Image.open(file, formats=formats) as image:
        return _to_rgb(image, name)


@contextlib.contextmanager
def _image_errors(name: str) -> Iterator[None]:
    """Turn Pillow's exceptions into `ImageError`."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: this is not an image of a known format") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: refused, it would unpack to an enormous image: {error}") from error
    except DECODER_ERRORS as error:
        raise ImageError(f"{name}: the image is damaged or unreadable: {error}") from error


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise ImageError(f"{name}: 32-bit pixels have no fixed range: save the image with 8 or 16 bits")
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise ImageError(f"{name}: floating-point pixels have no fixed range: save the image with 8 or 16 bits")
    if image.mode == "P":
        image = image.convert("RGBA")  # a palette can have transparency, which is dropped below
    return np.asarray(image.convert("RGB"))


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
