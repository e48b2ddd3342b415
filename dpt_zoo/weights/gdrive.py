"""Public files on Google Drive. Large files are sent only after a page that asks for a confirmation."""

import contextlib
import os
from collections.abc import Mapping
from html.parser import HTMLParser
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

import requests

from ..errors import FetchError
from ..utils.http import WORTH_RETRYING, Session
from .http import Opener

QUOTA = ("quota exceeded", "too many users have viewed or downloaded")
DENIED = ("you need access", "access denied", "request access", "you need permission")
ABSENT = ("does not exist", "not found", "in the owner's trash")
ROBOT = ("unusual traffic", "automated queries")


def opener_of(file_id: str) -> Opener:
    """Return the opener of a public file, which asks `$DPT_ZOO_GDRIVE_ENDPOINT`, or else Google.

    If Google sends a page instead of the file, it raises FetchError with the reason: no quota, not shared, ...
    """
    endpoint = os.environ.get("DPT_ZOO_GDRIVE_ENDPOINT") or "https://drive.google.com"
    url = f"{endpoint}/uc?{urlencode({'export': 'download', 'id': file_id})}"

    def open_file(session: Session, headers: Mapping[str, str]) -> requests.Response:
        response = session.open_url(url, headers)
        for _ in range(2):
            if not response.headers.get("Content-Type", "").lower().startswith("text/html"):
                return response
            with response:
                page = _Page(session.read_start(response, 1 << 20).decode("utf-8", "replace"))
            try:
                confirmed = page.confirmation(response.url, session.cookies.get_dict())
            except ValueError:  # not a URL
                confirmed = ""
            if not confirmed:
                _refuse(response, page)
                return response
            response = session.open_url(confirmed, headers)
        raise FetchError("Google Drive asks for a confirmation again and again")

    return open_file


def _refuse(response: requests.Response, page: "_Page") -> None:
    """Raise the error that a page reports, unless its status is worth retrying."""
    text = page.text.lower()
    if any(phrase in text for phrase in QUOTA):
        raise FetchError("Google Drive refused the download: the file's quota is used up: try again in some hours")
    if any(phrase in text for phrase in ROBOT):
        raise FetchError("Google Drive takes this machine for a robot: try again later, or from another network")
    if response.status_code in WORTH_RETRYING:
        return
    is_login = urlsplit(response.url).path.lower().endswith(("servicelogin", "signin", "identifier"))
    if is_login or response.status_code in (401, 403) or any(phrase in text for phrase in DENIED):
        raise FetchError("Google Drive denied permission: the file is not (or no longer) shared with everybody")
    if response.status_code in (404, 410) or any(phrase in text for phrase in ABSENT):
        raise FetchError("Google Drive does not have this file (any longer)")
    title = " ".join(page.title.split())[:80] or f"status {response.status_code}"
    raise FetchError(f"Google Drive sent a page instead of the file: {title}")


class _Page(HTMLParser):
    """Title and text of a page, and the target of its button "Download anyway"."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.title = self.text = ""
        self._tag = self._action = self._link = ""
        self._fields: dict[str, str] = {}
        with contextlib.suppress(AssertionError):  # older Pythons raise it for some broken markup
            self.feed(html)
            self.close()

    def confirmation(self, base: str, cookies: Mapping[str, str]) -> str:
        """Return the URL that confirms the download, from a form, a link or a cookie, or "" if there is none."""
        if self._action:
            action = urlsplit(urljoin(base, self._action))
            fields = {**dict(parse_qsl(action.query)), **self._fields}
            return action._replace(query=urlencode(fields)).geturl() if "confirm" in fields else ""
        if self._link:
            return urljoin(base, self._link)
        token = next((value for name, value in cookies.items() if name.startswith("download_warning")), "")
        return f"{base}&{urlencode({'confirm': token})}" if token and "confirm=" not in base else ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        attributes = {name: value or "" for name, value in attrs}
        if tag == "form" and "download" in attributes.get("id", "").lower():
            self._action = attributes.get("action", "")
        elif tag == "input" and attributes.get("type") == "hidden":
            self._fields[attributes.get("name", "")] = attributes.get("value", "")
        elif tag == "a" and "confirm=" in attributes.get("href", ""):
            self._link = attributes["href"]

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag == "title":
            self.title += data
        if self._tag not in ("script", "style"):
            self.text += f" {data}"
