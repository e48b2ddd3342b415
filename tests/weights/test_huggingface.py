"""Fetching from the Hugging Face Hub by its real client: the right file, or an error of one line."""

import errno
import functools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_server import READER, HubServer
from huggingface_hub import constants

from dpt_zoo.errors import DPTZooError, FetchError, OutputError
from dpt_zoo.manifest.locations import HubFile
from dpt_zoo.weights.huggingface import fetch_from_hub

pytestmark = pytest.mark.network

CONTENT = bytes(range(256)) * 4096
SIZE = len(CONTENT)
MODEL = HubFile("org/zoo", "model.safetensors")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with one model, which this process asks without a token, reading in small pieces and without waiting."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with HubServer() as server:
        server.use(monkeypatch, tmp_path / "home")
        server.add("org/zoo", {"model.safetensors": CONTENT, "config.py": b"model = dict()\n"})
        yield server


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    return tmp_path / "staging"


class TestFetching:
    def test_a_large_file(self, hub: HubServer, staging: Path) -> None:
        reports: list[tuple[int, int | None]] = []
        path = fetch_from_hub(MODEL, staging, lambda done, total: reports.append((done, total)))
        assert path == staging / "model.safetensors"
        assert path.read_bytes() == CONTENT
        assert reports == [(min(done, SIZE), SIZE) for done in range(1 << 16, SIZE + 1, 1 << 16)]

    def test_a_small_file_in_a_folder(self, hub: HubServer, staging: Path) -> None:
        hub.add("org/zoo", {"configs/tiny.py": b"size = 'tiny'\n"})
        path = fetch_from_hub(HubFile("org/zoo", "configs/tiny.py"), staging)
        assert path == staging / "configs" / "tiny.py"
        assert path.read_bytes() == b"size = 'tiny'\n"

    def test_a_revision(self, hub: HubServer, staging: Path) -> None:
        first = hub.repositories["org/zoo"].head
        hub.add("org/zoo", {"model.safetensors": b"later"})
        assert fetch_from_hub(HubFile("org/zoo", "model.safetensors", first), staging).read_bytes() == CONTENT
        assert fetch_from_hub(MODEL, staging).read_bytes() == b"later"

    def test_a_private_one_with_a_token_that_stays_with_the_hub(
        self, hub: HubServer, staging: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.add("org/secret", {"model.safetensors": CONTENT}, private=True)
        monkeypatch.setenv("HF_TOKEN", READER)
        assert fetch_from_hub(HubFile("org/secret", "model.safetensors"), staging).read_bytes() == CONTENT
        assert all("authorization" in headers for headers in hub.asked("HEAD", "/resolve/"))
        assert all("authorization" not in headers for headers in hub.asked("GET", "/storage/"))

    def test_what_is_there_is_not_fetched_again(self, hub: HubServer, staging: Path) -> None:
        for _ in range(2):
            assert fetch_from_hub(MODEL, staging).read_bytes() == CONTENT
        assert len(hub.asked("GET", "/storage/")) == 1

    def test_what_has_changed_is(self, hub: HubServer, staging: Path) -> None:
        fetch_from_hub(MODEL, staging)
        hub.add("org/zoo", {"model.safetensors": CONTENT[::-1]})
        assert fetch_from_hub(MODEL, staging).read_bytes() == CONTENT[::-1]

    def test_many_at_a_time(self, hub: HubServer, staging: Path) -> None:
        for index in range(8):
            hub.add(f"org/zoo{index}", {"model.safetensors": CONTENT + bytes([index])})

        def fetch(index: int) -> bytes:
            location = HubFile(f"org/zoo{index}", "model.safetensors")
            return fetch_from_hub(location, staging / str(index)).read_bytes()

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(fetch, range(8))) == [CONTENT + bytes([index]) for index in range(8)]


