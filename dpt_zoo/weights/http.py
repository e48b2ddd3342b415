"""Download a file over HTTP: resumed where it stopped, hashed while it is received, in constant memory."""

import contextlib
import json
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests
import urllib3

from .._version import __version__
from ..errors import FetchError, WeightsError
from ..manifest.locations import is_secure
from ..utils.files import check_space, hash_file
from ..utils.progress import ProgressCallback

ATTEMPTS = 5  # maximum number of consecutive attempts with less than PROGRESS new bytes
PROGRESS = 1 << 20  # bytes
BACKOFF_SECONDS = 1.0  # wait before the second attempt; it doubles with each further attempt
RETRY_AFTER_SECONDS = 120.0  # longest wait that a server may ask for
STALL_SECONDS = 30.0
SLOWEST = 1024  # bytes per second, over STALL_SECONDS, below which a transfer counts as stalled
CHUNK = 1 << 20  # bytes
LARGEST = 4 << 30  # maximum bytes of a download, far above any weights of this zoo
REDIRECTS = 10
WORTH_RETRYING = {408, 425, 429, 500, 502, 503, 504}

Opener = Callable[[requests.Session, Mapping[str, str]], requests.Response]
"""Sends the request for a file with the given headers and returns the streamed response."""


class TransientError(Exception):
    """A failure that another attempt may solve."""

    retry_after: float = 0  # the wait in seconds that the server asked for


@dataclass(frozen=True)
class Version:
    """Identifies one version of a file."""

    key: str  # of the location
    etag: str | None
    modified: str | None
    total: int | None  # bytes

    @property
    def validator(self) -> str | None:
        """The value for If-Range, or None if the download cannot be resumed."""
        return (self.etag or self.modified) if self.total else None


@dataclass(frozen=True)
class Download:
    """Hash and size of a file on disk."""

    sha256: str
    num_bytes: int


def download(
    key: str, opener: Opener, part: Path, *, reserve: int = 0, progress: ProgressCallback | None = None
) -> Download:
    """Download a file to `part`. Continue an earlier run's download if the server confirms the file's version.

    `key` identifies the location, `opener` sends the request, and `reserve` is the disk space in bytes that must stay
    free. A failed download raises FetchError; `part` keeps the received bytes for the next run. A full disk raises
    OutputError, and other errors of the disk OSError.
    """
    failures, reached = 0, _size(part)
    with _Session() as session:
        while True:
            try:
                return _attempt(session, key, opener, part, reserve, progress or (lambda done, total: None))
            except TransientError as error:
                failures = 0 if _size(part) >= reached + PROGRESS else failures + 1
                reached = max(reached, _size(part))  # starting over again and again is not progress
                if failures >= ATTEMPTS:
                    raise FetchError(f"{error} ({failures} attempts)") from error
                if error.retry_after > RETRY_AFTER_SECONDS:
                    raise FetchError(f"{error}: retry after {round(error.retry_after)} s") from error
                wait = BACKOFF_SECONDS * 2**failures / 2 * random.uniform(0.75, 1.25)
                time.sleep(max(wait, error.retry_after))


def version_file(part: Path) -> Path:
    """Return the path of the JSON file with the version (see `Version`) of the bytes in `part`."""
    return part.with_name(f"{part.name}.json")


def measure(path: Path) -> Download:
    """Return hash and size of a file on disk, or raise WeightsError if it cannot be read."""
    try:
        return Download(hash_file(path).hexdigest(), path.stat().st_size)
    except OSError as error:
        raise WeightsError(f"{path}: it cannot be read: {error.strerror}") from error


def opener_of(url: str) -> Opener:
    """Return the opener of a URL."""
    return lambda session, headers: get(session, url, headers)


def get(session: requests.Session, url: str, headers: Mapping[str, str]) -> requests.Response:
    """Send a request with `session`, `url` and `headers`, and return the response with its body unread.

    Redirects are followed over secure connections only. Without a response, FetchError or TransientError is raised.
    """
    for _ in range(REDIRECTS):
        if not is_secure(url):
            raise FetchError(f"it leads to {url}, which is not HTTPS and could be tampered with: refused")
        with _network_errors():
            response = session.get(url, headers=headers, stream=True, allow_redirects=False, timeout=STALL_SECONDS)
        if not response.is_redirect:
            return response
        response.close()
        try:
            url = urljoin(url, session.get_redirect_target(response) or "")
        except ValueError as error:
            raise FetchError(f"it redirects to an invalid URL: {error}") from error
    raise FetchError(f"more than {REDIRECTS} redirects, the last to {url}")


def read_start(response: requests.Response, limit: int) -> bytes:
    """Return the first `limit` bytes of the body of a `response`."""
    start = b""
    for chunk in _chunks(response):
        start += chunk
        if len(start) >= limit:
            break
    return start[:limit]


