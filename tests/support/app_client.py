"""The page's server as a process of its own, and clients that speak to it as the page does."""

import contextlib
import functools
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import requests

START_SECONDS = 300
ANSWER_SECONDS = 120


class App:
    """`dpt-zoo app` in a process of its own.

    Attributes:
        url: the page's address.
        folder: where it keeps uploads and results.
        log: the lines that it wrote to standard error.
        process: of it.
    """

    def __init__(self, *options: str, temporary: Path) -> None:
        command = [sys.executable, "-m", "dpt_zoo", "app", "--port", "0", "--device", "cpu", *options]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
            env={**os.environ, "TMPDIR": str(temporary), "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""},
        )
        self.log: list[str] = []
        threading.Thread(target=self._read_log, daemon=True).start()
        assert self.process.stdout
        self.url = self.process.stdout.readline().partition(" ")[0].strip()
        assert self.url, self.log
        (self.folder,) = temporary.glob("dpt-zoo-app-*")

    def detections(self) -> list[str]:
        """What was logged of each run of a network."""
        return [line for line in self.log if " objects in " in line]

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal, and give the exit status."""
        self.process.send_signal(number)
        return self.process.wait(START_SECONDS)

    def _read_log(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))


@contextlib.contextmanager
def running_app(*options: str, temporary: Path) -> Iterator[App]:
    app = App(*options, temporary=temporary)
    try:
        yield app
    finally:
        app.process.kill()
        app.process.wait()


class AppError(Exception):
    """What the page would show as an error."""


class Client:
    """One visitor: uploads, asks and hears the answers by the addresses that the page uses."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session_hash = secrets.token_hex(6)
        self._http = requests.Session()
        self._http.trust_env = False
        functions = self.get("/config").json()["dependencies"]
        self._ids = {each["api_name"]: each["id"] for each in functions}

    def get(self, path: str) -> requests.Response:
        return self._http.get(f"{self.url}{path}", timeout=ANSWER_SECONDS)

    def upload(self, content: bytes, name: str = "image.png") -> str:
        """Upload a file, and give the path that the server keeps it under."""
        files = {"files": (name, content)}
        answer = self._http.post(f"{self.url}/gradio_api/upload", files=files, timeout=ANSWER_SECONDS)
        answer.raise_for_status()
        (path,) = answer.json()
        return path

    def detect(self, content: bytes, name: str = "image.png", model: str = "mrcnn_dpt_nano_digits") -> None:
        """Have the objects in an image found."""
        self.call("detect", [file_data(self.upload(content, name), orig_name=name), model])

    def show(self, threshold: float, classes: list[str]) -> dict[str, Any]:
        """Have the objects shown, and give the JSON file that is offered."""
        *_, download = self.call("show", [None, threshold, classes])
        return self.get(download["url"].removeprefix(self.url)).json()

    def call(self, name: str, data: list[Any]) -> list[Any]:
        """Have one of the page's functions run, and give its answer; a message of the page's is raised at its end."""
        joined = self.join({"data": data, "fn_index": self._ids[name], "session_hash": self.session_hash})
        assert joined.status_code == 200, joined.text
        address = f"{self.url}/gradio_api/queue/data?session_hash={self.session_hash}"
        with self._http.get(address, stream=True, timeout=ANSWER_SECONDS) as events:
            message = None
            for line in events.iter_lines():
                event = json.loads(line.removeprefix(b"data: ")) if line else {}
                if event.get("msg") == "log":
                    message = event["log"]
                elif event.get("msg") == "process_completed":
                    message = message if event["success"] else event["output"]["error"]
                    if message is not None:
                        raise AppError(message)
                    return event["output"]["data"]
        raise AssertionError("the stream of events has ended")

    def join(self, message: Mapping[str, Any]) -> requests.Response:
        """Send a message to the queue."""
        return self._http.post(f"{self.url}/gradio_api/queue/join", json=message, timeout=ANSWER_SECONDS)


def file_data(path: Any, **fields: Any) -> dict[str, Any]:
    """How a message names a file."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **fields}


def ask(
    url: str, method: str, path: str, headers: Mapping[str, str] = {}, body: bytes | None = None
) -> tuple[int, bytes]:
    """Send a request exactly as it is written, which HTTP clients would tidy up: status and body of the answer."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=ANSWER_SECONDS)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read()
