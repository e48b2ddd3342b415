"""A small Hugging Face Hub on this machine, for the real `huggingface_hub` client to talk to over HTTP.

It answers what the client (versions 1.27 to 2.4) asks as the Hub does, as far as fetching files and publishing models
go. Large files are transferred by Git LFS, in one part or several; Xet has to be switched off in the client.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from jsonschema import Draft202012Validator

WRITER = "hf_writer"
"""A token of the user "someone", who may write to their own repositories and to those of "org"."""
READER = "hf_reader"
"""A token of the same user with which one may only read."""
NAMESPACES = ("someone", "org")

STRINGS = {"type": "array", "items": {"type": "string"}}
CARD_SCHEMA = {
    "type": "object",
    "properties": {
        "license": {"enum": ["apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "gpl-3.0", "other"]},
        "library_name": {"type": "string"},
        "pipeline_tag": {"type": "string"},
        "tags": STRINGS,
        "metrics": STRINGS,
        "datasets": {"type": "array", "items": {"type": "string", "pattern": r"^(?:[\w-]+/)?[\w.-]+$"}},
        "base_model": {"type": "string", "pattern": r"^[\w.-]+/[\w.-]+$"},
        "model-index": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "results"],
                "properties": {
                    "name": {"type": "string"},
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["task", "dataset", "metrics"],
                            "properties": {
                                "task": {
                                    "type": "object",
                                    "required": ["type"],
                                    "properties": {"type": {"type": "string"}, "name": {"type": "string"}},
                                },
                                "dataset": {
                                    "type": "object",
                                    "required": ["type", "name"],
                                    "properties": {
                                        "type": {"type": "string", "pattern": r"^(?:[\w-]+/)?[\w.-]+$"},
                                        "name": {"type": "string"},
                                        "config": {"type": "string"},
                                        "split": {"type": "string"},
                                        "revision": {"type": "string"},
                                    },
                                },
                                "metrics": {
                                    "type": "array",
                                    "items": {
                                        "type": "object",
                                        "required": ["type", "value"],
                                        "properties": {
                                            "type": {"type": "string"},
                                            "name": {"type": "string"},
                                            "config": {"type": "string"},
                                            "verified": False,  # for the Hub's own service to set
                                        },
                                    },
                                },
                                "source": {
                                    "type": "object",
                                    "required": ["url"],
                                    "properties": {"url": {"type": "string", "pattern": "^https://"}},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}
"""What the Hub demands of a model card's metadata, after its specification (modelcard.md of huggingface/hub-docs) and
its answers: of the licenses it accepts, some; unknown fields are free."""
PIPELINE_TAGS = ("object-detection", "image-segmentation", "image-classification", "image-feature-extraction")
"""The tasks of vision that are close; the Hub warns of a tag that it does not know."""

Files = dict[str, bytes]


@dataclass
class Repository:
    """Its commits, by their ids; the last one is `main`."""

    private: bool
    gated: bool
    commits: dict[str, Files] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """The last commit's id."""
        return list(self.commits)[-1]

    def commit(self, files: Mapping[str, bytes]) -> str:
        """Add or replace files."""
        content = {**(self.commits[self.head] if self.commits else {}), **files}
        identity = repr((len(self.commits), sorted((path, sha256(data)) for path, data in content.items())))
        self.commits[hashlib.sha1(identity.encode()).hexdigest()] = content
        return self.head


@dataclass
class Fault:
    """What the next `times` requests of a kind meet: an error, or a body that breaks off after `cut` bytes."""

    method: str
    path: str
    times: int
    status: int = 0
    message: str = "something is wrong here"
    cut: int = 0
    then: Literal["close", "reset", "stall"] = "close"


