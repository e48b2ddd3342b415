"""Find the images of a data set: in folders, tables of addresses, and shards that hold many images themselves."""

import glob
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from ..errors import InputError
from ..inference.inputs import is_url
from ..utils.image_files import image_suffixes
from ..utils.urls import redact
from .storage import file_exists, is_folder, is_local, match, normalize, open_file, storage_errors, walk

TARS = (".tar", ".tar.gz", ".tgz")
PARQUET = (".parquet", ".pq")
ARROW = (".arrow", ".feather", ".ipc")
LISTS = (".csv", ".tsv", ".jsonl", ".ndjson")
ADDRESS_COLUMNS = ("uri", "url", "path", "image", "file_name", "image_url", "image_path", "file", "filepath")
"""Names of the column with the images' addresses in a table, the first that it has."""
CHUNK = 1 << 16  # addresses in memory at once


class Shard(NamedTuple):
    """Images in one file: in a tar archive, or in a column of bytes.

    Attributes:
        address: the file's address.
        start: the first row group of a Parquet file; 0 for another file.
        stop: the row group after the last one; -1 for the whole file.
    """

    address: str
    start: int = 0
    stop: int = -1


Entry = list[str] | Shard
"""Addresses of images, at most CHUNK of them, or a shard."""


def find_entries(inputs: Iterable[str], column: str | None, images_per_part: int) -> Iterator[Entry]:
    """Find the images of a data set, in order. An image may be found twice.

    Args:
        inputs: addresses and patterns of folders, images, shards (.tar, .parquet, .arrow) and lists (.csv, .jsonl, or
            Parquet and Arrow with a column of addresses). Of a folder, the images in it and below are taken. Relative
            paths in a list start at its folder.
        column: the column of the addresses or bytes in tables; by default the only one that can be.
        images_per_part: the number of images of a Parquet shard, unless a row group has more.

    Raises:
        InputError: An input is missing, empty or unreadable, or a table has no such column.
    """
    for input in inputs:
        if not input:
            raise InputError("inputs: an address is empty")
        for address in _expand(normalize(input)):
            name = address.lower()
            if name.endswith(TARS):
                yield Shard(address)
            elif name.endswith(PARQUET):
                yield from _read_parquet(address, column, images_per_part)
            elif name.endswith(ARROW):
                yield from _read_arrow(address, column)
            elif name.endswith(LISTS):
                yield from _resolve_all(address, _read_list(address, column))
            elif PurePosixPath(name).suffix not in image_suffixes() and not is_url(address) and is_folder(address):
                yield from _find_images(address)
            else:
                yield [address]


def find_column(address: str, schema: pa.Schema, column: str | None) -> str:
    """Return the name of the column with images or their addresses.

    Args:
        address: the table's address, for error texts.
        schema: the table's schema.
        column: the name that the user gave, if any.

    Raises:
        InputError: The table has no such column, or several.
    """
    if column is not None:
        if column not in schema.names:
            raise InputError(f"{redact(address)} has no column {column!r}, only {', '.join(schema.names)}")
        return column
    for candidates in (
        [field.name for field in schema if holds_bytes(field.type)],
        [name for name in ADDRESS_COLUMNS if name in schema.names][:1],
        [field.name for field in schema if is_text(field.type)],
    ):
        if len(candidates) == 1:
            return candidates[0]
    raise InputError(f"{redact(address)}: column must name one of {', '.join(schema.names)}: that with the images")


def holds_bytes(type: pa.DataType) -> bool:
    """Return whether a column of this type holds image files: bytes, or the struct of Hugging Face's `datasets`."""
    if pa.types.is_struct(type):
        return "bytes" in type.names
    return pa.types.is_binary(type) or pa.types.is_large_binary(type)


def is_text(type: pa.DataType) -> bool:
    """Return whether a column of this type holds text."""
    return pa.types.is_string(type) or pa.types.is_large_string(type)


def read_arrow_batches(file: Any) -> Iterator[pa.RecordBatch]:
    """Yield the batches of an Arrow file, in the file format or in the stream format (as `datasets` writes)."""
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    if not is_file:
        yield from pa.ipc.open_stream(file)
        return
    reader = pa.ipc.open_file(file)
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)


