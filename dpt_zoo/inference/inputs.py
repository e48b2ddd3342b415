"""Find the images in everything that a detector accepts. They are read when they are needed."""

import contextlib
import glob
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import FetchError, ImageError, InputError
from ..utils.dependencies import explain_imports
from ..utils.files import expand_user
from ..utils.http import read_url
from ..utils.image_files import find_images
from ..utils.images import MAX_PIXELS, decode_image, load_image, to_pixels
from ..utils.urls import redact
from ..utils.windows import ArrayWindows, WindowReader, open_tiff

if TYPE_CHECKING:
    from ..video.frames import Frame

MAX_DOWNLOAD = 256 << 20
"""Maximum size of an image at a URL, in bytes."""
RUN_FILES = ("run.json", "detections.jsonl")
"""The files by which the folder of a detection run is recognised."""
RUN_PICTURES = ("pictures", "crops", "masks")
"""The folders of images in the folder of a detection run."""


@dataclass(frozen=True)
class NamedInput:
    """One input of a run.

    Attributes:
        name: a relative POSIX path for output files, unique in a run: "photo.jpg", "holiday/1.png" for an image in a
            folder, "image-3" for an image in memory.
        origin: the path, the redacted URL or the name, for messages and files.
    """

    name: str
    origin: str

    @property
    def key(self) -> str:
        """A hash that identifies the input: the same for each spelling of its path, and in any order of inputs."""
        return input_key(self.origin)


Input = TypeVar("Input", bound=NamedInput)


@dataclass(frozen=True)
class ImageInput(NamedInput):
    """One image that has not been read yet.

    Attributes:
        read: returns the pixels, `(H, W, 3)` RGB in 0..255, or raises `ImageError`.
        url: the URL as it was given, if the image is at one. It may contain a password.
        file: the file that `read` reads.
        max_pixels: the largest image that is accepted of a file or a URL.
    """

    read: Callable[[], NDArray[np.uint8]] = field(repr=False)
    url: str | None = field(default=None, repr=False)
    file: Path | None = field(default=None, repr=False)
    max_pixels: int = MAX_PIXELS

    def open(self) -> WindowReader:
        """Open the image to read it in parts: a TIFF file if possible, and otherwise the whole image in memory.

        Raises:
            ImageError: The image cannot be read.
            DependencyError: A TIFF file needs a package that is not installed.
        """
        reader = None if self.file is None else open_tiff(self.file, self.max_pixels)
        return ArrayWindows(self.read()) if reader is None else reader

    @property
    def key(self) -> str:
        """As for `NamedInput`, but of the whole URL."""
        return input_key(self.url or self.origin)


def input_key(origin: str) -> str:
    """Return the key of an input at a path, at a URL, or of another name."""
    if not is_url(origin):
        path = Path(origin)
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # no path, or a loop of links
            origin = str(path.parent.resolve() / path.name)  # a link and its target are two inputs
    return hashlib.sha256(origin.encode(errors="surrogatepass")).hexdigest()[:32]


def stream_input(stream: BinaryIO, name: str, origin: str) -> ImageInput:
    """Return the input `name` for an image file in a `stream`, such as standard input; see `NamedInput` for `origin`.

    The file may have MAX_DOWNLOAD bytes.
    """
    return ImageInput(name, origin, partial(_read_stream, stream, origin))


def find_input(image: Any, max_pixels: int = MAX_PIXELS) -> ImageInput:
    """Return the input for exactly one `image`: a path, a URL, a PIL image, an array, a tensor or bytes.

    An image with more than `max_pixels` raises `ImageError` when it is read.

    Raises:
        InputError: A folder, a pattern, a list, an iterator or an empty path was given.
    """
    if not _is_single(image):
        what = repr(str(image)) if isinstance(image, str | Path) else f"a value of type {type(image).__name__}"
        raise InputError(f"{what} is not one image: use detector.stream(...) for folders, patterns, lists, iterators")
    return next(find_inputs(image, max_pixels))


def find_inputs(images: Any, max_pixels: int = MAX_PIXELS) -> Iterator[ImageInput]:
    """Find the images in everything that a detector accepts.

    Args:
        images: a path, a URL (https://...), a folder (all images in it and below, by name), a shell pattern
            ("photos/*.jpg", "**" for folders at any depth), a PIL image, an array, a tensor, an image file's bytes, or
            a list or an iterator of these, which is read only as far as needed. An unsupported type raises
            `ImageError` when it is read.
        max_pixels: an image with more raises `ImageError` when it is read, unless it is in memory already.

    Raises:
        InputError: A folder has no images, nothing matches a pattern, or a path is empty. For an item of a list or an
            iterator, it is raised when the item is reached.
    """
    numbers = itertools.count(1)
    if isinstance(images, str | Path) or _is_single(images):
        return make_unique(_expand(images, numbers, max_pixels))
    return make_unique(itertools.chain.from_iterable(_expand(image, numbers, max_pixels) for image in images))


