"""Downloading over HTTP: whatever fails, the result is the right file or one clear error."""

import contextlib
import hashlib
import itertools
import json
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from web_server import (
    Fault,
    Faults,
    File,
    WebServer,
    becomes,
    both,
    chunked,
    closed_port,
    cut,
    drip,
    encoded,
    endless,
    faultless,
    hang_up,
    headers,
    page,
    redirect,
    reset,
    stall,
    status,
    stay_silent,
    unframed,
    without_if_range,
    without_ranges,
)

from dpt_zoo.errors import FetchError, OutputError
from dpt_zoo.utils.files import hash_file
from dpt_zoo.weights import http
from dpt_zoo.weights.http import Download, download, opener_of, version_file

pytestmark = pytest.mark.network

FILE = b"PK" + random.Random(0).randbytes(300_000)
OTHER = b"PK" + random.Random(1).randbytes(len(FILE) - 2)
LAST = len(FILE) - 1
WITHIN_A_SECOND = dict.fromkeys(("Last-Modified", "Date"), "Sat, 28 Aug 2021 10:00:00 GMT")
HTML = "<!DOCTYPE html><html><title>Sign in</title><body>Please sign in</body></html>"


def in_a(**time: float) -> str:
    """A date from now, as Retry-After may give it."""
    return format_datetime(datetime.now(timezone.utc) + timedelta(**time), usegmt=True)


def each_cut(at: int, otherwise: Fault) -> Fault:
    """Cut whole answers, and break partial ones in another way."""
    return lambda answer: (otherwise if answer.status == 206 else cut(at))(answer)


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer({"/file": FILE}) as server:
        yield server


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, in seconds; the tests do not sit them out."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setenv("NO_PROXY", "*")
    return waits


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "part"


def fetch(server: WebServer, part: Path) -> Download:
    return download("here", opener_of(f"{server.url}/file"), part)


def assert_is_file(part: Path, measured: Download, content: bytes = FILE) -> None:
    assert part.read_bytes() == content
    assert measured == Download(hashlib.sha256(content).hexdigest(), len(content))


def ranges(server: WebServer) -> list[str | None]:
    return [exchange.range for exchange in server.log]