class TestInterruptions:
    @pytest.mark.parametrize("cut", [0, 1, SIZE // 2, SIZE - 1])
    def test_resumed_where_the_connection_broke(self, hub: HubServer, staging: Path, cut: int) -> None:
        hub.fail("GET", "/storage/", times=1, cut=cut)
        assert fetch_from_hub(MODEL, staging).read_bytes() == CONTENT
        whole_pieces = cut >> 16 << 16
        asked_for = [headers.get("range") for headers in hub.asked("GET", "/storage/")]
        assert asked_for == [None, f"bytes={whole_pieces}-" if whole_pieces else None]

    def test_a_server_without_ranges(self, hub: HubServer, staging: Path) -> None:
        hub.knows_ranges = False
        hub.fail("GET", "/storage/", times=1, cut=SIZE // 2)
        reports: list[int] = []
        assert fetch_from_hub(MODEL, staging, lambda done, total: reports.append(done)).read_bytes() == CONTENT
        assert reports == sorted(reports)
        assert reports[-1] == SIZE

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_a_hub_that_is_busy_for_a_moment(self, hub: HubServer, staging: Path, status: int) -> None:
        hub.fail("HEAD", "/resolve/", times=2, status=status)
        assert fetch_from_hub(MODEL, staging).read_bytes() == CONTENT

    @pytest.mark.parametrize("ending", ["close", "reset"])
    def test_a_connection_that_always_breaks(self, hub: HubServer, staging: Path, ending: str) -> None:
        hub.fail("GET", "/storage/", cut=1000, then=ending)
        with pytest.raises(FetchError, match=r"the download from the Hub failed: .*(closed|reset)"):
            fetch_from_hub(MODEL, staging)
        assert_nothing_is_left(staging)

    def test_killed_and_run_again(self, hub: HubServer, staging: Path, tmp_path: Path) -> None:
        hub.fail("GET", "/storage/", times=1, cut=SIZE // 2, then="stall")
        process = subprocess.Popen(fetching(staging), env=os.environ | hub.environment(tmp_path / "home"))
        assert hub.stalled.wait(60)
        process.kill()
        process.wait()
        assert list(staging.rglob("*.incomplete"))
        assert not (staging / "model.safetensors").exists()
        assert fetch_from_hub(MODEL, staging).read_bytes() == CONTENT
        assert not list(staging.rglob("*.incomplete"))


class TestRefusals:
    @pytest.mark.parametrize("token", ["", READER], ids=["stranger", "user"])
    @pytest.mark.parametrize(
        ("location", "text"),
        [
            (HubFile("org/none", "model.safetensors"), "no repository org/none, or it is private: .* `hf auth login`"),
            (HubFile("other/secret", "model.safetensors"), "no repository other/secret, or it is private"),
            (HubFile("other/gated", "model.safetensors"), "other/gated is gated: accept its terms .* `hf auth login`"),
            (HubFile("org/zoo", "none.safetensors"), "org/zoo has no file 'none.safetensors' in its revision 'main'"),
            (HubFile("org/zoo", "model.safetensors", "v9"), "org/zoo has no revision 'v9' on the Hub"),
            (HubFile("org/zoo--1", "model.safetensors"), "Cannot have -- or .. in repo_id"),
        ],
    )
    def test_what_is_not_to_be_had(
        self, hub: HubServer, staging: Path, monkeypatch: pytest.MonkeyPatch, location: HubFile, text: str, token: str
    ) -> None:
        hub.add("other/secret", {"model.safetensors": CONTENT}, private=True)
        hub.add("other/gated", {"model.safetensors": CONTENT}, gated=True)
        monkeypatch.setenv("HF_TOKEN", token)
        assert_refused(location, staging, FetchError, text)

    def test_a_token_that_is_none(self, hub: HubServer, staging: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_expired")
        assert_refused(MODEL, staging, FetchError, "run `hf auth login`")

    @pytest.mark.parametrize("request_for", [("HEAD", "/resolve/"), ("GET", "/storage/")])
    @pytest.mark.parametrize("status", [403, 404, 416, 429, 500, 503])
    def test_an_error(self, hub: HubServer, staging: Path, status: int, request_for: tuple[str, str]) -> None:
        hub.fail(*request_for, status=status, message="not today")
        assert_refused(MODEL, staging, FetchError, f"the Hub answered {status} [A-Z].*: not today")

    def test_no_connection(self, hub: HubServer, staging: Path) -> None:
        hub.__exit__()
        assert_refused(MODEL, staging, FetchError, "the download from the Hub failed: .*refused")

    def test_no_such_host(self, hub: HubServer, staging: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        template = "http://hub.invalid/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        assert_refused(MODEL, staging, FetchError, "the download from the Hub failed: ")

    def test_offline(self, hub: HubServer, staging: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert_refused(MODEL, staging, FetchError, "HF_HUB_OFFLINE is set")
        assert not hub.requests

    def test_another_server_in_the_hubs_place(
        self, hub: HubServer, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page = tmp_path / "site" / "org" / "zoo" / "resolve" / "main" / "model.safetensors"
        page.parent.mkdir(parents=True)
        page.write_text("<title>Log in to this network</title>")
        with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Site, directory=str(tmp_path / "site"))) as site:
            threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True).start()
            template = f"http://127.0.0.1:{site.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            assert_refused(MODEL, staging, FetchError, "is not a Hugging Face Hub: check HF_ENDPOINT")
            site.shutdown()

    @pytest.mark.parametrize(
        ("damaged", "text"),
        [
            (CONTENT[:-1] + b"?", "the file from the Hub is damaged: its SHA-256 is [0-9a-f]{64}, not [0-9a-f]{64}"),
            (CONTENT[:-1], "file should be of size 1048576 but has size 1048575"),
            (CONTENT + b"?", "file should be of size 1048576 but has size 1048577"),
        ],
        ids=["flipped", "short", "long"],
    )
    def test_a_damaged_file(self, hub: HubServer, staging: Path, damaged: bytes, text: str) -> None:
        hub.storage = dict.fromkeys(hub.storage, damaged)
        assert_refused(MODEL, staging, FetchError, text)

    def test_no_room(self, hub: HubServer, staging: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=SIZE - 1))
        assert_refused(MODEL, staging, OutputError, f"staging has {SIZE - 1:,} bytes free, {SIZE:,} are needed")
        assert not hub.asked("GET", "/storage/")

    def test_a_disk_that_gets_full(self, hub: HubServer, staging: Path, tmp_path: Path) -> None:
        limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({SIZE // 2}, {SIZE // 2}))"
        done = run(fetching(staging, before=limit), hub, tmp_path)
        assert done.stderr.endswith(
            f"OutputError: {staging} cannot be written: File too large: choose another folder\n"
        )
        assert_nothing_is_left(staging)

    def test_no_folder(self, hub: HubServer, staging: Path) -> None:
        staging.write_text("a file")
        assert_refused(MODEL, staging, OutputError, f"cannot be written: {os.strerror(errno.EEXIST)}")


class TestSilence:
    def test_nothing_is_said_whatever_happens(self, hub: HubServer, staging: Path, tmp_path: Path) -> None:
        hub.warning = "tokens; You are a stranger: log in for faster downloads."
        hub.fail("HEAD", "/resolve/", times=1, status=503)
        hub.fail("GET", "/storage/", times=1, cut=SIZE // 2)
        done = run(fetching(staging), hub, tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (staging / "model.safetensors").read_bytes() == CONTENT

    def test_afterwards_the_client_may_speak(self, hub: HubServer, staging: Path, tmp_path: Path) -> None:
        then = "import logging; logging.getLogger('huggingface_hub.other').warning('mind the gap')"
        done = run(fetching(staging, then=then), hub, tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "mind the gap\n")

    def test_the_client_is_imported_when_it_is_used(self) -> None:
        code = "import sys, dpt_zoo.weights.publishing; assert 'huggingface_hub' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True)


class Site(SimpleHTTPRequestHandler):
    """Any web server."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def assert_refused(location: HubFile, staging: Path, kind: type[DPTZooError], text: str) -> None:
    """Fetching ends in one line that says so, and leaves nothing."""
    with pytest.raises(kind, match=text) as raised:
        fetch_from_hub(location, staging)
    assert "\n" not in str(raised.value)
    if staging.is_dir():
        assert_nothing_is_left(staging)


def assert_nothing_is_left(staging: Path) -> None:
    assert not list(staging.rglob("*.safetensors"))
    assert not list(staging.rglob("*.incomplete"))


def fetching(staging: Path, before: str = "", then: str = "") -> list[str]:
    """A command that fetches the model in a process of its own."""
    code = f"""
from pathlib import Path
from dpt_zoo.manifest.locations import HubFile
from dpt_zoo.weights.huggingface import fetch_from_hub
{before}
fetch_from_hub({MODEL!r}, Path({str(staging)!r}))
{then}
"""
    return [sys.executable, "-c", code]


def run(command: list[str], hub: HubServer, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | hub.environment(tmp_path / "home")
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
