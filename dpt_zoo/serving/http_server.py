"""A server of uvicorn that ends connections that stall, and stops when it has answered what was accepted."""

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..utils.listening import KEEP_ALIVE_SECONDS
from .app import Service
from .settings import GRACE_SECONDS

HEADER_SECONDS = 10.0
"""Longest time for the headers of a request to arrive."""
READ_SECONDS = 30.0
"""Longest time for a client to read what fills the buffer of its connection."""


class GracefulServer(uvicorn.Server):
    """A server that answers what was accepted before it ends.

    Args:
        app: the application of the service.
        service: its service.
        ready: called when images are accepted.
    """

    def __init__(self, app: ASGIApp, service: Service, ready: Callable[[], object]) -> None:
        config = uvicorn.Config(
            app,
            http=TimedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS + 1,
        )
        super().__init__(config)
        self._service, self._ready = service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on `sockets`."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop to listen on `sockets`, and answer what was accepted. What still waits in the end is refused."""
        self._service.is_stopping = True
        refuse_rest = threading.Timer(GRACE_SECONDS, self._service.batcher.close)
        refuse_rest.start()
        await super().shutdown(sockets)
        refuse_rest.cancel()


class TimedProtocol(H11Protocol):
    """HTTP/1.1 with limits of time on what a client sends and reads, for which uvicorn would wait forever."""

    def connection_made(self, transport: Any) -> None:
        """Wait for headers from the start on."""
        super().connection_made(transport)
        self._headers_end: asyncio.TimerHandle | None = self.loop.call_later(HEADER_SECONDS, transport.abort)
        self._read_end: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Wait for headers until they are complete."""
        super().data_received(data)
        is_complete = self.cycle is not None and not self.cycle.response_complete
        if self._headers_end and is_complete:
            self._headers_end.cancel()
            self._headers_end = None
        elif not self._headers_end and not is_complete:
            self._headers_end = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._read_end = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop to wait for the client to read."""
        super().resume_writing()
        if self._read_end:
            self._read_end.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to wait."""
        super().connection_lost(exc)
        for timer in (self._headers_end, self._read_end):
            if timer:
                timer.cancel()
