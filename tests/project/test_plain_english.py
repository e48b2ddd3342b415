"""Plain English: words that readers stumble over do not occur in what users and developers read."""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from reference_data import ROOT

from dpt_zoo.cli import _parser

UNWANTED = re.compile(r"\b(told|tell|whence|shall|so\s+many|gone\s+on\s+with)\b", re.IGNORECASE)
SUFFIXES = {".py", ".pyi", ".js", ".css", ".html", ".j2", ".md", ".ipynb", ".txt"}


def documents() -> Iterator[Path]:
    """The package's sources and the documents."""
    for folder in (ROOT / "dpt_zoo", ROOT / "docs"):
        yield from (path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES and path.is_file())
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mkdocs.yml"))


def read_text(path: Path) -> str:
    """What a document says; of a notebook its cells, without their outputs."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return text


def help_texts(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """The help of a command and of all its subcommands."""
    yield parser.prog, parser.format_help()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from help_texts(command)


def test_documents() -> None:
    found = {str(path.relative_to(ROOT)): sorted(set(UNWANTED.findall(read_text(path)))) for path in documents()}
    assert {name: words for name, words in found.items() if words} == {}


def test_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    texts = dict(help_texts(_parser()))
    assert "dpt-zoo detect" in texts
    found = {name: sorted(set(UNWANTED.findall(text))) for name, text in texts.items()}
    assert {name: words for name, words in found.items() if words} == {}
