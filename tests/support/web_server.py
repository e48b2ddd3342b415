"""A web server on loopback that keeps to HTTP, ranges and validators too, except where a test breaks it."""

import contextlib
import gzip
import hashlib
import http
import socket
import ssl
import struct
import sys
import threading
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import EllipsisType, TracebackType
from typing import Any, TypeVar

from requests.structures import CaseInsensitiveDict

Server = TypeVar("Server", bound="WebServer")


@dataclass
class File:
    """What stands under a path; without an `etag` of its own it has a strong one, of its content."""

    content: bytes
    etag: str | None = "of the content"
    modified: str | None = "Sat, 28 Aug 2021 10:00:00 GMT"

    def validators(self) -> dict[str, str]:
        """The headers that tell versions of it apart."""
        etag = self.etag
        if etag == "of the content":
            etag = f'"{hashlib.sha256(self.content).hexdigest()[:16]}"'
        return {name: value for name, value in (("ETag", etag), ("Last-Modified", self.modified)) if value}


@dataclass
class Answer:
    """What the server sends; at first as HTTP would have it, then as a `Fault` leaves it."""

    file: File
    request: Mapping[str, str]
    closing: threading.Event
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Iterable[bytes] = ()
    status_line: str = ""

    def __post_init__(self) -> None:
        self.start_over()

    def start_over(self, *, whole: bool = False, heed_if_range: bool = True) -> None:
        """Answer as HTTP has it, from the file as it is now."""
        size, validators = len(self.file.content), self.file.validators()
        start = 0 if whole else int(self.request.get("Range", "bytes=0-")[len("bytes=") :].partition("-")[0])
        if heed_if_range and self.request.get("If-Range", "") not in ("", *validators.values()):
            start = 0
        self.headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **validators}
        self.status = 206 if start else 200
        if start:
            self.headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self.set_body(self.file.content[start:])
        if start >= size > 0:
            self.status, self.headers["Content-Range"] = 416, f"bytes */{size}"

    def set_body(self, body: bytes) -> None:
        """Send this, with its right length."""
        self.body, self.headers["Content-Length"] = [body], str(len(body))

    def read_body(self) -> bytes:
        """All of the body."""
        self.body = [b"".join(self.body)]
        return self.body[0]


ENCODERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress, "unheard-of": bytes}

Fault = Callable[[Answer], None]
Faults = list[Fault | EllipsisType]
"""The first request's fault, the second's, ...; `...` repeats the one before it for ever."""


@dataclass
class Exchange:
    """One request as the server saw it, and how many bytes of a body it set out to send."""

    path: str
    headers: Mapping[str, str]
    status: int = 0
    sent: int = 0

    @property
    def range(self) -> str | None:
        """The range that was asked for."""
        return self.headers.get("Range")


class WebServer:
    """Serves files until the block ends. Subclasses answer otherwise."""

    def __init__(self, files: Mapping[str, bytes | File], tls: ssl.SSLContext | None = None) -> None:
        self.files = {path: each if isinstance(each, File) else File(each) for path, each in files.items()}
        self.faults: defaultdict[str, Faults] = defaultdict(list)
        self.log: list[Exchange] = []
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler_of(self))
        scheme, host = ("https", "localhost") if tls else ("http", "127.0.0.1")
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{scheme}://{host}:{self._server.server_address[1]}"

    def __enter__(self: Server) -> Server:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, target: str, request: Mapping[str, str]) -> Answer:
        """What HTTP has the server send for a path and query."""
        file = self.files.get(target)
        if file:
            return Answer(file, request, self.closing)
        answer = Answer(File(b""), {}, self.closing)
        page("<html><title>Not Found</title>", status=404)(answer)
        return answer

    def next_fault(self, target: str) -> Fault | None:
        """What goes wrong with this request."""
        faults = self.faults[target]
        fault = faults[0] if faults else None
        if faults[1:2] != [...]:
            del faults[:1]
        assert not isinstance(fault, EllipsisType)
        return fault


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def shutdown_request(self, request: Any) -> None:
        """Only close the connection; an orderly end before that would hide a reset."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that go away: they are what many tests are about."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _handler_of(server: WebServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            request = CaseInsensitiveDict(self.headers.items())
            exchange = Exchange(self.path, request)
            server.log.append(exchange)
            try:
                answer = server.answer(self.path, request)
                if fault := server.next_fault(self.path):
                    fault(answer)
                self.send(answer, exchange)
            except ConnectionAbortedError:
                at_once = struct.pack("ii", 1, 0)  # closing resets
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                self.close_connection = True

        def send(self, answer: Answer, exchange: Exchange) -> None:
            exchange.status = answer.status
            headers = {"Date": self.date_time_string(), **answer.headers}
            lines = [answer.status_line or f"HTTP/1.1 {answer.status} {http.HTTPStatus(answer.status).phrase}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
            for piece in answer.body:
                exchange.sent += len(piece)
                self.wfile.write(piece)
            self.close_connection = answer.headers.get("Content-Length") != str(exchange.sent)

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing."""

    return Handler