class _Session(requests.Session):
    def __init__(self) -> None:
        super().__init__()
        # Ranges and hashes are of the file itself, not of a compressed form.
        self.headers.update({"User-Agent": f"dpt-zoo/{__version__}", "Accept-Encoding": "identity"})

    def resolve_redirects(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Return no redirects: `get` follows them. requests would read their bodies, of any length, into memory."""
        return iter(())


def _attempt(
    session: requests.Session, key: str, opener: Opener, part: Path, reserve: int, progress: ProgressCallback
) -> Download:
    known = _read_version(part, key)
    start = _size(part) if known else 0
    if known and start == known.total:  # an earlier run was killed after the last byte
        return measure(part)
    headers = {"Range": f"bytes={start}-", "If-Range": known.validator or ""} if known and start else {}
    with contextlib.closing(opener(session, headers)) as response:
        if known and headers and response.status_code == 206 and _continues(response, known, start):
            total = known.total
        elif headers and response.status_code in (206, 416):
            _discard(part)
            raise TransientError("the file has changed on the server, or the server sends wrong ranges")
        else:
            _check_whole(response)
            version, start = _version(response, key), 0
            total = version.total
            _discard(part)
            version_file(part).write_text(json.dumps(asdict(version)), encoding="utf-8")
        check_space(part.parent, (total or 0) - start + reserve)
        with part.open("ab") as file:
            digest, done = hash_file(part), start
            progress(done, total)
            for chunk in _chunks(response):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress(done, total)
                if done > (total or LARGEST):
                    _discard(part)
                    raise FetchError(f"it sends more than the expected {total or LARGEST:,} bytes")
        if total is not None and done != total:
            raise TransientError(f"it sent {done:,} of {total:,} bytes")
        with part.open("rb") as file:
            head = file.read(CHUNK)
        if head.lstrip().startswith(b"<") and head[8:9] != b"{":  # a safetensors file may begin like a page
            _discard(part)
            raise FetchError("it sent a web page, not the file")
    return Download(digest.hexdigest(), done)


def _check_whole(response: requests.Response) -> None:
    """Refuse a response that is not the whole file."""
    status = f"it answered {response.status_code} {response.reason or ''}".rstrip()
    if response.status_code in WORTH_RETRYING:
        error = TransientError(status)
        with contextlib.suppress(urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
            error.retry_after = urllib3.Retry().get_retry_after(response.raw) or 0  # seconds, or a date
        raise error
    if response.status_code != 200:
        raise FetchError(status)
    encoding = response.headers.get("Content-Encoding", "")
    if _is_encoded(response.headers) and encoding not in response.raw.CONTENT_DECODERS:
        raise FetchError(f"it sends the file in the unknown encoding {encoding}")


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield the body as it is received. Raise TransientError if the connection breaks or stalls."""
    since, received = time.monotonic(), 0
    while True:
        with _network_errors():
            chunk = response.raw.read1(CHUNK, decode_content=True)
        if not chunk:
            return
        yield chunk
        received += len(chunk)
        elapsed = time.monotonic() - since
        if elapsed > STALL_SECONDS:
            if received < SLOWEST * elapsed:
                raise TransientError(f"it sends less than {SLOWEST:,} bytes per second")
            since, received = time.monotonic(), 0


@contextlib.contextmanager
def _network_errors() -> Iterator[None]:
    """Raise network errors as TransientError if another attempt may help, or else as FetchError."""
    try:
        yield
    except (OSError, urllib3.exceptions.HTTPError) as error:  # the errors of requests are OSErrors
        cause: BaseException = error
        while inner := cause.__cause__ or cause.__context__:  # requests and urllib3 wrap the original
            cause = inner
        if isinstance(cause, TimeoutError):
            raise TransientError(f"it sent nothing for {STALL_SECONDS:.0f} s") from error
        if isinstance(cause, socket.gaierror):  # most likely this machine has no network
            raise FetchError("its name cannot be resolved: is this machine online?") from error
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        if isinstance(cause, ssl.SSLCertVerificationError) or isinstance(error, requests.exceptions.InvalidURL):
            raise FetchError(reason) from error
        raise TransientError(f"the connection failed ({reason})") from error


def _version(response: requests.Response, key: str) -> Version:
    headers = response.headers
    etag = headers.get("ETag")
    total = None if _is_encoded(headers) else response.raw.length_remaining
    if total is not None and total > LARGEST:
        raise FetchError(f"it wants to send {total:,} bytes, which is too large for weights")
    is_weak = etag is not None and etag.startswith("W/")  # does not promise the same bytes
    modified = headers.get("Last-Modified") if _is_settled(headers) else None
    return Version(key, None if is_weak else etag, modified, total)


def _is_encoded(headers: Mapping[str, str]) -> bool:
    return headers.get("Content-Encoding", "identity") != "identity"


def _is_settled(headers: Mapping[str, str]) -> bool:
    """Return whether Last-Modified identifies a version: a file can change twice within its unit, a second."""
    try:
        modified, date = (parsedate_to_datetime(headers[name]) for name in ("Last-Modified", "Date"))
        return (date - modified).total_seconds() >= 1
    except (KeyError, ValueError, TypeError, OverflowError):
        return False


def _continues(response: requests.Response, version: Version, start: int) -> bool:
    """Return whether a partial response is the rest of this version of the file, from `start` on."""
    headers = response.headers
    is_same = headers.get("ETag" if version.etag else "Last-Modified") == version.validator
    is_rest = headers.get("Content-Range") == f"bytes {start}-{(version.total or 0) - 1}/{version.total}"
    return is_same and is_rest and not _is_encoded(headers)


def _read_version(part: Path, key: str) -> Version | None:
    """Return the version that the bytes in `part` belong to, if the download can be resumed."""
    try:
        version = Version(**json.loads(version_file(part).read_text(encoding="utf-8")))
        is_usable = version.key == key and version.validator and _size(part) <= (version.total or 0)
    except (OSError, ValueError, TypeError):
        return None
    return version if is_usable else None


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    version_file(part).unlink(missing_ok=True)


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0
