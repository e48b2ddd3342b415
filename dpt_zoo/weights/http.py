"""Download a file over HTTP: resumed where it stopped, hashed while it is received, in constant memory."""

import contextlib
import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path

import requests

from ..errors import FetchError, WeightsError
from ..utils.files import check_space, hash_file, remove
from ..utils.http import CHUNK, SLOWEST, STALL_SECONDS, Session, TransientError, check_status, content_encodings
from ..utils.json_files import DAMAGE
from ..utils.progress import ProgressCallback

ATTEMPTS = 5  # maximum number of consecutive attempts with less than PROGRESS new bytes
PROGRESS = 1 << 20  # bytes
BACKOFF_SECONDS = 1.0  # wait before the second attempt; it doubles with each further attempt
RETRY_AFTER_SECONDS = 120.0  # longest wait that a server may ask for
BUFFERED = 1 << 13  # bytes received that a killed process may lose; Python 3.14 would buffer 128 KiB
LARGEST = 4 << 30  # maximum bytes of a download, far above any weights of this zoo

Opener = Callable[[Session, Mapping[str, str]], requests.Response]
"""Sends the request for a file with the given headers and returns the streamed response."""


@dataclass(frozen=True)
class Version:
    """Identifies one version of a file."""

    key: str  # the hash of the location, which may contain a password
    etag: str | None
    modified: str | None
    total: int | None  # bytes

    @property
    def validator(self) -> str | None:
        """The value for If-Range, or None if the download cannot be resumed."""
        value = self.etag or self.modified or ""
        return value if self.total and re.fullmatch(r"[!-~]([ -~]*[!-~])?", value) else None


@dataclass(frozen=True)
class Download:
    """Hash and size of a file on disk."""

    sha256: str
    num_bytes: int


@dataclass
class _Received:
    """The hash of the bytes in a part file, so that they are not read again after each broken connection."""

    num_bytes: int = 0
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)


def download(
    key: str, opener: Opener, part: Path, *, reserve: int = 0, progress: ProgressCallback | None = None
) -> Download:
    """Download a file to `part`. Continue an earlier run's download if the server confirms the file's version.

    `key` identifies the location, `opener` sends the request, and `reserve` is the disk space in bytes that must stay
    free. A failed download raises FetchError; `part` keeps the received bytes for the next run. A full disk raises
    OutputError, and other errors of the disk OSError.
    """
    failures, reached, received = 0, _size(part), _Received()
    key = hashlib.sha256(key.encode()).hexdigest()
    with Session(STALL_SECONDS, SLOWEST) as session:
        while True:
            try:
                return _attempt(session, key, opener, part, received, reserve, progress or (lambda done, total: None))
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
        if path.exists() and not path.is_file():  # reading a pipe or a device may not end
            raise WeightsError(f"{path}: it cannot be read: this is not a file")
        return Download(hash_file(path).hexdigest(), path.stat().st_size)
    except OSError as error:
        raise WeightsError(f"{path}: it cannot be read: {error.strerror}") from error


def opener_of(url: str) -> Opener:
    """Return the opener of a URL."""
    return lambda session, headers: session.open_url(url, headers)


def _attempt(
    session: Session,
    key: str,
    opener: Opener,
    part: Path,
    received: _Received,
    reserve: int,
    progress: ProgressCallback,
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
            check_status(response)
            version, start = _version(response, key), 0
            total = version.total
            _discard(part)
            version_file(part).write_text(json.dumps(asdict(version)), encoding="utf-8")
        check_space(part.parent, (total or 0) - start + reserve)
        with part.open("ab", BUFFERED) as file:
            if received.num_bytes != start or start == 0:
                received.num_bytes, received.digest = start, hash_file(part)
            progress(start, total)
            for chunk in session.chunks(response):
                file.write(chunk)
                received.digest.update(chunk)
                received.num_bytes += len(chunk)
                progress(received.num_bytes, total)
                if received.num_bytes > (total or LARGEST):
                    _discard(part)
                    raise FetchError(f"it sends more than the expected {total or LARGEST:,} bytes")
        if total is not None and received.num_bytes != total:
            raise TransientError(f"it sent {received.num_bytes:,} of {total:,} bytes")
        with part.open("rb") as file:
            head = file.read(CHUNK)
        if head.lstrip().startswith(b"<") and head[8:9] != b"{":  # a safetensors file may begin like a page
            _discard(part)
            raise FetchError("it sent a web page, not the file")
    return Download(received.digest.hexdigest(), received.num_bytes)


def _version(response: requests.Response, key: str) -> Version:
    headers = response.headers
    etag = headers.get("ETag")
    total = None if content_encodings(headers) else response.raw.length_remaining
    if total is not None and total > LARGEST:
        raise FetchError(f"it wants to send {total:,} bytes, which is too large for weights")
    is_weak = etag is not None and etag.startswith("W/")  # does not promise the same bytes
    modified = headers.get("Last-Modified") if _is_settled(headers) else None
    return Version(key, None if is_weak else etag, modified, total)


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
    is_rest = headers.get("Content-Range", "").lower() == f"bytes {start}-{(version.total or 0) - 1}/{version.total}"
    return is_same and is_rest and not content_encodings(headers)


def _read_version(part: Path, key: str) -> Version | None:
    """Return the version that the bytes in `part` belong to, if the download can be resumed."""
    try:
        version = Version(**json.loads(version_file(part).read_text(encoding="utf-8")))
        is_usable = version.key == key and version.validator and _size(part) <= (version.total or 0)
    except (OSError, *DAMAGE):
        return None
    return version if is_usable else None


def _discard(part: Path) -> None:
    for path in (part, version_file(part)):
        remove(path)


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0
