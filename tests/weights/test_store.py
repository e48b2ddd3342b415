"""Weights in the cache are the right ones or none, whatever the network, disk, server or other processes do."""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from drive_server import DriveServer
from filelock import FileLock
from hub_server import HubServer
from running import Run as CommandRun
from safetensors.torch import load_file, save
from store_process import Run, dying_at_step, without_privileges
from torch import Tensor
from web_server import (
    Fault,
    Faults,
    WebServer,
    becomes,
    both,
    closed_port,
    cut,
    delay,
    encoded,
    headers,
    page,
    stall,
    status,
    unframed,
)

from dpt_zoo.errors import FetchError, InputError, OutputError, WeightsError
from dpt_zoo.manifest import records as manifest
from dpt_zoo.manifest.locations import GoogleDrive, HubFile, LocalFile, Location, WebFile
from dpt_zoo.manifest.records import PublishedDetector, WeightsRecord, get_detector_info, read_manifest
from dpt_zoo.weights import http
from dpt_zoo.weights.cache import CacheEntry
from dpt_zoo.weights.digests import structure_sha256, tensors_sha256
from dpt_zoo.weights.store import adopt, obtain, read_trusted_weights

pytestmark = pytest.mark.network

NAME = "mrcnn_dpt_t_1x"
State = dict[str, Tensor]


def some_state(seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "backbone.weight": torch.randn(200, 200, generator=generator),
        "head.bias": torch.randn(7, generator=generator),
        "head.count": torch.tensor(seed),
    }


def authors_file(state: State) -> bytes:
    """A file as the authors published theirs: weights, optimiser and meta."""
    moments = {index: {"exp_avg": torch.full_like(tensor, 0.5)} for index, tensor in enumerate(state.values())}
    content = {"meta": {"epoch": 12}, "state_dict": state, "optimizer": {"state": moments}}
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


STATE, OTHER = some_state(0), some_state(1)
FILE, OTHER_FILE = authors_file(STATE), authors_file(OTHER)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(http, "BACKOFF_SECONDS", 0.001)
    with WebServer({"/weights.pth": FILE}) as server:
        yield server


@pytest.fixture
def record(server: WebServer) -> PublishedDetector:
    return record_of(WebFile(f"{server.url}/weights.pth"))


@pytest.fixture
def entry(empty_cache: Path) -> CacheEntry:
    return CacheEntry(empty_cache, NAME)


def record_of(*locations: Location, **changes: Any) -> PublishedDetector:
    """Return the record of a model that is small enough for tests."""
    structure = structure_sha256(STATE)
    return dataclasses.replace(
        read_manifest().published_detectors[NAME],
        locations=locations,
        num_params=40_008,
        structure_sha256=structure,
        **changes,
    )


def obtain_again(record: WeightsRecord, entry: CacheEntry) -> Path:
    """Obtain weights again after their removal, with the first download still remembered."""
    entry.weights.unlink()
    return obtain(record)


