"""Downloading from Google Drive: confirmation pages of several years, and the errors for its refusals."""

import hashlib
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from drive_server import DriveServer, Manner
from web_server import Fault, File, becomes, cut, page, redirect, status

from dpt_zoo.errors import FetchError
from dpt_zoo.manifest.locations import GoogleDrive
from dpt_zoo.weights import http
from dpt_zoo.weights.gdrive import opener_of

pytestmark = pytest.mark.network

ID = "1S84hbeVxPjtcmjeOcae5Sn_XYqyagMn3"
FILE = b"PK" + random.Random(0).randbytes(100_000)


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[DriveServer]:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with DriveServer({ID: FILE}) as server:
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setenv("DPT_ZOO_GDRIVE_ENDPOINT", server.url)
        yield server


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "part"


def fetch(part: Path) -> None:
    measured = http.download(GoogleDrive(ID).url, opener_of(ID), part)
    assert measured == http.Download(hashlib.sha256(FILE).hexdigest(), len(FILE))
    assert part.read_bytes() == FILE


@pytest.mark.parametrize("manner", get_args(Manner))
def test_each_manner(server: DriveServer, part: Path, manner: Manner) -> None:
    server.manner = manner
    fetch(part)


@pytest.mark.parametrize("manner", get_args(Manner))
def test_goes_on_where_the_connection_broke(server: DriveServer, part: Path, manner: Manner) -> None:
    server.manner = manner
    server.faults[ID] = [cut(40_000), status(503), cut(9)]
    fetch(part)
    partial = [each for each in server.log if each.status == 206]
    assert [(each.range, each.sent) for each in partial] == [("bytes=40000-", 9), ("bytes=40009-", len(FILE) - 40_009)]


def test_a_changed_file_is_begun_anew(server: DriveServer, part: Path) -> None:
    server.files[ID].content = bytes(len(FILE))
    server.faults[ID] = [cut(40_000), becomes(FILE)]
    fetch(part)


def test_asks_google_where_nothing_else_is_set(monkeypatch: pytest.MonkeyPatch, part: Path) -> None:
    monkeypatch.delenv("DPT_ZOO_GDRIVE_ENDPOINT")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nobody is there: nothing leaves this machine
    monkeypatch.delenv("NO_PROXY")
    with pytest.raises(FetchError, match="the connection failed"):
        fetch(part)


def titled(title: str, body: str = "") -> str:
    return f"<!DOCTYPE html><html><head><title>{title}</title></head><body><p>{body}</p></body></html>"


QUOTA = titled(
    "Google Drive - Quota exceeded",
    "Sorry, you can't view or download this file at this time. Too many users have viewed or downloaded this file "
    "recently. Please try accessing the file again later.",
)
DENIED = titled("Google Drive - Access Denied", "You need access. Ask for access, or switch to an account with access.")
ABSENT = titled("Error 404 (Not Found)!!1", "The requested URL was not found on this server. That's all we know.")
ROBOT = titled("Sorry...", "We're sorry... but your computer or network may be sending automated queries.")
LOGIN = titled("Sign in - Google Accounts", "Use your Google Account")

