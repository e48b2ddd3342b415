"""scripts/record_weights.py writes what was measured of the authors' files into the manifest."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from record_weights import main, record, write_records

from dpt_zoo.errors import FetchError
from dpt_zoo.manifest import records as manifest
from dpt_zoo.manifest.records import read_manifest
from dpt_zoo.weights.cache import CacheEntry, Provenance
from dpt_zoo.weights.prefetch import Outcome

SHA256, DIGEST = "ab" * 32, "cd" * 32
NAMES = ("retinanet_dpt_t_1x", "mrcnn_dpt_t_1x", "dpt_tiny")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the manifest that is used instead of the project's."""
    path = tmp_path / "weights_manifest.json"
    path.write_bytes(manifest.data_path("weights_manifest.json").read_bytes())
    monkeypatch.setattr(manifest, "data_path", tmp_path.joinpath)
    read_manifest.cache_clear()
    yield path
    read_manifest.cache_clear()


def test_record(project: Path, empty_cache: Path) -> None:
    empty_cache.mkdir()
    for name, sha256 in zip(NAMES, (SHA256, None, SHA256), strict=True):
        provenance = Provenance("x", "2025-01-01", sha256, 3 if sha256 else None, DIGEST, ())
        CacheEntry(empty_cache, name).write_provenance(provenance)
    before = project.read_text()
    outcomes = [Outcome(name, empty_cache / f"{name}.safetensors", False) for name in NAMES[:2]]
    outcomes.append(Outcome("dpt_tiny", empty_cache / "dpt_tiny.safetensors", False, FetchError("no")))
    assert record(outcomes) == ["retinanet_dpt_t_1x"]
    changed = [
        new.strip()
        for old, new in zip(before.splitlines(), project.read_text().splitlines(), strict=True)
        if old != new
    ]
    assert changed == [f'"sha256": "{SHA256}",', '"num_bytes": 3,', f'"tensors_sha256": "{DIGEST}",']
    assert read_manifest().records["retinanet_dpt_t_1x"].sha256 == SHA256


def test_unchanged_without_changes(project: Path) -> None:
    before: Any = json.loads(project.read_text())
    write_records({})
    assert json.loads(project.read_text()) == before


@pytest.mark.slow
def test_command(
    project: Path,
    tmp_path: Path,
    authors_file: Path,
    rule_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "retinanet_dpt_t_1x.pth").symlink_to(authors_file)
    (tmp_path / "mirror" / "mrcnn_dpt_t_1x.safetensors").symlink_to(rule_file)
    monkeypatch.setenv("DPT_ZOO_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("DPT_ZOO_OFFLINE", "1")
    monkeypatch.setattr("sys.argv", ["record_weights.py", *NAMES])
    assert main() == 2
    captured = capsys.readouterr()
    assert captured.out == "recorded in the manifest: retinanet_dpt_t_1x\n"  # the other is not in the authors' form
    assert captured.err.startswith("record_weights: dpt_tiny: its weights could not be fetched")
    recorded = read_manifest().records["retinanet_dpt_t_1x"]
    assert recorded.sha256 == "3cf3cc9db91060879e7cb8c79063731b7339fd67a27e2876156118d3ee61eaae"
    assert recorded.num_bytes == 298_866_480 and recorded.tensors_sha256
