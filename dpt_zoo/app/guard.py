"""Middleware that refuses all requests but the page's own. Some of Gradio's routes read any file or fetch any URL."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_UPLOAD = 50 << 20  # bytes; photos are smaller
MAX_MESSAGE = 1 << 20  # bytes of the body of any other request

READABLE = re.compile(
    r"/(|config|theme\.css|favicon\.ico|manifest\.json|(assets|static)/.+"
    r"|gradio_api/(info|startup-events|queue/data|upload_progress|heartbeat/\w+))"
)
FILE = re.compile(r"/gradio_api/file=(?P<path>.+)", re.DOTALL)
UPLOAD = "/gradio_api/upload"
MESSAGES = ("/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset")

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""Names of this machine in a URL. Any other name that resolves to it may belong to another site."""

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
    """

    def __init__(self, app: ASGIApp, *, folder: Path, is_local: bool) -> None:
        self._app = app
        self._folder = folder.resolve()
        self._is_local = is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # start and end of the server
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            self._check_origin(request.headers)
            if request.method == "POST":
                receive = await self._checked_body(request)
            else:
                self._check_read(request)
        except HTTPException as refusal:
            await PlainTextResponse(refusal.detail, refusal.status_code)(scope, receive, send)
            return
        await self._app(scope, receive, _with_policy(send))

    def _check_origin(self, headers: Headers) -> None:
        """Refuse requests of other sites' pages, and host names of other sites that resolve to this server."""
        host = headers.get("host", "")
        if self._is_local and re.sub(r":\d+$", "", host) not in LOOPBACK:
            raise HTTPException(403, f"this server does not answer for the host {host}")
        if headers.get("origin", f"http://{host}") not in (f"http://{host}", f"https://{host}"):
            raise HTTPException(403, "other sites may not use this server")

    def _check_read(self, request: Request) -> None:
        path = request.scope["path"]
        file = FILE.fullmatch(path)
        is_needed = self._is_ours(file["path"]) if file else READABLE.fullmatch(path)
        if request.method not in ("GET", "HEAD") or not is_needed:
            raise HTTPException(404, "not found")

    async def _checked_body(self, request: Request) -> Receive:
        """Check the body of a POST request, and return a function that receives it."""
        path = request.scope["path"]
        if path != UPLOAD and path not in MESSAGES:
            raise HTTPException(404, "not found")
        length = request.headers.get("content-length", "")
        if not re.fullmatch(r"[0-9]{1,18}", length):
            raise HTTPException(411, "the length of the body is missing")
        limit = MAX_UPLOAD if path == UPLOAD else MAX_MESSAGE
        if int(length) > limit:
            raise HTTPException(413, f"at most {limit:,} bytes are accepted")
        if path == UPLOAD:
            return request.receive
        body = await request.body()
        try:
            names_ours = self._names_only_ours(json.loads(body))
        except (ValueError, RecursionError):
            raise HTTPException(400, "the body is not JSON") from None
        if not names_ours:
            raise HTTPException(403, "only uploaded files may be named")
        replay: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Message:
            return next(replay, None) or await request.receive()

        return receive

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


def _with_policy(send: Send) -> Send:
    async def send_with_policy(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Content-Security-Policy"] = POLICY
            headers["X-Content-Type-Options"] = "nosniff"
        await send(message)

    return send_with_policy
