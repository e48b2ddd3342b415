"""What all tests share: the reference data, and the models under the rule's weights."""

import os
from pathlib import Path

import pytest
import torch

import dpt_zoo.mmlab  # noqa: F401  # so that any test can import mmdet

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers are the parallelism


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's own weights out of the tests."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("DPT_ZOO_CACHE", str(cache))
    return cache
