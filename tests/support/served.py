"""Images for the served model of `exported_files`, a detector that can be held up, and a server."""

import io
import socket
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import requests
from PIL import Image

from dpt_zoo.inference.detector import Detector
from dpt_zoo.inference.inputs import ImageInput
from dpt_zoo.serving.app import Service, make_app
from dpt_zoo.serving.http_server import GracefulServer
from dpt_zoo.utils.listening import listen, listener_url
from dpt_zoo.views.layout import Views

BAD = b"this is no image"


def png(red: int = 200, green: int = 120, blue: int = 40, size: tuple[int, int] = (64, 48)) -> bytes:
    """Return an image in which the model finds objects with the scores red/255, green/255 and blue/255."""
    file = io.BytesIO()
    Image.fromarray(np.full((*size[::-1], 3), (red, green, blue), np.uint8)).save(file, "PNG")
    return file.getvalue()


class HeldDetector(Detector):
    """A detector that detects only while `go` is set, keeps the names of each batch, and fails where it should.

    Attributes:
        go: detection waits for it.
        batches: the names of the images of each batch.
        poison: the name of an image with which every batch fails.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.go = threading.Event()
        self.batches: list[list[str]] = []
        self.poison: str | None = None

    def detect_each(self, inputs: Iterable[ImageInput], views: Views | None = None) -> Iterator[Any]:
        """Detect as the base class does."""
        inputs = list(inputs)
        self.batches.append([each.name for each in inputs])
        assert self.go.wait(60)
        if any(each.name == self.poison for each in inputs):
            raise RuntimeError("out of memory")
        return super().detect_each(inputs, views)


class Running:
    """A server in a thread.

    Attributes:
        service: its service.
        url: its URL.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        listener, is_ready = listen("127.0.0.1", 0), threading.Event()
        self.url = listener_url(listener)
        self._address = listener.getsockname()
        self._server = GracefulServer(make_app(service, is_local=True), service, is_ready.set)
        self._thread = threading.Thread(target=self._server.run, args=([listener],))
        self._thread.start()
        assert is_ready.wait(60)

    def begin_to_stop(self) -> None:
        """Do what SIGTERM does."""
        self._server.should_exit = True

    def stop(self) -> None:
        """Stop, and wait for the end."""
        self.begin_to_stop()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def connect(self, data: bytes = b"") -> socket.socket:
        """Open a connection, and send some bytes."""
        connection = socket.create_connection(self._address)
        connection.settimeout(60)
        connection.sendall(data)
        return connection

    def detect(self, image: bytes) -> requests.Response:
        """Send an image."""
        return requests.post(f"{self.url}/v1/detect", data=image, timeout=60)
