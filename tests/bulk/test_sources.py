"""The inputs of bulk detection: folders, patterns, lists of addresses, and shards of images."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_data import make_images, write_list, write_shard

from dpt_zoo.bulk.sources import Shard, find_column, find_entries
from dpt_zoo.errors import InputError


def find(*inputs: str | Path, column: str | None = None) -> list[str | Shard]:
    """All addresses and shards."""
    found: list[str | Shard] = []
    for entry in find_entries(list(map(str, inputs)), column, images_per_part=4):
        found += [entry] if isinstance(entry, Shard) else entry
    return found


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return make_images(tmp_path / "images", 5)


def test_folders_and_patterns(images: list[Path]) -> None:
    folder = images[0].parent
    below = make_images(folder / "a" / "b", 2)
    for clutter in ("._000.png", "notes.txt", ".hidden/1.png", "__MACOSX/1.png"):
        (folder / clutter).parent.mkdir(exist_ok=True)
        (folder / clutter).write_bytes(b"")
    (folder / "loop").symlink_to(folder)
    assert find(folder) == [*map(str, images), *map(str, below)]
    assert find(folder / "*.png", images[0]) == [*map(str, images), str(images[0])]
    assert find(f"{folder}/**/0*.png") == sorted(map(str, [*images, *below]))


def test_a_path_has_one_spelling(images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = images[0].parent
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find(".") == find("~/images") == find(f"{folder}/../images/") == list(map(str, images))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.arrow", "a.stream.arrow"])
def test_lists(name: str, images: list[Path], tmp_path: Path) -> None:
    addresses = [
        "images/000.png",
        "./images//001.png",
        "../x/1.png",
        "/y/2.png",
        "s3://bucket/3.png",
        "https://h/4.png?a",
    ]
    path = write_list(tmp_path / name, addresses)
    expected = [str(images[0]), str(images[1]), str(tmp_path.parent / "x" / "1.png"), *addresses[3:]]
    assert find(path) == find(path, column="path") == expected


def test_shards(images: list[Path], tmp_path: Path) -> None:
    for name in ("a.tar", "b.arrow", "c.stream.arrow"):
        path = write_shard(tmp_path / name, images)
        assert find(path) == [Shard(str(path))]
    path = write_shard(tmp_path / "d.parquet", images * 3, row_group_size=2)  # groups of 2, ..., 2, 1
    assert find(path) == [Shard(str(path), start, min(start + 2, 8)) for start in (0, 2, 4, 6)]
    path = write_shard(tmp_path / "e.parquet", images * 3, row_group_size=10)  # more than a part
    assert find(path) == [Shard(str(path), 0, 1), Shard(str(path), 1, 2)]


BYTES, TEXT, NUMBER = pa.binary(), pa.string(), pa.int64()


@pytest.mark.parametrize(
    ("types", "given", "expected"),
    [
        ({"caption": TEXT, "url": TEXT}, None, "url"),
        ({"url": TEXT, "uri": TEXT}, None, "uri"),
        ({"picture": TEXT, "width": NUMBER}, None, "picture"),
        ({"path": TEXT, "jpg": BYTES}, None, "jpg"),
        ({"path": TEXT, "image": pa.struct({"bytes": BYTES, "path": TEXT})}, None, "image"),
        ({"a": TEXT, "b": TEXT}, "b", "b"),
        ({"a": TEXT, "b": TEXT}, None, None),
        ({"a": BYTES, "b": BYTES}, None, None),
        ({"a": NUMBER}, None, None),
        ({"a": TEXT}, "b", None),
    ],
)
def test_the_column_of_the_images(types: dict[str, pa.DataType], given: str | None, expected: str | None) -> None:
    schema = pa.schema(types)
    if expected:
        assert find_column("a.csv", schema, given) == expected
    else:
        with pytest.raises(InputError, match=r"a\.csv.*column"):
            find_column("a.csv", schema, given)


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.csv").write_bytes(b"")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "text.parquet").write_text("no Parquet")
    pq.write_table(pa.table({"uri": ["a.png", None]}), tmp_path / "null.parquet")
    for name, message in (
        ("", "an address is empty"),
        ("missing.png", "there is no such file"),
        ("*.tar", "nothing matches"),
        ("empty", "there are no images"),
        ("no.csv", "cannot be read"),
        ("list.jsonl", "list.jsonl"),
        ("text.parquet", "cannot be read"),
        ("null.parquet", "a row has no address"),
        ("nowhere://bucket/*.png", "nowhere"),
    ):
        with pytest.raises(InputError, match=message):
            find(name if "://" in name or not name else tmp_path / name)
