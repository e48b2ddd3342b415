"""Stream a file over HTTP to disk: resumed where it stopped, hashed on the way, in constant memory."""

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
from ..errors import FetchError
from ..manifest.locations import is_secure
from ..utils.files import check_space, hash_file
from ..utils.progress import ProgressCallback

ATTEMPTS = 5
"""Attempts in a row that may bring less than `PROGRESS` before a source is given up."""
PROGRESS = 1 << 20
BACKOFF_SECONDS = 1.0
"""Before the second attempt; twice as long before each later one."""
RETRY_AFTER_SECONDS = 120.0
"""The longest that a server may ask to wait for; longer, and the next source is better."""
STALL_SECONDS = 30.0
SLOWEST = 1024
"""Bytes a second, over `STALL_SECONDS`, below which a transfer counts as stalled."""
CHUNK = 1 << 20
LARGEST = 4 << 30
"""Bytes: no checkpoint of this zoo comes near, so what is larger is none."""
REDIRECTS = 10
WORTH_RETRYING = {408, 425, 429, 500, 502, 503, 504}

Opener = Callable[[requests.Session, Mapping[str, str]], requests.Response]
"""Sends the request for a file, with these headers, and returns the streamed response."""


class TransientError(Exception):
    """A failure that another attempt may mend; `retry_after` is what the server asked for, in seconds."""

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Version:
    """What tells versions of a file at one source apart: `key` names the source, `total` is in bytes."""

    key: str
    etag: str | None
    modified: str | None
    total: int | None

    @property
    def validator(self) -> str | None:
        """What asks a server for the rest of this version only; None where its bytes cannot be gone on with."""
        return (self.etag or self.modified) if self.total else None


@dataclass(frozen=True)
class Download:
    """What was measured of a file that is now on disk."""

    sha256: str
    num_bytes: int


def download(
    key: str, opener: Opener, part: Path, *, reserve: int = 0, progress: ProgressCallback | None = None
) -> Download:
    """Fetch a file into `part`, going on from what an earlier run left there.

    Beside `part` stands `part` + ".json": which source, and which version of its file, the bytes are of. Only with
    the server's word that the file is still that version are they gone on with.

    Args:
        key: names the source.
        reserve: bytes of disk space that must stay free.

    Raises:
        FetchError: the file cannot be had from there; `part` keeps what came, for the next run.
        OutputError: there is no room for it.
        OSError: it cannot be written.
    """
    failures, reached = 0, _size(part)
    with _Session() as session:
        while True:
            try:
                return _attempt(session, key, opener, part, reserve, progress or (lambda done, total: None))
            except TransientError as error:
                failures = 0 if _size(part) >= reached + PROGRESS else failures + 1
                reached = max(reached, _size(part))  # a file begun anew ever again is no progress
                wait = BACKOFF_SECONDS * 2**failures / 2 * random.uniform(0.75, 1.25)
                wait = max(wait, error.retry_after or 0)
                if failures >= ATTEMPTS:
                    raise FetchError(f"{error} ({failures} attempts)") from error
                if (error.retry_after or 0) > RETRY_AFTER_SECONDS:
                    raise FetchError(f"{error}: it asks to come back in {round(error.retry_after or 0)} s") from error
                time.sleep(wait)


def version_file(part: Path) -> Path:
    """Where `download` notes what the bytes in `part` are of."""
    return part.with_name(f"{part.name}.json")


def measure(path: Path) -> Download:
    """Hash a file that is on disk."""
    return Download(hash_file(path).hexdigest(), path.stat().st_size)


def opener_of(url: str) -> Opener:
    """The opener of a plain address."""
    return lambda session, headers: get(session, url, headers)


def get(session: requests.Session, url: str, headers: Mapping[str, str]) -> requests.Response:
    """Send a GET request and follow its redirects, over secure connections only; the body is yet to be read.

    Raises:
        FetchError, TransientError: there is no response.
    """
    for _ in range(REDIRECTS):
        if not is_secure(url):
            raise FetchError(f"it leads to {url}, which anybody on the way could change: refused")
        with _network_errors():
            response = session.get(
                url, headers=headers, stream=True, allow_redirects=False, timeout=(STALL_SECONDS, STALL_SECONDS)
            )
        if not response.is_redirect:
            return response
        response.close()
        try:
            url = urljoin(url, session.get_redirect_target(response) or "")
        except ValueError as error:
            raise FetchError(f"it leads to no address: {error}") from error
    raise FetchError(f"more than {REDIRECTS} redirects, the last to {url}")


def read_start(response: requests.Response, limit: int) -> bytes:
    """Read up to `limit` bytes of a body: for pages, which are short."""
    start = b""
    for chunk in _chunks(response):
        start += chunk
        if len(start) >= limit:
            break
    return start[:limit]


