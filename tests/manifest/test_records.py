"""What a manifest cannot say: it names files, so a wrong word in it must not reach beyond the zoo's own folders."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpt_zoo.errors import InputError, ManifestError
from dpt_zoo.manifest import records as manifest
from dpt_zoo.manifest.locations import parse_location
from dpt_zoo.manifest.records import WeightsRecord, get_detector_info, read_manifest

PATHS = ("", ".", "..", "/etc/passwd", "../x", "configs/../../x", "configs\\x", "C:x", "a\0", 7)

# What stands in a record, and what cannot stand there.
WRONG: dict[str, tuple[Any, ...]] = {
    "name": (*PATHS, "a/b", "a\n", "é", "-x"),
    "config": PATHS,
    "sources": (None, 7, "x", ["x"], [{}], [{"path": "x"}], [{"kind": "pigeon", "path": "x"}]),
    "more": (1,),
    "demo config": PATHS,
    "demo log": PATHS,
    "demo more": (1,),
    "file path": PATHS,
    "file more": ("x",),
    "gdrive id": ("", "..", "a/b", "a?b=c", "a b", "a\0", 7),
    "https url": ("", "x.pth", "https://", "file:///x", "ftp://a/b", "http://example.org/x", 7),
    "hf repo": ("", "x", "..", "../x", "x/..", "./x", "x/.", "a/b/c", "a\\b", "a/b\0", 7),
    "hf file": PATHS,
    "hf revision": ("", ".", "..", "a/b", "a\\b", "a\0", 7),
    "baidu share": ("", "..", "a/b", 7),
}
SOURCES: dict[str, dict[str, Any]] = {
    "file": {"path": "weights.pth"},
    "gdrive": {"id": "1S84hbeVxPjtcmjeOcae5Sn"},
    "https": {"url": "https://example.org/weights.pth"},
    "hf": {"repo": "org/zoo", "file": "weights.safetensors", "revision": "main"},
    "baidu": {"share": "19nJXoOAK", "password": "DPTs"},
}


def write(folder: Path, field: str, value: Any) -> None:
    """Write the manifest with another value in the fourth detector's record, or in the first demo's."""
    content = json.loads(manifest.data_path("weights_manifest.json").read_text())
    *kind, name = field.split()
    if kind == ["demo"]:
        content["demos"][0][name] = value
    elif kind:
        content["detectors"][3]["sources"] = [{"kind": kind[0], **SOURCES[kind[0]], name: value}]
    else:
        content["detectors"][3][name] = value
    (folder / "weights_manifest.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the manifest is, for once."""
    write(tmp_path, "sources", [{"kind": kind, **fields} for kind, fields in SOURCES.items()])
    monkeypatch.setattr(manifest, "data_path", tmp_path.joinpath)
    monkeypatch.setattr(manifest, "read_manifest", read_manifest.__wrapped__)  # which keeps nothing
    return tmp_path


def test_what_it_can_say(folder: Path) -> None:
    sources = get_detector_info("retinanet_dpt_s_ms3x").locations
    assert [source.type for source in sources] == list(SOURCES)
    assert sources[0].url == str(folder / "weights.pth")


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_what_it_cannot_say(folder: Path, field: str, value: Any) -> None:
    write(folder, field, value)
    with pytest.raises(ManifestError, match=r"weights_manifest\.json cannot be used .*: reinstall the pack") as raised:
        get_detector_info("mrcnn_dpt_t_1x")
    assert str(raised.value).isprintable()


NUMBER_FOR_LIST = b'{"detectors": 1, "classifiers": [], "demos": []}'


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b"\xff", NUMBER_FOR_LIST])
def test_a_file_that_is_no_manifest(folder: Path, content: bytes | None) -> None:
    (folder / "weights_manifest.json").unlink()
    if content is not None:
        (folder / "weights_manifest.json").write_bytes(content)
    with pytest.raises(ManifestError, match=r"weights_manifest\.json cannot be used"):
        get_detector_info("mrcnn_dpt_t_1x")


@pytest.mark.parametrize("name", WRONG["name"][:-1])
def test_a_records_name_is_a_files_name(name: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        WeightsRecord(name=name, locations=())


@pytest.mark.parametrize(
    "location",
    [
        "http://example.org/weights.pth",
        "ftp://example.org/weights.pth",
        "file:///weights.pth",
        "https://",
        "https://[",
        "hf://org",
        "hf://org/repo",
        "hf://org/repo/",
        "hf://../repo/file",
        "hf://org/repo/../file",
        "hf://org/repo@../file",
        "hf://org/repo@a/../../file",
    ],
)
def test_no_location(location: str) -> None:
    with pytest.raises(InputError, match=r"give a path, https://\.\.\. or hf://org/repo/file$"):
        parse_location(location)
