"""Reading the images of a part: from files and shards the same pixels, and errors that stay with their image."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_data import make_images, write_shard

from dpt_zoo.bulk.images import read_images
from dpt_zoo.bulk.sources import Shard
from dpt_zoo.errors import ImageError
from dpt_zoo.utils.images import load_image


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return make_images(tmp_path / "images", 7)


@pytest.mark.parametrize(
    ("name", "shards", "places"),
    [
        ("a.tar", [(0, -1)], "{name}"),
        ("a.arrow", [(0, -1)], "{index}/{name}"),
        ("a.stream.arrow", [(0, -1)], "{index}/{name}"),
        ("a.parquet", [(0, 2), (2, 4)], "{index}/{name}"),
    ],
)
def test_shards_hold_the_same_images(
    name: str, shards: list[tuple[int, int]], places: str, files: list[Path], tmp_path: Path
) -> None:
    options = {"row_group_size": 2} if name.endswith(".parquet") else {}
    path = write_shard(tmp_path / name, files, **options)
    images = list(read_images([Shard(str(path), *each) for each in shards], None))
    expected = [f"{path}#{places.format(index=index, name=file.name)}" for index, file in enumerate(files)]
    assert [image.origin for image in images] == expected
    assert len({image.key for image in images}) == len(files)
    for image, file in zip(images, files, strict=True):
        np.testing.assert_array_equal(image.read(), load_image(file))


def test_bytes_without_names(files: list[Path], tmp_path: Path) -> None:
    contents = [files[0].read_bytes(), None, b"no image"]
    pq.write_table(pa.table({"jpg": pa.array(contents, pa.large_binary())}), tmp_path / "a.parquet")
    first, *bad = read_images([Shard(str(tmp_path / "a.parquet"), 0, 1)], "jpg")
    np.testing.assert_array_equal(first.read(), load_image(files[0]))
    for index, image in enumerate(bad, 1):
        with pytest.raises(ImageError, match=f"^{tmp_path}/a.parquet#{index}: "):
            image.read()


def test_an_archive_may_have_a_name_twice(files: list[Path], tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", [files[0], files[1], files[0]])
    names = [image.origin.partition("#")[2] for image in read_images([Shard(str(path))], None)]
    assert names == ["000.png", "001.png", "000.png#2"]


def test_names_in_an_archive(tmp_path: Path) -> None:
    names = ["a/b.JPG", "./c.png", "d.txt", "e/", "._f.png", "__MACOSX/g.png", "caf\udce9.png"]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(member, io.BytesIO())
    images = list(read_images([Shard(str(tmp_path / "a.tar"))], None))
    assert [image.origin.partition("#")[2] for image in images] == ["a/b.JPG", "./c.png", "caf\\udce9.png"]


def test_a_truncated_archive_fails_as_a_whole(files: list[Path], tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", files)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(tarfile.ReadError):
        list(read_images([Shard(str(path))], None))


def test_errors_of_files_name_no_secrets(tmp_path: Path) -> None:
    missing, secret = read_images([str(tmp_path / "missing.png"), "https://me:secret@127.0.0.1:9/a.png?secret"], None)
    for image in (missing, secret):
        with pytest.raises(ImageError) as error:
            image.read()
        assert "secret" not in str(error.value) + image.origin
    assert missing.key != secret.key
