"""The images of a part, read when they are needed: files, objects in storage, and the contents of shards."""

import itertools
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import ImageError
from ..inference.inputs import ImageInput, find_input, is_url
from ..utils.files import is_clutter
from ..utils.image_files import image_suffixes
from ..utils.images import decode_image, load_image
from ..utils.urls import redact
from .plan import image_key
from .sources import PARQUET, TARS, Shard, find_column, read_arrow_batches
from .storage import is_local, open_file, read_object

BATCH = 16  # images of a shard in memory at once


@dataclass(frozen=True)
class DatasetImage(ImageInput):
    """An image of a data set; its `origin` is the `uri` of the results.

    Attributes:
        address: the image's address; for an image in a shard, the shard's and the image's place.
    """

    address: str = ""

    @property
    def key(self) -> str:
        """A hash of the address."""
        return image_key(self.address).hex()


def read_images(part: Iterable[str | Shard], column: str | None) -> Iterator[ImageInput]:
    """Yield the images of a part. An image's own errors are raised when its pixels are read.

    Args:
        part: addresses of images, and shards.
        column: the column of the images in tables, see `find_column`.

    Raises:
        InputError: A shard cannot be read.
    """
    for entry in part:
        if isinstance(entry, str):
            yield find_image(entry)
        elif entry.address.lower().endswith(TARS):
            yield from _read_tar(entry.address)
        else:
            yield from _read_table(entry, column)


def find_image(address: str) -> ImageInput:
    """Return the image at an address: a path, a web address, or a URL of object storage."""
    uri = redact(address)
    read: Any = partial(_read_object, address)
    if is_url(address):
        read = find_input(address).read
    elif is_local(address):
        read = partial(load_image, Path(address))
    return DatasetImage(PurePosixPath(uri).name, uri, read, address=address)


def _read_object(address: str) -> NDArray[np.uint8]:
    """Read an image in object storage. If the storage cannot be reached, the part fails, and not the image."""
    try:
        content = read_object(address)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ImageError(f"{redact(address)}: there is no such file") from error
    return decode_image(content, redact(address))


def _read_tar(address: str) -> Iterator[ImageInput]:
    """Yield the images in a tar archive, which is read from its start to its end."""
    numbers = Counter[str]()
    with open_file(address) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if not member.isfile() or path.suffix.lower() not in image_suffixes() or any(map(is_clutter, path.parts)):
                continue
            numbers[member.name] += 1
            number = numbers[member.name]
            content: Any = archive.extractfile(member)
            place = member.name if number == 1 else f"{member.name}#{number}"  # an archive may have a name twice
            yield _in_shard(address, place, content.read())


def _read_table(shard: Shard, column: str | None) -> Iterator[ImageInput]:
    """Yield the images in a column of bytes."""
    with open_file(shard.address) as file:
        start = 0
        if shard.address.lower().endswith(PARQUET):
            table = pq.ParquetFile(file)
            name = find_column(shard.address, table.schema_arrow, column)
            start = sum(table.metadata.row_group(index).num_rows for index in range(shard.start))
            batches = table.iter_batches(BATCH, row_groups=range(shard.start, shard.stop), columns=[name])
        else:
            batches = read_arrow_batches(file)
        rows = itertools.count(start)
        for batch in batches:
            values = batch[find_column(shard.address, batch.schema, column)]
            for first in range(0, len(values), BATCH):
                for value in values.slice(first, BATCH).to_pylist():
                    path = value["path"] if isinstance(value, dict) and value.get("path") else ""
                    content = value["bytes"] if isinstance(value, dict) else value
                    yield _in_shard(shard.address, f"{next(rows)}/{path}".rstrip("/"), content or b"")


def _in_shard(shard: str, place: str, content: bytes) -> ImageInput:
    place = place.encode(errors="backslashreplace").decode()  # an archive's names may be in any encoding
    uri = f"{redact(shard)}#{place}"
    return DatasetImage(PurePosixPath(uri).name, uri, partial(decode_image, content, uri), address=f"{shard}#{place}")