def assert_weights(path: Path, expected: State = STATE) -> None:
    found = load_file(path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def assert_tidy(entry: CacheEntry, *more: Path) -> None:
    """Check that the cache has the weights, their provenance and nothing else."""
    files = {path for path in entry.folder.rglob("*") if not path.is_dir()}
    assert files - {entry.lock} == {entry.weights, entry.provenance_file, *more}


class TestFetching:
    """From a location into the cache."""

    def test_fetches_once(self, server: WebServer, record: PublishedDetector, entry: CacheEntry) -> None:
        for _ in range(3):
            assert obtain(record) == entry.weights
        assert_weights(entry.weights)
        assert_tidy(entry)
        assert len(server.log) == 1

    def test_what_is_remembered(self, server: WebServer, record: PublishedDetector, entry: CacheEntry) -> None:
        obtain(record)
        provenance = entry.read_provenance()
        assert provenance
        assert provenance.location == f"{server.url}/weights.pth"
        assert provenance.sha256 == hashlib.sha256(FILE).hexdigest()
        assert provenance.num_bytes == len(FILE)
        assert provenance.tensors_sha256 == tensors_sha256(STATE)

    @pytest.mark.parametrize("form", ["safetensors", "plain"])
    def test_other_forms(self, server: WebServer, record: PublishedDetector, entry: CacheEntry, form: str) -> None:
        plain = io.BytesIO()
        torch.save(STATE, plain)
        server.files["/weights.pth"].content = save(STATE) if form == "safetensors" else plain.getvalue()
        assert_weights(obtain(record))
        assert_tidy(entry)

    def test_keeps_the_original(self, record: PublishedDetector, entry: CacheEntry) -> None:
        obtain(record, keep_original=True)
        assert entry.original.read_bytes() == FILE
        assert_tidy(entry, entry.original)

    def test_from_google_drive(self, monkeypatch: pytest.MonkeyPatch, entry: CacheEntry) -> None:
        monkeypatch.setenv("NO_PROXY", "*")
        with DriveServer({"file-id": FILE}) as drive:
            monkeypatch.setenv("DPT_ZOO_GDRIVE_ENDPOINT", drive.url)
            assert_weights(obtain(record_of(GoogleDrive("file-id"))))
        assert_tidy(entry)

    def test_from_the_hub(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, entry: CacheEntry) -> None:
        with HubServer() as hub:
            hub.use(monkeypatch, tmp_path)
            hub.add("org/zoo", {"weights.safetensors": save(STATE), "other.pth": OTHER_FILE})
            assert_weights(obtain(record_of(HubFile("org/zoo", "weights.safetensors"))))
            assert_tidy(entry)
            entry.weights.unlink()
            with pytest.raises(FetchError, match=r"hf://org/zoo/other\.pth: .*: this is another file than expected"):
                obtain(record_of(HubFile("org/zoo", "other.pth")))
        assert entry.quarantine.read_bytes() == OTHER_FILE

    def test_an_address(self, server: WebServer, entry: CacheEntry) -> None:
        for query in ("", "", "?version=2"):
            server.files[f"/weights.pth{query}"] = server.files["/weights.pth"]
            path, weights = read_trusted_weights(f"{server.url}/weights.pth{query}")
            assert path.parent == entry.folder
            assert weights.tensors.keys() == STATE.keys()
        assert [each.path for each in server.log] == ["/weights.pth", "/weights.pth?version=2"]

    def test_an_address_with_a_long_name(self, server: WebServer) -> None:
        address = f"/{'long/' * 9}{'x' * 300}.pth?token=a/b&{'y' * 300}"
        server.files[address] = server.files["/weights.pth"]
        assert_weights(read_trusted_weights(server.url + address)[0])

    @pytest.mark.parametrize(
        "form", ["user:PASS@{host}/w.pth", "{host}/w.pth?TOKEN", "TOKEN@{host}/w.pth?a=b/TOKEN.pth", "u:P.PASS@{host}"]
    )
    def test_no_secret_of_an_address_is_stored_or_shown(
        self, server: WebServer, entry: CacheEntry, run: CommandRun, form: str
    ) -> None:
        url = "http://" + form.format(host=server.url.removeprefix("http://"))
        query = f"?{url.partition('?')[2]}" if "?" in url else ""
        server.files[f"/w.pth{query}"] = server.files["/"] = server.files["/weights.pth"]
        read_trusted_weights(url)
        server.faults[f"/w.pth{query}"] = server.faults["/"] = [with_content(OTHER_FILE)]
        for path in entry.folder.glob("*.safetensors"):
            path.unlink()
        with pytest.raises(FetchError) as refused:
            read_trusted_weights(url)
        shown = [str(refused.value), run("cache", "list")[1]]
        for path in entry.folder.rglob("*"):
            shown += [path.name, path.read_text() if path.suffix == ".json" else ""]
        assert not any(secret in text for secret in ("TOKEN", "PASS") for text in shown)

    @pytest.mark.parametrize("path", ["two words/größer/モデル", "made/on/the/way", "a'b\"c$(d)"])
    def test_any_folder(self, record: PublishedDetector, tmp_path: Path, path: str) -> None:
        assert_weights(obtain(record, cache_dir=tmp_path / path))

    def test_interrupted(self, server: WebServer, record: PublishedDetector, entry: CacheEntry) -> None:
        def interrupt(done: int, total: int | None) -> None:
            if done:
                raise KeyboardInterrupt

        server.faults["/weights.pth"] = [stall(MIDDLE)]
        with pytest.raises(KeyboardInterrupt):
            obtain(record, progress=interrupt)
        came = entry.part.stat().st_size
        assert 0 < came <= MIDDLE
        assert_weights(obtain(record))
        assert server.log[-1].range == f"bytes={came}-"
        assert_tidy(entry)


def flip(content: bytes, at: int) -> bytes:
    """Turn one bit of a file."""
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def with_content(content: bytes) -> Fault:
    return lambda answer: answer.set_body(content)


def spoiled(number: float) -> bytes:
    """The authors' file with this number in it."""
    state = {name: tensor.clone() for name, tensor in STATE.items()}
    state["head.bias"][3] = number
    return authors_file(state)


MIDDLE = FILE.index(STATE["backbone.weight"].numpy().tobytes()) + 50_000
HTML = "<html><title>Sign in</title>"

# Answers that HTTP cannot distinguish from the right file, and the errors.
NOT_THE_WEIGHTS: dict[str, tuple[Faults, str]] = {
    "a length that is too short": ([headers({"Content-Length": str(len(FILE) - 1)})], "the file is damaged"),
    "a length of nothing": ([headers({"Content-Length": "0"})], "it is empty"),
    "an empty body": ([with_content(b"")], "it is empty"),
    "no length, cut at once": ([both(unframed, cut(0))], "it is empty"),
    "no length, cut after a byte": ([both(unframed, cut(1))], "it is of an unknown form"),
    "no length, cut in the middle": ([both(unframed, cut(MIDDLE))], "the file is damaged"),
    "no length, cut before the last byte": ([both(unframed, cut(-1))], "the file is damaged"),
    "gzip, cut by the sender": ([encoded("gzip", 0.9)], "the file is damaged"),
    "two versions under one ETag": (
        [both(headers({"ETag": '"1"'}), cut(MIDDLE)), becomes(OTHER_FILE, etag='"1"')],
        "the checksum of .* is wrong",
    ),
    "a web page after a byte order mark": ([page(f"\ufeff{HTML}")], "it is of an unknown form"),
    "zeros": ([with_content(bytes(len(FILE)))], "this is not a weights file"),
    "a bit of the weights turned": ([with_content(flip(FILE, MIDDLE))], "the checksum of .* is wrong"),
    "a bit of the pickle turned": ([with_content(flip(FILE, FILE.index(b"backbone")))], "the file is damaged"),
    "NaN": ([with_content(spoiled(float("nan")))], "head.bias holds numbers that are not finite"),
    "infinity": ([with_content(spoiled(float("inf")))], "head.bias holds numbers that are not finite"),
    "a tensor too few": ([with_content(authors_file({"head.bias": STATE["head.bias"]}))], "those of an unknown model"),
    "a tensor too many": (
        [with_content(authors_file({**STATE, "more": STATE["head.bias"]}))],
        "those of an unknown model",
    ),
    "another type": (
        [with_content(authors_file({**STATE, "head.count": torch.tensor(0.0)}))],
        "those of an unknown model",
    ),
    "another shape": (
        [with_content(authors_file({**STATE, "head.bias": torch.zeros(8)}))],
        "those of an unknown model",
    ),
    "safetensors, cut": ([with_content(save(STATE)[:-1])], "the file is damaged"),
}


@pytest.mark.parametrize("fault", NOT_THE_WEIGHTS)
def test_what_are_not_the_weights(server: WebServer, record: PublishedDetector, entry: CacheEntry, fault: str) -> None:
    faults, complaint = NOT_THE_WEIGHTS[fault]
    server.faults["/weights.pth"] = list(faults)
    with pytest.raises(FetchError, match=complaint) as raised:
        obtain(record)
    says = str(raised.value).splitlines()
    assert says[0] == f"{NAME}: its weights could not be fetched"
    assert len(says) == 2
    assert f"the file is now {entry.quarantine}" in says[1]
    assert entry.quarantine.is_file()
    assert not entry.weights.exists()
    assert not entry.provenance_file.exists()

    server.files["/weights.pth"].content = FILE  # the server recovers
    assert_weights(obtain(record))
    assert_tidy(entry, entry.quarantine)


class TestLocations:
    """The order of the locations."""

    @pytest.mark.parametrize(
        "faults",
        [[status(404)], [status(500), ...], [page(HTML)], [cut(0), ...], [with_content(OTHER_FILE[:-9])]],
        ids=["absent", "in trouble", "a page", "cut", "damaged"],
    )
    def test_the_next_one_helps_out(self, server: WebServer, entry: CacheEntry, faults: Faults) -> None:
        server.files["/second.pth"] = server.files["/weights.pth"]
        server.faults["/weights.pth"] = faults
        path = obtain(record_of(WebFile(f"{server.url}/weights.pth"), WebFile(f"{server.url}/second.pth")))
        assert_weights(path)
        assert server.log[0].path == "/weights.pth"
        assert server.log[-1].path == "/second.pth"

    def test_each_ones_reason_is_told_and_the_ways_by_hand(self, server: WebServer, tmp_path: Path) -> None:
        drive, *_, baidu = get_detector_info(NAME).locations
        server.faults["/weights.pth"] = [status(404)]
        with (
            closed_port() as nobody,
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(FetchError) as raised,
        ):
            patch.setenv("DPT_ZOO_GDRIVE_ENDPOINT", nobody)
            obtain(record_of(WebFile(f"{server.url}/weights.pth"), LocalFile(tmp_path / "none.pth"), drive, baidu))
        assert [line.strip() for line in str(raised.value).splitlines()] == [
            f"{NAME}: its weights could not be fetched",
            f"{server.url}/weights.pth: it answered 404 Not Found",
            f"{tmp_path}/none.pth: there is no such file",
            f"{drive.url}: the connection failed ([Errno 111] Connection refused) (5 attempts)",
            f"By hand: open {drive.url} or {baidu.url} in a browser, then run",
            f"dpt-zoo import {NAME} FILE",
        ]

    def test_a_file_of_this_machine(self, tmp_path: Path, entry: CacheEntry) -> None:
        (tmp_path / "local.pth").write_bytes(FILE)
        assert_weights(obtain(record_of(LocalFile(tmp_path / "local.pth"))))
        assert (tmp_path / "local.pth").read_bytes() == FILE
        assert_tidy(entry)

    def test_a_file_of_this_machine_that_is_refused_stays_where_it_is(self, tmp_path: Path, entry: CacheEntry) -> None:
        (tmp_path / "local.pth").write_bytes(FILE[:-9])
        with pytest.raises(FetchError, match="the file is damaged"):
            obtain(record_of(LocalFile(tmp_path / "local.pth")))
        assert (tmp_path / "local.pth").read_bytes() == FILE[:-9]
        assert not entry.quarantine.exists()

    def test_keeps_the_original_of_a_file_of_this_machine(self, tmp_path: Path, entry: CacheEntry) -> None:
        (tmp_path / "local.pth").write_bytes(FILE)
        obtain(record_of(LocalFile(tmp_path / "local.pth")), keep_original=True)
        assert entry.original.read_bytes() == FILE
        assert_tidy(entry, entry.original)

    @pytest.mark.parametrize("name", [f"{NAME}.safetensors", f"{NAME}.pth"])
    @pytest.mark.parametrize("slash", ["", "/"])
    def test_a_mirror_on_the_web_is_asked_first(
        self, server: WebServer, record: PublishedDetector, monkeypatch: pytest.MonkeyPatch, name: str, slash: str
    ) -> None:
        server.files[f"/zoo/{name}"] = server.files["/weights.pth"]
        monkeypatch.setenv("DPT_ZOO_MIRROR", f"{server.url}/zoo{slash}")
        assert_weights(obtain(record))
        assert server.log[-1].path == f"/zoo/{name}"
        assert "/weights.pth" not in [each.path for each in server.log]

    def test_a_folder_as_a_mirror(
        self, server: WebServer, record: PublishedDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / f"{NAME}.safetensors").write_bytes(save(STATE))
        monkeypatch.setenv("DPT_ZOO_MIRROR", str(tmp_path))
        monkeypatch.setenv("DPT_ZOO_OFFLINE", "1")
        assert_weights(obtain(record))
        assert not server.log

    @pytest.mark.parametrize(
        ("mirror", "asked"),
        [
            ("{server}", "/{name}"),
            ("{server}/", "/{name}"),
            ("{server}/zoo?token=a/b", "/zoo/{name}?token=a/b"),
            ("{server}/zoo/?token=a", "/zoo/{name}?token=a"),
            ("{server}/zoo#part", "/zoo/{name}"),
            ("{server}?a#b", "/{name}?a"),
        ],
    )
    def test_any_form_of_a_mirrors_url(
        self, server: WebServer, record: PublishedDetector, monkeypatch: pytest.MonkeyPatch, mirror: str, asked: str
    ) -> None:
        server.files[asked.format(name=f"{NAME}.pth")] = server.files["/weights.pth"]
        monkeypatch.setenv("DPT_ZOO_MIRROR", mirror.format(server=server.url))
        assert_weights(obtain(record))
        assert [each.path for each in server.log] == [
            asked.format(name=f"{NAME}{end}") for end in (".safetensors", ".pth")
        ]

    @pytest.mark.parametrize("folder", ["what?", "a#b", "a?b#c", "~no-such-user"])
    def test_any_folder_as_a_mirror(
        self, record: PublishedDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
    ) -> None:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{NAME}.pth").write_bytes(FILE)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("DPT_ZOO_OFFLINE", "1")
        monkeypatch.setenv("DPT_ZOO_MIRROR", folder)
        assert_weights(obtain(record))

    def test_the_root_as_a_mirror(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DPT_ZOO_OFFLINE", "1")
        monkeypatch.setenv("DPT_ZOO_MIRROR", "/")
        with pytest.raises(FetchError, match=f" /{NAME}.safetensors: there is no such file"):
            obtain(record_of())

    @pytest.mark.parametrize("mirror", ["{server}/zoo", "{tmp_path}"])
    def test_a_mirror_that_lacks_the_file(
        self, server: WebServer, record: PublishedDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: str
    ) -> None:
        monkeypatch.setenv("DPT_ZOO_MIRROR", mirror.format(server=server.url, tmp_path=tmp_path))
        assert_weights(obtain(record))
        assert server.log[-1].path == "/weights.pth"

    @pytest.mark.parametrize(
        "mirror", ["ftp://example.org/zoo", "file:///zoo", "http://example.org/zoo", "ftp://PASS@x/?PASS"]
    )
    def test_what_is_no_mirror(self, record: PublishedDetector, monkeypatch: pytest.MonkeyPatch, mirror: str) -> None:
        monkeypatch.setenv("DPT_ZOO_MIRROR", mirror)
        with pytest.raises(InputError, match=r"^DPT_ZOO_MIRROR: .*give a path, https://\.\.\. or hf://") as raised:
            obtain(record)
        assert "PASS" not in str(raised.value)

    def test_a_mirror_is_for_the_zoos_own(self, server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DPT_ZOO_MIRROR", f"{server.url}/zoo")
        read_trusted_weights(f"{server.url}/weights.pth")
        assert [each.path for each in server.log] == ["/weights.pth"]

    @pytest.mark.parametrize("variable", ["DPT_ZOO_OFFLINE", "HF_HUB_OFFLINE"])
    @pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
    def test_offline_nobody_is_asked(
        self, server: WebServer, entry: CacheEntry, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
    ) -> None:
        monkeypatch.setenv("DPT_ZOO_GDRIVE_ENDPOINT", server.url)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv(variable, value)
        drive = get_detector_info(NAME).locations[0]
        locations = (drive, HubFile("org/zoo", "weights.safetensors"), WebFile(f"{server.url}/weights.pth"))
        with pytest.raises(FetchError) as raised:
            obtain(record_of(*locations))
        for location in locations:
            assert f"{location.url}: not asked, {variable} is set" in str(raised.value)
        assert not server.log

    @pytest.mark.parametrize("value", ["", "0", "no"])
    def test_not_offline(self, record: PublishedDetector, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        monkeypatch.setenv("DPT_ZOO_OFFLINE", value)
        assert_weights(obtain(record))

    def test_offline_what_is_cached_is_there(
        self, server: WebServer, record: PublishedDetector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        obtain(record)
        server.log.clear()
        monkeypatch.setenv("DPT_ZOO_OFFLINE", "1")
        assert_weights(obtain(record))
        assert not server.log


SHA256, OTHER_SHA256 = (hashlib.sha256(content).hexdigest() for content in (FILE, OTHER_FILE))
DIGEST, OTHER_DIGEST = tensors_sha256(STATE), tensors_sha256(OTHER)


class TestTrust:
    """Accepted are the hashes in the manifest, or else those of the first download."""

    @pytest.mark.parametrize(
        "pins",
        [{"sha256": SHA256}, {"tensors_sha256": DIGEST}, {"sha256": SHA256, "tensors_sha256": DIGEST}],
        ids=["the file's", "the tensors'", "both"],
    )
    def test_a_pin(self, server: WebServer, record: PublishedDetector, entry: CacheEntry, pins: dict[str, Any]) -> None:
        pinned = dataclasses.replace(record, **pins)
        server.faults["/weights.pth"] = [with_content(OTHER_FILE)]
        with pytest.raises(FetchError, match="this is another file than expected") as raised:
            obtain(pinned)
        for digest in (OTHER_SHA256, OTHER_DIGEST, *pins.values()):
            assert digest in str(raised.value)
        assert entry.quarantine.read_bytes() == OTHER_FILE
        assert not entry.weights.exists()
        assert_weights(obtain(pinned))

    def test_a_pin_of_the_file_alone_does_not_vouch_for_another_form(
        self, server: WebServer, record: PublishedDetector
    ) -> None:
        server.files["/weights.pth"].content = save(STATE)
        with pytest.raises(FetchError, match=f"has SHA-256 unknown .*, the manifest has SHA-256 {SHA256}"):
            obtain(dataclasses.replace(record, sha256=SHA256))
        assert_weights(obtain(dataclasses.replace(record, tensors_sha256=DIGEST)))

    def test_the_first_download_binds_the_later_ones(
        self, server: WebServer, record: PublishedDetector, entry: CacheEntry
    ) -> None:
        obtain(record)
        remembered = entry.read_provenance()
        server.faults["/weights.pth"] = [with_content(OTHER_FILE)]
        with pytest.raises(FetchError, match=r"the first download, \d{4}-\d\d-\d\d, had") as raised:
            obtain_again(record, entry)
        for digest in (SHA256, DIGEST, OTHER_SHA256, OTHER_DIGEST):
            assert digest in str(raised.value)
        assert entry.quarantine.read_bytes() == OTHER_FILE
        assert entry.read_provenance() == remembered
        assert_weights(obtain(record))

    def test_a_form_of_the_same_weights_is_the_same(
        self, server: WebServer, record: PublishedDetector, entry: CacheEntry
    ) -> None:
        server.faults["/weights.pth"] = [with_content(save(STATE))]
        obtain(record)
        provenance = entry.read_provenance()
        assert provenance and (provenance.sha256, provenance.num_bytes) == (None, None)
        obtain_again(record, entry)  # the authors' own file now
        provenance = entry.read_provenance()
        assert provenance and (provenance.sha256, provenance.num_bytes) == (SHA256, len(FILE))

    def test_a_pin_binds_what_is_cached_already(
        self, server: WebServer, record: PublishedDetector, entry: CacheEntry
    ) -> None:
        server.faults["/weights.pth"] = [with_content(OTHER_FILE)]
        obtain(record)
        pinned = dataclasses.replace(record, sha256=SHA256)
        for _ in range(2):
            assert_weights(obtain(pinned))
        assert_weights(entry.quarantine, OTHER)
        provenance = entry.read_provenance()
        assert provenance and (provenance.sha256, provenance.tensors_sha256) == (SHA256, DIGEST)
        assert len(server.log) == 2

    def test_a_pin_holds_for_what_was_copied(
        self, server: WebServer, record: PublishedDetector, entry: CacheEntry
    ) -> None:
        pinned = dataclasses.replace(record, sha256=SHA256)
        obtain(pinned)
        os.utime(entry.weights, (0, 0))
        for _ in range(2):
            assert_weights(obtain(pinned))
        assert len(server.log) == 1

    def test_a_pin_weighs_more_than_what_is_remembered(
        self, server: WebServer, record: PublishedDetector, entry: CacheEntry
    ) -> None:
        server.faults["/weights.pth"] = [with_content(OTHER_FILE)]
        obtain(record)
        entry.weights.write_bytes(save(STATE))
        for _ in range(2):
            assert_weights(obtain(dataclasses.replace(record, tensors_sha256=DIGEST)))
        assert len(server.log) == 1

    def test_another_models_weights(
        self, server: WebServer, record: PublishedDetector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        theirs = {"neck.weight": torch.zeros(3)}
        content = json.loads(manifest.data_path("weights_manifest.json").read_text())
        content["classifiers"][1]["structure_sha256"] = structure_sha256(theirs)
        (tmp_path / "weights_manifest.json").write_text(json.dumps(content))
        monkeypatch.setattr(manifest, "data_path", tmp_path.joinpath)
        monkeypatch.setattr("dpt_zoo.weights.store.read_manifest", manifest.read_manifest.__wrapped__)
        server.faults["/weights.pth"] = [with_content(authors_file(theirs))]
        with pytest.raises(FetchError, match="names, types and shapes are those of dpt_small"):
            obtain(record)


class TestAdopt:
    """Files that were downloaded by hand."""

    @pytest.mark.parametrize("content", [FILE, save(STATE)], ids=["pth", "safetensors"])
    def test_adopt(self, tmp_path: Path, entry: CacheEntry, content: bytes) -> None:
        (tmp_path / "by hand.pth").write_bytes(content)
        assert adopt(record_of(), tmp_path / "by hand.pth") == entry.weights
        assert_weights(obtain(record_of()))
        assert (tmp_path / "by hand.pth").read_bytes() == content
        assert_tidy(entry)

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (FILE[:-9], "the file is damaged"),
            (flip(FILE, MIDDLE), "the checksum of .* is wrong"),
            (HTML.encode(), "it is an HTML page"),
            (authors_file({"head.bias": torch.zeros(7)}), "these are not mrcnn_dpt_t_1x's tensors"),
            (OTHER_FILE, "this is another file than expected"),
        ],
        ids=["cut", "damaged", "a page", "another model's", "another hash"],
    )
    def test_refused(self, tmp_path: Path, entry: CacheEntry, content: bytes, complaint: str) -> None:
        (tmp_path / "by hand.pth").write_bytes(content)
        with pytest.raises(WeightsError, match=complaint) as raised:
            adopt(record_of(sha256=SHA256), tmp_path / "by hand.pth")
        assert "\n" not in str(raised.value)
        assert (tmp_path / "by hand.pth").read_bytes() == content
        assert not entry.weights.exists()

    @pytest.mark.parametrize("path", ["none.pth", ".", "pipe"])
    def test_what_cannot_be_read(self, tmp_path: Path, path: str) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(WeightsError, match="it cannot be read"):
            adopt(record_of(), tmp_path / path)

    def test_replaces_what_is_cached(self, server: WebServer, record: PublishedDetector, tmp_path: Path) -> None:
        obtain(record)
        (tmp_path / "by hand.safetensors").write_bytes(save(STATE))
        assert_weights(adopt(record, tmp_path / "by hand.safetensors"))
        (tmp_path / "other.pth").write_bytes(OTHER_FILE)
        with pytest.raises(WeightsError, match="this is another file than expected"):
            adopt(record, tmp_path / "other.pth")
        assert_weights(obtain(record))


def put_back_the_time(path: Path, change: Callable[[Path], Any]) -> None:
    """Change a file and restore its modification time."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Replace the file."""

    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


def link_to(content: bytes | None) -> Callable[[Path], Any]:
    """Replace the file by a link to another file or to nothing."""

    def make(path: Path) -> None:
        elsewhere = path.with_name("elsewhere")
        if content is not None:
            elsewhere.write_bytes(content)
        path.symlink_to(elsewhere)

    return replace_by(make)


def turn_a_bit(path: Path) -> None:
    path.write_bytes(flip(path.read_bytes(), path.stat().st_size // 2))


# Damages of the cached file.
DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "truncated, its time put back": lambda path: put_back_the_time(path, lambda path: os.truncate(path, 5)),
    "emptied": lambda path: os.truncate(path, 0),
    "a bit turned": turn_a_bit,
    "a bit turned, its time put back": lambda path: put_back_the_time(path, turn_a_bit),
    "other weights": lambda path: path.write_bytes(save(OTHER)),
    "another model's": lambda path: path.write_bytes(save({"neck": torch.zeros(1)})),
    "a page": lambda path: path.write_text(HTML),
    "a dangling link": link_to(None),
    "a link to itself": replace_by(lambda path: path.symlink_to(path)),
    "a link to another model's file": link_to(save({"neck": torch.zeros(1)})),
    "a link to a damaged file": link_to(save(STATE)[:-1]),
    "a folder": replace_by(lambda path: (path / "with" / "something").mkdir(parents=True)),
    "a pipe": replace_by(os.mkfifo),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_heals(
    server: WebServer, record: PublishedDetector, entry: CacheEntry, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    obtain(record)
    DAMAGES[damage](entry.weights)
    damaged = os.lstat(entry.weights).st_ino
    assert_weights(obtain(record))
    assert not entry.weights.is_symlink()
    assert os.lstat(entry.quarantine).st_ino == damaged
    (warning,) = (each.message for each in caplog.records if each.levelname == "WARNING")
    assert warning.startswith(f"{entry.weights}: ")
    assert warning.endswith(f"; it is now {entry.quarantine}")
    assert len(server.log) == 2


def test_damage_that_does_not_show_is_found_by_a_thorough_look(
    server: WebServer, record: PublishedDetector, entry: CacheEntry
) -> None:
    obtain(record)
    turn_a_bit(entry.weights)
    provenance = entry.read_provenance()
    assert provenance
    entry.write_provenance(dataclasses.replace(provenance, stamp=entry.stamp()))
    obtain(record)
    assert len(server.log) == 1
    assert_weights(obtain(record, verify=True))
    assert len(server.log) == 2


def test_a_link_to_the_right_file_is_as_good(server: WebServer, record: PublishedDetector, entry: CacheEntry) -> None:
    obtain(record)
    link_to(entry.weights.read_bytes())(entry.weights)
    assert obtain(record).is_symlink()
    assert len(server.log) == 1


@pytest.mark.parametrize("touched", [0, 4e9], ids=["in 1970", "in 2096"])
def test_a_file_of_another_time_is_checked_and_used(
    server: WebServer, record: PublishedDetector, entry: CacheEntry, touched: float
) -> None:
    obtain(record)
    os.utime(entry.weights, (touched, touched))
    assert not entry.is_unchanged()
    assert_weights(obtain(record))
    assert entry.is_unchanged()
    assert len(server.log) == 1


EARLIER = json.dumps(
    {
        "source": "https://example.org/weights.pth",
        "recorded": "2024-01-01",
        "sha256": SHA256,
        "num_bytes": len(FILE),
        "tensors_sha256": DIGEST,
        "stamp": [1, 2, 3],
    }
)

# Damages of the provenance file.
FORGOTTEN: dict[str, Callable[[Path], Any]] = {
    "lost": Path.unlink,
    "emptied": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, 50),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda path: path.write_text("[1, 2]"),
    "incomplete": lambda path: path.write_text('{"format": 2, "location": "x"}'),
    "of an earlier version": lambda path: path.write_text(EARLIER),
    "a stamp that is none": lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "stamp": 7})),
    "a page": lambda path: path.write_text(HTML),
}


UNREADABLE = "damaged, or written by another version of DPT Zoo: the weights were checked again without it"


@pytest.mark.parametrize("damage", FORGOTTEN)
def test_unreadable_provenance_is_measured_again(
    server: WebServer, record: PublishedDetector, entry: CacheEntry, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    obtain(record)
    FORGOTTEN[damage](entry.provenance_file)
    for _ in range(2):
        assert_weights(obtain(record))
    warnings = [each.message for each in caplog.records]
    if damage == "lost":
        assert not warnings
    else:
        assert warnings == [f"{entry.provenance_file}: {UNREADABLE}"]
    provenance = entry.read_provenance()
    assert provenance and provenance.tensors_sha256 == DIGEST
    assert entry.is_unchanged()
    assert len(server.log) == 1


def test_provenance_of_an_earlier_version_without_weights(
    record: PublishedDetector, entry: CacheEntry, caplog: pytest.LogCaptureFixture
) -> None:
    entry.folder.mkdir()
    entry.provenance_file.write_text(EARLIER)
    assert_weights(obtain(record))
    assert [each.message for each in caplog.records] == [f"{entry.provenance_file}: {UNREADABLE}"]
    provenance = entry.read_provenance()
    assert provenance and provenance.location == record.locations[0].url


def test_damaged_weights_beside_provenance_of_an_earlier_version(
    server: WebServer, record: PublishedDetector, entry: CacheEntry
) -> None:
    obtain(record)
    entry.provenance_file.write_text(EARLIER)
    entry.weights.write_bytes(save({"neck": torch.zeros(1)}))
    assert_weights(obtain(record))
    assert len(server.log) == 2


class TestDisk:
    """Disks that are full or read-only."""

    def test_too_little_space_is_told_before_the_download(
        self, server: WebServer, record: PublishedDetector, entry: CacheEntry
    ) -> None:
        with pytest.raises(OutputError, match=r"has [\d,]+ bytes free, [\d,]+ are needed: free some"):
            obtain(dataclasses.replace(record, num_params=1 << 60))
        assert not entry.part.exists()

    @pytest.mark.parametrize("folder", ["{tmp_path}/file", "{tmp_path}/file/below", "/proc/nowhere", "/dev/null/cache"])
    def test_no_folder_can_be_there(
        self, server: WebServer, record: PublishedDetector, tmp_path: Path, folder: str
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(
            OutputError, match=r"the cache cannot be written \(.*\): free some space, or choose another folder"
        ):
            obtain(record, cache_dir=Path(folder.format(tmp_path=tmp_path)))
        assert not server.log

    def test_a_full_disk(self, server: WebServer, record: PublishedDetector, entry: CacheEntry) -> None:
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100_000, 100_000))
        error = Run(record, entry.folder, limit).outcome()
        assert isinstance(error, OutputError)
        assert str(error).startswith(f"{entry.folder}: the cache cannot be written (File too large): free some ")
        assert entry.part.read_bytes() == FILE[:100_000]
        assert_weights(obtain(record))
        assert server.log[-1].range == "bytes=100000-"
        assert_tidy(entry)

    def test_a_disk_that_is_full_when_converting(
        self, server: WebServer, record: PublishedDetector, entry: CacheEntry
    ) -> None:
        http.download(record.locations[0].url, http.opener_of(record.locations[0].url), make_folder(entry.part))
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100_000, 100_000))
        error = Run(record, entry.folder, limit).outcome()
        assert isinstance(error, OutputError)
        assert "\n" not in str(error)
        assert not entry.weights.exists()
        assert_weights(obtain(record))
        assert len(server.log) == 1
        assert_tidy(entry)

    def test_a_disk_that_is_full_when_keeping_the_original(self, tmp_path: Path, entry: CacheEntry) -> None:
        (tmp_path / "local.pth").write_bytes(FILE)
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (200_000, 200_000))
        error = Run(record_of(LocalFile(tmp_path / "local.pth")), entry.folder, limit).outcome()
        assert isinstance(error, OutputError)
        assert "\n" not in str(error)
        assert_weights(entry.weights)
        assert_tidy(entry)

    def test_a_folder_that_cannot_be_written(
        self, server: WebServer, record: PublishedDetector, entry: CacheEntry
    ) -> None:
        entry.folder.mkdir()
        entry.folder.chmod(0o555)
        error = Run(record, entry.folder, without_privileges).outcome()
        assert isinstance(error, OutputError)
        assert "the cache cannot be written (Permission denied)" in str(error)
        assert not server.log

    @pytest.mark.parametrize("copied", [False, True])
    def test_what_is_in_a_folder_that_cannot_be_written_is_used(
        self, server: WebServer, record: PublishedDetector, entry: CacheEntry, copied: bool
    ) -> None:
        obtain(record)
        if copied:
            os.utime(entry.weights, (0, 0))
        for path in (entry.folder, *entry.folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        assert Run(record, entry.folder, without_privileges).outcome() == entry.weights
        assert len(server.log) == 1

    def test_a_file_that_cannot_be_read_is_fetched_again(self, record: PublishedDetector, entry: CacheEntry) -> None:
        obtain(record)
        os.utime(entry.weights, (0, 0))
        entry.weights.chmod(0)
        assert Run(record, entry.folder, without_privileges).outcome() == entry.weights
        assert_weights(entry.weights)


def make_folder(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    return path


class TestNeighbours:
    """Several processes and threads that need the same weights."""

    @pytest.mark.parametrize("number", [2, 8])
    def test_processes_at_once(
        self, server: WebServer, record: PublishedDetector, entry: CacheEntry, number: int
    ) -> None:
        server.faults["/weights.pth"] = [delay(0.5)]
        runs = [Run(record, entry.folder) for _ in range(number)]
        assert [run.outcome() for run in runs] == [entry.weights] * number
        assert len(server.log) == 1
        assert_weights(entry.weights)
        assert_tidy(entry, entry.original)

    def test_threads_at_once(self, server: WebServer, record: PublishedDetector, entry: CacheEntry) -> None:
        server.faults["/weights.pth"] = [delay(0.2)]
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(obtain, [record] * 8)) == [entry.weights] * 8
        assert len(server.log) == 1
        assert_tidy(entry)

    def test_different_models_at_once(self, server: WebServer, record: PublishedDetector, entry: CacheEntry) -> None:
        records = [dataclasses.replace(record, name=name) for name in ("first", "second")]
        server.faults["/weights.pth"] = [stall(MIDDLE)]
        stalled = Run(records[0], entry.folder)
        wait_for(lambda: server.log)
        assert_weights(obtain(records[1]))
        stalled.kill()

    def test_what_is_cached_waits_for_nobody(
        self, server: WebServer, record: PublishedDetector, entry: CacheEntry
    ) -> None:
        obtain(record)
        with FileLock(entry.lock):
            assert Run(record, entry.folder).outcome() == entry.weights
        assert len(server.log) == 1

    def test_who_waits_is_told_so(
        self, server: WebServer, record: PublishedDetector, entry: CacheEntry, caplog: pytest.LogCaptureFixture
    ) -> None:
        server.faults["/weights.pth"] = [delay(0.5)]
        other = Run(record, entry.folder)
        wait_for(lambda: server.log)
        assert_weights(obtain(record))
        assert other.outcome() == entry.weights
        assert [each.message for each in caplog.records] == [f"{NAME}: another process is fetching it, waiting"]

    def test_after_one_that_was_killed_with_the_lock_the_next_goes_on(
        self, server: WebServer, record: PublishedDetector, entry: CacheEntry
    ) -> None:
        server.faults["/weights.pth"] = [stall(MIDDLE)]
        first = Run(record, entry.folder)
        wait_for(lambda: entry.part.is_file() and entry.part.stat().st_size >= MIDDLE - BUFFERED)
        second = Run(record, entry.folder)
        first.kill()
        assert second.outcome() == entry.weights
        assert_weights(entry.weights)
        _, goes_on = server.log
        assert MIDDLE - BUFFERED <= int(str(goes_on.range)[len("bytes=") : -len("-")]) <= MIDDLE
        assert_tidy(entry, entry.original)


BUFFERED = 1 << 14
"""Received bytes that may not be in the file yet."""


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestKilled:
    """SIGKILL at any moment, then the next run."""

    @pytest.mark.parametrize("received", [0, MIDDLE, len(FILE) - 1])
    def test_while_bytes_come_in(
        self, server: WebServer, record: PublishedDetector, entry: CacheEntry, received: int
    ) -> None:
        server.faults["/weights.pth"] = [stall(received)]
        run = Run(record, entry.folder)
        wait_for(lambda: entry.part.is_file() and entry.part.stat().st_size >= received - BUFFERED)
        run.kill()
        assert not entry.weights.exists()
        came = entry.part.stat().st_size
        assert_weights(obtain(record))
        assert [each.range for each in server.log[1:]] == [f"bytes={came}-" if came else None]
        assert_tidy(entry)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("source", "cached"),
        [("the web", "nothing"), ("the web", "a damaged file"), ("this machine", "nothing")],
    )
    def test_at_each_step(
        self, server: WebServer, record: PublishedDetector, tmp_path: Path, source: str, cached: str
    ) -> None:
        if source == "this machine":
            (tmp_path / "local.pth").write_bytes(FILE)
            record = record_of(LocalFile(tmp_path / "local.pth"))
        first = CacheEntry(tmp_path / "undisturbed", NAME)
        right = obtain(record, cache_dir=first.folder).read_bytes()
        damaged = flip(right, len(right) // 2) if cached == "a damaged file" else None
        for step in itertools.count(1):
            entry = CacheEntry(tmp_path / f"killed at step {step}", NAME)
            if damaged:
                shutil.copytree(first.folder, entry.folder)
                entry.weights.write_bytes(damaged)
            outcome = Run(record, entry.folder, dying_at_step(step, entry.folder)).outcome()
            if outcome == entry.weights:
                break
            assert outcome is None
            weights = content_of(entry.weights)
            assert weights in (None, damaged, right)
            assert content_of(entry.original) in (None, FILE)
            assert not entry.provenance_file.exists() or entry.read_provenance()

            server.log.clear()
            is_here = source == "this machine" or weights == right or content_of(entry.part) == FILE
            assert obtain(record, cache_dir=entry.folder).read_bytes() == right
            assert len(server.log) == (0 if is_here else 1)
            provenance = entry.read_provenance()
            assert provenance and provenance.sha256 == SHA256
            if weights != right:
                assert_tidy(entry, *([entry.quarantine] if damaged else []))
        assert step > 20


def content_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
