"""Middleware around all requests: their ids, log lines and metrics, and the answer to unexpected errors."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..utils.request_checks import check_origin
from .metrics import Metrics
from .problems import error_kind, problem_response

REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
"""An id that a client may choose, in the header X-Request-ID."""

logger = logging.getLogger(__name__)


class Gate:
    """Gives each request an id, checks where it comes from, logs and counts it.

    Args:
        app: the application behind it.
        metrics: where requests and errors are counted.
        is_local: whether only this machine may use the server.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, is_local: bool) -> None:
        self._app, self._metrics, self._is_local = app, metrics, is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, start = Headers(scope=scope), time.perf_counter()
        status, is_complete = 0, False
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, fields={})

        async def send_with_id(message: Message) -> None:
            nonlocal status, is_complete
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            else:
                is_complete = not message.get("more_body", False)
            await send(message)

        try:
            check_origin(headers, is_local=self._is_local)
            await self._app(scope, receive, send_with_id)
        except HTTPException as error:
            await self.problem(error, scope)(scope, receive, send_with_id)
        except Exception:
            logger.exception("an unexpected error", extra={"fields": {"request_id": request_id}})
            if not is_complete:  # the client must not take a part for the whole
                raise
        finally:
            self._record(scope, status, time.perf_counter() - start)

    def problem(self, error: HTTPException, scope: Scope) -> Response:
        """Count an `error`, and return the answer to the request of a `scope`."""
        self._metrics.errors.labels(error_kind(error)).inc()
        return problem_response(error, scope["state"]["request_id"])

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        # A path may be anything: metrics and logs have the route.
        route = getattr(scope.get("route"), "path", "unknown")
        self._metrics.requests.labels(route, status).inc()
        self._metrics.latency.labels(route).observe(seconds)
        state, client = scope["state"], (scope.get("client") or ("",))[0]
        fields = {"request_id": state["request_id"], "client": client, "method": scope["method"], "route": route}
        fields |= {"status": status, "seconds": round(seconds, 4), **state["fields"]}
        logger.info("%s %s %d", scope["method"], route, status, extra={"fields": fields})
