"""Obtain weights in a new process, under the conditions of a test, to be killed or to run beside others."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from dpt_zoo.manifest.records import WeightsRecord
from dpt_zoo.weights import (
    checkpoints,  # noqa: F401  # imports PyTorch in the fork server, not in each process
    converting,  # noqa: F401
    http,
)
from dpt_zoo.weights.store import obtain

Condition = Callable[[], Any]
"""Prepares the new process."""

multiprocessing.set_forkserver_preload([__name__])  # at import: from Python 3.14 on, any test may start it


class Run:
    """A process that obtains weights and keeps the original; it starts at once."""

    def __init__(self, record: WeightsRecord, folder: Path, *conditions: Condition) -> None:
        context = multiprocessing.get_context("forkserver")  # forks itself, once torch is loaded: quick and clean
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # where the fork server finds this module
            forkserver.ensure_running()
        self._outcome, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_obtain, args=(record, folder, conditions, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def outcome(self) -> Path | Exception | None:
        """Return what `obtain` returned or raised; None if the process was killed."""
        assert self._outcome.poll(60)
        try:
            outcome: Path | Exception = self._outcome.recv()
        except EOFError:
            self._process.join()
            assert self._process.exitcode == -signal.SIGKILL
            return None
        self._process.join()
        return outcome

    def kill(self) -> None:
        """Kill the process by SIGKILL and wait for its end."""
        self._process.kill()
        assert self.outcome() is None


def _obtain(record: WeightsRecord, folder: Path, conditions: tuple[Condition, ...], outcome: Connection) -> None:
    http.BACKOFF_SECONDS = 0.001
    os.environ["NO_PROXY"] = "*"
    for condition in conditions:
        condition()
    try:
        outcome.send(obtain(record, cache_dir=folder, keep_original=True))
    except Exception as error:
        outcome.send(error)


def without_privileges() -> None:
    """Make permission bits apply to Linux's root too."""
    if os.geteuid() == 0:
        version_3, this_thread = 0x20080522, 0
        nothing = (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(version_3, this_thread), nothing) == 0


def dying_at_step(step: int, folder: Path) -> Condition:
    """Kill the process before its n-th operation on files in a folder: open, rename, remove, ..."""
    return partial(_die_at_step, step, str(folder))


def _die_at_step(step: int, folder: str) -> None:
    steps = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal steps
        if any(isinstance(arg, str | os.PathLike) and os.fspath(arg).startswith(folder) for arg in args):
            steps += 1
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
