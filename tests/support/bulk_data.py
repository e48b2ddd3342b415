"""Small data sets in each form that bulk detection reads."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dpt_zoo.bulk.plan import Settings

NUM_SCENES, BAD = 18, ("000004.png", "000017.png")
SETTINGS = Settings(
    model="mrcnn",
    weights="0" * 64,
    graph=None,
    classes=("cat", "a/../dog"),
    has_masks=True,
    options={"score_threshold": 0.3, "amp": False},
    rows="images",
    column=None,
    images_per_part=4,
)


def make_images(folder: Path, number: int) -> list[Path]:
    """Write small pictures, each of another colour."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:03d}.png" for index in range(number)]
    for index, path in enumerate(paths):
        Image.new("RGB", (8 + index, 6), (index, 255 - index, 7)).save(path)
    return paths


def write_list(path: Path, addresses: list[str]) -> Path:
    """Write a list of addresses in the format that its suffix names; ".stream.arrow" is Arrow's stream format."""
    table = pa.table({"id": list(range(len(addresses))), "path": addresses})
    if path.suffix in (".csv", ".tsv"):
        separator = "," if path.suffix == ".csv" else "\t"
        lines = [f"{index}{separator}{address}" for index, address in enumerate(addresses)]
        path.write_text("\n".join([f"id{separator}path", *lines]) + "\n")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": 1, "path": address, "more": [1]}) + "\n" for address in addresses))
    elif path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        write_arrow(path, table)
    return path


def write_shard(path: Path, images: list[Path], **options: Any) -> Path:
    """Write a shard of images in the format that its suffix names, in the given order."""
    contents = [image.read_bytes() for image in images]
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as archive:
            for image, content in zip(images, contents, strict=True):
                for name, data in ((image.name, content), (f"{image.stem}.json", b"{}")):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        return path
    values = [{"bytes": content, "path": image.name} for image, content in zip(images, contents, strict=True)]
    table = pa.table({"label": [0] * len(values), "image": values})
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
    else:
        write_arrow(path, table)
    return path


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write a table in Arrow's file format, or in its stream format for ".stream.arrow"."""
    new = pa.ipc.new_stream if path.name.endswith(".stream.arrow") else pa.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def read_parts(folder: str | Path) -> dict[str, bytes]:
    """Return the content of each part's file."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.parquet"))}
