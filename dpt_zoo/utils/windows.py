"""Read an image in parts, so that a large TIFF file never is in memory as a whole."""

import threading
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from .dependencies import explain_imports
from .images import DECODER_ERRORS, LARGE, check_num_pixels

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")
MAX_CACHE = 128 << 20  # bytes of unpacked tiles
ZLIB = (8, 32946)  # the numbers of compressions in a TIFF file that are zlib's


class Window(NamedTuple):
    """A part of an image, in pixels: from x0 to x1 and from y0 to y1, without the ends."""

    x0: int
    y0: int
    x1: int
    y1: int


class WindowReader(Protocol):
    """An image that is read in parts. Any thread may read.

    Attributes:
        size: (height, width), pixels.
    """

    size: tuple[int, int]

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return the pixels `(h, w, 3)` RGB of a window inside the image, or raise `ImageError`."""

    def close(self) -> None:
        """Close the file."""


class ArrayWindows:
    """The windows of an image `(H, W, 3)` RGB in memory."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self.size = (image.shape[0], image.shape[1])
        self.image = image

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return the pixels of a window."""
        return self.image[window.y0 : window.y1, window.x0 : window.x1]

    def close(self) -> None:
        """Do nothing."""


class TiffWindows:
    """The windows of a TIFF file at `path`, whose tiles or strips are unpacked when they are needed.

    Raises:
        NotImplementedError: The file has another structure, and is to be read as a whole.
        ImageError: It has more than `max_pixels`.
    """

    def __init__(self, path: Path, max_pixels: int) -> None:
        import tifffile

        self._path, self._lock = path, threading.Lock()
        self._tiles = OrderedDict[int, NDArray[np.uint8]]()
        try:
            self._file = tifffile.TiffFile(path)
        except (tifffile.TiffFileError, *DECODER_ERRORS) as error:
            raise NotImplementedError from error
        try:
            self._page: Any = self._file.pages.first
            self._check_structure()
        except DECODER_ERRORS as error:
            self._file.close()
            raise NotImplementedError from error
        except NotImplementedError:
            self._file.close()
            raise
        self.size = (self._page.imagelength, self._page.imagewidth)
        try:
            check_num_pixels(self.size[0] * self.size[1], max_pixels, self.size, str(path))
        except ImageError:
            self._file.close()
            raise

    def _check_structure(self) -> None:
        """Raise `NotImplementedError` unless a tile can be unpacked by itself, to 8-bit or 16-bit grey, RGB or RGBA."""
        page = self._page
        rows, columns = page.chunks[:2]
        is_known = (
            page.bitspersample in (8, 16)
            and page.dtype in (np.uint8, np.uint16)
            and page.samplesperpixel in (1, 3, 4)
            and page.photometric == (1 if page.samplesperpixel == 1 else 2)
            and (page.planarconfig == 1 or page.samplesperpixel == 1)
            and page.imagedepth == 1
            and page.tags.valueof(274, 1) == 1  # the orientation
            and 0 < rows * columns <= LARGE
            and all(isinstance(side, int) and side > 0 for side in (page.imagelength, page.imagewidth, rows, columns))
        )
        if not is_known:
            raise NotImplementedError
        self._unpack(0)  # its compression may be one that needs the package imagecodecs

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return the pixels of a window."""
        rows, columns = self._page.chunks[:2]
        tiles_in_row = -(-self.size[1] // columns)
        pixels = np.zeros((window.y1 - window.y0, window.x1 - window.x0, 3), np.uint8)
        for row in range(window.y0 // rows, -(-window.y1 // rows)):
            for column in range(window.x0 // columns, -(-window.x1 // columns)):
                tile = self._tile(row * tiles_in_row + column)
                top, left = row * rows - window.y0, column * columns - window.x0  # of the tile in the window
                place = pixels[max(top, 0) : top + rows, max(left, 0) : left + columns]
                part = tile[max(-top, 0) :, max(-left, 0) :][: place.shape[0], : place.shape[1]]
                place[: part.shape[0], : part.shape[1]] = part
        return pixels

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _tile(self, index: int) -> NDArray[np.uint8]:
        """Return the pixels of a tile `(h, w, 1 or 3)`. Those that were used last stay in memory."""
        with self._lock:
            if index in self._tiles:
                self._tiles.move_to_end(index)
                return self._tiles[index]
            try:
                tile = self._unpack(index)
            except DECODER_ERRORS as error:
                raise ImageError(f"{self._path}: the image is damaged or unreadable: {error}") from error
            self._tiles[index] = tile
            while len(self._tiles) > max(1, MAX_CACHE // max(1, tile.nbytes)):
                self._tiles.popitem(last=False)
            return tile

    def _unpack(self, index: int) -> NDArray[np.uint8]:
        page = self._page
        num_bytes = page.chunks[0] * page.chunks[1] * page.samplesperpixel * page.dtype.itemsize
        length = page.databytecounts[index]
        if length > 2 * num_bytes + 1024:
            raise ValueError(f"a tile has {length:,} bytes")
        if length == 0:  # a sparse file leaves out tiles of zeros
            return np.zeros((*page.chunks[:2], 1), np.uint8)
        self._file.filehandle.seek(page.dataoffsets[index])
        packed = self._file.filehandle.read(length)
        if page.compression in ZLIB and len(zlib.decompressobj().decompress(packed, num_bytes + 1)) > num_bytes:
            raise ValueError("a tile unpacks to more than its pixels")
        values, _, _ = page.decode(packed, index, jpegtables=page.jpegtables)
        values = values[0, ..., :3]
        return (values >> 8).astype(np.uint8) if page.dtype == np.uint16 else values


def open_tiff(path: Path, max_pixels: int) -> WindowReader | None:
    """Open a TIFF file that can be read in windows; None for another file, which is to be read as a whole.

    Raises:
        DependencyError: The package tifffile is not installed.
        ImageError: The image has more than `max_pixels`.
    """
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return None
    try:
        with explain_imports():
            return TiffWindows(path, max_pixels)
    except NotImplementedError:
        return None
