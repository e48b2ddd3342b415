"""The cache removes what it wrote and nothing else, and reads records of any content."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from running import Run

from dpt_zoo.errors import InputError
from dpt_zoo.weights.cache import CacheEntry, Provenance, default_cache_dir, list_entries
from dpt_zoo.weights.store import discard

NAME = "retinanet_dpt_t_1x"
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # the SHA-256 of "abc"


def cached(folder: Path, name: str = NAME) -> CacheEntry:
    """Make the files of an entry, as fetching leaves them."""
    folder.mkdir(exist_ok=True)
    entry = CacheEntry(folder, name)
    entry.weights.write_bytes(b"weights")
    entry.write_provenance(Provenance("https://x/y.pth", "2026-01-01", ABC, 3, "0" * 64, entry.stamp()))
    return entry


OTHERS = ["package.json", "tsconfig.json", "my_model.pth", "my_model.safetensors", "notes.txt", f"{NAME}.safetensors"]
OTHERS += ["quarantine/notes", "quarantine/deep/file", ".incoming/other.json", "record.json", "empty.json"]
CONTENTS = {"record.json": '{"recorded": 1, "stamp": []}', "empty.json": ""}


class TestRemoval:
    def test_files_of_others_stay(self, run: Run, tmp_path: Path) -> None:
        project = tmp_path / "project"
        for name in OTHERS:
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            (project / name).write_text(CONTENTS.get(name, "{}"))
        status, out, err = run("cache", "remove", "--all", "--forget", "--cache-dir", project)
        assert (status, err) == (0, "") and "removed" not in out.replace("not removed", "")
        assert all((project / name).is_file() for name in OTHERS)

    def test_by_name(self, run: Run, empty_cache: Path) -> None:
        empty_cache.mkdir()
        weights = empty_cache / f"{NAME}.safetensors"
        weights.touch()
        status, _, err = run("cache", "remove", NAME)
        assert status == 2 and f"{NAME} was not removed: {empty_cache} has no record of it" in err
        assert weights.exists()
        assert "is not in the cache" in run("cache", "remove", "my_model")[2]

    @pytest.mark.parametrize("version", [1, 2, 3])
    def test_what_the_cache_wrote_goes_whatever_its_version(self, empty_cache: Path, version: int) -> None:
        entry = cached(empty_cache)
        record = json.loads(entry.provenance_file.read_text())
        entry.provenance_file.write_text(json.dumps({**record, "format": version, "more": 1}))
        assert [each.name for each in list_entries(empty_cache)] == [NAME]
        discard(entry, forget=True)
        assert not entry.weights.exists() and not entry.provenance_file.exists()
        assert not list_entries(empty_cache)

    def test_the_authors_file(self, empty_cache: Path) -> None:
        for content, is_left in (("abc", False), ("the user's own", True)):
            entry = cached(empty_cache)
            entry.original.write_text(content)
            discard(entry)
            assert entry.original.exists() == is_left and not entry.weights.exists()

    def test_twice(self, empty_cache: Path) -> None:
        entry = cached(empty_cache)
        discard(entry, forget=True)
        entry.lock.unlink(missing_ok=True)
        entry.weights.write_text("the user's own")
        with pytest.raises(InputError, match="was not removed"):
            discard(entry, forget=True)


RECORD: dict[str, Any] = {
    "format": 2,
    "location": "x",
    "recorded": "2026-01-01",
    "sha256": None,
    "num_bytes": None,
    "tensors_sha256": "0",
    "stamp": [1, 2, 3],
}
VALUES: list[Any] = [5.5, [[]], {}, True, "x", ["x"], None]
WRONG: list[Any] = [
    *({**RECORD, key: value} for key in RECORD for value in VALUES),
    *({**RECORD, "location": text} for text in ("\x1b[2J", "\ud800", "a\nb", "x" * 10_000)),
    *([], 7, "text", None, {}, {"format": 2}, {**RECORD, "more": 1}),
]


@pytest.mark.parametrize("content", [*map(json.dumps, WRONG), "[" * 100_000, "{", "\ufeff{}", "9" * 5000])
def test_a_record_of_any_content(run: Run, empty_cache: Path, content: str) -> None:
    empty_cache.mkdir()
    entry = CacheEntry(empty_cache, NAME)
    entry.provenance_file.write_text(content)
    entry.weights.touch()
    for command in (["cache", "list"], ["list"], ["info", NAME]):
        status, out, err = run(*command)
        assert (status, err) == (0, "")
        assert "\x1b" not in out
        out.encode()


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_pipe_in_place_of_a_record(run: Run, empty_cache: Path) -> None:
    empty_cache.mkdir()
    os.mkfifo(empty_cache / f"{NAME}.json")
    assert run("list")[0] == 0


class TestFolder:
    @pytest.fixture(autouse=True)
    def nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Be a user without an entry in /etc/passwd and without HOME, as containers may run."""
        for name in ("HOME", "DPT_ZOO_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(os, "getuid", lambda: 54321)

    @pytest.mark.parametrize("command", [["list"], ["info", NAME], ["cache", "list"]])
    def test_no_home_is_needed(self, run: Run, command: list[str]) -> None:
        status, _, err = run(*command)
        assert (status, err) == (0, "")

    def test_no_folder_is_made_for_a_tilde(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert default_cache_dir() == Path("/nonexistent/.cache/dpt_zoo")
        monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
        assert default_cache_dir() == Path("/var/cache/dpt_zoo")
        assert list(tmp_path.iterdir()) == []

    def test_a_home_of_an_unknown_user(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DPT_ZOO_CACHE", "~no-such-user/cache")
        assert run("list")[0] == 0
