"""The type of the `run` fixture, and a quick start of the processes that the command starts."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
"""Runs the command in this process: exit status, standard output, standard error."""


def start_quickly(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command and torchrun start this Python, that of the fixture `quick_python`."""
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PYTHON_EXEC", str(python))
