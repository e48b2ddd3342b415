"""The server of the page. Its files are in a temporary folder. By default, only this machine can use it."""

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import DPTZooError
from ..inference.detector import is_exported
from ..manifest.records import get_detector_info
from ..utils.listening import KEEP_ALIVE_SECONDS, listen, listener_url
from ..utils.urls import is_loopback

M_ARENA_MAX = -8  # glibc's number of the option for how many separate heaps there are


def serve(model: str, *, device: str, host: str, port: int, ready: Callable[[str], object]) -> None:
    """Serve the page until the process is interrupted.

    Args:
        model: the name or the exported file of the model that is selected first. It is loaded before the page is
            served.
        device: see `Detector`.
        host: the host or IP address to listen on: "127.0.0.1" (only this machine), "0.0.0.0" (all networks), ...
        port: 1 to 65535, or 0 for any free port.
        ready: called with the page's URL once the page can be opened.

    Raises:
        DPTZooError: Gradio is not installed, or `Detector` fails.
        InputError: The server cannot listen on this host and port.
    """
    if not is_exported(model):
        get_detector_info(model)
    _share_freed_memory()
    with tempfile.TemporaryDirectory(prefix="dpt-zoo-app-") as folder, listen(host, port) as listener:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the folder is removed
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=folder, GRADIO_EXAMPLES_CACHE=folder)
        try:
            import gradio  # noqa: F401  (it reads the environment)
            import uvicorn
        except ImportError as error:
            raise DPTZooError(f'the page needs Gradio ({error}): pip install "dpt-zoo[app]"') from error
        from .guard import Guard
        from .page import make_app

        is_local = is_loopback(listener.getsockname()[0])
        page = make_app(model, device)
        app = Guard(page, folder=Path(folder), is_local=is_local, functions=page.state.functions)
        ready(listener_url(listener))
        limits: dict[str, Any] = {"timeout_keep_alive": KEEP_ALIVE_SECONDS, "timeout_graceful_shutdown": 1}
        config = uvicorn.Config(app, ws="none", lifespan="on", log_level="critical", **limits)
        uvicorn.Server(config).run([listener])


def _share_freed_memory() -> None:
    """Have the threads share freed memory. By default, glibc keeps it for each: 50 MB more after 1,600 images."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # musl's C library has no mallopt
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
