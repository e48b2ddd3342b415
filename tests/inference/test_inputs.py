"""The inputs of a run: what is an input, how it is identified and named, and limits of streams and URLs."""

import io
import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest
from web_server import WebServer, redirect

from dpt_zoo.errors import ImageError, InputError
from dpt_zoo.inference import inputs
from dpt_zoo.inference.inputs import (
    ImageInput,
    NamedInput,
    find_input,
    find_inputs,
    input_key,
    make_unique,
    stream_input,
)


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names_in(images: Any) -> list[str]:
    return [image.name for image in find_inputs(images)]


RUN = ["run.json", "detections.jsonl", "pictures/a.png", "crops/cat/a-1.jpg", "masks/a.png"]


class TestOutputs:
    """What a run wrote is no input of another."""

    @pytest.mark.parametrize("run", ["", "detections/", "detections-2/", "deep/out/"])
    def test_pictures_of_runs(self, tmp_path: Path, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
        make_files(tmp_path, "a.png", "b/a.png", *(f"{run}{name}" for name in RUN))
        monkeypatch.chdir(tmp_path)
        for images in (".", tmp_path, "**/*.png", f"{tmp_path}/**/*.*g"):
            assert names_in(images) == ["a.png", "b/a.png"]

    def test_folders_of_these_names_that_are_of_no_run(self, tmp_path: Path) -> None:
        make_files(tmp_path, "pictures/a.png", "crops/a.png", "run.json", "b/detections.jsonl", "b/masks/a.png")
        assert names_in(tmp_path) == ["b/masks/a.png", "crops/a.png", "pictures/a.png"]

    @pytest.mark.parametrize("images", ["out/crops", "out/crops/*/*.jpg", "out/crops/cat/a-1.jpg"])
    def test_they_are_when_they_are_named(self, tmp_path: Path, images: str, monkeypatch: pytest.MonkeyPatch) -> None:
        make_files(tmp_path, *(f"out/{name}" for name in RUN))
        monkeypatch.chdir(tmp_path)
        assert names_in(images)[0].endswith("a-1.jpg")


class TestKeys:
    """An input is the same, however its path is spelled."""

    def test_spellings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_files(tmp_path, "a/x.png", "b/x.png", "~x.png")
        (tmp_path / "link").symlink_to("a")
        monkeypatch.chdir(tmp_path / "a")
        monkeypatch.setenv("HOME", str(tmp_path))
        spellings = ["x.png", "./x.png", "../a/x.png", "../b/../a/x.png", "~/a/x.png", "../link/x.png", ".", "*.png"]
        spellings += [str(tmp_path / "a/x.png"), str(tmp_path / "link/x.png")]
        assert len({image.key for image in find_inputs(spellings)}) == 1
        assert len({image.key for image in find_inputs(["x.png", "../b/x.png", "../~x.png"])}) == 3

    def test_a_link_is_another_input_than_its_target(self, tmp_path: Path) -> None:
        make_files(tmp_path, "a.png")
        (tmp_path / "b.png").symlink_to("a.png")
        assert len({image.key for image in find_inputs(tmp_path)}) == 2

    def test_urls_differ_in_what_is_not_shown(self) -> None:
        urls = ["http://x/a.png?id=1", "http://x/a.png?id=2", "http://u:p@x/a.png", "http://x/a.png"]
        images = list(find_inputs(urls))
        assert len({image.key for image in images}) == 4
        assert [image.origin for image in images[:3]] == ["http://x/a.png?..."] * 2 + ["http://...@x/a.png"]

    @pytest.mark.parametrize(
        "origin", ["", "a\0b", "\ud800", "caf\udce9.png", "x" * 5000, "camera:0", "standard input"]
    )
    def test_any_text(self, origin: str) -> None:
        assert len(input_key(origin)) == 32 and input_key(origin) == NamedInput("x", origin).key

    def test_a_folder_that_was_removed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        assert len(input_key("a.png")) == 32


class TestNames:
    def test_many_of_one_name(self) -> None:
        many = [ImageInput("rgb.png", str(number), bytes) for number in range(20_000)]  # type: ignore[arg-type]
        start = time.process_time()
        names = [image.name for image in make_unique(many)]
        assert time.process_time() - start < 10  # minutes, if it is quadratic
        assert len(set(names)) == 20_000 and names[:3] == ["rgb.png", "rgb-2.png", "rgb-3.png"]

    def test_names_that_are_taken(self) -> None:
        given = [NamedInput(name, "") for name in ("a.png", "a.png", "a-2.png", "b/a.png")]
        names = [each.name for each in make_unique(given, {"a.png", "b/a.png", "a-3.png"})]
        assert names == ["a-2.png", "a-4.png", "a-2-2.png", "b/a-2.png"]


class TestLimits:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inputs, "MAX_DOWNLOAD", 1 << 20)

    def test_an_endless_stream(self) -> None:
        with open("/dev/zero", "rb") as stream, pytest.raises(ImageError, match="it is larger than 1 MB"):  # noqa: PTH123
            stream_input(stream, "stdin", "standard input").read()

    def test_a_stream_that_cannot_be_read(self, tmp_path: Path) -> None:
        with (tmp_path / "file").open("wb") as stream, pytest.raises(ImageError, match=r"standard input: .*read"):
            stream_input(stream, "stdin", "standard input").read()
        with pytest.raises(ImageError, match="there is nothing in it"):
            stream_input(io.BytesIO(), "stdin", "standard input").read()

    @pytest.mark.network
    def test_errors_show_no_secrets(self) -> None:
        with WebServer({"/a?TOKEN": b"no image", "/b?TOKEN": b""}) as server:
            server.faults["/b?TOKEN"] = [redirect("http://u:PASS@[")]
            for path in ("a", "b", "none"):
                url = f"{server.url}/{path}?TOKEN".replace("://", "://u:PASS@")
                assert "TOKEN" not in repr(find_input(url)) and "PASS" not in repr(find_input(url))
                with pytest.raises(ImageError) as raised:
                    find_input(url).read()
                shown = server.url.replace("://", "://...@")
                assert str(raised.value).startswith(f"{shown}/{path}?...: ")
                assert "TOKEN" not in str(raised.value) and "PASS" not in str(raised.value)


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path, "photos/a.png", "photos/b.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    for images in ("~/photos", "~/photos/*.png", ["~/photos/a.png", Path("~/photos/b.png")]):
        assert names_in(images) == ["a.png", "b.png"]
        with pytest.raises(InputError, match="is not one image"):
            find_input(images)
    assert find_input("~/photos/a.png").origin == str(tmp_path / "photos/a.png")


def test_a_file_whose_name_begins_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path, "~root", "~draft.png")
    monkeypatch.chdir(tmp_path)
    assert [image.origin for image in find_inputs(["~root", "~draft.png"])] == ["~root", "~draft.png"]
    assert os.path.lexists("~root") and len(list(itertools.islice(find_inputs("~no-such-user/x.png"), 2))) == 1
