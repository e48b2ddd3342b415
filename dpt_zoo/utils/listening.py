"""The socket that a server listens on."""

import socket

from ..errors import InputError

KEEP_ALIVE_SECONDS = 75
"""Longest time of a connection between requests. Clients and proxies keep theirs for a shorter time, and meet no closed
one."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a host or IP address, and on a port from 1 to 65535, or 0 for any free one.

    Raises:
        InputError: This machine cannot listen on this `host` and `port`.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port must be from 0 to 65535, not {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family)
        # asyncio misses such sockets: an answer's body would wait 40 ms for the client to acknowledge its headers.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, UnicodeError) as error:
        reason, *_ = str(getattr(error, "strerror", None) or error).split(" (while")  # the rest repeats the address
        raise InputError(
            f"nothing can be served at {host}, port {port} ({reason}): choose others with --host and --port"
        ) from error


def listener_url(listener: socket.socket) -> str:
    """Return the URL of a server that listens on a socket."""
    address, port = listener.getsockname()[:2]
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"
