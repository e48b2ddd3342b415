"""Locations of weights: Google Drive, the Hugging Face Hub, URLs, local files. Imports no torch."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, get_args

from ..errors import InputError
from ..utils.files import expand_user
from ..utils.urls import is_secure, redact


@dataclass(frozen=True)
class GoogleDrive:
    """A public file on Google Drive."""

    type: ClassVar[str] = "gdrive"
    id: str

    def __post_init__(self) -> None:
        _check(re.fullmatch(r"[\w-]+", self.id), f"{self.id!r} is not a Google Drive id")

    @property
    def url(self) -> str:
        """The web page of the file."""
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
        check_relative(self.file, "the repository")
        _check(re.fullmatch(r"\w[\w.-]*", self.revision), f"{self.revision!r} is not a branch, tag or commit")

    @property
    def url(self) -> str:
        """The location in the form that `weights=` takes."""
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf://{self.repo}{revision}/{self.file}"


@dataclass(frozen=True)
class HubModel(HubFile):
    """The weights in a model repository on the Hub that `publish` wrote. Its `config.json` says what they are."""

    file: str = "model.safetensors"

    @property
    def config(self) -> HubFile:
        """The location of `config.json`."""
        return HubFile(self.repo, "config.json", self.revision)

    @property
    def url(self) -> str:
        """The location in the form that `create_model` takes."""
        return super().url.removesuffix(f"/{self.file}")


@dataclass(frozen=True)
class WebFile:
    """A file at an `https://` URL, or at an `http://` URL of this machine."""

    type: ClassVar[str] = "https"
    url: str

    def __post_init__(self) -> None:
        if not isinstance(self.url, str) or not is_secure(self.url):
            shown = redact(self.url) if isinstance(self.url, str) else self.url
            raise ValueError(f"{shown!r} is not an https:// URL (plain HTTP is accepted for this machine only)")


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
    """A shared folder on Baidu Netdisk. It needs an account and a browser: it is not downloaded automatically."""

    type: ClassVar[str] = "baidu"
    share: str
    password: str

    def __post_init__(self) -> None:
        _check(re.fullmatch(r"[\w-]+", self.share), f"{self.share!r} is not a Baidu Netdisk share")

    @property
    def url(self) -> str:
        """The web page of the folder, and its password."""
        return f"https://pan.baidu.com/s/{self.share} (password {self.password})"


Location = GoogleDrive | HubFile | WebFile | LocalFile | BaiduNetdisk


def location_from_record(record: dict[str, str], folder: Path) -> Location:
    """Return the location of a manifest entry: its `type` and its fields.

    The path of a local file is relative to `folder`. An invalid entry raises ValueError, LookupError or TypeError.
    """
    fields: dict[str, Any] = dict(record)
    location_type = {each.type: each for each in get_args(Location)}[fields.pop("type")]
    if location_type is LocalFile:
        check_relative(fields["path"])
        fields["path"] = folder / fields["path"]
    return location_type(**fields)


def parse_location(location: str | Path) -> Location:
    """Return the location of a path, `https://...` or `hf://org/repo[@revision][/file]`; else raise InputError."""
    text = str(location)
    scheme = re.match(r"([a-z]+)://", text, re.IGNORECASE)
    if isinstance(location, Path) or not scheme:
        return LocalFile(expand_user(location))
    try:
        if scheme[1].lower() != "hf":
            return WebFile(text)
        parts = re.fullmatch(r"hf://(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/@]+))?(/(?P<file>.+))?", text)
        if not parts:
            raise ValueError(f"{redact(text)!r} does not have the form hf://org/repo or hf://org/repo/file")
        fields = {key: value for key, value in parts.groupdict().items() if value}
        return HubFile(**fields) if "file" in fields else HubModel(**fields)
    except ValueError as error:
        raise InputError(f"{error}: give a path, https://... or hf://org/repo/file") from error


def is_location(model: str | Path) -> bool:
    """Return whether a model is given by the location of its weights, a path or a URL, instead of by its name."""
    text = str(model)
    return bool({"/", "\\"} & {*text}) or text.lower().endswith((".safetensors", ".pth"))


def check_relative(path: str, folder: str = "the manifest's folder") -> None:
    """Raise a ValueError that names `folder` if `path` may lead out of it on any operating system."""
    parts = PurePosixPath(path).parts
    is_inside = parts and not path.startswith("/") and ".." not in parts and not set(path) & set("\\:\0")
    _check(is_inside, f"{path!r} is not a path inside {folder}, with forward slashes")


def _check(is_valid: object, message: str) -> None:
    if not is_valid:
        raise ValueError(message)
