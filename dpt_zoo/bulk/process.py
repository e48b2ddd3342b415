"""A `PartWorker` in a process of its own, so that an image that ends the process does not end the run.

The process runs `python -m dpt_zoo.bulk.process`. It reads requests from standard input and answers on standard
output, in lines of JSON, and ends when standard input does: together with the process that started it.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from .. import errors
from ..errors import DPTZooError
from ..utils.environment import child_variables
from .results import Counts
from .worker import LOCAL_RANK, PartError, PartWorker

PROGRAM = (sys.executable, "-m", "dpt_zoo.bulk.process")
REPORT_SECONDS = 0.5  # between reports of progress


class WorkerProcess:
    """The caller's side: starts the process when it is needed, and again when it has died.

    Args:
        model: see `PartWorker`.
        options: see `PartWorker`.
        number: the worker's number on this machine, which chooses one of several GPUs.
    """

    def __init__(self, model: str, options: Mapping[str, Any], number: int) -> None:
        self._worker = {"model": model, "options": options}
        self._number = number
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def describe(self) -> dict[str, Any]:
        """Call `PartWorker.describe`.

        Raises:
            PartError: The process died.
        """
        description: dict[str, Any] = self._call("describe", [], lambda done: None)
        return description

    def detect(self, address: str, index: int, progress: Callable[[int], None]) -> Counts:
        """Call `PartWorker.detect` with `address`, `index` and `progress`. If the process dies, raise `PartError`."""
        return Counts(**self._call("detect", [address, index], progress))

    def close(self) -> None:
        """End the process at once, and start none again."""
        self._is_closed = True
        if self._process:
            self._process.kill()
            self._process.wait()

    def _call(self, method: str, args: list[Any], progress: Callable[[int], None]) -> Any:
        process = self._process
        if self._is_closed:
            raise PartError("the run ends")
        if process is None or process.poll() is not None:
            process = self._process = self._start()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps({"method": method, "args": args}).encode() + b"\n")
            process.stdin.flush()
            for line in process.stdout:
                ((kind, value),) = json.loads(line).items()
                if kind == "result":
                    return value
                if kind == "progress":
                    progress(value)
                else:
                    name, text = value
                    raise PartError(text) if name == "PartError" else getattr(errors, name, DPTZooError)(text)
        except (BrokenPipeError, json.JSONDecodeError):  # it died while it read or wrote
            pass
        status = process.wait()
        reason = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        raise PartError(f"its process died ({reason})")

    def _start(self) -> "subprocess.Popen[bytes]":
        """Start the process, which finds this package where this process found it."""
        environment = child_variables() | {LOCAL_RANK: str(self._number)}
        process = subprocess.Popen(PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert process.stdin
        process.stdin.write(json.dumps(self._worker).encode() + b"\n")
        return process


def main() -> None:
    """Make a `PartWorker` with the arguments in the first line of standard input, and answer requests until its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller, too, which ends this process
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print is no answer
    requests = queue.Queue[Any]()
    threading.Thread(target=_read_requests, args=[requests], daemon=True).start()

    def answer(kind: str, value: Any) -> None:
        answers.write(json.dumps({kind: value}).encode() + b"\n")

    last = 0.0

    def report(done: int) -> None:
        nonlocal last
        if time.monotonic() - last > REPORT_SECONDS:
            answer("progress", done)
            last = time.monotonic()

    part_worker = PartWorker(**requests.get())
    while True:
        request = requests.get()
        try:
            if request["method"] == "describe":
                answer("result", part_worker.describe())
            else:
                address, index = request["args"]
                answer("result", asdict(part_worker.detect(address, index, report)))
        except (DPTZooError, PartError) as error:
            answer("error", [type(error).__name__, str(error)])


def _read_requests(requests: "queue.Queue[Any]") -> None:
    for line in sys.stdin.buffer:
        requests.put(json.loads(line))
    os._exit(0)  # also in the middle of a part: nobody waits for it


if __name__ == "__main__":
    main()
