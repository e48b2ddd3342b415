"""A real server on loopback: clients that stall, leave or send too much, and many at a time."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from served import BAD, HeldDetector, Running, png

from dpt_zoo.inference.detector import Detector
from dpt_zoo.serving import http_server
from dpt_zoo.utils import request_checks

pytestmark = [pytest.mark.network, pytest.mark.xdist_group("serving")]


def wait_for_end(connection: socket.socket) -> bytes:
    """Return what a server sends before it ends a connection."""
    received = b""
    with connection, contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            received += part
    return received


HEAD = b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", b"POST", (HEAD % 5)[:-2]])
def test_headers_that_never_come(
    sent: bytes, run_service: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "HEADER_SECONDS", 0.2)
    assert wait_for_end(run_service().connect(sent)) == b""


def test_headers_that_never_come_after_others(
    run_service: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "HEADER_SECONDS", 0.2)
    connection = run_service().connect(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    received = b""
    while not received.endswith(b"}"):
        received += connection.recv(1 << 16)
    connection.sendall(b"GET")
    assert wait_for_end(connection) == b""


def test_a_body_that_never_comes(run_service: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_checks, "STALL_SECONDS", 0.2)
    running = run_service()
    connection = running.connect(HEAD % 1000 + b"begin")
    answer = connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 408")
    assert running.service.bodies._num_bytes == 0


def test_a_client_that_does_not_read(run_service: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "READ_SECONDS", 0.2)
    running = run_service()
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with running.connect(request) as connection, pytest.raises(ConnectionError):
        for _ in range(10_000):
            connection.sendall(request * 100)
    assert running.detect(png()).status_code == 200


def test_what_stalls_takes_no_place(run_service: Callable[..., Running]) -> None:
    """Hundreds of connections that send nothing, or a part of a request, do not delay others."""
    running = run_service(max_queue=2, max_images=2)
    image = png()
    begun = [b"", b"POST /v1", HEAD % len(image), HEAD % len(image) + image[:-1]]
    with contextlib.ExitStack() as stack:
        for number in range(200):
            stack.enter_context(running.connect(begun[number % len(begun)]))
        for _ in range(5):
            assert running.detect(image).status_code == 200


def test_a_client_that_leaves_frees_its_place(run_service: Callable[..., Running], detector: Detector) -> None:
    running = run_service()
    held = HeldDetector(running.service.settings.models["first_pixel"], num_threads=1)
    running.service.detectors["first_pixel"] = held
    jobs, image = running.service.batcher._jobs, png()
    first = running.connect(HEAD % len(image) + image)
    while not held.batches:
        time.sleep(0.01)
    with running.connect(HEAD % len(image) + image):
        while len(jobs) < 2:
            time.sleep(0.01)
    while len(jobs) > 1:
        time.sleep(0.01)
    held.go.set()
    assert first.recv(1 << 16).startswith(b"HTTP/1.1 200")
    assert len(held.batches) == 1
    first.close()


def test_a_long_body_is_refused_at_once(run_service: Callable[..., Running]) -> None:
    running = run_service(max_bytes=1000)
    with running.connect(HEAD % 10**12) as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413")


def test_garbage(run_service: Callable[..., Running]) -> None:
    running = run_service()
    assert wait_for_end(running.connect(b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n")).startswith(b"HTTP/1.1 400")
    assert running.detect(png()).status_code == 200


GET = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "part"),
    [
        (b"GET /", b"a" * 1000),
        (GET + b"A: ", b"a" * 1000),
        (GET, b"A: a\r\n" * 100),
        (b"", b"\r\n" * 100),
        (CHUNKED, b"1;" + b"a" * 1000),
        (CHUNKED + b"0\r\n", b"A: a\r\n" * 100),
        (GET + b"\r\n", b"A: a\r\n" * 100),  # the next request
    ],
    ids=["path", "header", "headers", "empty lines", "chunk extension", "trailers", "second request"],
)
def test_what_may_be_long_without_an_end(sent: bytes, part: bytes, run_service: Callable[..., Running]) -> None:
    """Memory is bounded by the bytes that a client sends outside bodies."""
    connection = run_service().connect(sent)
    with connection, pytest.raises(ConnectionError):
        for _ in range(100_000):
            connection.sendall(part)


def test_headers_may_be_long(run_service: Callable[..., Running]) -> None:
    with run_service().connect(GET + b"A: " + b"a" * 60_000 + b"\r\n\r\n") as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_a_body_in_many_parts(run_service: Callable[..., Running]) -> None:
    """The limit of headers is not one of bodies."""
    running, image = run_service(), png() + bytes(300_000)
    with running.connect(HEAD % len(image)) as connection:
        for start in range(0, len(image), 5000):
            connection.sendall(image[start : start + 5000])
            time.sleep(0.001)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_two_hundred_at_a_time(run_service: Callable[..., Running], detector: Detector) -> None:
    """Of 200 connections, 5 % send bad bodies. Every answer is right, and none stays in memory."""
    running = run_service()
    images = [BAD if number % 20 == 7 else png(number % 256, 255 - number % 256) for number in range(200)]
    expected = [None if image is BAD else detector(image).to_json()["objects"] for image in images]
    start = threading.Barrier(200)
    host = running.url.removeprefix("http://")

    def ask(number: int) -> list[int]:
        statuses = []
        with contextlib.closing(http.client.HTTPConnection(host, timeout=120)) as connection:
            connection.connect()
            start.wait(60)
            for turn in range(3):
                index = (number + turn) % 200
                connection.request("POST", "/v1/detect", images[index])
                response = connection.getresponse()
                content = json.loads(response.read())
                statuses.append(response.status)
                if expected[index] is None:
                    assert response.status == 400
                else:
                    assert content["images"][0]["objects"] == expected[index]
        return statuses

    with ThreadPoolExecutor(200) as pool:
        statuses = Counter(status for each in pool.map(ask, range(200)) for status in each)
    assert statuses == {200: 570, 400: 30}
    assert not running.service.batcher._jobs
    assert running.service.bodies._num_bytes == 0


def test_what_was_accepted_is_answered_at_the_end(run_service: Callable[..., Running]) -> None:
    running = run_service()
    held = HeldDetector(running.service.settings.models["first_pixel"], num_threads=1)
    running.service.detectors["first_pixel"] = held
    with ThreadPoolExecutor(5) as pool:
        futures = [pool.submit(running.detect, png()) for _ in range(5)]
        while len(running.service.batcher._jobs) < 5:
            time.sleep(0.01)
        running.begin_to_stop()
        while not running.service.is_stopping:
            time.sleep(0.01)
        held.go.set()
        answers = [future.result() for future in futures]
    assert [answer.status_code for answer in answers] == [200] * 5


def test_what_takes_too_long_at_the_end_is_refused(
    run_service: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "GRACE_SECONDS", 0.3)
    running = run_service()
    held = HeldDetector(running.service.settings.models["first_pixel"], num_threads=1)
    running.service.detectors["first_pixel"] = held
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(running.detect, png())
        while not held.batches:
            time.sleep(0.01)
        second = pool.submit(running.detect, png())
        while len(running.service.batcher._jobs) < 2:
            time.sleep(0.01)
        running.begin_to_stop()
        answer = second.result()
        held.go.set()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert first.result().status_code == 200