class _Session(requests.Session):
    def __init__(self) -> None:
        super().__init__()
        # Ranges and hashes are of the file itself, not of a compressed form of it.
        self.headers.update({"User-Agent": f"dpt-zoo/{__version__}", "Accept-Encoding": "identity"})

    def resolve_redirects(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Leave redirects to `get`; requests would first read their bodies, however long, into memory."""
        return iter(())


def _attempt(
    session: requests.Session, key: str, opener: Opener, part: Path, reserve: int, progress: ProgressCallback
) -> Download:
    known = _read_version(part, key)
    start = _size(part) if known else 0
    if known and start == known.total:  # killed between the last byte and what follows
        return measure(part)
    headers = {"Range": f"bytes={start}-", "If-Range": known.validator or ""} if known and start else {}
    with contextlib.closing(opener(session, headers)) as response:
        if known and headers and response.status_code == 206 and _continues(response, known, start):
            total = known.total
        elif headers and response.status_code in (206, 416):
            _discard(part)
            raise TransientError("the file there has changed, or its ranges are wrong")
        else:
            _refuse_unless_whole(response)
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
                    raise FetchError(f"it sends more than the {total or LARGEST:,} bytes that were to come")
        if total is not None and done != total:
            raise TransientError(f"it sent {done:,} of {total:,} bytes")
        if _is_page(part):
            _discard(part)
            raise FetchError("it sent a web page, not the file")
    return Download(digest.hexdigest(), done)


def _refuse_unless_whole(response: requests.Response) -> None:
    if response.status_code in WORTH_RETRYING:
        raise TransientError(_status(response), _retry_after(response))
    if response.status_code != 200:
        raise FetchError(_status(response))
    encoding = response.headers.get("Content-Encoding", "")
    if _is_encoded(response.headers) and encoding not in response.raw.CONTENT_DECODERS:
        raise FetchError(f"it sends the file encoded as {encoding}, which nobody asked for")


def _is_page(part: Path) -> bool:
    with part.open("rb") as file:
        head = file.read(CHUNK)
    return head.lstrip().startswith(b"<") and head[8:9] != b"{"  # safetensors may begin like a page


def _status(response: requests.Response) -> str:
    return f"it answered {response.status_code} {response.reason or ''}".rstrip()


def _retry_after(response: requests.Response) -> float | None:
    try:
        return urllib3.Retry().get_retry_after(response.raw)  # seconds, or a date
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """The body as it comes in; raises TransientError where the connection breaks or stalls."""
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
                raise TransientError(f"it sends less than {SLOWEST:,} bytes a second")
            since, received = time.monotonic(), 0


@contextlib.contextmanager
def _network_errors() -> Iterator[None]:
    """Tell apart what another attempt may mend and what it will not."""
    try:
        yield
    except (OSError, urllib3.exceptions.HTTPError) as error:  # requests' errors are OSErrors
        cause = _cause(error)
        if isinstance(cause, TimeoutError):
            raise TransientError(f"nothing came for {STALL_SECONDS:.0f} s") from error
        if isinstance(cause, socket.gaierror):  # most likely this machine has no network
            raise FetchError("its name cannot be resolved: is this machine online?") from error
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        if isinstance(cause, ssl.SSLCertVerificationError) or isinstance(error, requests.exceptions.InvalidURL):
            raise FetchError(reason) from error
        raise TransientError(f"the connection failed ({reason})") from error


def _cause(error: BaseException) -> BaseException:
    """What requests and urllib3 wrap in errors of their own."""
    inner = error.__cause__ or error.__context__
    return _cause(inner) if inner else error


def _version(response: requests.Response, key: str) -> Version:
    headers = response.headers
    etag = headers.get("ETag")
    total = None if _is_encoded(headers) else response.raw.length_remaining
    if total is not None and total > LARGEST:
        raise FetchError(f"it wants to send {total:,} bytes, more than any checkpoint has")
    is_weak = etag is not None and etag.startswith("W/")  # it does not promise the same bytes
    return Version(
        key, None if is_weak else etag, headers.get("Last-Modified") if _is_settled(headers) else None, total
    )


def _is_encoded(headers: Mapping[str, str]) -> bool:
    return headers.get("Content-Encoding", "identity") != "identity"


def _is_settled(headers: Mapping[str, str]) -> bool:
    """Whether Last-Modified tells versions apart: its unit is a second, in which a file may change twice."""
    try:
        modified, date = (parsedate_to_datetime(headers[name]) for name in ("Last-Modified", "Date"))
        return (date - modified).total_seconds() >= 1
    except (KeyError, ValueError, TypeError, OverflowError):
        return False


def _continues(response: requests.Response, version: Version, start: int) -> bool:
    """Whether a partial response is of the same version of the file, and from `start` to its end."""
    headers = response.headers
    total = version.total or 0
    is_same = headers.get("ETag" if version.etag else "Last-Modified") == version.validator
    is_rest = headers.get("Content-Range") == f"bytes {start}-{total - 1}/{total}"
    return is_same and is_rest and not _is_encoded(headers)


def _read_version(part: Path, key: str) -> Version | None:
    """What the bytes in `part` are of, if they can be gone on with."""
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
