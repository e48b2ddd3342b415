"""A server on loopback that sends any bytes, for what no HTTP server would send."""

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType

Script = Callable[["Connection"], None]


class Connection:
    """One connection, whose request has been read.

    Attributes:
        head: the request.
        number: the number of the connection, from 1.
        closing: set when the server closes.
        num_sent: the bytes that were sent so far.
    """

    def __init__(self, sock: socket.socket, head: bytes, number: int, closing: threading.Event) -> None:
        self.head, self.number, self.closing, self.num_sent = head, number, closing, 0
        self._sock = sock

    def send(self, data: bytes) -> None:
        """Send bytes; an OSError ends the connection."""
        self._sock.sendall(data)
        self.num_sent += len(data)

    def repeat(self, data: bytes, pause: float = 0) -> None:
        """Send the same bytes, until the client goes or the server closes."""
        while not self.closing.wait(pause):
            self.send(data)


class RawServer:
    """Runs a script for each connection until the block ends."""

    def __init__(self, script: Script) -> None:
        self.connections: list[Connection] = []
        self._script, self._closing = script, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "RawServer":
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.set()
        self._listener.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head and (received := sock.recv(1 << 16)):
                head += received
            self.connections.append(Connection(sock, head, len(self.connections) + 1, self._closing))
            self._script(self.connections[-1])
