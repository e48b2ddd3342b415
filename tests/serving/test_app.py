"""The routes: forms of requests and answers, options, limits, keys, URLs, metrics and logs."""

import base64
import io
import json
import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from exported_files import make_onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance
from served import BAD, HeldDetector, png
from starlette.testclient import TestClient
from web_server import File, WebServer, redirect, stay_silent

from dpt_zoo.inference.detector import Detector
from dpt_zoo.serving import answers, bodies, server
from dpt_zoo.serving.app import Service, make_app
from dpt_zoo.serving.gate import Gate
from dpt_zoo.serving.logs import JsonFormatter
from dpt_zoo.serving.server import load_replicas
from dpt_zoo.serving.settings import Settings

MakeClient = Callable[..., TestClient]
DETECT = "/v1/detect"


def as_json(*images: bytes, **fields: str) -> dict[str, Any]:
    return {"images": [{"base64": base64.b64encode(image).decode(), **fields} for image in images]}


def check_problem(response: Any, status: int, text: str) -> None:
    """Check that a request was refused, for a reason that has a text."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    content = response.json()
    assert content["status"] == status
    assert text in content["detail"]
    assert content["request_id"] == response.headers["x-request-id"]
    assert ("retry-after" in response.headers) == (status == 503)


# --- Requests and answers.


@pytest.mark.parametrize(
    "request_with",
    [
        lambda image: {"content": image},
        lambda image: {"content": image, "headers": {"content-type": "image/png"}},
        lambda image: {"content": image, "headers": {"content-type": "application/x-www-form-urlencoded"}},
        lambda image: {"files": {"image": ("photo.png", image)}},
        lambda image: {"json": as_json(image, name="photo.png")},
    ],
    ids=["raw", "image/png", "curl", "form", "JSON"],
)
def test_forms_of_requests(request_with: Callable[[bytes], Any], client: TestClient, detector: Detector) -> None:
    response = client.post(DETECT, **request_with(png()))
    assert response.status_code == 200
    answer = response.json()
    assert answer["model"] == "first_pixel"
    (image,) = answer["images"]
    assert image.pop("path") in ("image-1", "photo.png")
    expected = detector(png()).to_json()
    expected.pop("path")
    assert image == expected
    assert len(image["objects"]) == 2


@pytest.mark.parametrize("form", ["form", "JSON"])
def test_several_images_of_which_some_are_bad(form: str, client: TestClient) -> None:
    images = [png(90), BAD, png(80, size=(30, 90)), b""[:0] or png()[:60]]
    if form == "JSON":
        response = client.post(DETECT, json=as_json(*images))
    else:
        response = client.post(DETECT, files=[("image", (f"image-{n}", image)) for n, image in enumerate(images, 1)])
    assert response.status_code == 200
    first, second, third, fourth = response.json()["images"]
    assert (first["path"], third["path"]) == ("image-1", "image-3")
    assert second == {"error": "image-2: this is not an image of a known format"}
    assert list(fourth) == ["error"]
    assert [image["objects"][0]["score"] for image in (first, third)] == pytest.approx([90 / 255, 80 / 255])
    assert (third["width"], third["height"]) == (30, 90)


def test_a_file_with_a_batch_size_of_its_own(tmp_path: Path) -> None:
    model = make_onnx(tmp_path / "pairs.onnx", batch=2)
    pairs = Settings(models={"pairs": str(model)}, num_threads=1)
    replicas = load_replicas(pairs, "cpu")
    assert len(replicas) == 1  # so that requests share a call
    service = Service(replicas, pairs)
    response = TestClient(make_app(service)).post(DETECT, json=as_json(png(), png(90), png()))
    assert [len(each["objects"]) for each in response.json()["images"]] == [2, 2, 2]
    service.batcher.close()


@pytest.mark.parametrize(
    ("cores", "num_threads", "expected"), [(1, None, 1), (2, None, 2), (64, None, 2), (2, 2, 1), (4, 2, 2), (4, 1, 2)]
)
def test_a_file_is_loaded_for_each_detection_at_a_time(
    cores: int, num_threads: int | None, expected: int, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "usable_cores", lambda: list(range(cores)))
    replicas = load_replicas(Settings(models={"first_pixel": str(model_file)}, num_threads=num_threads), "cpu")
    assert len({id(each["first_pixel"]) for each in replicas}) == len(replicas) == expected


def test_only_bad_images(client: TestClient) -> None:
    check_problem(client.post(DETECT, content=BAD), 400, "image-1: this is not an image of a known format")
    check_problem(client.post(DETECT, json=as_json(BAD, BAD)), 400, "image-2: this is not an image")
    check_problem(client.post(DETECT, content=b""), 400, "nothing in it")


def test_options(client: TestClient) -> None:
    objects = lambda query: client.post(f"{DETECT}?{query}", content=png()).json()["images"][0]["objects"]  # noqa: E731
    assert [each["name"] for each in objects("score_threshold=0.05")] == ["red", "green", "blue"]
    assert [each["name"] for each in objects("score_threshold=0.5")] == ["red"]
    assert [each["name"] for each in objects("classes=green&classes=blue&score_threshold=0.05")] == ["green", "blue"]
    assert [each["name"] for each in objects("max_detections=1")] == ["red"]
    assert [each["name"] for each in objects("")] == ["red", "green"]  # the options of others have left no trace


def test_slices(client: TestClient, detector: Detector) -> None:
    query = "slice_size=32&slice_overlap=0.5&whole_image=true"
    (image,) = client.post(f"{DETECT}?{query}", content=png()).json()["images"]
    expected = detector(png(), slice_size=32, slice_overlap=0.5, whole_image=True).to_json()
    assert image == expected and len(image["objects"]) > 2
    response = client.post(f"{DETECT}?{query}", content=png(), headers={"accept": answers.PNG})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("score_threshold=1.5", 422, "score_threshold: "),
        ("score_threshold=0.04", 422, "no object with a score below 0.05"),
        ("score_threshold=nan", 422, "score_threshold: "),
        ("score_threshold=high", 422, "score_threshold: "),
        ("max_detections=1001", 422, "max_detections: "),
        ("max_detections=101", 422, "first_pixel.onnx was exported with max_detections=100"),
        ("nms_iou=0.6", 422, "first_pixel.onnx was exported with nms_iou=0.5"),
        ("slice_size=31", 422, "slice_size: "),
        ("slice_size=32&slice_overlap=0.91", 422, "slice_overlap: "),
        ("whole_image=true", 422, "whole_image is an addition to slices"),
        ("classes=purple", 422, "no class 'purple'"),
        ("model=other", 404, "only first_pixel"),
    ],
)
def test_bad_options(query: str, status: int, text: str, client: TestClient) -> None:
    check_problem(client.post(f"{DETECT}?{query}", content=png()), status, text)


def test_coco(client: TestClient, detector: Detector) -> None:
    headers = {"accept": "application/vnd.coco+json"}
    response = client.post(DETECT, json=as_json(png(), png(90)), headers=headers)
    assert response.headers["content-type"] == "application/vnd.coco+json"
    expected = [*detector(png()).to_coco(1), *detector(png(90)).to_coco(2)]
    assert response.json() == json.loads(json.dumps(expected))
    check_problem(client.post(DETECT, json=as_json(png(), BAD), headers=headers), 400, "image-2")


def test_picture(client: TestClient, detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"accept": "image/png"}
    response = client.post(DETECT, content=png(), headers=headers)
    assert response.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(response.content)) as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(detector(png()).plot()))
    monkeypatch.setattr(answers, "MAX_DRAWN_SIDE", 32)
    with Image.open(io.BytesIO(client.post(DETECT, content=png(), headers=headers).content)) as picture:
        assert picture.size == (32, 24)
    check_problem(client.post(DETECT, json=as_json(png(), png()), headers=headers), 406, "only one image")


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", answers.JSON),
        ("*/*", answers.JSON),
        ("text/html, application/*;q=0.8", answers.JSON),
        ("image/*", answers.PNG),
        ("image/png;q=0.5, application/json;q=0.6", answers.JSON),
        ("application/json;q=0.5, IMAGE/PNG;q=0.6", answers.PNG),
        ("application/json;q=0, application/vnd.coco+json;q=0.1", answers.COCO),
        ("image/png;q=x, */*;q=0.1", answers.JSON),
        ("image/jpeg", None),
        ("*/*;q=0", None),
        (",;=", None),
    ],
)
def test_accept(accept: str, media_type: str | None, client: TestClient) -> None:
    response = client.post(DETECT, content=png(), headers={"accept": accept})
    if media_type:
        assert (response.status_code, response.headers["content-type"]) == (200, media_type)
    else:
        check_problem(response, 406, answers.COCO)


# --- Limits.


@pytest.mark.parametrize(
    ("content_type", "body", "status", "text"),
    [
        ("application/json", b"{", 422, "Invalid JSON"),
        ("application/json", b"[" * 100_000, 422, "Invalid JSON"),
        ("application/json", b'{"images": []}', 422, "images"),
        ("application/json", b'{"images": [{"base64": "!"}]}', 400, "image-1 is not base64"),
        ("application/json", b'{"images": [{"base64": "\xc3\xa9"}]}', 400, "image-1 is not base64"),
        ("application/json", b'{"images": [{"path": "/etc/passwd"}]}', 422, "images.0"),
        ("application/json", b'{"images": [{"base64": ""}]}', 422, "images.0"),
        ("application/json", b'{"images": [1], "images": 2}', 422, "images"),
        ("application/json", b"\xff\xfe", 422, "Invalid JSON"),
        ("multipart/form-data", b"", 400, "boundary"),
        ("multipart/form-data; boundary=x", b"", 400, "no file"),
        ("multipart/form-data; boundary=x", b"--x\r\nbad", 400, "form"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n\r\n--x--", 400, "form"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--',
            400,
            "Too many fields",
        ),
        ("multipart/form-data; boundary=" + "x" * 300, b"--x", 400, "form"),
        ("text/html", b"<html>", 415, "application/json"),
        ("image/png", BAD, 400, "image-1"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_bad_bodies(content_type: str, body: bytes, status: int, text: str, client: TestClient) -> None:
    check_problem(client.post(DETECT, content=body, headers={"content-type": content_type}), status, text)


def test_limits(make_client: MakeClient) -> None:
    client = make_client(max_bytes=10_000, max_images=2, max_pixels=64 * 48, max_views=6)
    assert client.post(DETECT, json=as_json(png(), png())).status_code == 200
    check_problem(client.post(DETECT, content=bytes(10_001)), 413, "at most 10,000 bytes")
    check_problem(client.post(DETECT, json=as_json(png(), png(), png())), 413, "at most 2 images")
    files = [("image", ("image", png()))] * 3
    check_problem(client.post(DETECT, files=files), 400, "Too many files")
    check_problem(client.post(DETECT, content=png(size=(65, 48))), 400, "at most 3,072 are accepted")
    assert client.post(f"{DETECT}?slice_size=32", content=png()).status_code == 200
    sliced = client.post(f"{DETECT}?slice_size=32&slice_overlap=0.9", content=png())
    check_problem(sliced, 400, "image-1: it would be detected in 84 views, at most 6 are accepted")
    chunks = iter([png()])
    check_problem(client.post(DETECT, content=chunks), 411, "length")


def test_bodies_in_memory(make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_BODIES", 2000)
    service = make_service()
    client = TestClient(make_app(service))
    check_problem(client.post(DETECT, content=bytes(2001)), 503, "too much at a time")
    assert client.post(DETECT, content=png()).status_code == 200
    check_problem(client.post(DETECT, content=BAD), 400, "image-1")
    assert service.bodies._num_bytes == 0


@pytest.fixture
def held_client(make_service: Callable[..., Service], model_file: Any) -> Iterator[Callable[..., Any]]:
    """Return a function that makes a client of a service whose detector is held up, and the detector."""
    detectors = []

    def make(**changes: Any) -> tuple[TestClient, HeldDetector, Service]:
        service = make_service(**changes)
        detector = HeldDetector(model_file, num_threads=1)
        service.detectors["first_pixel"] = detector
        detectors.append(detector)
        return TestClient(make_app(service)), detector, service

    yield make
    for detector in detectors:
        detector.go.set()


def test_a_full_queue(held_client: Callable[..., Any]) -> None:
    client, detector, _ = held_client(max_queue=3, max_images=3)
    answers: list[Any] = []
    post = lambda: answers.append(client.post(DETECT, json=as_json(png(), png(), png())))  # noqa: E731
    thread = threading.Thread(target=post)
    thread.start()
    while not detector.batches:
        threading.Event().wait(0.01)
    refused = client.post(DETECT, content=png())
    check_problem(refused, 503, "the queue is full")
    detector.go.set()
    thread.join(60)
    assert answers[0].status_code == 200
    assert client.post(DETECT, content=png()).status_code == 200
    assert 'dpt_zoo_errors_total{kind="queue_full"} 1.0' in client.get("/metrics").text


def test_a_deadline(held_client: Callable[..., Any]) -> None:
    client, detector, service = held_client(timeout=0.2)
    check_problem(client.post(DETECT, content=png()), 503, "no answer within 0.2 s")  # it runs
    check_problem(client.post(DETECT, content=png()), 503, "no answer within 0.2 s")  # it waits, and frees its place
    assert len(service.batcher._jobs) == 1
    detector.go.set()
    while service.batcher._jobs:
        threading.Event().wait(0.01)
    assert len(detector.batches) == 1


def test_an_unexpected_error_names_only_the_request(
    held_client: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    client, detector, _ = held_client()
    detector.go.set()
    detector.poison = "image-1"
    response = client.post(DETECT, content=png())
    check_problem(response, 500, "unexpected error")
    assert "memory" not in response.text
    (record,) = [record for record in caplog.records if record.exc_info]
    line = json.loads(JsonFormatter().format(record))
    assert line["request_id"] == response.json()["request_id"]
    assert "RuntimeError: out of memory" in line["exception"]


def test_a_service_that_stops(make_service: Callable[..., Service]) -> None:
    service = make_service()
    client = TestClient(make_app(service))
    service.is_stopping = True
    for path in ("/health/ready", "/v2/health/ready", "/v2/models/first_pixel/ready"):
        check_problem(client.get(path), 503, "stopping")
    assert client.get("/health/live").status_code == 200
    assert client.post(DETECT, content=png()).status_code == 200  # it was accepted
    service.batcher.close()
    check_problem(client.post(DETECT, content=png()), 503, "stopping")
    for thread in service.batcher._threads:
        thread.join(60)
    check_problem(client.get("/health/live"), 503, "thread")


# --- Who may ask.


def test_keys(make_client: MakeClient) -> None:
    client = make_client(api_keys=("secret-1", "sécret-2"))
    for header in ("", "Bearer", "Bearer secret", "Bearer secret-1x", "Basic secret-1", "secret-1"):
        response = client.post(DETECT, content=png(), headers={"authorization": header})
        check_problem(response, 401, "Authorization: Bearer KEY")
    for path in ("/v1/models", "/metrics", "/v2", "/v2/models/first_pixel"):
        check_problem(client.get(path), 401, "API key")
    for path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"):
        assert client.get(path).status_code == 200
    assert client.get("/v1/models", headers={"authorization": "Bearer secret-1"}).status_code == 200


def test_other_sites(make_client: MakeClient) -> None:
    client = make_client(is_local=True)
    check_problem(client.get("/v1/models"), 403, "testserver")  # the client's host
    local = {"host": "localhost:8000"}
    assert client.get("/v1/models", headers=local).status_code == 200
    check_problem(client.get("/v1/models", headers={**local, "origin": "http://evil.example"}), 403, "other sites")


@pytest.mark.network
class TestUrls:
    """Images at URLs are fetched only from the hosts that the operator allows."""

    @pytest.fixture
    def web(self) -> Iterator[WebServer]:
        with WebServer({"/photo.png": png(), "/bad.png": BAD}) as web:
            yield web

    @staticmethod
    def ask(client: TestClient, *urls: str) -> Any:
        return client.post(DETECT, json={"images": [{"url": url} for url in urls]})

    def test_an_allowed_host(self, make_client: MakeClient, web: WebServer) -> None:
        client = make_client(url_hosts=(web.url.removeprefix("http://"),))
        answer = self.ask(client, f"{web.url}/photo.png", f"{web.url}/bad.png", f"{web.url}/none.png?token=SECRET")
        first, second, third = answer.json()["images"]
        assert (first["path"], len(first["objects"])) == (f"{web.url}/photo.png", 2)
        assert second["error"].startswith(f"{web.url}/bad.png: this is not an image")
        assert third["error"] == f"{web.url}/none.png?...: the server answers 404"

    @pytest.mark.parametrize(
        "url",
        [
            "http://127.0.0.1:1/x",
            "http://127.0.0.1/x",
            "http://localhost:{port}/photo.png",
            "http://allowed@127.0.0.1:1/x",
            "http://127.0.0.1:1\\@127.0.0.1:{port}/photo.png",
            "http://127.0.0.1:1#@127.0.0.1:{port}/photo.png",
            "http://127.0.0.1:{port}.evil.example/photo.png",
            "file:///etc/passwd",
            "ftp://127.0.0.1:{port}/photo.png",
            "127.0.0.1:{port}/photo.png",
            "http://[::1",
            "http://",
            " http://127.0.0.1:1/",
        ],
    )
    def test_other_hosts(self, url: str, make_client: MakeClient, web: WebServer) -> None:
        host = web.url.removeprefix("http://")
        client = make_client(url_hosts=(host,))
        check_problem(self.ask(client, url.format(port=host.partition(":")[2])), 403, "no URLs of this host")
        assert web.log == []

    def test_none_by_default(self, client: TestClient, web: WebServer) -> None:
        check_problem(self.ask(client, f"{web.url}/photo.png"), 403, "no URLs of this host")
        assert web.log == []

    def test_a_redirect_does_not_leave_the_allowed_hosts(self, make_client: MakeClient, web: WebServer) -> None:
        with WebServer({"/inside.png": png()}) as inside:
            web.faults["/photo.png"] = [redirect(f"{inside.url}/inside.png")]
            client = make_client(url_hosts=(web.url.removeprefix("http://"),))
            check_problem(self.ask(client, f"{web.url}/photo.png"), 400, "a host that is not allowed")
            assert inside.log == []

    def test_a_slow_host(self, make_client: MakeClient, web: WebServer) -> None:
        web.faults["/photo.png"] = [stay_silent]
        client = make_client(url_hosts=(web.url.removeprefix("http://"),), timeout=0.2)
        check_problem(self.ask(client, f"{web.url}/photo.png"), 503, "too slowly")

    def test_a_large_image(self, make_client: MakeClient, web: WebServer) -> None:
        web.files["/large.png"] = File(bytes(1001))
        client = make_client(url_hosts=(web.url.removeprefix("http://"),), max_bytes=1000)
        check_problem(self.ask(client, f"{web.url}/large.png"), 400, "larger than")

    def test_few_at_a_time(self, make_client: MakeClient, web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bodies, "MAX_FETCHES", 1)
        client = make_client(url_hosts=(web.url.removeprefix("http://"),))
        check_problem(self.ask(client, *[f"{web.url}/photo.png"] * 2), 503, "too many URLs")


# --- What operators see.


def test_models_and_kserve(client: TestClient) -> None:
    (model,) = client.get("/v1/models").json()["models"]
    assert model == {
        "name": "first_pixel",
        "classes": ["red", "green", "blue"],
        "has_masks": True,
        "score_threshold": 0.3,
        "weights_sha256": "0" * 64,
    }
    assert client.get("/v2").json()["name"] == "dpt-zoo"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/first_pixel/ready").json() == {"ready": True, "name": "first_pixel"}
    metadata = client.get("/v2/models/first_pixel").json()
    assert [each["name"] for each in metadata["outputs"]] == ["boxes", "scores", "labels", "masks"]
    for path in ("/v2/models/other", "/v2/models/other/ready", "/v2/models"):
        check_problem(client.get(path), 404, "")


def test_metrics(client: TestClient) -> None:
    client.post(DETECT, json=as_json(png(), png(), BAD))
    client.post(DETECT, content=BAD)
    client.post(f"{DETECT}?model=other", content=png())
    client.get("/anything/at/all")
    text = client.get("/metrics").text
    for line in (
        'dpt_zoo_requests_total{route="/v1/detect",status="200"} 1.0',
        'dpt_zoo_requests_total{route="/v1/detect",status="400"} 1.0',
        'dpt_zoo_requests_total{route="unknown",status="404"} 1.0',
        'dpt_zoo_request_seconds_count{route="/v1/detect"} 3.0',
        'dpt_zoo_errors_total{kind="unreadable_image"} 2.0',
        'dpt_zoo_errors_total{kind="not_found"} 2.0',
        'dpt_zoo_batch_images_sum{model="first_pixel"} 2.0',
        "dpt_zoo_queue_images 0.0",
    ):
        assert f"\n{line}\n" in text
    assert "anything" not in text


def test_logs(make_client: MakeClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dpt_zoo")
    client = make_client(api_keys=("SECRET-key",))
    headers = {"authorization": "Bearer SECRET-key", "x-request-id": "mine-1"}
    url = "http://user:SECRET@example.com/SECRET.png?token=SECRET"
    response = client.post(f"{DETECT}?SECRET=SECRET", content=png(), headers=headers)
    assert response.headers["x-request-id"] == "mine-1"
    client.post(DETECT, json={"images": [{"url": url}]}, headers={**headers, "x-request-id": "a\tb"})
    client.get("/SECRET")
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records if record.name == Gate.__module__]
    assert [(line["request_id"] == "mine-1", line["route"], line["status"]) for line in lines] == [
        (True, DETECT, 200),
        (False, DETECT, 403),
        (False, "unknown", 404),
    ]
    assert (lines[0]["model"], lines[0]["images"], lines[0]["method"]) == ("first_pixel", 1, "POST")
    assert lines[0]["seconds"] > 0
    assert "SECRET" not in json.dumps(lines)


def test_urls_in_logs_are_redacted() -> None:
    try:
        raise ValueError("https://user:SECRET@example.com/a?SECRET")
    except ValueError:
        record = logging.LogRecord("x", 40, "f", 1, "https://example.com/?q=SECRET\n%s", ("z",), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "SECRET" not in line
    assert "\n" not in line


# --- Anything at all.


@settings(max_examples=40, deadline=None)
@given(
    body=st.binary(max_size=300),
    kind=st.sampled_from(["", "image/png", "application/json", "multipart/form-data; boundary=x", "text/plain", "é;x"]),
    accept=st.text(max_size=30),
    query=st.text(max_size=30),
)
def test_any_request_is_answered(body: bytes, kind: str, accept: str, query: str, any_client: TestClient) -> None:
    headers = {b"content-type": kind.encode(), b"accept": accept.encode()}
    response = any_client.post(DETECT, content=body, headers=headers, params={"classes": query})
    assert 400 <= response.status_code < 500


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, 200), piece=st.binary(max_size=8), cut=st.integers(0, 8))
def test_damaged_images_are_refused_or_detected(place: int, piece: bytes, cut: int, any_client: TestClient) -> None:
    image = png()
    response = any_client.post(DETECT, content=image[:place] + piece + image[place + cut :])
    assert response.status_code in (200, 400)


@pytest.fixture(scope="module")
def any_client(model_file: Path) -> TestClient:
    """One client for all examples."""
    all_settings = Settings(models={"first_pixel": str(model_file)}, num_threads=1)
    return TestClient(make_app(Service(load_replicas(all_settings, "cpu"), all_settings)))


@pytest.mark.slow
def test_requests_made_from_the_openapi_document(any_client: TestClient) -> None:
    """No request that schemathesis makes, valid or not, is an error of the server; answers have the documented form."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", any_client.app)
    statuses: Counter[int] = Counter()
    for found in schema.get_all_operations():
        operation: Any = found

        @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.ok().as_strategy())
        def check(case: Any) -> None:
            response = case.call()
            statuses[response.status_code] += 1
            case.validate_response(response, checks=[not_a_server_error, response_schema_conformance])

        check()
    assert statuses[200]
