"""HTTP connections that end when the client stalls. Without this, uvicorn waits for headers and readers forever."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
"""Longest time for the headers of a request to arrive."""
READ_SECONDS = 30.0
"""Longest time for a client to read what fills the buffer of its connection."""


class TimedProtocol(H11Protocol):
    """uvicorn's protocol with limits of time on what a client sends and reads."""

    _headers_end: asyncio.TimerHandle | None = None
    _read_end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for headers from the start on."""
        super().connection_made(transport)
        self._headers_end = self.loop.call_later(HEADER_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Wait for headers until they are complete."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._headers_end = _cancel(self._headers_end)
        elif self._headers_end is None:
            self._headers_end = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._read_end = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop to wait for the client to read."""
        super().resume_writing()
        self._read_end = _cancel(self._read_end)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to wait."""
        super().connection_lost(exc)
        self._headers_end, self._read_end = _cancel(self._headers_end), _cancel(self._read_end)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
