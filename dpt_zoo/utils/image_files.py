"""Find image files, and read their sizes without decoding them."""

import functools
from pathlib import Path

from PIL import ExifTags, Image

from ..errors import ImageError
from .files import walk_files
from .images import DECODER_ERRORS, FORMATS


def find_images(folder: Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted, without hidden files and linked folders."""
    return [path for path in walk_files(folder) if path.suffix.lower() in image_suffixes()]


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of image files, such as ".jpg", in lower case."""
    return frozenset(suffix for suffix, format in Image.registered_extensions().items() if format in FORMATS)


def read_size(path: Path) -> tuple[int, int]:
    """Return the (height, width) that `load_image` gives an image file, from the file's header.

    Raises:
        ImageError: The file is missing, or not an image of a supported format.
    """
    Image.init()
    try:
        with Image.open(path, formats=[format for format in FORMATS if format in Image.OPEN]) as image:
            is_turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)  # by 90 degrees
            if is_turned and image.format == "TIFF":  # Pillow turns it, in some versions only when it is decoded
                image.load()
                is_turned = False
            return image.size if is_turned else image.size[::-1]
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: {error}") from error
