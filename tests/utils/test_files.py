"""Files appear complete or not at all."""

import hashlib
import os
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpt_zoo.errors import InputError, OutputError
from dpt_zoo.utils.files import (
    atomic_path,
    check_space,
    expand_user,
    hash_file,
    lock_folder,
    make_folder,
    open_atomic,
    remove,
)


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


@pytest.mark.parametrize("target", ["file", "deep/file", "missing"])
def test_a_link_stays_and_its_target_is_written(tmp_path: Path, target: str) -> None:
    (tmp_path / "deep").mkdir()
    if target != "missing":
        (tmp_path / target).write_text("old")
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "second").symlink_to(tmp_path / "link")
    with open_atomic(tmp_path / "second") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "second").is_symlink()
    assert (tmp_path / target).read_text() == "new"
    assert {path.name for path in tmp_path.rglob("*")} == {"deep", "link", "second", Path(target).name}


def make_special(path: Path, kind: str) -> None:
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(os.path.relpath(path))
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path.name)
        case "device":
            path.symlink_to("/dev/null")


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "loop", "device"])
@pytest.mark.parametrize("is_linked", [False, True])
def test_only_regular_files_are_replaced(
    tmp_path: Path, kind: str, is_linked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    make_special(tmp_path / kind, kind)
    special = Path("/dev/null") if kind == "device" else tmp_path / kind
    before = special.lstat()
    (tmp_path / "link").symlink_to(kind)
    path = tmp_path / ("link" if is_linked else kind)
    reason = "Is a directory" if kind == "folder" else "it is not a regular file"
    with pytest.raises(OutputError, match=f"cannot be written: {reason}"), open_atomic(path):
        raise AssertionError
    assert (special.lstat().st_ino, special.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert len(list(tmp_path.iterdir())) == 2


def test_lock_folder(tmp_path: Path) -> None:
    for _ in range(2):
        with lock_folder(tmp_path), pytest.raises(InputError, match="is in use by another run"), lock_folder(tmp_path):
            raise AssertionError
    with pytest.raises(KeyboardInterrupt), lock_folder(tmp_path):
        raise KeyboardInterrupt
    with lock_folder(tmp_path):
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="cannot be opened: No such file"), lock_folder(tmp_path / "missing"):
        raise AssertionError


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX systems fork")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_does_not_hold_the_lock(tmp_path: Path) -> None:
    """A data loader's worker may outlive its training, which can then be resumed at once."""
    ours, theirs = socket.socketpair()
    with lock_folder(tmp_path):
        if (child := os.fork()) == 0:
            ours.close()
            theirs.send(b"started")
            theirs.recv(1)  # until the parent closes its end
            os._exit(0)
        assert ours.recv(7) == b"started"
    with lock_folder(tmp_path):
        ours.close()
        theirs.close()
    assert os.waitpid(child, 0)[1] == 0


def test_expand_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    paths = ["~/a", "~", "a/~", "~no-such-user/a", "./~", ""]
    assert [str(expand_user(path)) for path in paths] == ["/home/me/a", "/home/me", "a/~", "~no-such-user/a", "~", "."]


def test_remove(tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept")
    for name in ("folder", "link", "missing"):
        remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]


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
