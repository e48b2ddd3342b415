"""HTTP requests with a limit on everything that a server can draw out: headers, redirects, bodies and trailers."""

import contextlib
import functools
import http.client
import io
import socket
import ssl
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from .._version import __version__
from ..errors import FetchError
from .urls import is_loopback, is_secure, redact, redact_all

STALL_SECONDS = 30.0  # longest time for a response's headers, and without a byte of its body
SLOWEST = 1024  # bytes per second, over STALL_SECONDS, below which a transfer counts as stalled
CHUNK = 1 << 20  # bytes
REDIRECTS = 10
ATTEMPTS = 3  # of `read_url`
WORTH_RETRYING = {408, 425, 429, 500, 502, 503, 504}


class TransientError(Exception):
    """A failure that another attempt may solve."""

    retry_after: float = 0  # the wait in seconds that the server asked for


def read_url(url: str, limit: int, hosts: Collection[str] | None = None) -> bytes:
    """Return the content of a `url`, after up to two more attempts. A failure raises FetchError.

    The content may have `limit` bytes. Plain HTTP is accepted. See `Session` for `hosts`.
    """
    with Session(is_secure_only=False, hosts=hosts) as session:
        for attempt in range(ATTEMPTS):
            try:
                with contextlib.closing(session.open_url(url)) as response:
                    status = response.status_code
                    if status == 200 or status in WORTH_RETRYING:
                        check_status(response)
                    content = session.read_start(response, limit + 1) if status == 200 else b""
            except TransientError as error:
                reason = str(error)
                time.sleep(0.5 * attempt)
                continue
            except FetchError as error:
                reason = str(error)
                break
            if status != 200:
                raise FetchError(f"the server answers {status}")
            if len(content) > limit:
                raise FetchError(f"refused, it is larger than {limit >> 20} MB")
            return content
    raise FetchError(f"it cannot be downloaded: {reason}")


