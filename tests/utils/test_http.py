"""Nothing that a server sends, or does not send, makes a request endless or large."""

import gzip
import time
import traceback
from collections.abc import Callable

import pytest
from raw_server import Connection, RawServer, Script
from web_server import WebServer, endless, headers, redirect

from dpt_zoo.errors import FetchError
from dpt_zoo.utils import http
from dpt_zoo.utils.http import Session, TransientError, check_status, content_encodings, read_url

pytestmark = pytest.mark.network

STALL = 0.3  # seconds
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(http, "ATTEMPTS", 1)
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def repeat(start: bytes, data: bytes, pause: float = 0.01) -> Script:
    """Send a start, and then the same bytes for ever."""

    def script(connection: Connection) -> None:
        connection.send(start)
        connection.repeat(data, pause)

    return script


ENDLESS: dict[str, Script] = {
    "silence": repeat(b"", b"", 0.05),
    "a status line in drips": repeat(b"HTTP/1.1 2", b"0"),
    "interim answers": repeat(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.001),
    "the headers of an interim answer": repeat(b"HTTP/1.1 100 Continue\r\n", b"a: b\r\n"),
    "headers in drips": repeat(OK, b"x"),
    "headers": repeat(OK, b"a: b\r\n"),
    "a redirect's headers": repeat(b"HTTP/1.1 302 Found\r\nLocation: /\r\n", b"a: b\r\n"),
    "a body in drips": repeat(OK + b"Content-Length: 99999\r\n\r\n", b"x"),
    "a chunk's length in drips": repeat(CHUNKED, b"0"),
    "a chunk's extension in drips": repeat(CHUNKED + b"5;", b"x"),
    "trailers": repeat(CHUNKED + b"1\r\nx\r\n0\r\n", b"a: b\r\n", 0.001),
    "trailers in drips": repeat(CHUNKED + b"1\r\nx\r\n0\r\n", b"x"),
    "a compressed body of nothing": repeat(OK + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(b""), 0.001),
}


@pytest.mark.parametrize("script", ENDLESS.values(), ids=ENDLESS)
def test_everything_ends(script: Script) -> None:
    with RawServer(script) as server, Session(STALL, 1000) as session, pytest.raises((FetchError, TransientError)):
        session.read_start(session.open_url(server.url), 1 << 20)


