"""One process that serves detectors on a socket: it loads them, and stops when it has answered what was accepted."""

import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..inference.detector import Detector, is_exported
from ..inference.exported_backend import read_metadata
from ..utils.dependencies import explain_imports
from ..utils.environment import usable_cores
from ..utils.urls import is_loopback
from .settings import Settings, read_api_keys


def run_server(settings: Settings, listener: socket.socket, device: str, ready: Callable[[], object]) -> None:
    """Serve until SIGTERM or SIGINT, on the socket `listener`.

    Args:
        settings: the models and limits.
        listener: the socket that listens.
        device: see `Detector`.
        ready: called when each model has detected once, and the server accepts images.

    Raises:
        DependencyError: FastAPI, uvicorn or prometheus_client is not installed.
        DPTZooError: `Detector` fails.
    """
    with explain_imports():
        from .app import Service, make_app
        from .http_server import GracefulServer
        from .logs import log_as_json
    api_keys = read_api_keys()
    service = Service(load_detectors(settings, device), settings, api_keys)
    app = make_app(service, is_local=is_loopback(listener.getsockname()[0]) and not api_keys)
    log_as_json()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # what uvicorn calls when it has stopped
    GracefulServer(app, service, ready).run([listener])


def load_detectors(settings: Settings, device: str) -> dict[str, Detector]:
    """Load the models of `settings` to a `device`, and detect once with each."""
    num_threads = settings.num_threads or len(usable_cores())
    detectors = {name: _load(model, settings, device, num_threads) for name, model in settings.models.items()}
    if any(detector.metadata is None for detector in detectors.values()):
        import torch

        torch.set_num_threads(num_threads)
    for detector in detectors.values():
        detector(np.zeros((64, 64, 3), np.uint8))
    return detectors


def _load(model: str, settings: Settings, device: str, num_threads: int) -> Detector:
    batch_size, options = settings.batch_size, dict[str, Any]()
    if is_exported(model):
        batch_size, options = read_metadata(Path(model)).images_per_call or batch_size, {"num_threads": num_threads}
    threshold = settings.score_threshold
    return Detector(model, device=device, score_threshold=threshold, batch_size=batch_size, **options)