class Session(requests.Session):
    """A session of requests that waits for nothing without limit.

    Args:
        stall_seconds: the longest time for the headers of a response, and without a byte of its body.
        slowest: bytes per second that must arrive in this time.
        is_secure_only: refuse URLs that are not secure, also in redirects.
        hosts: the hosts of which URLs are accepted, also in redirects, see `url_host`; None for all.
    """

    def __init__(
        self,
        stall_seconds: float = STALL_SECONDS,
        slowest: int = SLOWEST,
        *,
        is_secure_only: bool = True,
        hosts: Collection[str] | None = None,
    ) -> None:
        super().__init__()
        self._stall_seconds, self._slowest = stall_seconds, slowest
        self._is_secure_only, self._hosts = is_secure_only, hosts
        self._clock = _Clock(stall_seconds)
        for scheme in ("https://", "http://"):
            self.mount(scheme, _Adapter(self._clock))
        # Ranges and hashes are of the file itself, not of a compressed form. Google's pages are recognized in English.
        identity = {"Accept-Encoding": "identity", "Accept-Language": "en"}
        self.headers.update({"User-Agent": f"dpt-zoo/{__version__}", **identity})

    def open_url(self, url: str, headers: Mapping[str, str] = {}) -> requests.Response:
        """Send a request with `url` and `headers`, follow redirects, and return the response with its body unread.

        Without a response, FetchError or TransientError is raised.
        """
        for _ in range(REDIRECTS):
            if self._is_secure_only and not is_secure(url):
                reason = "which is not HTTPS and could be tampered with: refused"
                raise FetchError(f"it leads to {redact(url)}, {reason}")
            if self._hosts is not None and url_host(url) not in self._hosts:
                raise FetchError(f"it leads to {redact(url)}, a host that is not allowed")
            with self._network_errors():
                response = self.get(
                    url, headers=headers, stream=True, allow_redirects=False, timeout=self._stall_seconds
                )
            if not response.is_redirect:
                return response
            response.close()
            try:
                url = urljoin(url, self.get_redirect_target(response) or "")
            except ValueError as error:
                raise FetchError(f"it redirects to an invalid URL: {redact_all(str(error))}") from None
        raise FetchError(f"more than {REDIRECTS} redirects, the last to {redact(url)}")

    def chunks(self, response: requests.Response) -> Iterator[bytes]:
        """Yield the body as it is received. Raise TransientError if the connection breaks or stalls."""
        since, received = time.monotonic(), 0
        while True:
            self._clock.restart()
            with self._network_errors():
                chunk = response.raw.read1(CHUNK, decode_content=True)
            if not chunk:
                return
            yield chunk
            received += len(chunk)
            elapsed = time.monotonic() - since
            if elapsed > self._stall_seconds:
                if received < self._slowest * elapsed:
                    raise TransientError(f"it sends less than {self._slowest:,} bytes per second")
                since, received = time.monotonic(), 0

    def read_start(self, response: requests.Response, limit: int) -> bytes:
        """Return the first `limit` bytes of the body of a `response`."""
        start = bytearray()
        for chunk in self.chunks(response):
            start += chunk
            if len(start) >= limit:
                break
        return bytes(start[:limit])

    def merge_environment_settings(self, url: Any, *args: Any, **kwargs: Any) -> Any:
        """Use no proxy for this machine: a proxy would look for the address on its own machine."""
        settings = super().merge_environment_settings(url, *args, **kwargs)
        return {**settings, "proxies": {}} if is_loopback(urlsplit(url).hostname) else settings

    def resolve_redirects(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Return no redirects: `open_url` follows them. requests would read their bodies of any length."""
        return iter(())

    @contextlib.contextmanager
    def _network_errors(self) -> Iterator[None]:
        """Raise network errors as TransientError if another attempt may help, or else as FetchError.

        The original error is not chained: its text may contain the whole URL.
        """
        try:
            yield
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:  # the errors of requests are OSErrors
            cause: BaseException = error
            while inner := cause.__cause__ or cause.__context__:  # requests and urllib3 wrap the original
                cause = inner
            if isinstance(cause, TimeoutError):
                raise TransientError(f"it sent nothing for {self._stall_seconds:.0f} s") from None
            if isinstance(cause, socket.gaierror):  # most likely this machine has no network
                raise FetchError("its name cannot be resolved: is this machine online?") from None
            reason = redact_all((str(cause).splitlines() or [type(cause).__name__])[0])
            if isinstance(cause, ssl.SSLCertVerificationError) or isinstance(error, requests.exceptions.InvalidURL):
                raise FetchError(reason) from None
            raise TransientError(f"the connection failed ({reason})") from None


def url_host(url: str) -> str | None:
    """Return the host to which a request with a URL is sent, with the port if it has one: "example.com:8080"."""
    try:
        return urllib3.util.parse_url(url).netloc
    except urllib3.exceptions.LocationParseError:
        return None


def check_status(response: requests.Response) -> None:
    """Raise FetchError or TransientError if a response is not the whole content, or in an unknown encoding."""
    status = f"it answered {response.status_code} {response.reason or ''}".rstrip()
    if response.status_code in WORTH_RETRYING:
        error = TransientError(status)
        with contextlib.suppress(urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
            error.retry_after = urllib3.Retry().get_retry_after(response.raw) or 0  # seconds, or a date
        raise error
    if response.status_code != 200:
        raise FetchError(status)
    transfer = response.headers.get("Transfer-Encoding", "chunked")
    if transfer.strip().lower() != "chunked":
        raise FetchError(f"it sends the file in the unknown transfer encoding {transfer}")
    for encoding in content_encodings(response.headers):
        if encoding not in response.raw.CONTENT_DECODERS:
            raise FetchError(f"it sends the file in the unknown encoding {encoding}")


def content_encodings(headers: Mapping[str, str]) -> list[str]:
    """Return the encodings that were applied to a body, in lower case."""
    encodings = (each.strip().lower() for each in headers.get("Content-Encoding", "").split(","))
    return [each for each in encodings if each not in ("", "identity")]


class _Clock:
    """The time that is left for a server's next step."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        self._end = time.monotonic() + self._seconds

    def left(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _Adapter(HTTPAdapter):
    """Makes connections whose reads obey a clock, also through proxies."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self._response_class = functools.partial(_Response, clock)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        if "response_class" not in vars(pool.ConnectionCls):
            own = {"response_class": staticmethod(self._response_class)}
            pool.ConnectionCls = type("Connection", (pool.ConnectionCls,), own)
        return pool


class _Response(http.client.HTTPResponse):
    """A response that reads by a clock. It must have sent all headers, also interim ones, when the clock ends."""

    def __init__(self, clock: _Clock, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        clock.restart()
        raw: Any = self.fp
        self.fp = io.BufferedReader(_TimedReader(clock, sock, raw.detach()))


class _TimedReader(io.RawIOBase):
    """A socket's stream whose reads end with the clock. A socket's own timeout starts anew with each byte."""

    def __init__(self, clock: _Clock, sock: socket.socket, stream: io.RawIOBase) -> None:
        self._clock, self._sock, self._stream = clock, sock, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Any:
        self._sock.settimeout(self._clock.left())
        return self._stream.readinto(buffer)

    def close(self) -> None:
        self._stream.close()
        super().close()