class HubServer:
    """The Hub: `with HubServer() as hub` has it at `hub.url` until the block ends.

    Attributes:
        repositories: by "org/name".
        storage: the contents of large files, by SHA-256; damage them here.
        requests: those so far: method, path and headers, whose names are in lower case.
        part_size: in bytes, how large files are to be uploaded; None for each in one part.
        knows_ranges: whether storage sends parts of files.
        warning: what every answer warns of.
        faults: what is to go wrong (see `fail`).
        uploads: what came of large files, by SHA-256 and number of the part.
        stalled: set once a body has stalled.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.storage: Files = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.part_size: int | None = None
        self.knows_ranges = True
        self.warning = ""
        self.faults: list[Fault] = []
        self.uploads: dict[tuple[str, int], bytes] = {}
        self.stalled = threading.Event()
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Another host, as the Hub's storage is, where the user's token has no business.
        self.storage_url = f"http://localhost:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo: str, files: Mapping[str, bytes], *, private: bool = False, gated: bool = False) -> str:
        """Commit files to a repository, which is made where there is none; return the commit's id."""
        self.storage |= {sha256(data): data for path, data in files.items() if is_large(path)}
        return self.repositories.setdefault(repo, Repository(private, gated)).commit(files)

    def files(self, repo: str) -> Files:
        """What is in a repository's last commit."""
        repository = self.repositories[repo]
        return repository.commits[repository.head]

    def fail(self, method: str, path: str, *, times: int = 1000, **fault: Any) -> None:
        """Let the next requests whose path holds `path` meet a `Fault`."""
        self.faults.append(Fault(method, path, times, **fault))

    def asked(self, method: str, path: str) -> list[dict[str, str]]:
        """The headers of the requests so far whose path holds `path`."""
        return [headers for each, where, headers in self.requests if each == method and path in where]

    def environment(self, home: Path, token: str = "") -> dict[str, str]:
        """The variables with which a new process uses this Hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def use(self, monkeypatch: pytest.MonkeyPatch, home: Path, token: str = "") -> None:
        """Let this process use this Hub. The client reads its settings once, when it is imported: so they are set."""
        from huggingface_hub import close_session, constants

        template = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", token)
        close_session()


def is_large(path: str) -> bool:
    """Whether the Hub keeps a file in its storage for large ones: these it does, whatever their size."""
    return path.endswith((".safetensors", ".pth"))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def etag(path: str, data: bytes) -> str:
    """What identifies a file's content: SHA-256 for a large one, Git's hash for others."""
    return sha256(data) if is_large(path) else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def check_card(card: str) -> tuple[list[str], list[str]]:
    """The errors and the warnings of the Hub's check of a model card's metadata."""
    block = re.match(r"\s*---\n(.*?)\n---\n", card, re.DOTALL)
    if not block:
        return [], ["empty or missing yaml metadata in repo card"]
    metadata = yaml.safe_load(block[1])
    errors = [
        f"{'.'.join(str(step) for step in error.absolute_path)}: {error.message}"
        for error in Draft202012Validator(CARD_SCHEMA).iter_errors(metadata)
    ]
    known = metadata.get("pipeline_tag") in (None, *PIPELINE_TAGS)
    return errors, [] if known else [f"the pipeline tag {metadata['pipeline_tag']!r} is not in the official list"]


class RefusalError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "", **more: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": message, **more}
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    fault: Fault | None = None

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append((self.command, path, headers))
        body = self.read_body()
        self.fault = self.next_fault(path)
        with contextlib.suppress(ConnectionError):  # a client that was killed
            try:
                if self.fault and self.fault.status:
                    raise RefusalError(self.fault.status, self.fault.message)
                self.route(path, body)
            except RefusalError as refusal:
                self.send_json(refusal.body, refusal.status, refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

    def route(self, path: str, body: bytes) -> None:
        for method, pattern, action in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command.replace("HEAD", "GET"):
                return action(self, body, **found.groupdict())
        raise RefusalError(404, "there is no such page")

    # Fetching

    def resolve(self, _: bytes, repo: str, revision: str, path: str) -> None:
        repository = self.readable(repo)
        commit = repository.head if revision == "main" else revision
        if commit not in repository.commits:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if path not in repository.commits[commit]:
            raise RefusalError(404, "Entry not found", "EntryNotFound")
        data = repository.commits[commit][path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag(path, data)}"'}
        if not is_large(path):
            return self.send_data(data, headers=headers)
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
        return self.send_data(
            b"", 302, {**headers, "Location": f"{self.hub.storage_url}/storage/{etag(path, data)}?signature=secret"}
        )

    def storage(self, _: bytes, oid: str) -> None:
        if "Authorization" in self.headers:
            raise RefusalError(400, "Only one auth mechanism allowed")
        data = self.hub.storage[oid]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not wanted or not self.hub.knows_ranges:
            return self.send_data(data)
        start = int(wanted[1])
        if start >= len(data):
            raise RefusalError(416, "Range Not Satisfiable")
        return self.send_data(data[start:], 206, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})

    def info(self, _: bytes, repo: str) -> None:
        repository = self.readable(repo)
        self.send_json({"id": repo, "sha": repository.head, "private": repository.private, "tags": []})

    # Publishing

    def create(self, body: bytes) -> None:
        request = json.loads(body)
        namespace = request.get("organization") or NAMESPACES[0]
        self.demand_writer(namespace)
        repo = f"{namespace}/{request['name']}"
        if repo in self.hub.repositories:
            raise RefusalError(409, "You already created this model repo", url=f"{self.hub.url}/{repo}")
        private = request.get("private", request.get("visibility") == "private")
        self.hub.add(repo, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, private=private)
        self.send_json({"url": f"{self.hub.url}/{repo}"})

    def validate_yaml(self, body: bytes) -> None:
        errors, warnings = check_card(json.loads(body)["content"])
        found = {"errors": errors, "warnings": warnings}
        answer = {kind: [{"message": text} for text in texts] for kind, texts in found.items()}
        self.send_json(answer, 400 if errors else 200)

    def preupload(self, body: bytes, repo: str) -> None:
        present = self.writable(repo).commits[self.hub.repositories[repo].head]
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                "shouldIgnore": False,
                "oid": etag(file["path"], present[file["path"]]) if file["path"] in present else None,
            }
            for file in json.loads(body)["files"]
        ]
        self.send_json({"files": files})

    def lfs_batch(self, body: bytes, repo: str) -> None:
        self.writable(repo)
        self.send_json(
            {"transfer": "basic", "objects": [self.lfs_object(each) for each in json.loads(body)["objects"]]}
        )

    def lfs_object(self, wanted: dict[str, Any]) -> dict[str, Any]:
        oid, size = wanted["oid"], wanted["size"]
        if oid in self.hub.storage:
            return {"oid": oid, "size": size}
        url, part_size = f"{self.hub.url}/upload/{oid}", self.hub.part_size
        upload: dict[str, Any] = {"href": f"{url}/1"}
        if part_size:
            count = -(-size // part_size)
            parts = {str(part): f"{url}/{part}" for part in range(1, count + 1)}
            upload = {"href": f"{url}/complete", "header": {"chunk_size": str(part_size), **parts}}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": {"href": f"{url}/verify"}}}

    def upload(self, body: bytes, oid: str, part: str) -> None:
        self.hub.uploads[oid, int(part)] = body
        self.send_data(b"", headers={"ETag": f'"{sha256(body)}"'})

    def complete(self, body: bytes, oid: str) -> None:
        for part in json.loads(body)["parts"]:
            if part["etag"].strip('"') != sha256(self.hub.uploads[oid, part["partNumber"]]):
                raise RefusalError(400, "A part is not what was uploaded")
        self.send_json({})

    def verify(self, body: bytes, oid: str) -> None:
        data = b"".join(self.hub.uploads[key] for key in sorted(self.hub.uploads) if key[0] == oid)
        if sha256(data) != oid or len(data) != json.loads(body)["size"]:
            raise RefusalError(422, "What was uploaded is not what was announced")
        self.hub.storage[oid] = data
        self.send_json({})

    def commit(self, body: bytes, repo: str) -> None:
        repository = self.writable(repo)
        files: Files = {}
        for entry in map(json.loads, body.splitlines()):
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.storage:
                    raise RefusalError(400, f"{value['path']} was not uploaded")
                files[value["path"]] = self.hub.storage[value["oid"]]
        commit = repository.commit(files)
        self.send_json({"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit, "success": True})

    # Who may do what

    @property
    def token(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", READER, WRITER):
            raise RefusalError(401, "Invalid credentials in Authorization header")
        return token

    def readable(self, repo: str) -> Repository:
        repository = self.hub.repositories.get(repo)
        is_member = self.token and repo.split("/")[0] in NAMESPACES
        if repository is None or (repository.private and not is_member):
            if not self.token:  # to strangers, what is private and what is not there look alike
                raise RefusalError(401, "Invalid username or password.")
            raise RefusalError(404, "Repository not found", "RepoNotFound")
        if repository.gated and not is_member:
            raise RefusalError(403 if self.token else 401, f"Access to model {repo} is restricted.", "GatedRepo")
        return repository

    def writable(self, repo: str) -> Repository:
        repository = self.readable(repo)
        self.demand_writer(repo.split("/")[0])
        return repository

    def demand_writer(self, namespace: str) -> None:
        if not self.token:
            raise RefusalError(401, "Invalid username or password.")
        if self.token != WRITER or namespace not in NAMESPACES:
            raise RefusalError(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')

    # HTTP

    def next_fault(self, path: str) -> Fault | None:
        for fault in self.hub.faults:
            if fault.times and fault.method == self.command and fault.path in path:
                fault.times -= 1
                return fault
        return None

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send_json(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.send_data(json.dumps(content).encode(), status, {**(headers or {}), "Content-Type": "application/json"})

    def send_data(self, data: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status, HTTPStatus(status).phrase)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if self.hub.warning:
            self.send_header("X-HF-Warning", self.hub.warning)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if not self.fault or self.fault.status:
            self.wfile.write(data)
            return
        self.wfile.write(data[: self.fault.cut])
        if self.fault.then == "stall":
            self.hub.stalled.set()
            self.hub.closing.wait()
        if self.fault.then == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    ("GET", r"/storage/(?P<oid>\w+)", _Handler.storage),
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/main)?", _Handler.info),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/main", _Handler.preupload),
    ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/upload/(?P<oid>\w+)/(?P<part>\d+)", _Handler.upload),
    ("POST", r"/upload/(?P<oid>\w+)/complete", _Handler.complete),
    ("POST", r"/upload/(?P<oid>\w+)/verify", _Handler.verify),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/main", _Handler.commit),
]
