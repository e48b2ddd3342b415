"""COCO is fetched over HTTP into its layout; whatever interrupts that, the next call completes it."""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running import Run
from small_data import coco_content, make_image
from web_server import WebServer, cut, status

from dpt_zoo.data.checks import check_splits
from dpt_zoo.data.layouts import find_splits
from dpt_zoo.errors import DataError, FetchError, InputError
from dpt_zoo.reproduction import coco
from dpt_zoo.reproduction.coco import ARCHIVES, download_coco

pytestmark = pytest.mark.network


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """A server with small archives of COCO's form, which the project now expects."""
    make_image(tmp_path / "image.png")
    image = (tmp_path / "image.png").read_bytes()
    contents = {"coco-annotations": {f"annotations/captions_{n}.json": b"{}" for n in range(4)}}
    for split in ("train2017", "val2017"):
        contents[f"coco-{split}"] = {f"{split}/{number}.png": image for number in (1, 2, 3, 4)}
        contents["coco-annotations"][f"annotations/instances_{split}.json"] = json.dumps(coco_content()).encode()
    packed = {name: zipped(files) for name, files in contents.items()}
    archives = {
        name: replace(
            ARCHIVES[name],
            sha256=hashlib.sha256(content).hexdigest(),
            num_bytes=len(content),
            num_files=len(contents[name]),
        )
        for name, content in packed.items()
    }
    with WebServer({f"/{ARCHIVES[name].path}": content for name, content in packed.items()}) as server:
        monkeypatch.setattr(coco, "ARCHIVES", archives)
        monkeypatch.setattr(coco, "SERVER", server.url)
        monkeypatch.setattr("dpt_zoo.weights.http.BACKOFF_SECONDS", 0.0)
        yield server


def test_one_command_makes_a_data_set(server: WebServer, tmp_path: Path, run: Run) -> None:
    root = tmp_path / "coco"
    status_, out, err = run("download", "coco-val2017", "coco-annotations", "coco-train2017", "--data-root", root)
    assert (status_, err) == (0, "")
    assert out.splitlines() == [
        f"{name}: fetched, {root}" for name in ("coco-val2017", "coco-annotations", "coco-train2017")
    ]
    splits = find_splits(root, tmp_path / "work")
    assert [split.name for split in splits] == ["train2017", "val2017"]
    assert not any(split.issues for split in check_splits(splits))
    assert sorted(path.name for path in root.iterdir() if path.suffix != ".lock") == [
        *("annotations", "train2017", "val2017"),
    ]
    assert len(server.log) == 3
    status_, out, _ = run("download", "coco-val2017", "--data-root", root)
    assert (status_, out, len(server.log)) == (0, f"coco-val2017: was there, {root}\n", 3)


def test_a_broken_download_is_resumed(server: WebServer, tmp_path: Path) -> None:
    path = f"/{ARCHIVES['coco-val2017'].path}"
    server.faults[path] = [cut(300), *[status(404)] * 1]
    with pytest.raises(FetchError):
        download_coco("coco-val2017", tmp_path / "coco")
    assert not (tmp_path / "coco" / "val2017").exists()
    assert download_coco("coco-val2017", tmp_path / "coco")
    assert server.log[-1].range == "bytes=300-"
    assert len(list((tmp_path / "coco" / "val2017").iterdir())) == 4


def test_another_archive_is_refused(server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(coco.ARCHIVES["coco-val2017"], sha256="0" * 64)
    monkeypatch.setattr(coco, "ARCHIVES", {"coco-val2017": other})
    with pytest.raises(FetchError, match=r"this is not COCO's archive: its SHA-256 is .*, not 0000"):
        download_coco("coco-val2017", tmp_path / "coco")
    assert [path.name for path in (tmp_path / "coco").iterdir() if path.suffix == ".zip"] == []


def test_a_process_that_was_killed_after_unpacking(server: WebServer, tmp_path: Path) -> None:
    left = tmp_path / "coco" / ".coco-val2017.unpacked" / "val2017"
    left.mkdir(parents=True)
    (left / "1.png").write_bytes(b"half")
    assert download_coco("coco-val2017", tmp_path / "coco")
    assert len(list((tmp_path / "coco" / "val2017").iterdir())) == 4
    assert not left.exists()


def test_an_incomplete_folder_is_left_alone(server: WebServer, tmp_path: Path) -> None:
    (tmp_path / "coco" / "val2017").mkdir(parents=True)
    with pytest.raises(DataError, match="val2017 has 0 of COCO's 4 files: remove or rename it"):
        download_coco("coco-val2017", tmp_path / "coco")
    assert not server.log


def test_several_at_once_fetch_it_once(server: WebServer, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: download_coco("coco-val2017", tmp_path / "coco"), range(4)))
    assert sorted(results) == [False, False, False, True] and len(server.log) == 1


def test_an_unknown_archive(tmp_path: Path, run: Run) -> None:
    with pytest.raises(InputError, match="there is no 'coco-test2017': choose among coco-train2017, coco-val2017, "):
        download_coco("coco-test2017", tmp_path)
    assert run("download", "coco-val", "--data-root", tmp_path)[0] == 2


def test_reproduce_fetches_what_it_needs(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    class Results:
        summary, num_failed, num_different = "done", 0, 0

    found: dict[str, Any] = {}

    def reproduce(names: list[str], options: Any, report: Any) -> Results:
        found.update(names=names, splits=[split.name for split in find_splits(options.data_root, tmp_path)])
        return Results()

    monkeypatch.setattr("dpt_zoo.reproduction.runner.reproduce", reproduce)
    assert run("reproduce", "--data-root", tmp_path / "coco", "--download")[0] == 0
    assert len(found["names"]) == 12 and "val2017" in found["splits"]
    assert {exchange.path for exchange in server.log} == {
        "/zips/val2017.zip",
        "/annotations/annotations_trainval2017.zip",
    }