# Faults of the first requests (`...`: of all), and the ranges that are requested. All downloads succeed.
MENDED: dict[str, tuple[Faults, list[str | None]]] = {
    "cut before the first byte": ([cut(0)], [None, None]),
    "cut after one byte": ([cut(1)], [None, "bytes=1-"]),
    "cut in the middle": ([cut(150_000)], [None, "bytes=150000-"]),
    "cut before the last byte": ([cut(-1)], [None, f"bytes={LAST}-"]),
    "cut twice": ([cut(1000), cut(1000)], [None, "bytes=1000-", "bytes=2000-"]),
    "cut ever again, but a little further each time": (
        [cut(50_000), ...],
        [None, *(f"bytes={start}-" for start in range(50_000, LAST, 50_000))],
    ),
    "reset before the first byte": ([reset(0)], [None, None]),
    "hangs up at once": ([hang_up], [None, None]),
    "hangs up on the range": ([cut(9), hang_up], [None, "bytes=9-", "bytes=9-"]),
    "speaks another protocol": ([lambda answer: setattr(answer, "status_line", "SSH-2.0-OpenSSH")], [None, None]),
    "408": ([status(408)], [None, None]),
    "429": ([status(429)], [None, None]),
    "500": ([status(500)], [None, None]),
    "502 and 504": ([status(502), status(504)], [None, None, None]),
    "503 four times": ([status(503)] * 4, [None] * 5),
    "503 on the range": ([cut(9), status(503)], [None, "bytes=9-", "bytes=9-"]),
    "an error page with 503": ([page(HTML, status=503)], [None, None]),
    "416 on the range": ([cut(9), status(416)], [None, "bytes=9-", None]),
    "the whole file in answer to the range": ([cut(9), without_ranges], [None, "bytes=9-"]),
    "no ranges, cut twice": ([both(without_ranges, cut(9)), both(without_ranges, cut(9))], [None] + ["bytes=9-"] * 2),
    "206 of a range that begins earlier": (
        [cut(9), headers({"Content-Range": f"bytes 8-{LAST}/{len(FILE)}"})],
        [None, "bytes=9-", None],
    ),
    "206 of a range that ends earlier": (
        [cut(9), headers({"Content-Range": f"bytes 9-99/{len(FILE)}"})],
        [None, "bytes=9-", None],
    ),
    "206 of a file of another size": (
        [cut(9), headers({"Content-Range": f"bytes 9-{LAST}/{len(FILE) + 1}"})],
        [None, "bytes=9-", None],
    ),
    "206 without a range": ([cut(9), headers({"Content-Range": None})], [None, "bytes=9-", None]),
    "206 with another ETag": ([cut(9), headers({"ETag": '"other"'})], [None, "bytes=9-", None]),
    "206 without an ETag": ([cut(9), headers({"ETag": None})], [None, "bytes=9-", None]),
    "206 of many parts": (
        [cut(9), headers({"Content-Type": "multipart/byteranges; boundary=x", "Content-Range": None})],
        [None, "bytes=9-", None],
    ),
    "206, compressed": ([cut(9), encoded("gzip")], [None, "bytes=9-", None]),
    "206 of a length that is too short": (
        [cut(9), headers({"Content-Length": "100"})],
        [None, "bytes=9-", "bytes=109-"],
    ),
    "206, cut short": ([cut(9), cut(9)], [None, "bytes=9-", "bytes=18-"]),
    "a weak ETag and no date": ([both(headers({"ETag": 'W/"1"', "Last-Modified": None}), cut(9))], [None, None]),
    "an ETag that no request can have": ([both(headers({"ETag": '\x0b"1"'}), cut(9))], [None, None]),
    "an ETag with an escape sequence": ([both(headers({"ETag": '"\x1b[2J"'}), cut(9))], [None, None]),
    "an ETag in no known letters": ([both(headers({"ETag": '"\xff"'}), cut(9))], [None, None]),
    "an empty ETag": ([both(headers({"ETag": ""}), cut(9))], [None, "bytes=9-"]),
    "no validators": ([both(headers({"ETag": None, "Last-Modified": None}), cut(9))], [None, None]),
    "a date in place of an ETag": ([both(headers({"ETag": None}), cut(9))], [None, "bytes=9-"]),
    "a date within this very second": ([both(headers({"ETag": None, **WITHIN_A_SECOND}), cut(9))], [None, None]),
    "a date that is none": ([both(headers({"ETag": None, "Last-Modified": "yesterday"}), cut(9))], [None, None]),
    "a date far beyond all calendars": (
        [both(headers({"ETag": None, "Last-Modified": "Sat, 28 Aug 99999999999 10:00:00 GMT"}), cut(9))],
        [None, None],
    ),
    "the file changes, its size does not": ([cut(9), becomes(OTHER)], [None, "bytes=9-"]),
    "the file changes, and its size": ([cut(9), becomes(OTHER[:70_000])], [None, "bytes=9-"]),
    "the file's size changes, its ETag does not": (
        [both(headers({"ETag": '"1"'}), cut(9)), becomes(OTHER[:70_000], etag='"1"')],
        [None, "bytes=9-", None],
    ),
    "the file changes, and If-Range is ignored": (
        [cut(9), both(becomes(OTHER), without_if_range)],
        [None, "bytes=9-", None],
    ),
    "the file shrinks below what came": ([cut(90_000), becomes(OTHER[:70_000])], [None, "bytes=90000-"]),
    "gzip": ([encoded("gzip")], [None]),
    "deflate": ([encoded("deflate")], [None]),
    "GZIP": ([both(encoded("gzip"), headers({"Content-Encoding": "GZIP"}))], [None]),
    "identity in capitals": ([headers({"Content-Encoding": "IDENTITY"})], [None]),
    "gzip, in chunks": ([both(encoded("gzip"), chunked)], [None]),
    "gzip, cut": ([both(encoded("gzip"), cut(150_000))], [None, None]),
    "gzip that is none": ([headers({"Content-Encoding": "gzip"})], [None, None]),
    "a length that is too long": (
        [headers({"Content-Length": str(len(FILE) + 1)})],
        [None, f"bytes={len(FILE)}-", None],
    ),
    "a length that is no number": ([headers({"Content-Length": "long"})], [None]),
    "a length of 5000 digits": ([headers({"Content-Length": "9" * 5000})], [None]),
    "a length below zero": ([headers({"Content-Length": "-1"})], [None]),
    "two lengths": ([headers({"Content-Length": "5, 6"})], [None, None]),
    "no length": ([unframed], [None]),
    "chunks": ([chunked], [None]),
    "chunks, cut": ([both(chunked, cut(150_000))], [None, None]),
    "chunks, cut before the empty one": ([both(chunked, cut(-5))], [None, None]),
    "chunks that are none": ([both(unframed, headers({"Transfer-Encoding": "chunked"}))], [None, None]),
}


