"""Checks of HTTP requests that every server of this package makes. They raise Starlette's `HTTPException`."""

import asyncio
import re

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from .urls import is_loopback

STALL_SECONDS = 30.0  # longest time without a part of a body


def check_origin(headers: Headers, *, is_local: bool) -> None:
    """Refuse requests of other sites' pages, and host names of other sites that resolve to this server.

    Args:
        headers: the headers of the request.
        is_local: whether only this machine may use the server.
    """
    host = headers.get("host", "")
    # Any other name that resolves to this machine may belong to another site.
    if is_local and not is_loopback(re.sub(r":\d+$", "", host).strip("[]")):
        raise HTTPException(403, f"this server does not answer for the host {host}")
    if headers.get("origin", f"http://{host}") not in (f"http://{host}", f"https://{host}"):
        raise HTTPException(403, "other sites may not use this server")


def content_length(headers: Headers, limit: int) -> int:
    """Return the length of a request's body, in bytes, from its `headers`. Refuse more than `limit` bytes."""
    length = headers.get("content-length", "")
    if "transfer-encoding" in headers or not re.fullmatch(r"[0-9]{1,18}", length):
        raise HTTPException(411, "the length of the body is missing")
    if int(length) > limit:
        raise HTTPException(413, f"at most {limit:,} bytes are accepted")
    return int(length)


def limited(receive: Receive, num_bytes: int) -> Receive:
    """Return a function that receives at most `num_bytes` of a body, each part of it in time, by `receive`."""
    left, is_complete = num_bytes, False

    async def receive_limited() -> Message:
        nonlocal left, is_complete
        if is_complete:  # then it waits for the end of the connection
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), STALL_SECONDS)
        except asyncio.TimeoutError:
            raise HTTPException(408, "the body arrives too slowly") from None
        left -= len(message.get("body", b""))
        if left < 0:
            raise HTTPException(413, "the body is longer than its length")
        is_complete = not message.get("more_body", False)
        return message

    return receive_limited
