"""Images in any form become one form; pictures become files."""

import contextlib
import functools
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
"""Pillow's names of what is read. Others are no pictures for a detector, or run programs of the system (EPS)."""

DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, RuntimeError, struct.error)
"""What Pillow's decoders raise, between them, at bytes that they do not expect."""


def load_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as OpenCV (and so MMDetection) does: upright by its EXIF orientation, without alpha.

    Of an animation the first frame is read. 16-bit values keep their upper byte.

    Returns:
        `(H, W, 3)` RGB in 0..255.

    Raises:
        ImageError: the file is missing, no image, damaged, or of a kind that has no 8-bit colours.
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
    """Decode what an image file holds, as `load_image` does.

    Args:
        content: the file's bytes.
        name: what the error's text calls it.

    Raises:
        ImageError: they are no image, damaged, or of a kind that has no 8-bit colours.
    """
    if not content:
        raise ImageError(f"{name}: there is nothing in it")
    return _decode(io.BytesIO(content), name)


def to_pixels(image: Any, name: str) -> NDArray[np.uint8]:
    """Turn an image that is in memory into pixels.

    Args:
        image: a PIL image; a NumPy array `(H, W)`, `(H, W, 1)`, `(H, W, 3)` RGB or `(H, W, 4)` RGBA; a PyTorch tensor
            `(H, W)` or `(C, H, W)` with as many channels. Values are 8-bit, 16-bit (which keep their upper byte) or
            floating-point from 0 to 1. Alpha is dropped.
        name: what the error's text calls it.

    Returns:
        `(H, W, 3)` RGB in 0..255.

    Raises:
        ImageError: it has another type, shape or range, or holds NaN.
    """
    if isinstance(image, Image.Image):
        return _upright(image, name)
    if isinstance(image, np.ndarray):
        return _from_array(image, name, "(H, W, 3)")
    if hasattr(image, "detach"):  # a tensor; torch need not be imported to know it
        array = image.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()  # NumPy has no bfloat16
        return _from_array(array.transpose(1, 2, 0) if array.ndim == 3 else array, name, "(3, H, W)")
    kind = type(image).__name__
    raise ImageError(f"{name}: {kind} is no image: give a path, an address, a PIL image, an array, a tensor or bytes")


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture, as JPEG or PNG by the path's suffix.

    Raises:
        InputError: the suffix is another.
        OutputError: the file cannot be written.
    """
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path}: pictures are written as .jpg or .png, not {path.suffix!r}")
    with open_atomic(path) as file:
        picture.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))


def _decode(file: BinaryIO, name: str) -> NDArray[np.uint8]:
    with _explained(name), Image.open(file, formats=_formats()) as image:
        return _upright(image, name)


@functools.cache
def _formats() -> list[str]:
    """Those of the formats that this Pillow reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _upright(image: Image.Image, name: str) -> NDArray[np.uint8]:
    with _explained(name):
        return _to_rgb(ImageOps.exif_transpose(image), name)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """What Pillow raises becomes an `ImageError`."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: this is no image of a known format") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: refused, it would unpack to an enormous picture: {error}") from error
    except DAMAGE as error:
        raise ImageError(f"{name}: the image is damaged or unreadable: {error}") from error


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise ImageError(f"{name}: 32-bit pixels have no fixed range: save it with 8 or 16 bits")
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise ImageError(f"{name}: floating-point pixels have no fixed range: save it with 8 or 16 bits")
    if image.mode == "P":
        image = image.convert("RGBA")  # a palette may have transparency, which is dropped below
    return np.asarray(image.convert("RGB"))


def _from_array(array: NDArray[Any], name: str, wanted: str) -> NDArray[np.uint8]:
    """Pixels from an array whose channels, if it has any, are the last dimension."""
    if array.ndim == 4:
        raise ImageError(f"{name}: these are several images, {array.shape}: give them as a list")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise ImageError(f"{name}: an image is {wanted}, not {_shape_as_given(array, wanted)}")
    if array.shape[2] == 1:
        array = np.broadcast_to(array, (*array.shape[:2], 3))
    array = array[..., :3]
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise ImageError(f"{name}: pixels are uint8, uint16 or floating-point from 0 to 1, not {array.dtype}")
    least, most = array.min(), array.max()
    if not (least >= 0 and most <= 1):  # NaN, too
        reason = "NaN is among them" if np.isnan(least) else f"these go from {least:g} to {most:g}"
        raise ImageError(f"{name}: floating-point pixels are from 0 to 1, {reason}: undo the normalisation")
    return (array * 255).round().astype(np.uint8)


def _shape_as_given(array: NDArray[Any], wanted: str) -> tuple[int, ...]:
    shape = array.shape
    return (shape[2], *shape[:2]) if wanted.startswith("(3") and array.ndim == 3 else shape