def _expand(address: str) -> Iterable[str]:
    """Return what matches a pattern, or the address itself."""
    if is_url(address) or file_exists(address):
        return [address]
    if not glob.has_magic(address):
        raise InputError(f"{redact(address)}: there is no such file or folder")
    found = match(address)
    if not found:
        raise InputError(f"{redact(address)}: nothing matches this pattern")
    return found


def _find_images(folder: str) -> Iterator[Entry]:
    is_empty = True
    images = (address for address in walk(folder) if PurePosixPath(address).suffix.lower() in image_suffixes())
    while chunk := list(itertools.islice(images, CHUNK)):
        is_empty = False
        yield chunk
    if is_empty:
        raise InputError(f"{redact(folder)}: there are no images in this folder")


def _read_parquet(address: str, column: str | None, images_per_part: int) -> Iterator[Entry]:
    with open_file(address) as file, storage_errors(address):
        table = pq.ParquetFile(file)
        column = find_column(address, table.schema_arrow, column)
        if holds_bytes(table.schema_arrow.field(column).type):
            yield from _group_rows(address, table, images_per_part)
        else:
            batches = (batch.column(0) for batch in table.iter_batches(CHUNK, columns=[column]))
            yield from _resolve_all(address, batches)


def _group_rows(address: str, table: pq.ParquetFile, images_per_part: int) -> Iterator[Shard]:
    """Yield shards of whole row groups."""
    start = num_rows = 0
    for index in range(table.num_row_groups):
        more = table.metadata.row_group(index).num_rows
        if num_rows and num_rows + more > images_per_part:
            yield Shard(address, start, index)
            start, num_rows = index, 0
        num_rows += more
    if num_rows:
        yield Shard(address, start, table.num_row_groups)


def _read_arrow(address: str, column: str | None) -> Iterator[Entry]:
    with open_file(address) as file, storage_errors(address):
        batches = read_arrow_batches(file)
        for batch in batches:
            name = find_column(address, batch.schema, column)
            if holds_bytes(batch.schema.field(name).type):
                yield Shard(address)
                return
            yield from _resolve_all(address, [batch.column(name)])


def _read_list(address: str, column: str | None) -> Iterator[pa.Array]:
    """Yield the addresses in a CSV file or in JSON lines."""
    with open_file(address) as file, storage_errors(address):
        is_csv = address.lower().endswith((".csv", ".tsv"))
        parsing = pa.csv.ParseOptions(delimiter="\t" if address.lower().endswith(".tsv") else ",")
        if is_csv:
            names = pa.csv.open_csv(file, parse_options=parsing).schema.names
        else:
            names = list(json.loads(file.readline()))
        schema = pa.schema([(name, pa.string()) for name in names])
        column = find_column(address, schema, column)
        file.seek(0)
        if is_csv:
            kept = pa.csv.ConvertOptions(include_columns=[column], column_types={column: pa.string()})
            batches = pa.csv.open_csv(file, parse_options=parsing, convert_options=kept)
        else:
            kept = pa.json.ParseOptions(pa.schema([(column, pa.string())]), unexpected_field_behavior="ignore")
            batches = pa.json.open_json(file, parse_options=kept)
        for batch in batches:
            yield batch.column(0)


def _resolve_all(table: str, columns: Iterable[pa.Array]) -> Iterator[list[str]]:
    """Yield the addresses in a table's column as absolute ones."""
    folder = table.rpartition("/")[0]
    for column in columns:
        for start in range(0, len(column), CHUNK):
            addresses = column.slice(start, CHUNK).to_pylist()
            if not all(addresses):
                raise InputError(f"{redact(table)}: a row has no address of an image")
            yield [_resolve(folder, address) for address in addresses]


def _resolve(folder: str, address: str) -> str:
    if not is_local(address):
        return address
    if not address.startswith("/"):
        address = f"{folder}/{address}"
    has_detours = "/." in address or "//" in address
    return os.path.normpath(address) if has_detours and is_local(address) else address
