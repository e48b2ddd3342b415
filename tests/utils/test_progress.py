"""Progress bars appear on terminals only."""

import io
import sys
import threading

import pytest

from dpt_zoo.utils.progress import Downloads, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Replace standard error; no fixture, because pytest sets its own between the fixtures and the test."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return terminal


def test_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("images") as progress, Downloads(2) as bars:
        progress(1, 2)
        bars.callback_for("model")(1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("is_missing", [True, False], ids=["missing", "closed"])
def test_nothing_without_an_error_stream(monkeypatch: pytest.MonkeyPatch, is_missing: bool) -> None:
    monkeypatch.setattr(sys, "stderr", None if is_missing else io.TextIOWrapper(io.BytesIO()))
    if not is_missing:
        sys.stderr.close()
    with progress_bar("images") as progress, Downloads(2) as bars:
        progress(1, 2)
        bars.callback_for("model")(1, 2)


def test_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    with progress_bar("images") as progress:
        progress(0, None)
        progress(3, 4)
    assert "images" in terminal.getvalue() and "3/4" in terminal.getvalue()


def test_one_download(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    with Downloads() as bars:
        bars.callback_for("model")(5, 10)
    assert "5/10" in terminal.getvalue() and "all files" not in terminal.getvalue()


def test_several_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    with Downloads(2) as bars:
        callbacks = [bars.callback_for(name) for name in ("first", "second")]
        callbacks[0](5, 10)
        threads = [threading.Thread(target=callback, args=(10, 10)) for callback in callbacks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    shown = terminal.getvalue()
    assert "all files (2 of 2 begun)" in shown and "20/20" in shown


def test_no_bars_before_the_first_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    with Downloads(2) as bars:
        bars.callback_for("model")
    assert terminal.getvalue() == ""
