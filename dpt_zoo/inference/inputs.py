"""Everything that a detector takes, as a stream of images that are read when they are due."""

import glob
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import requests
from numpy.typing import NDArray
from PIL import Image
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from .._version import __version__
from ..errors import ImageError, InputError
from ..utils.images import FORMATS, decode_image, load_image, to_pixels

LARGEST_DOWNLOAD = 256 << 20
"""Bytes of an image behind an address; what is larger is refused."""
TIMEOUT = 30.0
"""Seconds that a server may be silent."""


@dataclass(frozen=True)
class ImageInput:
    """One image, not yet read.

    Attributes:
        name: a relative POSIX path for what is written of it: "photo.jpg", "holiday/1.png" below a folder that was
            named, "image-3" of what has no name. No two of a run have the same.
        origin: what messages call it: the path or address, or its name.
        read: gives its pixels `(H, W, 3)` RGB in 0..255, or raises `ImageError`.
    """

    name: str
    origin: str
    read: Callable[[], NDArray[np.uint8]]


def is_single(images: Any) -> bool:
    """Whether this is one image, not a folder, a pattern or several things."""
    if isinstance(images, str | Path):
        return is_address(images) or not (_is_folder(images) or _is_pattern(images))
    is_image = isinstance(images, bytes | bytearray | Image.Image | np.ndarray) or hasattr(images, "detach")
    return is_image or not isinstance(images, Iterable)  # what is nothing at all is told when it is read


def find_inputs(images: Any) -> Iterator[ImageInput]:
    """Find the images in whatever a detector is given.

    Args:
        images: a path, an address (https://...), a folder (all images in it and below, by name), a pattern as the
            shell has it ("photos/*.jpg", "**" for folders at any depth), a PIL image, an array, a tensor, an image
            file's bytes, or a list or iterator of these, which is read as far as is needed.

    Raises:
        InputError: a folder has no images, or nothing matches a pattern; at once, or, inside an iterator, when it is
            its turn.
    """
    numbers = itertools.count(1)
    if is_single(images) or isinstance(images, str | Path):
        return _unique(_expand(images, numbers))
    return _unique(itertools.chain.from_iterable(_expand(image, numbers) for image in images))


def is_address(image: str | Path) -> bool:
    """Whether this is where something is on the web, not a path."""
    return isinstance(image, str) and re.match("https?://", image, re.IGNORECASE) is not None


def _expand(image: Any, numbers: Iterator[int]) -> Iterable[ImageInput]:
    """The images that one item stands for."""
    if not isinstance(image, str | Path):
        return [_in_memory(image, numbers)]
    if is_address(image):
        return [_on_the_web(str(image))]
    path = Path(image)
    if _is_folder(path):
        found = _images_below(path)
        if not found:
            raise InputError(f"{path}: there are no images in this folder")
        return [_file(each, each.relative_to(path).as_posix()) for each in found]
    if _is_pattern(image):
        return _matching(str(image))
    return [_file(path, path.name)]


def _file(path: Path, name: str) -> ImageInput:
    return ImageInput(name, str(path), partial(load_image, path))


def _images_below(folder: Path) -> list[Path]:
    """The image files of a folder and those below it, by name; hidden ones and linked folders are left out."""
    suffixes = _image_suffixes()
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(parent, name) for name in files if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in suffixes]
    return sorted(found)


def _image_suffixes() -> set[str]:
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}


def _is_pattern(image: str | Path) -> bool:
    """Whether a path is to be matched: it has a wildcard, and no file has that very name."""
    return glob.has_magic(str(image)) and not os.path.lexists(image)


def _is_folder(path: str | Path) -> bool:
    try:
        return Path(path).is_dir()
    except OSError:  # a name longer than any; reading it tells
        return False


def _matching(pattern: str) -> list[ImageInput]:
    parts = Path(pattern).parts
    fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    found = sorted(fixed.glob("/".join(parts[len(fixed.parts) :])))
    found = [path for path in found if path.is_file() and not path.name.startswith(".")]
    if not found:
        raise InputError(f"{pattern}: nothing matches this pattern")
    return [_file(path, path.relative_to(fixed).as_posix()) for path in found]


def _on_the_web(address: str) -> ImageInput:
    name = PurePosixPath(unquote(urlsplit(address).path)).name
    name = re.sub(r'[\x00-\x1f\\:*?"<>|]', "_", name)  # it becomes a file's, on any system
    return ImageInput(name if name not in ("", "..") else "image", address, partial(_fetch, address))


def _fetch(address: str) -> NDArray[np.uint8]:
    """Fetch an image from the web; an attempt that fails on the way is repeated twice."""
    retries = Retry(2, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504), respect_retry_after_header=False)
    content = io.BytesIO()
    try:
        with requests.Session() as session:
            session.mount("https://", HTTPAdapter(max_retries=retries))
            session.mount("http://", HTTPAdapter(max_retries=retries))
            session.headers["User-Agent"] = f"dpt-zoo/{__version__}"
            with session.get(address, stream=True, timeout=TIMEOUT) as response:
                response.raise_for_status()
                for chunk in response.iter_content(1 << 20):
                    content.write(chunk)
                    if content.tell() > LARGEST_DOWNLOAD:
                        raise ImageError(f"{address}: refused, it is larger than {LARGEST_DOWNLOAD >> 20} MB")
    except requests.HTTPError as error:
        raise ImageError(f"{address}: the server answers {error.response.status_code}") from error
    except (requests.RequestException, ValueError) as error:
        raise ImageError(f"{address}: it cannot be fetched: {_reason(error)}") from error
    return decode_image(content.getvalue(), address)


def _reason(error: Exception) -> str:
    """What is at the bottom of an error of requests, in one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return " ".join(str(error).split()) or type(error).__name__


def _in_memory(image: Any, numbers: Iterator[int]) -> ImageInput:
    name = f"image-{next(numbers)}"
    if isinstance(image, bytes | bytearray):
        return ImageInput(name, name, partial(decode_image, bytes(image), name))
    return ImageInput(name, name, partial(to_pixels, image, name))


def _unique(sources: Iterable[ImageInput]) -> Iterator[ImageInput]:
    """The same sources; of those with one name, the second becomes "name-2", and so on."""
    taken: set[str] = set()
    for source in sources:
        path, name, number = PurePosixPath(source.name), source.name, 1
        while name in taken:
            number += 1
            name = path.with_name(f"{path.stem}-{number}{path.suffix}").as_posix()
        taken.add(name)
        yield replace(source, name=name)
