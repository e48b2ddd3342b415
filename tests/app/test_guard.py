"""The page's middleware by itself: bodies, the room for uploads, host names, and functions that do not exist."""

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from dpt_zoo.app import guard
from dpt_zoo.app.guard import MESSAGES, UPLOAD, Guard
from dpt_zoo.utils import request_checks

JOIN = MESSAGES[0]


class Page:
    """An application that keeps the bodies of requests."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def ask(
    app: Guard,
    path: str,
    parts: Sequence[bytes] = (),
    headers: dict[str, str] | None = None,
    *,
    method: str = "POST",
    is_stalled: bool = False,
) -> int:
    """Send a request whose body arrives in parts, and return the status of the answer."""
    sent = {"content-length": str(len(b"".join(parts))), "host": "127.0.0.1:7860", **(headers or {})}
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts or [b""]]
    if not is_stalled:
        messages[-1]["more_body"] = False
    answers: list[Message] = []

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        answers.append(message)

    encoded = [(name.encode(), value.encode("latin-1")) for name, value in sent.items() if value]
    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "headers": encoded, "query_string": b""}
    asyncio.run(app(scope, receive, send))
    return int(answers[0]["status"])


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
def app(page: Page, tmp_path: Path) -> Guard:
    return Guard(page, folder=tmp_path, is_local=True, functions={0, 1})


@pytest.mark.parametrize("path", [UPLOAD, *MESSAGES])
@pytest.mark.parametrize("coding", ["chunked", "Chunked", "gzip, chunked", "identity"])
def test_an_encoded_transfer_is_refused_even_with_a_length(app: Guard, page: Page, path: str, coding: str) -> None:
    assert ask(app, path, [b"{}"], {"transfer-encoding": coding}) == 411
    assert page.bodies == []


@pytest.mark.parametrize("path", [UPLOAD, JOIN])
@pytest.mark.parametrize("parts", [[b"{", b"}" * 9], [b"{}" * 99], [b"{}", b"", b"x"]])
def test_what_arrives_counts_and_not_what_was_announced(app: Guard, page: Page, path: str, parts: list[bytes]) -> None:
    if path == UPLOAD:
        with pytest.raises(HTTPException, match="longer than its length"):  # the page's own server answers 413
            ask(app, path, parts, {"content-length": "2"})
    else:
        assert ask(app, path, parts, {"content-length": "2"}) == 413
    assert page.bodies == []


def test_a_body_that_stalls_ends(app: Guard, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_checks, "STALL_SECONDS", 0.05)
    assert ask(app, JOIN, [b"{"], {"content-length": "2"}, is_stalled=True) == 408
    assert page.bodies == []


def test_a_body_arrives_in_parts(app: Guard, page: Page) -> None:
    assert ask(app, UPLOAD, [b"ab", b"", b"cd"]) == 200
    assert ask(app, JOIN, [b'{"data"', b": []}"]) == 200
    assert page.bodies == [b"abcd", b'{"data": []}']


@pytest.mark.parametrize(
    "function", [2, -1, 10**30, "0", 1.5, [0], {"path": None}, "detect"], ids=lambda value: repr(value)[:9]
)
def test_functions_that_do_not_exist_are_an_error_of_the_visitor(app: Guard, page: Page, function: Any) -> None:
    assert ask(app, JOIN, [json.dumps({"fn_index": function, "data": []}).encode()]) == 400
    assert ask(app, JOIN, [json.dumps({"fn_index": 1, "data": []}).encode()]) == 200
    assert len(page.bodies) == 1


class TestRoom:
    """Uploads and results are limited in all, and the oldest give way."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guard, "MAX_FOLDER", 1000)
        monkeypatch.setattr(guard, "MIN_FILE", 10)

    @staticmethod
    def keep(folder: Path, name: str, size: int, age: float) -> Path:
        path = folder / name / "image.png"
        path.parent.mkdir()
        path.write_bytes(bytes(size))
        os.utime(path, (1e9 - age, 1e9 - age))
        return path

    def test_the_oldest_give_way(self, page: Page, tmp_path: Path) -> None:
        example = self.keep(tmp_path, "example", 300, age=99)
        app = Guard(page, folder=tmp_path, is_local=True, functions=())
        new, old, older = (self.keep(tmp_path, str(age), 300, age) for age in (1, 2, 3))
        assert ask(app, UPLOAD, [bytes(100)]) == 200
        assert new.exists() and old.exists() and older.exists()
        assert ask(app, UPLOAD, [bytes(200)]) == 200
        assert new.exists() and old.exists() and not older.parent.exists()
        assert ask(app, UPLOAD, [bytes(999)]) == 200
        assert not new.exists() and not old.exists() and example.exists()

    def test_messages_make_room_for_their_results(self, app: Guard, tmp_path: Path) -> None:
        old, new = self.keep(tmp_path, "old", 600, age=2), self.keep(tmp_path, "new", 600, age=1)
        assert ask(app, JOIN, [b"{}"]) == 200
        assert new.exists() and not old.exists()

    def test_many_small_files(self, app: Guard, tmp_path: Path) -> None:
        for number in range(200):
            self.keep(tmp_path, str(number), 1, age=number)
        assert ask(app, UPLOAD, [b"x"]) == 200
        assert 90 <= len(list(tmp_path.rglob("*.png"))) <= 100

    def test_a_link_is_not_followed(self, app: Guard, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        elsewhere = tmp_path_factory.mktemp("elsewhere") / "file"
        elsewhere.write_bytes(bytes(5000))
        (tmp_path / "link").symlink_to(elsewhere)
        assert ask(app, UPLOAD, [bytes(999)]) == 200
        assert elsewhere.exists()

    def test_uploads_at_one_time(self, tmp_path: Path) -> None:
        statuses = []

        async def page(scope: Scope, receive: Receive, send: Send) -> None:
            statuses.append(await asyncio.to_thread(ask, guarded, UPLOAD, [bytes(600)]))

        guarded = Guard(page, folder=tmp_path, is_local=True, functions=())
        with pytest.raises(IndexError):  # this application answers nothing
            ask(guarded, UPLOAD, [bytes(600)])
        assert statuses == [503]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2:80", "127.255.255.254", "localhost:1", "[::1]:7860", "[::1]"])
def test_every_address_of_this_machine(app: Guard, host: str) -> None:
    assert ask(app, "/config", headers={"host": host}, method="GET") != 403


@pytest.mark.parametrize(
    "host", ["", "evil.example", "127.0.0.1.evil.example", "128.0.0.1", "127.1", "[::2]", "0.0.0.0"]
)
def test_other_hosts(app: Guard, host: str) -> None:
    assert ask(app, "/config", headers={"host": host}, method="GET") == 403