@pytest.mark.parametrize("fault", MENDED)
def test_mended(server: WebServer, part: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(http, "PROGRESS", 50_000)
    server.faults["/file"], asked = list(MENDED[fault][0]), MENDED[fault][1]
    assert_is_file(part, fetch(server, part), server.files["/file"].content)
    assert ranges(server) == asked


# The fault, the error, and the number of requests.
REFUSED: dict[str, tuple[Faults, str, int]] = {
    "401": ([status(401)], "it answered 401 Unauthorized", 1),
    "403": ([status(403)], "it answered 403 Forbidden", 1),
    "404": ([status(404)], "it answered 404 Not Found", 1),
    "410": ([status(410)], "it answered 410 Gone", 1),
    "403 on the range": ([cut(9), status(403)], "it answered 403 Forbidden", 2),
    "204": ([status(204)], "it answered 204 No Content", 1),
    "206 though nobody asked for a range": ([status(206)], "it answered 206 Partial Content", 1),
    "304 though nobody asked for a change": ([status(304)], "it answered 304 Not Modified", 1),
    "416 though nobody asked for a range": ([status(416)], "it answered 416 .*", 1),
    "500 for ever": ([status(500), ...], r"it answered 500 Internal Server Error \(5 attempts\)", 5),
    "503 for ever": ([status(503), ...], r"it answered 503 Service Unavailable \(5 attempts\)", 5),
    "429 for ever": ([status(429), ...], r"it answered 429 Too Many Requests \(5 attempts\)", 5),
    "come back in a day": (
        [status(429, {"Retry-After": "86400"})],
        r"it answered 429 Too Many Requests: retry after \d+ s",
        1,
    ),
    "come back tomorrow": (
        [status(503, {"Retry-After": in_a(days=1)})],
        r"it answered 503 Service Unavailable: retry after \d+ s",
        1,
    ),
    "come back in 1e400 seconds": (
        [status(503, {"Retry-After": "1" + "0" * 400})],
        r"it answered 503 Service Unavailable: retry after \d+ s",
        1,
    ),
    "cut before the first byte, always": (
        [cut(0), ...],
        r"the connection failed \(IncompleteRead\(0 bytes read, 300002 more expected\)\) \(5 attempts\)",
        5,
    ),
    "hangs up, always": ([hang_up, ...], r"the connection failed \(.*\) \(5 attempts\)", 5),
    "stops at the same byte, always": (
        [both(without_ranges, cut(100_000)), ...],
        r"the connection failed \(IncompleteRead\(.*\)\) \(5 attempts\)",
        6,
    ),
    "cut, then wrong ranges, and so for ever": (
        [each_cut(100_000, headers({"Content-Range": None})), ...],
        r".* \(5 attempts\)",
        6,
    ),
    "another version each time, cut": (
        [lambda answer: both(headers({"ETag": f'"{random.random()}"'}), without_ranges, cut(100_000))(answer), ...],
        r"the connection failed \(IncompleteRead\(.*\)\) \(5 attempts\)",
        6,
    ),
    "another protocol, always": (
        [lambda answer: setattr(answer, "status_line", "SSH-2.0-OpenSSH"), ...],
        r"the connection failed \(SSH-2.0-OpenSSH\) \(5 attempts\)",
        5,
    ),
    "gzip that is none, always": ([headers({"Content-Encoding": "gzip"}), ...], r"the connection failed .*", 5),
    "an encoding nobody knows": ([encoded("unheard-of")], "it sends the file in the unknown encoding unheard-of", 1),
    "a length beyond all bounds": (
        [headers({"Content-Length": str(2**50)})],
        "it wants to send 1,125,899,906,842,624 bytes, which is too large for weights",
        1,
    ),
    "206 of more than was asked for": (
        [cut(9), lambda answer: answer.set_body(FILE)],
        "it sends more than the expected 300,002 bytes",
        2,
    ),
    "a body without end": ([endless], "it sends more than the expected 4,000,000 bytes", 1),
    "a compressed body without end": (
        [both(becomes(b"PK" + bytes(5_000_000)), encoded("gzip"))],
        "it sends more than the expected 4,000,000 bytes",
        1,
    ),
    "a web page": ([page(HTML)], "it sent a web page, not the file", 1),
    "a web page that says it is a file": (
        [page(f"\n  {HTML}", content_type="application/octet-stream")],
        "it sent a web page, not the file",
        1,
    ),
    "a web page in drips": ([both(page(f"\n{HTML}"), drip(0.001))], "it sent a web page, not the file", 1),
    "a redirect to itself": ([redirect("/file"), ...], "more than 10 redirects, the last to .*/file", 10),
    "a redirect to plain HTTP elsewhere": (
        [redirect("http://example.org/file")],
        "it leads to http://example.org/file, which is not HTTPS and could be tampered with: refused",
        1,
    ),
    "a redirect to plain HTTP elsewhere, hidden by a backslash": (
        [redirect("http://example.org\\@127.0.0.1/file")],
        r"it leads to http://\.\.\.@127.0.0.1/file, which .*",
        1,
    ),
    "a redirect to plain HTTP elsewhere, hidden as a user's name": (
        [redirect("http://127.0.0.1@example.org/file")],
        r"it leads to http://\.\.\.@example.org/file, which .*",
        1,
    ),
    "a redirect to a file": ([redirect("file:///etc/passwd")], "it leads to file:///etc/passwd, which .*", 1),
    "a redirect to no address": ([redirect("https://[")], "it redirects to an invalid URL: .*", 1),
    "a redirect to a name too long": ([redirect(f"https://{'a' * 70}.org/"), ...], ".*label.* too long.*", 5),
    "a redirect to a port there is not": ([redirect("http://127.0.0.1:99999/")], ".*99999.*", 1),
    "a redirect to nowhere": ([status(302)], "it answered 302 Found", 1),
    "a redirect in no known letters": ([redirect("/\xff\xfe")], "it redirects to an invalid URL: .*", 1),
    "a redirect to a name there is not": (
        [redirect("https://nobody.invalid/file")],
        r"its name cannot be resolved: is this machine online\?",
        1,
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_refused(server: WebServer, part: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(http, "LARGEST", 4_000_000)
    monkeypatch.setattr(http, "PROGRESS", 50_000)
    faults, complaint, requests = REFUSED[fault]
    server.faults["/file"] = list(faults)
    with pytest.raises(FetchError) as raised:
        fetch(server, part)
    assert re.fullmatch(complaint, str(raised.value))
    assert len(server.log) == requests


# Faults of slow servers, and whether the download succeeds.
SLOW: dict[str, tuple[Faults, bool]] = {
    "silent before any answer": ([stay_silent], True),
    "silent before any answer, always": ([stay_silent, ...], False),
    "silent before the first byte": ([stall(0)], True),
    "silent in the middle": ([stall(150_000)], True),
    "silent before the last byte": ([stall(-1)], True),
    "silent after the same byte, always": ([both(without_ranges, stall(150_000)), ...], False),
    "a byte at a time": ([drip(0.01)], True),
    "a byte at a time, always": ([drip(0.01), ...], False),
}


@pytest.mark.parametrize("fault", SLOW)
def test_slow(server: WebServer, part: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(http, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(http, "SLOWEST", 1_000_000)
    monkeypatch.setattr(http, "ATTEMPTS", 3)
    server.faults["/file"], mended = list(SLOW[fault][0]), SLOW[fault][1]
    if mended:
        assert_is_file(part, fetch(server, part))
    else:
        with pytest.raises(FetchError, match=r"(it sent nothing for|it sends less than) .* \(3 attempts\)"):
            fetch(server, part)


# Values of Retry-After, and the minimum and maximum wait in seconds.
ASKED: dict[str, tuple[str, float, float]] = {
    "seconds": ("7", 7, 7),
    "a date": ("in 90 seconds", 80, 90),
    "a date gone by": ("Sat, 28 Aug 2021 10:00:00 GMT", 0.5, 1.5),
    "a date far beyond all calendars": ("Sat, 28 Aug 99999999999 10:00:00 GMT", 0.5, 1.5),
    "a number of 5000 digits": ("9" * 5000, 0.5, 1.5),
    "no date": ("soon", 0.5, 1.5),
    "a number below zero": ("-5", 0.5, 1.5),
    "nothing": ("", 0.5, 1.5),
}


@pytest.mark.parametrize("asked", ASKED)
def test_retry_after(server: WebServer, part: Path, waits: list[float], asked: str) -> None:
    value, least, most = ASKED[asked]
    value = in_a(seconds=90) if value == "in 90 seconds" else value
    server.faults["/file"] = [status(429, {"Retry-After": value})]
    assert_is_file(part, fetch(server, part))
    (waited,) = waits
    assert least <= waited <= most


def test_waits_grow(server: WebServer, part: Path, waits: list[float]) -> None:
    server.faults["/file"] = [status(503)] * 4
    fetch(server, part)
    for waited, expected in zip(waits, (1, 2, 4, 8), strict=True):
        assert 0.75 * expected <= waited <= 1.25 * expected


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("target", ["/file", "file", "../file", "//{host}/file", "http://{host}/file"])
def test_redirects(part: Path, target: str, code: int) -> None:
    with WebServer({"/a/start": b"", "/a/file": FILE, "/file": FILE}) as server:
        server.faults["/a/start"] = [redirect(target.format(host=server.url.removeprefix("http://")), code)]
        assert_is_file(part, download("here", opener_of(f"{server.url}/a/start"), part))


def test_nine_redirects_whose_bodies_never_end_and_a_range_at_the_end(part: Path) -> None:
    with WebServer({f"/{step}": b"" for step in range(9)} | {"/9": FILE}) as server:
        for step in range(9):
            server.faults[f"/{step}"] = [both(redirect(f"/{step + 1}"), endless), ...]
        server.faults["/9"] = [cut(150_000)]
        assert_is_file(part, download("here", opener_of(f"{server.url}/0"), part))
        assert [each.range for each in server.log if each.path == "/9"] == [None, "bytes=150000-"]


def test_a_web_page_after_redirects(part: Path) -> None:
    with WebServer({"/file": b"", "/login": b""}) as server:
        server.faults["/file"], server.faults["/login"] = [redirect("/login")], [page(HTML)]
        with pytest.raises(FetchError, match="it sent a web page, not the file"):
            fetch(server, part)
    assert not part.exists()


def test_nobody_listens(part: Path) -> None:
    with closed_port() as url, pytest.raises(FetchError, match=r"the connection failed \(.*refused\) \(5 attempts\)"):
        download("here", opener_of(f"{url}/file"), part)


class TestTLS:
    """Over HTTPS, with certificates of an authority of our own."""

    authority = trustme.CA()

    @pytest.fixture
    def server(self) -> Iterator[WebServer]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("localhost").configure_cert(context)
        with WebServer({"/file": FILE}, context) as server:
            yield server

    @pytest.fixture
    def trust(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))

    @pytest.mark.usefixtures("trust")
    def test_trusted(self, server: WebServer, part: Path) -> None:
        server.faults["/file"] = [cut(150_000)]
        assert_is_file(part, fetch(server, part))

    @pytest.mark.usefixtures("trust")
    def test_no_redirect_to_plain_http(self, server: WebServer, part: Path) -> None:
        server.faults["/file"] = [redirect("http://example.org/file")]
        with pytest.raises(FetchError, match=r"it leads to http://example\.org/file, which is not HTTPS"):
            fetch(server, part)

    def test_not_trusted(self, server: WebServer, part: Path, waits: list[float]) -> None:
        with pytest.raises(FetchError, match="certificate verify failed"):
            fetch(server, part)
        assert not server.log
        assert not waits

    def test_authorities_that_are_not_there(
        self, server: WebServer, part: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(part / "none.pem"))
        with pytest.raises(FetchError, match=r"Could not find a suitable TLS CA certificate bundle"):
            fetch(server, part)

    @pytest.mark.usefixtures("trust")
    def test_of_another_host(self, server: WebServer, part: Path) -> None:
        with pytest.raises(FetchError, match=r"certificate is not valid for '127\.0\.0\.1'"):
            download("here", opener_of(server.url.replace("localhost", "127.0.0.1")), part)
        assert not server.log


def stop_after(server: WebServer, part: Path, received: int) -> None:
    """Run a download that fails after `received` bytes."""
    server.faults["/file"] = [cut(received), *[status(503)] * 9]
    with pytest.raises(FetchError):
        fetch(server, part)
    server.faults.clear()
    server.log.clear()


def test_goes_on_where_an_earlier_run_ended(server: WebServer, part: Path) -> None:
    stop_after(server, part, 150_000)
    assert_is_file(part, fetch(server, part))
    assert [(each.range, each.sent) for each in server.log] == [("bytes=150000-", len(FILE) - 150_000)]


def test_a_whole_part_is_not_fetched_again(server: WebServer, part: Path) -> None:
    fetch(server, part)
    server.log.clear()
    assert_is_file(part, fetch(server, part))
    assert not server.log


def test_what_another_source_sent_is_not_gone_on_with(server: WebServer, part: Path) -> None:
    stop_after(server, part, 150_000)
    assert_is_file(part, download("there", opener_of(f"{server.url}/file"), part))
    assert ranges(server) == [None]


# What happens to the note on what the bytes in `part` are of.
NOTES: dict[str, Callable[[str], str | None]] = {
    "lost": lambda note: None,
    "empty": lambda note: "",
    "half": lambda note: note[: len(note) // 2],
    "of something else": lambda note: "[1, 2]",
    "of another form": lambda note: json.dumps({**json.loads(note), "more": 1}),
    "an ETag with a line break": lambda note: json.dumps({**json.loads(note), "etag": "a\r\nb"}),
    "an ETag in other letters": lambda note: json.dumps({**json.loads(note), "etag": "\u1234\ud800"}),
    "an ETag that is a number": lambda note: json.dumps({**json.loads(note), "etag": 7}),
    "deep": lambda note: "[" * 100_000,
    "a size that is none": lambda note: json.dumps({**json.loads(note), "total": "many"}),
    "a size below what is there": lambda note: json.dumps({**json.loads(note), "total": 100_000}),
}


@pytest.mark.parametrize("damage", NOTES)
def test_a_damaged_note_means_to_start_anew(server: WebServer, part: Path, damage: str) -> None:
    stop_after(server, part, 150_000)
    note = version_file(part).read_text()
    version_file(part).unlink()
    if damaged := NOTES[damage](note):
        version_file(part).write_text(damaged)
    assert_is_file(part, fetch(server, part))
    assert ranges(server) == [None]


@pytest.mark.parametrize("name", ["part", "part.json"])
def test_a_folder_in_place_of_a_file_is_removed(server: WebServer, part: Path, name: str) -> None:
    (part.with_name(name) / "something").mkdir(parents=True)
    assert_is_file(part, fetch(server, part))


def test_what_was_received_is_hashed_once(server: WebServer, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PROGRESS", 1)
    lengths = []

    def measured(path: Path) -> Any:
        lengths.append(path.stat().st_size)
        return hash_file(path)

    monkeypatch.setattr(http, "hash_file", measured)
    server.faults["/file"] = [cut(10_000)] * 20
    assert_is_file(part, fetch(server, part))
    assert lengths == [0]
    assert len(server.log) == 21


def test_the_note_has_no_secrets(server: WebServer, part: Path) -> None:
    server.files["/file?TOKEN"] = File(FILE)
    server.faults["/file?TOKEN"] = [cut(9), *[status(403)] * 9]
    url = f"{server.url}/file?TOKEN".replace("://", "://user:PASS@")
    with pytest.raises(FetchError) as raised:
        download(url, opener_of(url), part)
    assert not {"TOKEN", "PASS"} & set(re.findall(r"\w+", f"{version_file(part).read_text()} {raised.value}"))


@pytest.mark.parametrize("content", [FILE, b""], ids=["a file", "an empty one"])
def test_a_part_that_was_lost_is_fetched_again(server: WebServer, part: Path, content: bytes) -> None:
    server.files["/file"].content = content
    fetch(server, part)
    part.unlink()
    assert_is_file(part, fetch(server, part), content)


def test_a_part_that_is_longer_than_the_file_is_begun_anew(server: WebServer, part: Path) -> None:
    stop_after(server, part, 150_000)
    part.write_bytes(FILE + b"more")
    assert_is_file(part, fetch(server, part))
    assert ranges(server) == [None]


def test_a_file_that_begins_like_a_page(server: WebServer, part: Path) -> None:
    content = (15392).to_bytes(8, "little") + b"{" + bytes(99)  # how safetensors may begin: b" <"
    assert content.lstrip().startswith(b"<")
    server.files["/file"].content = content
    assert_is_file(part, fetch(server, part), content)


def test_asks_for_the_bare_file(server: WebServer, part: Path) -> None:
    fetch(server, part)
    (request,) = server.log
    assert request.headers["Accept-Encoding"] == "identity"
    assert request.headers["User-Agent"].startswith("dpt-zoo/")


def test_reports(server: WebServer, part: Path) -> None:
    server.faults["/file"] = [cut(150_000)]
    reports: list[tuple[int, int | None]] = []
    download("here", opener_of(f"{server.url}/file"), part, progress=lambda *report: reports.append(report))
    assert reports[0] == (0, len(FILE))
    assert (150_000, len(FILE)) in reports
    assert reports[-1] == (len(FILE), len(FILE))
    assert reports == sorted(reports)


def test_a_length_that_is_not_known_is_reported_as_such(server: WebServer, part: Path) -> None:
    server.faults["/file"] = [chunked]
    reports: list[tuple[int, int | None]] = []
    download("here", opener_of(f"{server.url}/file"), part, progress=lambda *report: reports.append(report))
    assert {total for _, total in reports} == {None}


def test_too_little_space_is_told_before_anything_is_written(server: WebServer, part: Path) -> None:
    with pytest.raises(OutputError, match=r"has [\d,]+ bytes free, [\d,]+ are needed: free some"):
        download("here", opener_of(f"{server.url}/file"), part, reserve=1 << 60)
    assert not part.exists()


def test_the_clock_jumps(server: WebServer, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = itertools.cycle([0.0, 2e9, -1e9, 1e9])
    monkeypatch.setattr(time, "time", lambda: 1.6e9 + next(jumps))
    server.faults["/file"] = [cut(9), stall(9), status(503, {"Retry-After": "1"}), cut(9)]
    monkeypatch.setattr(http, "STALL_SECONDS", 0.2)
    assert_is_file(part, fetch(server, part))
    assert ranges(server) == [None, "bytes=9-", "bytes=18-", "bytes=18-", "bytes=27-"]


VERSIONS = [b"PK" + bytes([version]) * (40 - version // 3) for version in range(6)]  # three of a size
Headers = dict[str, str | None]
VALIDATORS: list[Headers] = [
    {},
    {"Last-Modified": None},
    {"ETag": None},
    {"ETag": 'W/"1"'},
    {"ETag": 'W/"1"', "Last-Modified": None},
    {"ETag": None, **WITHIN_A_SECOND},
]
STYLES: list[Fault] = [
    faultless,
    without_ranges,
    without_if_range,
    both(without_if_range, headers({"ETag": None, "Last-Modified": None})),
    headers({"Content-Range": "bytes 1-9/40"}),
    headers({"Content-Range": None}),
    chunked,
    encoded("gzip"),
    encoded("deflate"),
    status(416),
    status(503),
    hang_up,
]


def version_of(number: int) -> dict[str, str]:
    """How the file changes when it becomes this version."""
    return {"modified": f"Sat, 28 Aug 2021 10:00:{number:02} GMT"}


@st.composite
def turns(draw: st.DrawFn) -> Fault:
    """One request: the file may have changed, the server has its quirks, and the connection may break."""
    becoming = draw(st.none() | st.integers(0, len(VERSIONS) - 1))
    faults = [] if becoming is None else [becomes(VERSIONS[becoming], **version_of(becoming))]
    faults.append(draw(st.sampled_from(STYLES)))
    length = draw(st.none() | st.integers(0, 50))
    faults += [] if length is None else [cut(length)]
    return both(*faults)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(turns(), max_size=12), validators=st.sampled_from(VALIDATORS))
def test_whatever_happens_the_file_is_of_one_version(
    server: WebServer, part: Path, monkeypatch: pytest.MonkeyPatch, turns: list[Fault], validators: Headers
) -> None:
    monkeypatch.setattr(http, "ATTEMPTS", 2)
    monkeypatch.setattr(http, "PROGRESS", 10)
    for left in (part, version_file(part)):
        left.unlink(missing_ok=True)
    server.files["/file"] = File(VERSIONS[0], **version_of(0))
    server.faults["/file"] = [both(turn, headers(validators)) for turn in turns]
    for _ in range(len(turns) + 1):  # one run after another, until one ends well
        with contextlib.suppress(FetchError):
            measured = fetch(server, part)
            break
    assert part.read_bytes() in VERSIONS
    assert_is_file(part, measured, part.read_bytes())
