"""Inputs and results in object storage: a server of moto on the loopback interface that speaks S3's protocol."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from bulk_data import make_images, write_list, write_shard
from moto.server import ThreadedMotoServer

from dpt_zoo.bulk.detect import DatasetRun, detect_dataset
from dpt_zoo.bulk.images import read_images
from dpt_zoo.bulk.plan import RUN
from dpt_zoo.bulk.results import Results
from dpt_zoo.bulk.sources import Shard, find_entries
from dpt_zoo.bulk.storage import Folder
from dpt_zoo.errors import ImageError, InputError

pytestmark = [pytest.mark.slow, pytest.mark.network]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(port=0)
    server.start()
    yield f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    server.stop()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket."""
    variables = {
        "ENDPOINT_URL": server,
        "ACCESS_KEY_ID": "key",
        "SECRET_ACCESS_KEY": "key",
        "DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    fsspec.filesystem("s3").clear_instance_cache()
    name = tmp_path.name.replace("_", "-")
    fsspec.filesystem("s3").mkdir(name)
    yield f"s3://{name}"
    fsspec.filesystem("s3").clear_instance_cache()


def upload(folder: Path, address: str) -> None:
    fsspec.filesystem("s3").put(f"{folder}/", f"{address}/", recursive=True)


def test_a_run_from_and_to_a_bucket(bucket: str, scenes: Path, model: Path, finished: DatasetRun) -> None:
    upload(scenes, f"{bucket}/scenes")
    run = detect_dataset(f"{bucket}/scenes", f"{bucket}/out", model=model, images_per_part=5, workers=1)
    assert (run.output, run.counts, run.set_aside) == (f"{bucket}/out", finished.counts, {})
    results, expected = (list(Results(Folder(each))) for each in (f"{bucket}/out", finished.output))
    for row, other in zip(results, expected, strict=True):
        assert row.uri.replace(f"{bucket}/scenes", str(scenes)) == other.uri
        assert (row.detections is None) == (other.detections is None)
        if row.detections is not None and other.detections is not None:
            assert row.detections.to_json()["objects"] == other.detections.to_json()["objects"]
    assert len(pd.read_parquet(f"{bucket}/out")) == len(results)


def test_every_input(bucket: str, tmp_path: Path) -> None:
    images = make_images(tmp_path / "data" / "images", 3)
    for name in ("a.tar", "a.parquet"):
        write_shard(tmp_path / "data" / name, images)
    write_list(tmp_path / "data" / "a.csv", ["images/001.png", "./x/../images/002.png", f"{bucket}/other.png"])
    upload(tmp_path / "data", f"{bucket}/data")
    expected = [f"{bucket}/data/images/{image.name}" for image in images]
    for inputs, found in (
        (["data/images"], [expected]),
        (["data/images/*.png"], [[each] for each in expected]),
        (["data/images/000.png"], [expected[:1]]),
        (["data/*.tar", "data/a.parquet"], [Shard(f"{bucket}/data/a.tar"), Shard(f"{bucket}/data/a.parquet", 0, 1)]),
    ):
        assert list(find_entries([f"{bucket}/{name}" for name in inputs], None, 4)) == found
    shards = (Shard(f"{bucket}/data/a.tar"), Shard(f"{bucket}/data/a.parquet", 0, 1))
    for image in [*read_images(expected, None), *read_images(shards, None)]:
        index = int(image.origin.rpartition("/")[2].rpartition("#")[2][:3])
        assert image.read()[0, 0].tolist() == [index, 255 - index, 7]
    with pytest.raises(InputError, match="nothing matches"):
        list(find_entries([f"{bucket}/data/*.arrow"], None, 4))
    with pytest.raises(InputError, match="there is no such file or folder"):
        list(find_entries([f"{bucket}/nowhere"], None, 4))


def test_a_missing_object_is_an_error_of_the_image_but_a_failing_server_is_not(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image,) = read_images([f"{bucket}/missing.png"], None)
    with pytest.raises(ImageError, match=f"{bucket}/missing.png: there is no such file"):
        image.read()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(Exception, match="Could not connect"):
        image.read()


def test_a_folder_in_a_bucket(bucket: str) -> None:
    folder = Folder(f"{bucket}/new/")
    assert folder.names() == set() and not folder.has(RUN)
    with pytest.raises(KeyboardInterrupt), folder.create(RUN) as path:
        path.write_text("half")
        raise KeyboardInterrupt
    assert not folder.has(RUN)
    with folder.create(RUN) as path:
        path.write_text("whole")
    assert folder.names() == {RUN} and folder.has(RUN)
    with folder.open(RUN) as file:
        assert file.read() == b"whole"
