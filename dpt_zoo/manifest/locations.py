"""The places where weights are, as frozen records. Imports no torch."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar
from urllib.parse import urlsplit

from ..errors import InputError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class GoogleDrive:
    """A public file on Google Drive."""

    type: ClassVar[str] = "gdrive"
    id: str

    def __post_init__(self) -> None:
        _check(re.fullmatch(r"[\w-]+", self.id), f"{self.id!r} is not a Google Drive id")

    @property
    def url(self) -> str:
        """The page where a person can download the file."""
        return f"https://drive.google.com/file/d/{self.id}/view"


@dataclass(frozen=True)
class HubFile:
    """A file of a model repository on the Hugging Face Hub."""

    type: ClassVar[str] = "hf"
    repo: str
    file: str
    revision: str = "main"

    def __post_init__(self) -> None:
        _check(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.repo), f"{self.repo!r} is not a Hub repository (org/name)")
        _check(is_relative(self.file), f"{self.file!r} is not the path of a file in a repository")
        _check(re.fullmatch(r"\w[\w.-]*", self.revision), f"{self.revision!r} is not a branch, tag or commit")

    @property
    def url(self) -> str:
        """The location in the form that `weights=` takes."""
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf://{self.repo}{revision}/{self.file}"


@dataclass(frozen=True)
class WebFile:
    """A file at an `https://` URL, or at an `http://` URL of this machine."""

    type: ClassVar[str] = "https"
    url: str

    def __post_init__(self) -> None:
        is_allowed = isinstance(self.url, str) and is_secure(self.url)
        _check(is_allowed, f"{self.url!r} is not an https:// URL (plain HTTP is accepted for this machine only)")


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine."""

    type: ClassVar[str] = "file"
    path: Path

    @property
    def url(self) -> str:
        """The path."""
        return str(self.path)


@dataclass(frozen=True)
class BaiduNetdisk:
    """A shared folder on Baidu Netdisk. It needs an account and a browser, so only a person can use it."""

    type: ClassVar[str] = "baidu"
    share: str
    password: str

    def __post_init__(self) -> None:
        _check(re.fullmatch(r"[\w-]+", self.share), f"{self.share!r} is not a Baidu Netdisk share")

    @property
    def url(self) -> str:
        """The page where a person can download the file."""
        return f"https://pan.baidu.com/s/{self.share} (password {self.password})"


Location = GoogleDrive | HubFile | WebFile | LocalFile | BaiduNetdisk

_TYPES: dict[str, Any] = {each.type: each for each in (GoogleDrive, HubFile, WebFile, LocalFile, BaiduNetdisk)}


def location_from_record(record: dict[str, str], folder: Path) -> Location:
    """Return the location that the manifest describes.

    Args:
        record: the fields of the location, and its `type`.
        folder: the manifest's folder; the path of a local file is relative to it.

    Raises:
        ValueError, LookupError, TypeError: The record does not have the expected form.
    """
    fields: dict[str, Any] = dict(record)
    type_ = fields.pop("type")
    if type_ == LocalFile.type:
        _check(is_relative(fields["path"]), f"{fields['path']!r} is not a path inside the manifest's folder")
        fields["path"] = folder / fields["path"]
    return _TYPES[type_](**fields)


def parse_location(location: str | Path) -> Location:
    """Return the location for a path, `https://...` or `hf://org/repo[@revision]/file`.

    Raises:
        InputError: The text has none of these forms.
    """
    text = str(location)
    scheme = re.match(r"([a-z]+)://", text, re.IGNORECASE)
    if isinstance(location, Path) or not scheme:
        return LocalFile(Path(location).expanduser())
    try:
        if scheme[1].lower() != "hf":
            return WebFile(text)
        parts = re.fullmatch(r"hf://(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/@]+))?/(?P<file>.+)", text)
        if not parts:
            raise ValueError(f"{text!r} does not have the form hf://org/repo/file")
        return HubFile(**{key: value for key, value in parts.groupdict().items() if value})
    except ValueError as error:
        raise InputError(f"{error}: give a path, https://... or hf://org/repo/file") from error


def is_secure(url: str) -> bool:
    """Return whether nobody between this machine and the server can change what a URL sends: HTTPS, or loopback."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    is_loopback = parts.hostname in LOOPBACK and "\\" not in url  # urllib3 ends the host name at a backslash
    return parts.hostname is not None and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback))


def is_relative(path: str) -> bool:
    """Return whether a path with forward slashes stays inside the folder that it is relative to, on every system."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and not set(path) & set("\\:\0")


def _check(is_valid: object, message: str) -> None:
    if not is_valid:
        raise ValueError(message)
