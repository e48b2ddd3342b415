"""The page's server: its files are in a folder of its own, and it is for this machine alone unless told otherwise."""

import ipaddress
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..errors import DPTZooError, InputError
from ..manifest.records import get_detector_info


def serve(model: str, *, device: str, host: str, port: int, ready: Callable[[str], object]) -> None:
    """Serve the page until the process is interrupted.

    Args:
        model: the one that is chosen at first; it is loaded before the page is there.
        device: see `Detector`.
        host: the address to listen at, such as "127.0.0.1" (this machine alone) or "0.0.0.0" (all networks).
        port: 1 to 65535, or 0 for any that is free.
        ready: takes the page's address when it is there.

    Raises:
        DPTZooError: Gradio is not installed, or as `Detector` does.
        InputError: it cannot listen at this host and port.
    """
    get_detector_info(model)
    with tempfile.TemporaryDirectory(prefix="dpt-zoo-app-") as folder, _listen(host, port) as listener:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the folder goes then, too
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=folder, GRADIO_EXAMPLES_CACHE=folder)
        try:
            import gradio  # noqa: F401  (only now, for it reads the environment)
            import uvicorn
        except ImportError as error:
            raise DPTZooError(f'the page needs Gradio ({error}): pip install "dpt-zoo[app]"') from error
        from .guard import Guard
        from .page import make_app

        address, port = listener.getsockname()[:2]
        is_loopback = ipaddress.ip_address(address).is_loopback
        app = Guard(make_app(model, device), folder=Path(folder), only_here=is_loopback)
        ready(f"http://{f'[{address}]' if ':' in address else address}:{port}")
        server = uvicorn.Server(
            uvicorn.Config(app, ws="none", lifespan="on", log_level="critical", timeout_graceful_shutdown=1)
        )
        server.run([listener])


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise InputError(f"--port is from 0 to 65535, not {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        reason, *_ = str(getattr(error, "strerror", None) or error).split(" (while")  # which address it was
        raise InputError(
            f"the page cannot be served at {host}, port {port} ({reason}): choose others with --host and --port"
        ) from error
