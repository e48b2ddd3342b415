"""Read image files into one form."""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ImageError

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
        with Image.open(path) as image:
            return _to_rgb(ImageOps.exif_transpose(image), path)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: there is no such file") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: this is no image of a known format") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: refused, it would unpack to an enormous picture: {error}") from error
    except DAMAGE as error:
        raise ImageError(f"{path}: the image is damaged or unreadable: {error}") from error


def _to_rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise ImageError(f"{path}: 32-bit pixels have no fixed range: save it with 8 or 16 bits")
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise ImageError(f"{path}: floating-point pixels have no fixed range: save it with 8 or 16 bits")
    if image.mode == "P":
        image = image.convert("RGBA")  # a palette may have transparency, which is dropped below
    return np.asarray(image.convert("RGB"))
