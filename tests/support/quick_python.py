"""A Python that starts at once: a process forked from one that has imported PyTorch and MMDetection.

A new process that imports them takes seconds, the fork a few milliseconds. The program, the fixture `quick_python`, is
a client that passes its arguments, environment, folder, streams and signals on, and ends as the forked process ends.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PRELOADED = [
    *("dpt_zoo.cli", "dpt_zoo.evaluation.models", "dpt_zoo.inference.pytorch_backend", "dpt_zoo.training.trainer"),
    *("mmdet.apis", "mmdet.datasets", "mmdet.evaluation", "matplotlib.figure", "torch.distributed.run"),
]

CLIENT = f"""#!{sys.executable} -IS
import json, os, signal, socket, sys
is_ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
server = socket.socket(socket.AF_UNIX)
server.connect(os.path.join(os.path.dirname(os.path.realpath(__file__)), "socket"))
message = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), is_ignored]).encode()
socket.send_fds(server, [len(message).to_bytes(8, "big")], [0, 1, 2])
server.sendall(message)
pid = int.from_bytes(server.recv(8), "big")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, lambda number, _: os.kill(pid, number))
status = int.from_bytes(server.recv(8), "big", signed=True)
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if status != -signal.SIGKILL else None
    os.kill(os.getpid(), -status)
os._exit(status)
"""


@contextlib.contextmanager
def running_server() -> Iterator[Path]:
    """Start the process that is forked, and return the program, which is named `python`."""
    with tempfile.TemporaryDirectory() as folder:  # a socket's path has at most 107 bytes, tmp_path may be longer
        program = Path(folder) / "python"
        program.write_text(CLIENT)
        program.chmod(0o755)
        command = [sys.executable, __file__, str(program.with_name("socket"))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, env=environment, **pipes) as server:  # it ends when its input does
            assert server.stdout and server.stdout.readline() == b"ready\n"
            yield program


def hurry_mmengine() -> None:
    """Leave out two steps of MMEngine that change no result: formatting configs, and collecting garbage for a data set.

    It formats a config about ten times in a run, which takes seconds. A collection takes a third of a second.
    """
    import mmengine.config.config
    import mmengine.dataset.base_dataset

    mmengine.config.config.FormatCode = lambda text, **_: (text, True)
    mmengine.dataset.base_dataset.gc = SimpleNamespace(collect=lambda: 0)


def wait_for_client(address: str) -> list[str]:
    """Fork a process for each client, and return in it, with the client's arguments."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that serve a client
    while True:
        if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        start, streams, _, _ = socket.recv_fds(connection, 8, 3)
        length, message = int.from_bytes(start, "big"), b""
        while len(message) < length:
            message += connection.recv(length - len(message))
        if pid := os.fork():
            _serve(connection, pid)
        connection.close()
        arguments, environment, folder, ignores_interrupts = json.loads(message)
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
            os.close(stream)
        if not ignores_interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None  # TMPDIR may have changed
        os.chdir(folder)
        return arguments


def _serve(connection: socket.socket, pid: int) -> None:
    """Send a client the exit status of its process, and kill the process if the client was killed."""
    process = os.pidfd_open(pid)
    connection.sendall(pid.to_bytes(8, "big"))
    ready, _, _ = select.select([connection.fileno(), process], [], [])
    if process not in ready:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        connection.sendall(status.to_bytes(8, "big", signed=True))
    os._exit(0)


def exit_status(arguments: list[str]) -> int:
    """Run what Python would run, up to its exit handlers; to free all modules would take a second."""
    status: Any = 0
    try:
        run(arguments)
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    return int(status)


def run(arguments: list[str]) -> None:
    """Run a module (`-m`), code (`-c`) or a script, as Python does with these arguments."""
    import torch

    if "OMP_NUM_THREADS" in os.environ:  # it was read before the fork
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = folders
    for customization in (Path(folder) / "sitecustomize.py" for folder in folders if folder):
        if customization.is_file():
            runpy.run_path(str(customization))
    kind, *others = [each for each in arguments[:2] if each != "-u"] + arguments[2:]
    sys.argv = others if kind in ("-m", "-c") else [kind, *others]
    if kind == "-m":
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path.insert(0, "")
        sys.argv[0], code = "-c", sys.argv[0]
        exec(code, {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    import dpt_zoo.mmlab  # noqa: F401  (before mmdet)

    for name in PRELOADED:
        importlib.import_module(name)
    hurry_mmengine()
    gc.collect()
    gc.freeze()
    arguments = wait_for_client(sys.argv[1])
    os._exit(exit_status(arguments))
