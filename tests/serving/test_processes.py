"""`dpt-zoo serve` in its own processes: start, workers, restart, stop, and what it refuses to start with."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from running import Run
from served import png

import dpt_zoo
from dpt_zoo.serving.settings import API_KEYS

START_SECONDS = 120

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.xdist_group("serving")]


class Process:
    """`dpt-zoo serve` in its own process.

    Attributes:
        url: the URL of the service.
        log: the lines of its standard error, parsed.
    """

    def __init__(self, *arguments: object, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "dpt_zoo", "serve", *map(str, arguments), "--port", "0"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, env={**os.environ, **environment}, **pipes)  # type: ignore[call-overload]
        self.log: list[dict[str, object]] = []
        threading.Thread(target=self._read_log, daemon=True).start()
        self.url = self.process.stdout.readline().partition(" ")[0]
        assert self.url, self.log

    def _read_log(self) -> None:
        for line in self.process.stderr:
            self.log.append(json.loads(line))

    def detect(self) -> requests.Response:
        return requests.post(f"{self.url}/v1/detect", data=png(), timeout=60)

    def metric(self, name: str) -> float:
        """Return the sum of a metric's values."""
        text = requests.get(f"{self.url}/metrics", timeout=60).text
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))

    def workers(self) -> list[int]:
        """Return the ids of the worker processes, in the order of their start."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(each) for each in children if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()]


@pytest.fixture
def start(model_file: Path) -> Iterator[Callable[..., Process]]:
    """Return a function that starts the service of the handwritten model."""
    started = []

    def start(*options: object, **environment: str) -> Process:
        started.append(Process(model_file, "--device", "cpu", *options, environment=environment))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def test_start_and_stop(start: Callable[..., Process], model_file: Path, tmp_path: Path) -> None:
    service = start(**{API_KEYS: "one,two"})
    assert requests.get(f"{service.url}/health/ready", timeout=60).status_code == 200
    assert service.detect().status_code == 401
    client = dpt_zoo.Client(service.url, api_key="two")
    assert client(png()).names == ["red", "green"]
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(START_SECONDS) == 0
    assert [line["status"] for line in service.log if "status" in line] == [200, 401, 200, 200]


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load(workers: int, start: Callable[..., Process]) -> None:
    """Of the requests that reach the service around SIGTERM, each is answered, or its connection is refused."""
    service = start("--workers", workers)
    is_over = threading.Event()

    def ask() -> list[int]:
        statuses = []
        while not is_over.is_set():
            try:
                statuses.append(service.detect().status_code)
            except requests.ConnectionError as error:
                assert "refused" in str(error) or "reset" in str(error).lower() or "aborted" in str(error)
                break
        return statuses

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(ask) for _ in range(8)]
        time.sleep(1)
        begin = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        status = service.process.wait(START_SECONDS)
        seconds = time.monotonic() - begin
        is_over.set()
        statuses = [status for future in futures for status in future.result()]
    assert status == 0
    assert seconds < 10
    assert statuses and set(statuses) == {200}


def test_workers(start: Callable[..., Process]) -> None:
    """Workers share the socket, the cores and the metrics; one that is killed is started again."""
    service = start("--workers", 2)
    first, second = service.workers()
    cores = [os.sched_getaffinity(each) for each in (first, second)]
    assert set().union(*cores) == os.sched_getaffinity(0)
    with ThreadPoolExecutor(8) as pool:
        assert {answer.status_code for answer in pool.map(lambda _: service.detect(), range(60))} == {200}
    assert service.metric("dpt_zoo_batch_images_sum") == 60
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + START_SECONDS
    while first in service.workers() or len(service.workers()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert service.detect().status_code == 200
    assert service.metric("dpt_zoo_batch_images_sum") == 61  # what the other has counted is not lost
    assert any("it is started again" in str(line["message"]) for line in service.log)
    workers = service.workers()
    service.process.kill()
    service.process.wait()
    while any(Path(f"/proc/{each}").exists() for each in workers):  # they do not outlive it
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_cannot_be_loaded(workers: int, tmp_path: Path, run: Run, model_file: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(model_file.read_bytes()[:-100])
    command = [sys.executable, "-m", "dpt_zoo", "serve", str(damaged), "--port", "0", "--workers", str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"dpt-zoo: {damaged}: ")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--port", "99999"], "--port must be from 0 to 65535"),
        (["--host", "no such host"], "nothing can be served at no such host"),
        (["--workers", "0"], "workers must be a whole number from 1"),
        (["--max-queue", "0"], "max_queue must be a whole number from 1"),
        (["--max-queue", "9"], "max_queue must be at least max_images, 16, not 9"),
        (["--score-threshold", "2"], "score_threshold must be a number from 0 to 1"),
        (["--timeout", "0"], "timeout must be a number of seconds above 0"),
        (["--device", "nothing"], "device 'nothing' is not available"),
    ],
)
def test_bad_options(options: list[str], text: str, run: Run, model_file: Path) -> None:
    status, output, errors = run("serve", model_file, *options)
    assert (status, output) == (2, "")
    assert text in errors


def test_bad_models(run: Run, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "two models would have the name first_pixel" in run("serve", model_file, model_file)[2]
    monkeypatch.setenv(API_KEYS, "a,,b")
    assert "has an empty key" in run("serve", model_file, "--port", "0")[2]
