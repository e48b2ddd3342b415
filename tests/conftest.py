"""What all tests share: the reference data, and the models under the rule's weights."""

import lzma
import os
import shutil
import sysconfig
import venv
from pathlib import Path

import pytest
import torch
from reference_data import REFERENCE, ROOT, rule_model
from running import Run
from safetensors.torch import save_file

import dpt_zoo.mmlab  # noqa: F401  # so that any test can import mmdet
from dpt_zoo.cli import main

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers are the parallelism


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's own weights out of the tests."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("DPT_ZOO_CACHE", str(cache))
    return cache


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process: exit status, standard output, standard error."""

    def run_main(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse's way out
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_main


@pytest.fixture(scope="session")
def rule_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mask R-CNN DPT-Tiny's rule weights, as safetensors."""
    path = tmp_path_factory.mktemp("weights") / "mrcnn_dpt_t_1x.safetensors"
    save_file(rule_model("mrcnn_dpt_t_1x").state_dict(), path)
    return path


@pytest.fixture(scope="session")
def authors_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 299 MB written by MMCV 1.2.7 under torch 1.7.1, with optimiser and meta."""
    path = tmp_path_factory.mktemp("authors") / "retinanet_dpt_t_1x.pth"
    with lzma.open(REFERENCE / "authors_format_retinanet_dpt_t_1x.pth.xz") as packed, path.open("wb") as file:
        shutil.copyfileobj(packed, file)
    return path


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project somewhere else, as a clone has it, without what is made here."""
    folder = tmp_path_factory.mktemp("clone") / "checkout"
    made_here = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs")
    shutil.copytree(ROOT, folder, ignore=made_here)
    return folder


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has this one's packages, but not this project, installed."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    site_packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # A path named in a .pth file is searched for packages; .pth files in it, an editable install's, are not read.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"
