"""Files appear complete or not at all."""

import hashlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpt_zoo.errors import OutputError
from dpt_zoo.utils.files import atomic_path, check_space, hash_file, make_folder, open_atomic


def test_open_atomic(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with open_atomic(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_block_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), open_atomic(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_mode_is_the_users_default(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with atomic_path(tmp_path / "file") as partial:
        partial.unlink()
        os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))  # as some libraries do
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("name", ["none/file", "folder"])
def test_errors_name_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(OutputError, match=f"{name} cannot be written: .*: choose another folder"),
        open_atomic(tmp_path / name) as file,
    ):
        file.write(b"new")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_make_folder(tmp_path: Path) -> None:
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/c cannot be made: .*: choose another work_dir"):
        make_folder(tmp_path / "file" / "c", "work_dir")


def test_check_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    check_space(tmp_path, 1000)
    with pytest.raises(OutputError, match="has 1,000 bytes free, 1,001 are needed"):
        check_space(tmp_path, 1001)


def test_hash_file(tmp_path: Path) -> None:
    content = bytes(3 << 20) + b"end"
    (tmp_path / "file").write_bytes(content)
    assert hash_file(tmp_path / "file").hexdigest() == hashlib.sha256(content).hexdigest()
