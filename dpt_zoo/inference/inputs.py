"""Find the images in everything that a detector accepts. They are read when they are needed."""

import glob
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

MAX_DOWNLOAD = 256 << 20
"""Maximum size of an image at a URL, in bytes."""
TIMEOUT = 30.0
"""Maximum time without data from a server, in seconds."""


@dataclass(frozen=True)
class ImageInput:
    """One image that has not been read yet.

    Attributes:
        name: a relative POSIX path for output files, unique in a run: "photo.jpg", "holiday/1.png" for an image in a
            folder, "image-3" for an image in memory.
        origin: the path, the URL or the name, for messages.
        read: returns the pixels, `(H, W, 3)` RGB in 0..255, or raises `ImageError`.
    """

    name: str
    origin: str
    read: Callable[[], NDArray[np.uint8]]


def find_input(image: Any) -> ImageInput:
    """Return the input for exactly one image: a path, a URL, a PIL image, an array, a tensor or bytes.

    Raises:
        InputError: A folder, a pattern, a list, an iterator or an empty path was given.
    """
    if not _is_single(image):
        what = repr(str(image)) if isinstance(image, str | Path) else f"a value of type {type(image).__name__}"
        raise InputError(f"{what} is not one image: use detector.stream(...) for folders, patterns, lists, iterators")
    return next(find_inputs(image))


def find_inputs(images: Any) -> Iterator[ImageInput]:
    """Find the images in everything that a detector accepts.

    Args:
        images: a path, a URL (https://...), a folder (all images in it and below, by name), a shell pattern
            ("photos/*.jpg", "**" for folders at any depth), a PIL image, an array, a tensor, an image file's bytes, or
            a list or an iterator of these, which is read only as far as needed. An unsupported type raises
            `ImageError` when it is read.

    Raises:
        InputError: A folder has no images, nothing matches a pattern, or a path is empty. For an item of a list or an
            iterator, it is raised when the item is reached.
    """
    numbers = itertools.count(1)
    if isinstance(images, str | Path) or _is_single(images):
        return _make_unique(_expand(images, numbers))
    return _make_unique(itertools.chain.from_iterable(_expand(image, numbers) for image in images))


def is_url(image: str | Path) -> bool:
    """Return whether an image is given by its URL."""
    return isinstance(image, str) and re.match("https?://", image, re.IGNORECASE) is not None


def _is_single(images: Any) -> bool:
    """Return whether this is one image, and not a folder, a pattern or an iterable of images."""
    if isinstance(images, str | Path):
        return is_url(images) or images == "" or not (os.path.isdir(images) or _is_pattern(images))  # noqa: PTH112
    is_image = isinstance(images, bytes | bytearray | Image.Image | np.ndarray) or hasattr(images, "detach")
    return is_image or not isinstance(images, Iterable)


def _expand(image: Any, numbers: Iterator[int]) -> Iterable[ImageInput]:
    """Return the images of a path, a URL, a folder, a pattern or one image in memory."""
    if not isinstance(image, str | Path):
        name = f"image-{next(numbers)}"
        if isinstance(image, bytes | bytearray):
            return [ImageInput(name, name, partial(decode_image, bytes(image), name))]
        return [ImageInput(name, name, partial(to_pixels, image, name))]
    if is_url(image):
        return [ImageInput(_url_name(str(image)), str(image), partial(_fetch, str(image)))]
    if image == "":
        raise InputError("the path of an image is empty")
    path = Path(image)
    if os.path.isdir(path):  # noqa: PTH112  (Path.is_dir raises an error for a name that is too long)
        folder, paths = path, _images_below(path)
        if not paths:
            raise InputError(f"{path}: there are no images in this folder")
    elif _is_pattern(image):
        folder = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        paths = sorted(folder.glob("/".join(path.parts[len(folder.parts) :])))
        paths = [each for each in paths if each.is_file() and not each.name.startswith(".")]
        if not paths:
            raise InputError(f"{image}: nothing matches this pattern")
    else:
        folder, paths = path.parent, [path]
    return [ImageInput(each.relative_to(folder).as_posix(), str(each), partial(load_image, each)) for each in paths]


def _images_below(folder: Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted, without hidden files and linked folders."""
    suffixes = {suffix for suffix, format in Image.registered_extensions().items() if format in FORMATS}
    paths = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(parent, name) for name in files if not name.startswith(".")]
    return sorted(path for path in paths if path.suffix.lower() in suffixes)


def _is_pattern(image: str | Path) -> bool:
    """Return whether a path has a wildcard and is not the name of a file."""
    return glob.has_magic(str(image)) and not os.path.lexists(image)


def _url_name(url: str) -> str:
    """Return the file name in a URL, without characters that a file system may refuse."""
    name = re.sub(r'[\x00-\x1f\\:*?"<>|]', "_", PurePosixPath(unquote(urlsplit(url).path)).name)
    return name if name not in ("", "..") else "image"


def _fetch(url: str) -> NDArray[np.uint8]:
    """Download an image, with up to two more attempts."""
    retries = Retry(2, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504), respect_retry_after_header=False)
    content, headers = bytearray(), {"User-Agent": f"dpt-zoo/{__version__}"}
    try:
        with requests.Session() as session:
            session.mount("https://", HTTPAdapter(max_retries=retries))
            session.mount("http://", HTTPAdapter(max_retries=retries))
            with session.get(url, stream=True, timeout=TIMEOUT, headers=headers) as response:
                response.raise_for_status()
                for chunk in response.iter_content(1 << 20):
                    content += chunk
                    if len(content) > MAX_DOWNLOAD:
                        raise ImageError(f"{url}: refused, it is larger than {MAX_DOWNLOAD >> 20} MB")
    except requests.HTTPError as error:
        raise ImageError(f"{url}: the server answers {error.response.status_code}") from error
    except (requests.RequestException, ValueError) as error:
        raise ImageError(f"{url}: it cannot be downloaded: {_root_cause(error)}") from error
    return decode_image(bytes(content), url)


def _root_cause(error: BaseException) -> str:
    """Return the text of the first cause of an error from requests, in one line."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return " ".join(str(error).split()) or type(error).__name__


def _make_unique(inputs: Iterable[ImageInput]) -> Iterator[ImageInput]:
    """Yield the inputs, with "-2", "-3", ... appended to repeated names."""
    taken: set[str] = set()
    for input in inputs:
        path, name, number = PurePosixPath(input.name), input.name, 1
        while name in taken:
            number += 1
            name = path.with_name(f"{path.stem}-{number}{path.suffix}").as_posix()
        taken.add(name)
        yield replace(input, name=name)
