"""The manifest names files: an invalid value in it must not reach outside the zoo's own folders."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpt_zoo.errors import InputError, ManifestError, UnknownModelError
from dpt_zoo.manifest import records as manifest
from dpt_zoo.manifest.locations import parse_location
from dpt_zoo.manifest.records import Classifier, WeightsRecord, get_detector_info, get_model_info, read_manifest

PATHS = ("", ".", "..", "/etc/passwd", "../x", "configs/../../x", "configs\\x", "C:x", "a\0", 7)

# Fields of a record, and values that they must not have.
WRONG: dict[str, tuple[Any, ...]] = {
    "name": (*PATHS, "a/b", "a\n", "é", "-x"),
    "config": PATHS,
    "locations": (None, 7, "x", ["x"], [{}], [{"path": "x"}], [{"type": "pigeon", "path": "x"}]),
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
LOCATIONS: dict[str, dict[str, Any]] = {
    "file": {"path": "weights.pth"},
    "gdrive": {"id": "1S84hbeVxPjtcmjeOcae5Sn"},
    "https": {"url": "https://example.org/weights.pth"},
    "hf": {"repo": "org/zoo", "file": "weights.safetensors", "revision": "main"},
    "baidu": {"share": "19nJXoOAK", "password": "DPTs"},
}


def write(folder: Path, field: str, value: Any) -> None:
    """Write the manifest with another value in the fourth detector's record, or in the first demo's record."""
    content = json.loads(manifest.data_path("weights_manifest.json").read_text())
    *type_, name = field.split()
    if type_ == ["demo"]:
        content["demos"][0][name] = value
    elif type_:
        content["detectors"][3]["locations"] = [{"type": type_[0], **LOCATIONS[type_[0]], name: value}]
    else:
        content["detectors"][3][name] = value
    (folder / "weights_manifest.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a manifest that is used instead of the project's."""
    write(tmp_path, "locations", [{"type": type_, **fields} for type_, fields in LOCATIONS.items()])
    monkeypatch.setattr(manifest, "data_path", tmp_path.joinpath)
    monkeypatch.setattr(manifest, "read_manifest", read_manifest.__wrapped__)  # without its cache
    return tmp_path


def test_all_types_of_location(folder: Path) -> None:
    locations = get_detector_info("retinanet_dpt_s_ms3x").locations
    assert [location.type for location in locations] == list(LOCATIONS)
    assert locations[0].url == str(folder / "weights.pth")


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_invalid_values(folder: Path, field: str, value: Any) -> None:
    write(folder, field, value)
    with pytest.raises(ManifestError, match=r"weights_manifest\.json cannot be used .*: reinstall the pack") as raised:
        get_detector_info("mrcnn_dpt_t_1x")
    assert str(raised.value).isprintable()


NUMBER_FOR_LIST = b'{"detectors": 1, "classifiers": [], "demos": []}'


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b"\xff", NUMBER_FOR_LIST])
def test_invalid_manifests(folder: Path, content: bytes | None) -> None:
    (folder / "weights_manifest.json").unlink()
    if content is not None:
        (folder / "weights_manifest.json").write_bytes(content)
    with pytest.raises(ManifestError, match=r"weights_manifest\.json cannot be used"):
        get_detector_info("mrcnn_dpt_t_1x")


@pytest.mark.parametrize("name", WRONG["name"][:-1])
def test_invalid_names(name: Any) -> None:
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
        "hf://repo",
        "hf://org/repo/",
        "hf://../repo/file",
        "hf://org/repo/../file",
        "hf://org/repo@../file",
        "hf://org/repo@a/../../file",
    ],
)
def test_invalid_locations(location: str) -> None:
    with pytest.raises(InputError, match=r"give a path, https://\.\.\. or hf://org/repo/file$"):
        parse_location(location)


def test_info_of_every_model() -> None:
    for name, record in read_manifest().records.items():
        assert get_model_info(name) == record
        assert record.metrics and record.measured_by in ("authors", "dpt-zoo")
    classifier = get_model_info("dpt_small")
    assert isinstance(classifier, Classifier) and classifier.gflops == 4.0


def test_info_of_detectors_only() -> None:
    assert get_detector_info("mrcnn_dpt_t_1x").average_precisions == "40.2 box AP, 37.7 mask AP"
    with pytest.raises(UnknownModelError, match="there is no model 'dpt_tiny'"):
        get_detector_info("dpt_tiny")
    with pytest.raises(UnknownModelError, match=r"did you mean dpt_tiny\?"):
        get_model_info("dpt_tinny")
