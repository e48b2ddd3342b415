"""The time of whole processes that do not import PyTorch."""

import functools
import subprocess
import sys
from collections.abc import Iterator

from .measuring import ROOT, Comparison, Settings, time_in_turn

COMMANDS = {
    "bare Python": ["-c", "pass"],
    "ours, import dpt_zoo": ["-c", "import dpt_zoo"],
    "ours, dpt-zoo list": ["-m", "dpt_zoo", "list"],
}


def compare(settings: Settings) -> Iterator[Comparison]:
    run = functools.partial(subprocess.run, cwd=ROOT, check=True, capture_output=True)
    actions = {way: functools.partial(run, [sys.executable, *command]) for way, command in COMMANDS.items()}
    yield Comparison("import", "a process", "time", "s", time_in_turn(actions, settings.runs))