@contextlib.contextmanager
def open_frames(video: Any, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[Iterator[ImageInput], float]]:
    """Open a video file by its path, or a camera by its number, or find the images that are a video's frames.

    Args:
        video: a path, a number, or images as for `find_inputs`.
        max_pixels: as for `find_inputs`.

    Yields:
        The frames, and their number per second, 30 for images. Where a file is damaged, there is one more frame, which
        raises `ImageError` when it is read.

    Raises:
        ImageError: The file cannot be read as a video.
        InputError: There are no images, the camera cannot be used, or the video is at a URL.
        DependencyError: A file or a camera needs a package that is not installed.
    """
    if not isinstance(video, int) and not (isinstance(video, str | Path) and _is_single(video)):
        yield find_inputs(video, max_pixels), 30.0
        return
    if isinstance(video, str) and is_url(video):
        raise InputError(f"{redact(video)}: a video at a URL cannot be read: download it")
    with explain_imports():
        from ..video.frames import open_video
    path = video if isinstance(video, int) else _locate(video)
    name = f"camera:{video}" if isinstance(video, int) else str(path)

    def read() -> Iterator[ImageInput]:
        try:
            for frame in reader:
                yield frame_input(frame, name, name)
        except ImageError as error:
            yield ImageInput(name, name, partial(_fail, error))

    with open_video(path) as reader:
        yield read(), float(reader.rate)


def frame_input(frame: "Frame", name: str, origin: str) -> ImageInput:
    """Return the input for a `frame` of the video `name`; see `NamedInput` for `origin`."""
    return ImageInput(f"{name}/{frame.index:06d}", origin, partial(getattr, frame, "image"))


def _fail(error: ImageError) -> NoReturn:
    raise error


def is_url(image: str | Path) -> bool:
    """Return whether an image is given by its URL."""
    return isinstance(image, str) and re.match("https?://", image, re.IGNORECASE) is not None


def _is_single(images: Any) -> bool:
    """Return whether this is one image, and not a folder, a pattern or an iterable of images."""
    if isinstance(images, str | Path):
        return is_url(images) or images == "" or not (os.path.isdir(_locate(images)) or _is_pattern(images))  # noqa: PTH112
    is_image = isinstance(images, bytes | bytearray | Image.Image | np.ndarray) or hasattr(images, "detach")
    return is_image or not isinstance(images, Iterable)


def _expand(image: Any, numbers: Iterator[int], max_pixels: int) -> Iterable[ImageInput]:
    """Return the images of a path, a URL, a folder, a pattern or one image in memory."""
    if not isinstance(image, str | Path):
        name = f"image-{next(numbers)}"
        if isinstance(image, bytes | bytearray):
            return [ImageInput(name, name, partial(decode_image, bytes(image), name, max_pixels))]
        return [ImageInput(name, name, partial(to_pixels, image, name))]
    if is_url(image):
        url = str(image)
        return [ImageInput(_url_name(url), redact(url), partial(_fetch, url, max_pixels), url)]
    if image == "":
        raise InputError("the path of an image is empty")
    path = _locate(image)
    if os.path.isdir(path):  # noqa: PTH112  (Path.is_dir raises an error for a name that is too long)
        folder, paths = path, [each for each in find_images(path) if not _is_output(each, path)]
        if not paths:
            raise InputError(f"{path}: there are no images in this folder")
    elif _is_pattern(image):
        folder = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        paths = sorted(folder.glob("/".join(path.parts[len(folder.parts) :])))
        paths = [each for each in paths if each.is_file() and not each.name.startswith(".")]
        paths = [each for each in paths if not _is_output(each, folder)]
        if not paths:
            raise InputError(f"{image}: nothing matches this pattern")
    else:
        folder, paths = path.parent, [path]
    return [
        ImageInput(
            each.relative_to(folder).as_posix(),
            str(each),
            partial(load_image, each, max_pixels),
            file=each,
            max_pixels=max_pixels,
        )
        for each in paths
    ]


def _locate(image: str | Path) -> Path:
    """Return a path with the home folder in place of `~`, unless a file has this name."""
    return Path(image) if os.path.lexists(image) else expand_user(image)


def _is_output(path: Path, folder: Path) -> bool:
    """Return whether a file below a folder is a picture that an earlier run wrote, which is no input."""
    return any(
        each.name in RUN_PICTURES and all((each.parent / name).is_file() for name in RUN_FILES)
        for each in itertools.takewhile(folder.__ne__, path.parents)
    )


def _is_pattern(image: str | Path) -> bool:
    """Return whether a path has a wildcard and is not the name of a file."""
    return glob.has_magic(str(image)) and not os.path.lexists(image)


def _url_name(url: str) -> str:
    """Return the file name in a URL, without characters that a file system may refuse."""
    name = re.sub(r'[\x00-\x1f\\:*?"<>|]', "_", PurePosixPath(unquote(urlsplit(url).path)).name)
    return name if name not in ("", "..") else "image"


def _fetch(url: str, max_pixels: int) -> NDArray[np.uint8]:
    try:
        return decode_image(read_url(url, MAX_DOWNLOAD), redact(url), max_pixels)
    except FetchError as error:
        raise ImageError(f"{redact(url)}: {error}") from error


def _read_stream(stream: BinaryIO, name: str) -> NDArray[np.uint8]:
    try:
        content = stream.read(MAX_DOWNLOAD + 1)
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: it cannot be read: {error}") from error
    if len(content) > MAX_DOWNLOAD:
        raise ImageError(f"{name}: refused, it is larger than {MAX_DOWNLOAD >> 20} MB")
    return decode_image(content, name)


def make_unique(inputs: Iterable[Input], taken: Collection[str] = ()) -> Iterator[Input]:
    """Yield the `inputs`, with "-2", "-3", ... appended to names that are repeated or `taken`."""
    used, numbers = set(taken), dict[str, int]()
    for input in inputs:
        path, name = PurePosixPath(input.name), input.name
        while name in used:
            numbers[input.name] = number = numbers.get(input.name, 1) + 1
            name = path.with_name(f"{path.stem}-{number}{path.suffix}").as_posix()
        used.add(name)
        yield replace(input, name=name)
