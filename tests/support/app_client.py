"""The page's server in its own process, and clients that send the same requests as the page."""

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
OPTIONS = (0, 0, 0)  # of the page: none


class App:
    """`dpt-zoo app` in its own process.

    Attributes:
        url: the URL of the page.
        folder: the folder of uploads and results.
        log: the lines of its standard error.
        process: the process.
    """

    def __init__(self, *options: str, temporary: Path, python: str | Path = sys.executable) -> None:
        command = [python, "-m", "dpt_zoo", "app", "--port", "0", "--device", "cpu", *options]
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
        """Return the log line of each run of a model."""
        return [line for line in self.log if " objects in " in line]

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal, and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(START_SECONDS)

    def _read_log(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))


@contextlib.contextmanager
def running_app(*options: str, temporary: Path, python: str | Path = sys.executable) -> Iterator[App]:
    app = App(*options, temporary=temporary, python=python)
    try:
        yield app
    finally:
        app.process.kill()
        app.process.wait()


class AppError(Exception):
    """An error that the page would show."""


class Client:
    """One visitor, who uses the same routes as the page."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session_hash = secrets.token_hex(6)
        self._http = requests.Session()
        self._http.trust_env = False
        functions = self.get("/config").json()["dependencies"]
        self._ids = {each["api_name"]: each["id"] for each in functions}

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str) -> requests.Response:
        return self._http.get(f"{self.url}{path}", timeout=ANSWER_SECONDS)

    def upload(self, content: bytes, name: str = "image.png") -> str:
        """Upload a file, and return its path on the server."""
        files = {"files": (name, content)}
        answer = self._http.post(f"{self.url}/gradio_api/upload", files=files, timeout=ANSWER_SECONDS)
        answer.raise_for_status()
        (path,) = answer.json()
        return path

    def detect(self, content: bytes, name: str = "image.png", model: str = "mrcnn_dpt_nano_digits") -> None:
        """Detect the objects in an image."""
        self.call("detect", [file_data(self.upload(content, name), orig_name=name), model, *OPTIONS])

    def show(self, threshold: float, classes: list[str]) -> dict[str, Any]:
        """Show the objects, and return the content of the JSON file that the page offers."""
        *_, download, _objects, _patches = self.call("show", [None, threshold, classes])
        return self.get(download["url"].removeprefix(self.url)).json()

    def call(self, name: str, data: list[Any]) -> list[Any]:
        """Call one of the page's functions, and return its answer; a message that it shows is raised at the end."""
        joined = self.join({"data": data, "fn_index": self._ids[name], "session_hash": self.session_hash})
        assert joined.status_code == 200, joined.text
        url = f"{self.url}/gradio_api/queue/data?session_hash={self.session_hash}"
        with self._http.get(url, stream=True, timeout=ANSWER_SECONDS) as events:
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
    """Return a file as a message names it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **fields}


def ask(
    url: str, method: str, path: str, headers: Mapping[str, str] = {}, body: bytes | None = None
) -> tuple[int, bytes]:
    """Send a request without the corrections of HTTP clients, and return status and body of the answer."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=ANSWER_SECONDS)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read()
