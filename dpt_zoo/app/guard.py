"""Middleware that refuses all requests but the page's own. Some of Gradio's routes read any file or fetch any URL."""

import asyncio
import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..utils.request_checks import check_origin, content_length, limited

MAX_UPLOAD = 50 << 20  # bytes; photos are smaller
MAX_MESSAGE = 1 << 20  # bytes of the body of any other request
MAX_FOLDER = 1 << 30  # bytes of all uploads and results, and of the uploads that are received at one time
MIN_FILE = 1 << 16  # bytes that a smaller file counts as, which limits the number of files

READABLE = re.compile(
    r"/(|config|theme\.css|favicon\.ico|manifest\.json|(assets|static)/.+"
    r"|gradio_api/(info|startup-events|queue/data|upload_progress|heartbeat/\w+))"
)
FILE = re.compile(r"/gradio_api/file=(?P<path>.+)", re.DOTALL)
UPLOAD = "/gradio_api/upload"
MESSAGES = ("/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset")

POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""With this header, the browser refuses the page's requests to other machines."""


class Guard:
    """Middleware that refuses every request that the page does not need.

    Args:
        app: the application to protect.
        folder: the folder of uploads and results. Requests cannot read or name files outside it.
        is_local: whether only this machine may use the server.
        functions: the numbers of the page's functions.
    """

    def __init__(self, app: ASGIApp, *, folder: Path, is_local: bool, functions: Collection[int]) -> None:
        self._app = app
        self._folder = folder.resolve()
        self._is_local = is_local
        self._functions = functions
        self._own_files = {path for *_, path in _files_below(self._folder)}  # such as the examples: they stay
        self._num_incoming = 0  # bytes of the uploads that are being received

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # start and end of the server
            await self._app(scope, receive, send)
            return
        request, num_bytes = Request(scope, receive), 0
        try:
            check_origin(request.headers, is_local=self._is_local)
            if request.method == "POST":
                num_bytes = self._reserve(request)
                receive = await self._checked_body(Request(scope, limited(receive, num_bytes)))
            else:
                self._check_read(request)
        except HTTPException as refusal:
            await PlainTextResponse(refusal.detail, refusal.status_code)(scope, receive, send)
        else:
            await self._app(scope, receive, _with_policy(send))
        finally:
            self._num_incoming -= num_bytes

    def _check_read(self, request: Request) -> None:
        path = request.scope["path"]
        file = FILE.fullmatch(path)
        is_needed = self._is_ours(file["path"]) if file else READABLE.fullmatch(path)
        if request.method not in ("GET", "HEAD") or not is_needed:
            raise HTTPException(404, "not found")

    def _reserve(self, request: Request) -> int:
        """Count the length of the body of a POST request as incoming and return it, or refuse the request."""
        path = request.scope["path"]
        if path != UPLOAD and path not in MESSAGES:
            raise HTTPException(404, "not found")
        length = content_length(request.headers, MAX_UPLOAD if path == UPLOAD else MAX_MESSAGE)
        if self._num_incoming + length > MAX_FOLDER:
            raise HTTPException(503, "too many uploads at a time: try again")
        self._num_incoming += length
        return length

    async def _checked_body(self, request: Request) -> Receive:
        """Check the body of a POST request, and return a function that receives it."""
        await asyncio.to_thread(self._make_room)
        if request.scope["path"] == UPLOAD:
            return request.receive
        body = await request.body()
        try:
            content = json.loads(body)
            names_ours = self._names_only_ours(content)
        except (ValueError, RecursionError):
            raise HTTPException(400, "the body is not JSON") from None
        if not names_ours:
            raise HTTPException(403, "only uploaded files may be named")
        function = content.get("fn_index") if isinstance(content, dict) else None
        if function is not None and not (isinstance(function, int) and function in self._functions):
            raise HTTPException(400, "there is no such function")
        replay: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Message:
            return next(replay, None) or await request.receive()

        return receive

    def _make_room(self) -> None:
        """Remove the oldest uploads and results, so that the folder can take what is incoming."""
        files = sorted(file for file in _files_below(self._folder) if file[-1] not in self._own_files)
        excess = sum(size for _, size, _ in files) + self._num_incoming - MAX_FOLDER
        for _, size, path in files:
            if excess <= 0:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                excess -= size
                path.parent.rmdir()  # if it is empty

    def _names_only_ours(self, value: Any) -> bool:
        """Return whether all paths in a message, at any depth, are in the folder. Gradio would read or fetch others."""
        if isinstance(value, list):
            return all(map(self._names_only_ours, value))
        if isinstance(value, dict):
            path = value.get("path")
            return (path is None or self._is_ours(path)) and all(map(self._names_only_ours, value.values()))
        return True

    def _is_ours(self, path: Any) -> bool:
        try:
            return Path(path).resolve().is_relative_to(self._folder)
        except (TypeError, ValueError, OSError):  # not a string, a null character, too long
            return False


def _files_below(folder: Path) -> list[tuple[float, int, Path]]:
    """Return the time, size and path of each file in a folder and below."""
    files = []
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            with contextlib.suppress(OSError):  # Gradio removes files, too
                stat = path.lstat()
                files.append((stat.st_mtime, max(stat.st_size, MIN_FILE), path))
    return files


def _with_policy(send: Send) -> Send:
    async def send_with_policy(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Content-Security-Policy"] = POLICY
            headers["X-Content-Type-Options"] = "nosniff"
        await send(message)

    return send_with_policy
