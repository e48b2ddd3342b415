"""JSON lists and JSON lines, written item by item."""

import contextlib
import io
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dpt_zoo.bulk.plan import read_plan
from dpt_zoo.bulk.storage import Folder
from dpt_zoo.errors import DPTZooError, OutputError
from dpt_zoo.evaluation.accuracy import Accuracy
from dpt_zoo.evaluation.plan import prepare_folder
from dpt_zoo.evaluation.predictions import read_image_ids
from dpt_zoo.evaluation.result import Evaluation
from dpt_zoo.manifest.metadata import parse_config
from dpt_zoo.utils.json_files import JsonLinesWriter, read_json_lines, write_json_list


@pytest.mark.parametrize("items", [[], [1], [{"a": [1.5]}, None, "é"]])
def test_lists(items: list[Any]) -> None:
    file = io.BytesIO()
    write_json_list(file, iter(items))
    assert json.loads(file.getvalue()) == items


def test_lines_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with closing(JsonLinesWriter(path)) as writer:
        for content in ({"a": 1}, [2], "é"):
            writer.append(content)
    contents, ends = zip(*read_json_lines(path), strict=True)
    assert contents == ({"a": 1}, [2], "é")
    assert [path.read_bytes()[end - 1 : end] for end in ends] == [b"\n"] * 3 and ends[-1] == path.stat().st_size


def test_an_incomplete_last_line_is_left_out_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"1\n2\n3")
    content, end = list(read_json_lines(path))[-1]
    assert (content, end) == (2, 4)
    with closing(JsonLinesWriter(path, size=end)) as writer:
        writer.append(4)
    assert path.read_bytes() == b"1\n2\n4\n"


def test_a_complete_line_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_bytes(b"1\n{\n")
    with pytest.raises(ValueError, match="Expecting"):
        list(read_json_lines(tmp_path / "lines.jsonl"))


READERS: dict[str, Callable[[Path], object]] = {
    "evaluation.json": lambda file: Evaluation.read(file.parent),
    "accuracy.json": lambda file: Accuracy.read(file.parent),
    "settings.json": lambda file: prepare_folder(file.parent, "evaluation.json", {"weights": "0"}, resume=True),
    "predictions.jsonl": lambda file: read_image_ids(file.parent),
    "run.json": lambda file: read_plan(Folder(str(file.parent))),
    "config.json": lambda file: parse_config(file.read_bytes(), file),
}
CONTENTS = ["", "{", "1", "null", '"text"', "[]", "[1]", "{}", '{"a": 1e999}', "[" * 100_000, "9" * 5000, "\ud800"]


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: ascii(content)[:12])
@pytest.mark.parametrize("name", READERS)
def test_files_of_another_form(tmp_path: Path, name: str, content: str) -> None:
    """A reader returns None or nothing, or raises one of the project's exceptions."""
    file = tmp_path / name
    file.write_bytes(content.encode("utf-8", "surrogatepass") + b"\n")
    with contextlib.suppress(DPTZooError):
        assert not READERS[name](file)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written: No such file"):
        JsonLinesWriter(tmp_path / "none" / "lines.jsonl")


def test_a_full_disk_leaves_the_lines_before(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with closing(JsonLinesWriter(path)) as writer:
        writer.append(1)
        real = writer._file
        writer._file = Short(real)  # type: ignore[assignment]
        with pytest.raises(OutputError, match="No space left on device: make room, then resume"):
            writer.append([2] * 100)
        writer._file = real
        writer.append(3)
    assert path.read_bytes() == b"1\n3\n"


class Short:
    """A file on a disk that becomes full within the next line."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        return int(self._file.write(data[:3]))