def test_a_slow_server_is_waited_for() -> None:
    def script(connection: Connection) -> None:
        for part in (b"HTTP/1.1 100 Continue\r\n\r\n", OK, b"Content-Length: 8\r\n\r\n", b"abcd", b"efgh"):
            connection.closing.wait(0.05)
            connection.send(part)

    with RawServer(script) as server, Session() as session:
        assert session.read_start(session.open_url(server.url), 99) == b"abcdefgh"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_the_body_of_a_redirect_is_not_read(code: int) -> None:
    def script(connection: Connection) -> None:
        if connection.number == 1:
            connection.send(b"HTTP/1.1 %d Moved\r\nLocation: /x\r\nTransfer-Encoding: chunked\r\n\r\n" % code)
            connection.repeat(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
        connection.send(OK + b"Content-Length: 2\r\n\r\nok")

    with RawServer(script) as server:
        assert read_url(server.url, 99) == b"ok"
        assert server.connections[0].num_sent < 20 << 20  # what the system buffers


def test_more_than_the_limit_is_not_read() -> None:
    with WebServer({"/a": b""}) as server:
        server.faults["/a"] = [endless]
        with pytest.raises(FetchError, match="refused, it is larger than 1 MB"):
            read_url(f"{server.url}/a", 1 << 20)
        assert server.log[0].sent < 30 << 20


@pytest.mark.parametrize(
    "encoding", ["gzip", "GZIP", "Gzip", "x-gzip", "gzip, gzip", "gzip,  GZIP", "identity", "", ","]
)
def test_encodings(encoding: str) -> None:
    content = b"content" * 99
    body = content
    for _ in range(encoding.lower().count("gzip")):
        body = gzip.compress(body)
    with WebServer({"/a": body}) as server:
        server.faults["/a"] = [headers({"Content-Encoding": encoding})]
        assert read_url(f"{server.url}/a", 9999) == content


@pytest.mark.parametrize("encoding", ["none", "binary", "UTF-8", "gzip, none", "rot13"])
def test_unknown_encodings(encoding: str) -> None:
    with WebServer({"/a": b"content"}) as server, Session() as session:
        server.faults["/a"] = [headers({"Content-Encoding": encoding})]
        with pytest.raises(FetchError, match="unknown encoding"):
            check_status(session.open_url(f"{server.url}/a"))
    assert content_encodings({"Content-Encoding": " Identity , GZip,"}) == ["gzip"]


@pytest.mark.parametrize(
    ("transfer", "is_known"), [("chunked", True), ("Chunked", True), ("gzip, chunked", False), ("identity", False)]
)
def test_transfer_encodings(transfer: str, is_known: bool) -> None:
    def script(connection: Connection) -> None:
        connection.send(OK + f"Transfer-Encoding: {transfer}\r\n\r\n2\r\nok\r\n0\r\n\r\n".encode())

    with RawServer(script) as server:
        if is_known:
            assert read_url(server.url, 99) == b"ok"
        else:
            with pytest.raises(FetchError, match="unknown transfer encoding"):
                read_url(server.url, 99)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2", "[::1]"])
def test_no_proxy_is_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    def send(connection: Connection) -> None:
        connection.send(OK + b"Content-Length: 2\r\n\r\nok")

    with RawServer(send) as proxy, Session() as session:
        monkeypatch.setenv("http_proxy", proxy.url)
        settings = session.merge_environment_settings(f"http://{host}:1/", {}, True, None, None)
        assert settings["proxies"] == {}
        assert read_url("http://example.org/", 99) == b"ok"  # others are asked through it
        assert proxy.connections[0].head.startswith(b"GET http://example.org/ ")


@pytest.mark.parametrize("script", [ENDLESS["headers"], ENDLESS["interim answers"], ENDLESS["headers in drips"]])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxies_have_no_more_time(monkeypatch: pytest.MonkeyPatch, scheme: str, script: Script) -> None:
    with RawServer(script) as proxy, Session(STALL, is_secure_only=False) as session:
        monkeypatch.setenv(f"{scheme}_proxy", proxy.url)
        with pytest.raises((FetchError, TransientError)):
            session.open_url(f"{scheme}://example.org/")


SECRETS = [
    "user:PASS@{host}/a",
    "TOKEN@{host}/a",
    "{host}/a?sig=TOKEN",
    "{host}/a?TOKEN#PASS",
    "u:PASS@{host}/a?x=TOKEN",
]


@pytest.mark.parametrize("url", SECRETS)
@pytest.mark.parametrize(
    "fault",
    [
        redirect("http://u:PASS@example.org/b?TOKEN"),
        redirect("http://u:PASS@["),
        redirect("http://u:PASS@127.0.0.1:99999/?TOKEN"),
        redirect("ftp://u:PASS@127.0.0.1/?TOKEN"),
    ],
    ids=["elsewhere", "no URL", "no port", "no HTTP"],
)
def test_errors_show_no_secrets(url: str, fault: Callable[..., None]) -> None:
    with WebServer({}) as server, Session() as session:
        url = "http://" + url.format(host=server.url.removeprefix("http://"))
        target = "/a" + (f"?{url.partition('?')[2].partition('#')[0]}" if "?" in url else "")
        server.faults[target] = [fault]
        with pytest.raises((FetchError, TransientError)) as raised:
            session.open_url(url)
    shown = "".join(traceback.format_exception(raised.value))
    assert "TOKEN" not in shown and "PASS" not in shown


def test_pages_are_asked_for_in_english() -> None:
    with WebServer({"/a": b"a"}) as server:
        read_url(f"{server.url}/a", 9)
        assert server.log[0].headers["Accept-Language"] == "en"