# What Google sends instead of the file, and the error.
REFUSED: dict[str, tuple[Fault, str]] = {
    "quota": (page(QUOTA), "refused the download: the file's quota is used up: try again in some hours"),
    "quota, with 403": (page(QUOTA, status=403), "refused the download: .* quota is used up.*"),
    "quota, with 429": (page(QUOTA, status=429), "refused the download: .* quota is used up.*"),
    "denied, with 200": (page(DENIED), r"denied permission: the file is not \(or no longer\) shared with everybody"),
    "denied, with 403": (page(DENIED, status=403), "denied permission: .*"),
    "denied, in other words": (page(titled("Zugriff verweigert"), status=403), "denied permission: .*"),
    "401": (page(titled("Unauthorized"), status=401), "denied permission: .*"),
    "log in": (redirect("/ServiceLogin?continue=x", 303), "denied permission: .*"),
    "log in, as of 2023": (redirect("/v3/signin/identifier?continue=x", 303), "denied permission: .*"),
    "absent": (page(ABSENT, status=404), r"does not have this file \(any longer\)"),
    "absent, in other words": (page(titled("Fehler"), status=404), "does not have this file .*"),
    "gone": (page(titled("Gone"), status=410), "does not have this file .*"),
    "in the bin": (page(titled("Sorry", "The file is in the owner's trash.")), "does not have this file .*"),
    "robot, with 403": (
        page(ROBOT, status=403),
        "takes this machine for a robot: try again later, or from another network",
    ),
    "robot, with 429": (page(ROBOT, status=429), "takes this machine for a robot: .*"),
    "robot, with 503": (page(titled("x", "unusual traffic"), status=503), "takes this machine for a robot: .*"),
    "infected": (
        page(titled("Google Drive - Infected file", "Sorry, this file is infected with a virus.")),
        "sent a page instead of the file: Google Drive - Infected file",
    ),
    "a page in other words": (page(titled("Etwas Neues")), "sent a page instead of the file: Etwas Neues"),
    "a page with a title in lines": (page("<title>\n Etwas\n Neues </title>Ja"), "sent a page .*: Etwas Neues"),
    "a page with a title without end": (page(f"<title>{'x' * 999}"), "sent a page instead of the file: x{80}"),
    "a page without a title": (page("<p>Hello"), "sent a page instead of the file: status 200"),
    "a page of broken markup": (page("<![if[ <title>"), "sent a page instead of the file: status 200"),
    "a page of three megabytes": (page(titled("Long", "x" * 3_000_000)), "sent a page instead of the file: Long"),
    "a form that confirms nothing": (
        page(titled("Form") + '<form id="download-form" action="/download"><input type="hidden" name="id"></form>'),
        "sent a page instead of the file: Form",
    ),
    "a form that leads nowhere": (
        page(titled("Form") + '<form id="download-form" action="https://[?confirm=t"></form>'),
        "sent a page instead of the file: Form",
    ),
}


@pytest.mark.parametrize("refusal", REFUSED)
def test_refused(server: DriveServer, part: Path, refusal: str) -> None:
    server.manner = "small"
    fault, complaint = REFUSED[refusal]
    server.faults[ID] = [fault, ...]
    for path in ("/ServiceLogin?continue=x", "/v3/signin/identifier?continue=x"):
        server.files[path], server.faults[path] = File(b""), [page(LOGIN)]
    with pytest.raises(FetchError) as raised:
        fetch(part)
    assert re.fullmatch(f"Google Drive {complaint}", str(raised.value))
    assert not part.exists()


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_passing_trouble(server: DriveServer, part: Path, code: int) -> None:
    server.faults[ID] = [page(titled("Error", "That's an error. Try again."), status=code)] * 4
    fetch(part)


def test_a_trouble_that_does_not_pass(server: DriveServer, part: Path) -> None:
    server.faults[ID] = [page(titled("Error"), status=500), ...]
    with pytest.raises(FetchError, match=r"it answered 500 Internal Server Error \(5 attempts\)"):
        fetch(part)


def test_a_page_that_asks_again_and_again(server: DriveServer, part: Path) -> None:
    server.faults[ID] = [page(server.warning(ID)), ...]
    with pytest.raises(FetchError, match="Google Drive asks for a confirmation again and again"):
        fetch(part)


@pytest.mark.parametrize("elsewhere", ["http://example.org/download", "file:///etc/passwd", "//example.org:80/x"])
def test_a_page_that_leads_elsewhere(server: DriveServer, part: Path, elsewhere: str) -> None:
    warning = server.warning(ID).replace(f"{server.url}/download", elsewhere)
    server.faults[ID] = [page(warning)]
    server.manner = "small"
    with pytest.raises(FetchError, match=r"it leads to .*, which is not HTTPS and could be tampered with: refused"):
        fetch(part)


def test_a_page_in_place_of_the_file_that_does_not_say_so(server: DriveServer, part: Path) -> None:
    server.faults[ID] = [page(QUOTA, content_type="application/octet-stream")]
    with pytest.raises(FetchError, match="it sent a web page, not the file"):
        fetch(part)
    assert not part.exists()
