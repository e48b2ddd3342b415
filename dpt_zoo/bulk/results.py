"""The results of a data set as Parquet files: a row for each image, or for each object."""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import ImageError, InputError
from ..inference.detections import Detections
from ..inference.inputs import ImageInput
from ..utils.urls import redact
from .plan import Settings, read_plan
from .storage import Folder, storage_errors

SETTINGS, COUNTS = b"dpt_zoo", b"dpt_zoo.counts"
"""Keys of a file's metadata. The values are JSON: the run's `Settings`, in the schema, and the part's `Counts`."""
_MASK = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
_IMAGE = {
    "uri": pa.string(),  # the path or the redacted URL; for an image in a shard, followed by its place
    "key": pa.string(),  # a hash of the address that was given
    "width": pa.int32(),
    "height": pa.int32(),
    "error": pa.string(),  # why the image cannot be read; all else is null
}
_OBJECT = {
    "box": pa.list_(pa.float32()),  # x1, y1, x2, y2 in pixels
    "score": pa.float32(),
    "label": pa.int32(),
    "name": pa.string(),
    "mask": _MASK,  # COCO's compressed RLE; null if the model has no masks
}
_OBJECT_LISTS = {"box": "boxes", "score": "scores", "label": "labels", "name": "names", "mask": "masks"}
SCHEMAS = {
    "images": pa.schema(_IMAGE | {plural: pa.list_(_OBJECT[name]) for name, plural in _OBJECT_LISTS.items()}),
    "objects": pa.schema(_IMAGE | _OBJECT),
}
"""The columns of the results. With rows of objects, an image without objects has one row in which they are null."""
ROWS = 500  # images in memory, and in a row group


@dataclass(frozen=True)
class Counts:
    """How many images were done, how many of them could not be read, and how many objects were detected."""

    num_images: int = 0
    num_errors: int = 0
    num_objects: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


class ImageRow(NamedTuple):
    """The result of an image: `detections`, or the `error` from reading it."""

    uri: str
    key: str
    detections: Detections | None
    error: str | None


def write_part(
    folder: Folder, name: str, settings: Settings, results: Iterable[tuple[ImageInput, Detections | ImageError]]
) -> Counts:
    """Write the `results` of a part to the file `name`, with the run's `settings`, a few hundred images at a time.

    Raises:
        OutputError: The file cannot be written.
    """
    schema = SCHEMAS[settings.rows].with_metadata({SETTINGS: json.dumps(asdict(settings))})
    counts = Counts()
    rows = (image_row(image, result) for image, result in results)
    with folder.create(name) as path, pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(itertools.islice(rows, ROWS)):
            num_errors = sum(row["error"] is not None for row in group)
            counts += Counts(len(group), num_errors, sum(len(row["scores"] or ()) for row in group))
            if settings.rows == "objects":
                group = list(itertools.chain.from_iterable(map(_split, group)))
            writer.write_table(pa.Table.from_pylist(group, schema))
        writer.add_key_value_metadata({COUNTS: json.dumps(asdict(counts))})
    return counts


def image_row(image: ImageInput, result: Detections | ImageError) -> dict[str, Any]:
    """Return the row of an `image` with its `result`."""
    row: dict[str, Any] = dict.fromkeys(SCHEMAS["images"].names)
    row |= {"uri": image.origin, "key": image.key}
    if isinstance(result, ImageError):
        return row | {"error": str(result)}
    height, width = result.image_size
    masks = None
    if result.rles is not None:
        masks = [{"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in result.rles]
    return row | {
        "width": width,
        "height": height,
        "boxes": result.boxes.tolist(),
        "scores": result.scores.tolist(),
        "labels": result.labels.tolist(),
        "names": result.names,
        "masks": masks,
    }


class Results:
    """The results of a finished run. Iteration reads them from the files, image by image.

    Args:
        folder: the folder of the results.

    Attributes:
        address: the folder's address.
        settings: the run's settings.

    Raises:
        InputError: The folder holds no results, or those of a run that is not finished.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        plan = read_plan(folder)
        if plan is None:
            raise InputError(f"{redact(folder.address)} holds no results of `dpt-zoo detect-dataset`")
        names = folder.names()
        self._parts = [name for name in map(plan.part_name, range(plan.num_parts)) if name in names]
        if len(self._parts) < plan.num_parts:
            raise InputError(
                f"{redact(folder.address)}: {len(self._parts):,} of {plan.num_parts:,} parts are finished: "
                "run `dpt-zoo detect-dataset` again first"
            )
        self.address = redact(folder.address)
        self.settings = plan.settings

    def __iter__(self) -> Iterator[ImageRow]:
        for name in self._parts:
            with self._folder.open(name) as file, storage_errors(f"{self._folder.address}/{name}"):
                batches = pq.ParquetFile(file).iter_batches(ROWS)
                rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
                if self.settings.rows == "objects":
                    rows = (_join(list(same)) for _, same in itertools.groupby(rows, key=lambda row: row["key"]))
                yield from (self._to_result(row) for row in rows)

    def count_errors(self) -> int:
        """Return the number of images that could not be read."""
        return sum(read_counts(self._folder, name).num_errors for name in self._parts)

    def common_folder(self) -> str:
        """Return the folder, with a slash at its end, that the URIs of all images begin with; "" if there is none."""
        ends: list[str] = []
        for name in self._parts:
            with self._folder.open(name) as file:
                column = pq.read_table(file, columns=["uri"])["uri"]
            if len(column):
                ends += pc.min_max(column).as_py().values()
        prefix = os.path.commonprefix([min(ends, default=""), max(ends, default="")])  # noqa: RUF071  (of any text)
        return prefix[: prefix.rfind("/") + 1]

    def _to_result(self, row: Mapping[str, Any]) -> ImageRow:
        if row["error"] is not None:
            return ImageRow(row["uri"], row["key"], None, row["error"])
        rles = None
        if self.settings.has_masks:
            rles = [{**mask, "counts": mask["counts"].encode()} for mask in row["masks"]]
        detections = Detections(
            boxes=np.array(row["boxes"], np.float32).reshape(-1, 4),
            scores=np.array(row["scores"], np.float32),
            labels=np.array(row["labels"], np.int64),
            classes=self.settings.classes,
            image_size=(row["height"], row["width"]),
            rles=rles,
            path=row["uri"],
        )
        return ImageRow(row["uri"], row["key"], detections, None)


def read_counts(folder: Folder, name: str) -> Counts:
    """Return the counts of a finished part. Only the end of its file is read.

    Raises:
        InputError: The file is damaged.
    """
    with folder.open(name) as file, storage_errors(f"{folder.address}/{name}"):
        return Counts(**json.loads(pq.read_metadata(file).metadata[COUNTS]))


def _split(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of an image's objects, or one without an object."""
    image = {name: row[name] for name in _IMAGE}
    columns = {name: row[plural] for name, plural in _OBJECT_LISTS.items() if row[plural] is not None}
    objects = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    return [image | each for each in objects] or [image]


def _join(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row of an image from those of its objects."""
    image = {name: rows[0][name] for name in _IMAGE}
    objects = [row for row in rows if row["score"] is not None]
    return image | {plural: [row[name] for row in objects] for name, plural in _OBJECT_LISTS.items()}
