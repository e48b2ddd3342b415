"""The client: it gives what the server's detector finds, and says what is wrong."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_server import Connection, RawServer
from served import BAD, Running, png

import dpt_zoo
from dpt_zoo.errors import ImageError, InputError, ServiceError
from dpt_zoo.inference.detector import Detector

pytestmark = pytest.mark.network


@pytest.fixture
def connect(run_service: Callable[..., Running]) -> Callable[..., dpt_zoo.Client]:
    """Return a function that makes a client of a server with some settings."""
    return lambda **settings: dpt_zoo.Client(f"{run_service(**settings).url}/")


def test_detections(connect: Callable[..., dpt_zoo.Client], detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "photo é.png"
    path.write_bytes(png())
    pixels = np.asarray(Image.open(path))
    client = connect()
    assert client.classes == ("red", "green", "blue")
    for image in (path, str(path), png(), pixels, Image.fromarray(pixels)):
        expected, detections = detector(image), client(image)
        assert detections.to_json() == expected.to_json()
        assert detections.classes == expected.classes
    assert client(path, slice_size=32, max_detections=2).to_json() == detector(path, slice_size=32).to_json()
    assert client(path, score_threshold=0.05, classes=["green", "blue"]).names == ["green", "blue"]


def test_bad_images(connect: Callable[..., dpt_zoo.Client], tmp_path: Path) -> None:
    client = connect(max_bytes=2000)
    with pytest.raises(ImageError, match="this is not an image of a known format"):
        client(BAD)
    with pytest.raises(ImageError, match=r"none\.png: the file cannot be read"):
        client(tmp_path / "none.png")
    with pytest.raises(InputError, match="is not one image"):
        client(tmp_path)
    with pytest.raises(ServiceError, match="refuses the request \\(413\\): at most 2,000 bytes"):
        client(bytes(2001))
    with pytest.raises(ServiceError, match="\\(422\\): classes: the model has no class 'purple'"):
        client(png(), classes=["purple"])


def test_a_model_that_the_server_does_not_have(run_service: Callable[..., Running]) -> None:
    client = dpt_zoo.Client(run_service().url, model="other")
    with pytest.raises(ServiceError, match="\\(404\\): there is no model of this name, only first_pixel"):
        client(png())


def test_a_busy_server_is_asked_again(detector: Detector) -> None:
    busy = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 0\r\nContent-Length: 2\r\n\r\n{}"
    body = b'{"models": [{"name": "m", "classes": ["a", "b"]}]}'
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    def script(connection: Connection) -> None:
        connection.send(busy if connection.number < 3 else answer)

    with RawServer(script) as server:
        assert dpt_zoo.Client(server.url).classes == ("a", "b")
        assert len(server.connections) == 3


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"])
def test_what_is_no_service(answer: bytes) -> None:
    with (
        RawServer(lambda connection: connection.send(answer)) as server,
        pytest.raises(ServiceError, match="gives no answer") as raised,
    ):
        dpt_zoo.Client(server.url.replace("//", "//user:SECRET@"))(png())
    assert "SECRET" not in str(raised.value)


MODELS = '{"models": [{"name": "m", "classes": ["a"]}]}'
IMAGE = '{"path": null, "width": 9, "height": 9, "has_masks": false, "objects": [%s]}'


@pytest.mark.parametrize(
    ("models", "images"),
    [
        *((models, "[]") for models in ("[]", "{}", '{"models": []}', '{"models": {"a": 1}}', "[" * 50_000)),
        *((MODELS, images) for images in ("[]", "{}", "[[]]", "[%s]" % (IMAGE % "{}"))),
        (MODELS, "[%s]" % (IMAGE % '{"label": 1, "score": 0.5, "box": [1, 1, 2, 2]}')),
        (MODELS, "[%s]" % (IMAGE % ('{"label": 0, "score": 0.5, "box": [1, 1, 2, %s]}' % ("9" * 400)))),
    ],
    ids=lambda text: text[:20],
)
def test_answers_of_another_program(models: str, images: str) -> None:
    def script(connection: Connection) -> None:
        body = models if connection.head.startswith(b"GET") else f'{{"images": {images}}}'
        connection.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        connection.send(body.encode())

    with RawServer(script) as server, pytest.raises(ServiceError, match=r"gives (an answer that|no answer)"):
        dpt_zoo.Client(server.url)(png())