def faultless(answer: Answer) -> None:
    """Change nothing."""


def streaming(pieces: Callable[[bytes, threading.Event], Iterator[bytes]]) -> Fault:
    """Send the body in pieces, made from the whole body and an event that tells when the server closes."""

    def fault(answer: Answer) -> None:
        answer.body = pieces(answer.read_body(), answer.closing)

    return fault


def cut(at: int) -> Fault:
    """Close the connection after so many bytes of the body; a negative number counts from its end."""
    return streaming(lambda body, closing: iter([body[:at]]))


def reset(at: int) -> Fault:
    """Reset the connection after so many bytes of the body."""

    @streaming
    def fault(body: bytes, closing: threading.Event) -> Iterator[bytes]:
        yield body[:at]
        raise ConnectionAbortedError

    return fault


def hang_up(answer: Answer) -> None:
    """Close the connection without any answer."""
    raise ConnectionAbortedError


def stay_silent(answer: Answer) -> None:
    """Keep the connection without any answer."""
    answer.closing.wait()


def delay(seconds: float) -> Fault:
    """Answer rightly, but late."""

    def fault(answer: Answer) -> None:
        answer.closing.wait(seconds)

    return fault


def stall(at: int) -> Fault:
    """Send so many bytes of the body, and then nothing more."""

    @streaming
    def fault(body: bytes, closing: threading.Event) -> Iterator[bytes]:
        yield body[:at]
        closing.wait()

    return fault


def drip(pause: float) -> Fault:
    """Send one byte of the body after another, each after a pause in seconds."""

    @streaming
    def fault(body: bytes, closing: threading.Event) -> Iterator[bytes]:
        for index in range(len(body)):
            closing.wait(pause)
            yield body[index : index + 1]

    return fault


def endless(answer: Answer) -> None:
    """Send a body that never ends."""

    @streaming
    def fault(body: bytes, closing: threading.Event) -> Iterator[bytes]:
        while not closing.is_set():
            yield bytes(1 << 16)

    both(unframed, fault)(answer)


def status(code: int, headers: Mapping[str, str] = {}) -> Fault:
    """Refuse with this status and a few words."""

    def fault(answer: Answer) -> None:
        answer.status, answer.headers = code, {"Content-Type": "text/plain", **headers}
        answer.set_body(b"" if code in (204, 304) else b"no")

    return fault


def page(html: str, *, status: int = 200, content_type: str = "text/html; charset=utf-8") -> Fault:
    """Send a web page."""

    def fault(answer: Answer) -> None:
        answer.status, answer.headers = status, {"Content-Type": content_type}
        answer.set_body(html.encode())

    return fault


def redirect(target: str, code: int = 302) -> Fault:
    """Lead somewhere else."""
    return status(code, {"Location": target})


def headers(changes: Mapping[str, str | None]) -> Fault:
    """Send other headers; None takes one away."""

    def fault(answer: Answer) -> None:
        changed = {**answer.headers, **changes}
        answer.headers = {name: value for name, value in changed.items() if value is not None}

    return fault


def without_ranges(answer: Answer) -> None:
    """Answer with the whole file, as a server does that knows no ranges."""
    answer.start_over(whole=True)
    del answer.headers["Accept-Ranges"]


def without_if_range(answer: Answer) -> None:
    """Answer with a range, whichever version of the file was asked for."""
    answer.start_over(heed_if_range=False)


def becomes(content: bytes, **changes: Any) -> Fault:
    """Have another file from now on."""

    def fault(answer: Answer) -> None:
        answer.file.content = content
        for name, value in changes.items():
            setattr(answer.file, name, value)
        answer.start_over()

    return fault


def unframed(answer: Answer) -> None:
    """Leave the length out: the body ends where the connection does."""
    del answer.headers["Content-Length"]


def chunked(answer: Answer) -> None:
    """Send the body in chunks, without saying its length."""
    body = answer.read_body()
    parts = [body[start : start + 7000] for start in range(0, len(body), 7000)]
    answer.body = [b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])]
    answer.headers["Transfer-Encoding"] = "chunked"
    del answer.headers["Content-Length"]


def encoded(name: str, share: float = 1.0) -> Fault:
    """Send this share of the body's compressed form, although nobody asked for it."""

    def fault(answer: Answer) -> None:
        packed = ENCODERS[name](answer.read_body())
        answer.headers["Content-Encoding"] = name
        answer.set_body(packed[: int(share * len(packed))])

    return fault


def both(*faults: Fault) -> Fault:
    """Apply several faults, in this order."""

    def fault(answer: Answer) -> None:
        for each in faults:
            each(answer)

    return fault


@contextlib.contextmanager
def closed_port() -> Iterator[str]:
    """The address of a port where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
