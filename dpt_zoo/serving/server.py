"""One process that serves detectors on a socket: it loads them, and stops when it has answered what was accepted."""

import gc
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..inference.detector import Detector, is_exported
from ..inference.exported_backend import read_metadata
from ..utils.dependencies import explain_imports
from ..utils.environment import usable_cores
from ..utils.urls import is_loopback
from .settings import Settings, read_api_keys

MAX_REPLICAS = 2
"""Most detections at a time in one process: with two, a request waits a shorter time for those before it."""


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
    service = Service(load_replicas(settings, device), settings, api_keys)
    app = make_app(service, is_local=is_loopback(listener.getsockname()[0]) and not api_keys)
    log_as_json()
    gc.collect()
    gc.freeze()  # a full collection of all that is loaded would hold up every request for 0.1 s
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # what uvicorn calls when it has stopped
    GracefulServer(app, service, ready).run([listener])


def load_replicas(settings: Settings, device: str) -> list[dict[str, Detector]]:
    """Load the models of `settings` to a `device`, and detect once with each.

    Returns:
        The detectors by name: as often as the threads of a detection fit in the cores, up to MAX_REPLICAS times. They
        are there once if one of them uses PyTorch, which starts threads of its own, or a file that needs a batch.
    """
    cores = len(usable_cores())
    images_per_call = {
        name: read_metadata(Path(model)).images_per_call
        for name, model in settings.models.items()
        if is_exported(model)
    }
    use_pytorch = len(images_per_call) < len(settings.models)
    most = 1 if use_pytorch or any((number or 1) > 1 for number in images_per_call.values()) else MAX_REPLICAS
    num_threads = settings.num_threads or max(1, cores // most)
    count = max(1, min(most, cores // num_threads))
    batch_size = settings.choose_batch_size(count)

    def load(name: str, model: str) -> Detector:
        return Detector(
            model,
            device=device,
            score_threshold=settings.score_threshold,
            batch_size=images_per_call.get(name) or batch_size,
            num_threads=num_threads if name in images_per_call else None,
        )

    replicas = [{name: load(name, model) for name, model in settings.models.items()} for _ in range(count)]
    if use_pytorch:
        import torch

        torch.set_num_threads(num_threads)
    for replica in replicas:
        for detector in replica.values():
            detector(np.zeros((64, 64, 3), np.uint8))
    return replicas
