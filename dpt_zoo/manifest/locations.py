"""Places that weights come from, as frozen records. Imports no torch."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar
from urllib.parse import urlsplit

from ..errors import InputError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class GoogleDrive:
    """A public file on Google Drive, by its id."""

    type: ClassVar[str] = "gdrive"
    id: str

    def __post_init__(self) -> None:
        _check(re.fullmatch(r"[\w-]+", self.id), f"{self.id!r} is no Google Drive id")

    @property
    def url(self) -> str:
        """The page where a person can fetch the file."""
        return f"https://drive.google.com/file/d/{self.id}/view"


@dataclass(frozen=True)
class HubFile:
    """A file of a model repository on the Hugging Face Hub."""

    type: ClassVar[str] = "hf"
    repo: str
    file: str
    revision: str = "main"

    def __post_init__(self) -> None:
        _check(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.repo), f"{self.repo!r} is no repository of the Hub (org/name)")
        _check(is_relative(self.file), f"{self.file!r} is no file's path in a repository")
        _check(re.fullmatch(r"\w[\w.-]*", self.revision), f"{self.revision!r} is no revision (a branch, tag or commit)")

    @property
    def url(self) -> str:
        """The location, as `weights=` takes it."""
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf://{self.repo}{revision}/{self.file}"


@dataclass(frozen=True)
class WebFile:
    """A file at an `https://` address, or at an `http://` one of this machine."""

    type: ClassVar[str] = "https"
    url: str

    def __post_init__(self) -> None:
        is_right = isinstance(self.url, str) and is_secure(self.url)
        _check(is_right, f"{self.url!r} is no https:// address: plain HTTP is for this machine only")


@dataclass(frozen=True)
class LocalFile:
    """A file that is on this machine."""

    type: ClassVar[str] = "file"
    path: Path

    @property
    def url(self) -> str:
        """Its path."""
        return str(self.path)


@dataclass(frozen=True)
class BaiduNetdisk:
    """A shared folder on Baidu Netdisk. It needs an account and a browser: a way for persons only."""

    type: ClassVar[str] = "baidu"
    share: str
    password: str

    def __post_init__(self) -> None:
        _check(re.fullmatch(r"[\w-]+", self.share), f"{self.share!r} is no share of Baidu Netdisk")

    @property
    def url(self) -> str:
        """The page where a person can fetch the file."""
        return f"https://pan.baidu.com/s/{self.share} (password {self.password})"


Location = GoogleDrive | HubFile | WebFile | LocalFile | BaiduNetdisk

_TYPES: dict[str, Any] = {each.type: each for each in (GoogleDrive, HubFile, WebFile, LocalFile, BaiduNetdisk)}


def location_from_record(record: dict[str, str], folder: Path) -> Location:
    """Make a source from the manifest's record of it; a file's path is relative to the manifest's `folder`.

    Raises:
        ValueError, LookupError, TypeError: the record is not of the expected form.
    """
    fields: dict[str, Any] = dict(record)
    type_ = fields.pop("type")
    if type_ == LocalFile.type:
        _check(is_relative(fields["path"]), f"{fields['path']!r} is no path below the manifest's folder")
        fields["path"] = folder / fields["path"]
    source: Location = _TYPES[type_](**fields)
    return source


def parse_location(location: str | Path) -> Location:
    """Make a source from what a user gives: a path, `https://...` or `hf://org/repo[@revision]/file`.

    Raises:
        InputError: it is none of these.
    """
    text = str(location)
    scheme = re.match(r"([a-z]+)://", text, re.IGNORECASE)
    if isinstance(location, Path) or not scheme:
        return LocalFile(Path(location).expanduser())
    try:
        if scheme[1].lower() == "hf":
            found = re.fullmatch(r"hf://(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/@]+))?/(?P<file>.+)", text)
            _check(found, f"{text!r} is not of the form hf://org/repo/file")
            return HubFile(**{key: value for key, value in found.groupdict().items() if value})  # type: ignore[union-attr]
        return WebFile(text)
    except ValueError as error:
        raise InputError(f"{error}: give a path, https://... or hf://org/repo/file") from error


def is_secure(url: str) -> bool:
    """Whether nobody on the way can change what this address sends: HTTPS, or this machine."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    is_ours = parts.hostname in LOOPBACK and "\\" not in url  # urllib3 ends the host's name at a backslash
    return parts.hostname is not None and (parts.scheme == "https" or (parts.scheme == "http" and is_ours))


def is_relative(path: str) -> bool:
    """Whether a path with forward slashes stays in the folder that it starts from, on every system."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and not set(path) & set("\\:\0")


def _check(holds: object, complaint: str) -> None:
    if not holds:
        raise ValueError(complaint)
