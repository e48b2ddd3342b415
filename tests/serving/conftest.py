"""A service whose model is written by hand: it detects three objects, whose scores are the first pixel's channels."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from exported_files import make_onnx
from served import Running
from starlette.testclient import TestClient

from dpt_zoo.inference.detector import Detector
from dpt_zoo.serving.app import Service, make_app
from dpt_zoo.serving.server import load_replicas
from dpt_zoo.serving.settings import Settings


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_onnx(tmp_path_factory.mktemp("served") / "first_pixel.onnx")


@pytest.fixture(scope="session")
def detector(model_file: Path) -> Detector:
    """The bare detector: answers must be equal to its detections."""
    return Detector(model_file, num_threads=1)


@pytest.fixture
def make_service(model_file: Path) -> Iterator[Callable[..., Service]]:
    """Return a function that makes a service with some settings. Its threads end with the test."""
    services = []

    def make(api_keys: tuple[str, ...] = (), **changes: Any) -> Service:
        settings = Settings(**{"models": {"first_pixel": str(model_file)}, "num_threads": 1, **changes})
        services.append(Service(load_replicas(settings, "cpu")[:1], settings, api_keys))
        return services[-1]

    yield make
    for service in services:
        service.batcher.close()


@pytest.fixture
def make_client(make_service: Callable[..., Service]) -> Callable[..., TestClient]:
    """Return a function that makes a client of an application with some settings."""

    def make(is_local: bool = False, **changes: Any) -> TestClient:
        return TestClient(make_app(make_service(**changes), is_local=is_local))

    return make


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client()


@pytest.fixture
def run_service(make_service: Callable[..., Service]) -> Iterator[Callable[..., Running]]:
    """Return a function that runs a server with some settings, on loopback."""
    with contextlib.ExitStack() as stack:

        def run(**changes: object) -> Running:
            running = Running(make_service(**changes))
            stack.callback(running.stop)
            return running

        yield run
