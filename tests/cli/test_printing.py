"""What the command prints: escaped, in any encoding, on streams in any state."""

import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from reference_data import ROOT

from dpt_zoo.cli import main
from dpt_zoo.cli.printing import prepared_streams, print_table, show

HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202e\ud800caf\udce9"
ESCAPED = "\\x1b]0;owned\\x07\\x1b[2J\\r\\x9b31m\\u202e\\ud800caf\\udce9"


class TestText:
    def test_escaped(self, capsys: pytest.CaptureFixture[str]) -> None:
        show(f"{HOSTILE}\nanother line: größer 日本")
        show(HOSTILE, to=sys.stderr)
        print_table(("a", "b"), [(HOSTILE, "\n"), ("", "c")])
        table = f"a{' ' * len(ESCAPED)} b\n{ESCAPED}  \\n\n{' ' * len(ESCAPED)}  c\n"
        assert capsys.readouterr() == (f"{ESCAPED}\nanother line: größer 日本\n{table}", f"{ESCAPED}\n")

    @pytest.mark.parametrize(("encoding", "shown"), [("ascii", r"gr\xf6\xdfer \u65e5"), ("latin-1", r"größer \u65e5")])
    def test_any_encoding(self, monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str) -> None:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        show("größer 日")
        assert stream.buffer.getvalue().decode(encoding) == f"{shown}\n"

    def test_the_log(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
        logger, before = logging.getLogger("dpt_zoo.weights.store"), logging.lastResort
        with prepared_streams():
            logger.warning("%s: refused", HOSTILE)
        assert capsys.readouterr().err == f"{ESCAPED}: refused\n"
        assert logging.lastResort is before

    @pytest.mark.parametrize(
        "command",
        [
            ["info", HOSTILE],
            ["list", HOSTILE],
            ["download", HOSTILE],
            ["cache", "remove", HOSTILE],
            ["app", "--model", HOSTILE],
        ],
    )
    def test_arguments(self, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith("dpt-zoo: ") and error.count("\n") == 1
        assert not set(error) & set("\x1b\x07\r\x9b\u202e\ud800\udce9")

    @pytest.mark.parametrize("command", [["list", "a", HOSTILE], ["detect", HOSTILE], [HOSTILE]])
    def test_arguments_that_argparse_refuses(self, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
        with pytest.raises(SystemExit):
            main(command)
        assert not set(capsys.readouterr().err) & set("\x1b\x07\r\x9b\u202e\ud800\udce9")

    @pytest.mark.parametrize(
        "command",
        [
            ["convert", "x" * 5000, "out.safetensors"],
            ["import", "mrcnn_dpt_t_1x", "x" * 5000],
            ["detect", "x.png", "--model", "mrcnn_dpt_nano_digits", "--work-dir", "x" * 5000],
            ["detect", "x.png", "--model", "mrcnn_dpt_nano_digits", "--weights", "x" * 5000],
            ["cache", "list", "--cache-dir", "x" * 5000],
        ],
        ids=lambda command: " ".join(word for word in command if len(word) < 99),
    )
    def test_names_that_are_too_long(
        self, capsys: pytest.CaptureFixture[str], command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith("dpt-zoo: ") and error.count("\n") == 1

    def test_nothing_else_prints(self) -> None:
        for path in (ROOT / "dpt_zoo" / "cli").glob("*.py"):
            if path.name != "printing.py":
                assert not re.search(r"(?<![.\w])print\(", path.read_text()), path


class Full(io.StringIO):
    """A stream on a full disk."""

    def __init__(self, error: type[OSError], text: str) -> None:
        super().__init__()
        self.error, self.text = error, text

    def write(self, text: str) -> int:
        raise self.error(28, self.text)


class TestStreams:
    def test_a_full_output(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(sys, "stdout", Full(OSError, "No space left on device"))
        assert main(["list"]) == 2
        assert capsys.readouterr().err == "dpt-zoo: standard output cannot be written: No space left on device\n"

    def test_a_reader_that_went(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(sys, "stdout", Full(BrokenPipeError, "Broken pipe"))
        assert main(["list"]) == 0
        assert capsys.readouterr().err == ""

    def test_a_full_error_stream(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", Full(OSError, "No space left on device"))
        assert main(["info", "no such model"]) == 2

    @pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
    def test_a_closed_stream(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, name, None)  # as Python has it
        assert main(["list"]) == 0
        assert main(["info", "no such model"]) == 2
        getattr(sys, name).close()

    @pytest.fixture
    def full(self) -> Iterator[IO[bytes]]:
        with open("/dev/full", "wb") as full:  # noqa: PTH123
            yield full

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="only on Linux")
    @pytest.mark.parametrize("command", ["list", "--help", "--version"])
    def test_in_a_process(self, command: str, full: IO[bytes]) -> None:
        python = [sys.executable, "-m", "dpt_zoo", command]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        options: dict[str, Any] = {"cwd": ROOT, "env": environment, "text": True}
        done = subprocess.run(python, stdout=full, stderr=subprocess.PIPE, **options)
        error = "dpt-zoo: standard output cannot be written: No space left on device\n"
        assert (done.returncode, done.stderr) == (2, error)
        for streams in (">&-", "2>&-", "<&-", "<&- >&- 2>&-"):
            done = subprocess.run(["sh", "-c", f'exec "$@" {streams}', "sh", *python], capture_output=True, **options)
            assert (done.returncode, done.stderr) == (0, "")
