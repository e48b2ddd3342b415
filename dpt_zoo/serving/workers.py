"""The processes of the service: workers that share a socket, and a process that watches over them."""

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from ..errors import DPTZooError
from ..utils.dependencies import explain_imports
from ..utils.environment import usable_cores
from ..utils.listening import listen, listener_url
from ..utils.validation import check_integer
from .server import run_server
from .settings import GRACE_SECONDS, Settings, read_api_keys

EXIT_SECONDS = GRACE_SECONDS + 1.5
"""Longest time from SIGTERM to the end of all workers."""
RESTART_SECONDS = 1.0
"""Wait before a worker that ended is started again."""

logger = logging.getLogger(__name__)


def serve(
    settings: Settings,
    *,
    host: str,
    port: int,
    devices: Sequence[str] = ("auto",),
    workers: int | None = None,
    ready: Callable[[str], object],
) -> None:
    """Serve detectors until the process gets SIGTERM or SIGINT.

    Args:
        settings: the models and limits.
        host: the host or IP address to listen on.
        port: 1 to 65535, or 0 for any free port.
        devices: see `Detector`; the first worker computes on the first one, and so on, beginning again at the end.
        workers: the number of processes, each with its own models; by default one for each device. They divide the
            cores of the CPU.
        ready: called with the service's URL once it accepts images.

    Raises:
        DependencyError: FastAPI, uvicorn or prometheus_client is not installed.
        InputError: The server cannot listen on this host and port, or an argument is invalid.
        DPTZooError: A model cannot be loaded.
    """
    workers = len(devices) if workers is None else workers
    check_integer("workers", workers, 1, 1024)
    read_api_keys()
    with listen(host, port) as listener:
        url = listener_url(listener)
        if workers == 1:
            run_server(settings, listener, devices[0], lambda: ready(url))
        else:
            _Supervisor(settings, listener, devices, workers).run(lambda: ready(url))


class _Worker(NamedTuple):
    """A process, and the pipe by which it reports that it is ready or why it cannot start. It is open while it runs."""

    process: BaseProcess
    pipe: Connection


class _Supervisor:
    """Starts workers, starts those again that end, and stops all of them on SIGTERM and SIGINT.

    uvicorn's own supervisor starts a worker again and again whose model cannot be loaded, and its workers do not know
    which device is theirs.
    """

    def __init__(self, settings: Settings, listener: socket.socket, devices: Sequence[str], workers: int) -> None:
        self._settings, self._listener, self._devices = settings, listener, devices
        cores = usable_cores()
        self._cores = [cores[index::workers] or cores for index in range(workers)]
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[int, _Worker] = {}
        self._is_stopping = False

    def run(self, ready: Callable[[], object]) -> None:
        """Watch over the workers until they have stopped. Call `ready` when all of them are ready."""
        with explain_imports():
            from .logs import log_as_json
            from .metrics import FOLDER
        log_as_json()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop())
        with tempfile.TemporaryDirectory(prefix="dpt-zoo-serve-") as folder:
            os.environ[FOLDER] = folder
            try:
                self._watch(ready)
            finally:
                self._kill()

    def _watch(self, ready: Callable[[], object]) -> None:
        starting = set(range(len(self._cores)))
        for index in starting:
            self._start(index)
        while self._workers:
            indices = {worker.pipe: index for index, worker in self._workers.items()}
            for pipe in wait(list(indices)):
                assert isinstance(pipe, Connection)
                try:
                    problem = pipe.recv()
                except EOFError:
                    self._replace(indices[pipe])
                    continue
                if problem:
                    raise DPTZooError(problem)
                if starting == {indices[pipe]}:
                    ready()
                starting.discard(indices[pipe])

    def _start(self, index: int) -> None:
        pipe, its_pipe = self._context.Pipe()
        device = self._devices[index % len(self._devices)]
        arguments = (self._settings, self._listener, device, self._cores[index], its_pipe)
        process = self._context.Process(target=_work, args=arguments)
        process.start()
        its_pipe.close()
        self._workers[index] = _Worker(process, pipe)
        if self._is_stopping:  # the signal came in between
            process.terminate()

    def _replace(self, index: int) -> None:
        """Start a worker again that ended, unless all of them stop."""
        from prometheus_client.multiprocess import mark_process_dead

        process, _ = self._workers.pop(index)
        process.join()
        mark_process_dead(process.pid)
        if not self._is_stopping:
            logger.error("worker %d ended with status %s: it is started again", index, process.exitcode)
            time.sleep(RESTART_SECONDS)
        if not self._is_stopping:
            self._start(index)

    def _stop(self) -> None:
        self._is_stopping = True
        for process, _ in self._workers.values():
            process.terminate()
        timer = threading.Timer(EXIT_SECONDS, self._kill)
        timer.daemon = True
        timer.start()

    def _kill(self) -> None:
        for process, _ in self._workers.values():
            process.kill()


def _work(settings: Settings, listener: socket.socket, device: str, cores: Sequence[int], pipe: Connection) -> None:
    """Run a worker on some of the cores. It ends with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the supervisor sends SIGTERM
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    try:
        run_server(settings, listener, device, lambda: pipe.send(None))
    except DPTZooError as error:
        pipe.send(str(error))
        sys.exit(2)


def _end_with_parent(pipe: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        pipe.recv()
    os.kill(os.getpid(), signal.SIGTERM)
