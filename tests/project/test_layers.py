"""The package's structure: imports run downwards, and every folder stays small enough to know."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from reference_data import ROOT

MAX_LINES = 2100
"""Lines of Python in one folder of the package."""


def lint_imports(folder: Path) -> tuple[int, str]:
    """Run `lint-imports` in a folder: exit status and output."""
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as run; run()"
    done = subprocess.run([sys.executable, "-c", code, "--no-cache"], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def copied_package(tmp_path: Path) -> Path:
    """The package and its contract, somewhere else."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "dpt_zoo", tmp_path / "dpt_zoo", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_imports_run_downwards(copied_package: Path) -> None:
    status, output = lint_imports(copied_package)
    assert status == 0, output
    assert "Imports run downwards KEPT" in output


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("utils/text.py", "cli"),
        ("models/backbone.py", "inference.detector"),
        ("training/loop.py", "evaluation.result"),
    ],
    ids=["a door", "a higher layer", "the same layer"],
)
def test_an_import_that_runs_upwards_is_reported(importer: str, imported: str, copied_package: Path) -> None:
    path = copied_package / "dpt_zoo" / importer
    path.write_text(f"{path.read_text()}\nfrom dpt_zoo import {imported.split('.')[0]}\nimport dpt_zoo.{imported}\n")
    status, output = lint_imports(copied_package)
    assert status == 1
    assert "Imports run downwards BROKEN" in output
    assert f"dpt_zoo.{importer.removesuffix('.py').replace('/', '.')} -> dpt_zoo.{imported}" in output


def test_a_new_folder_needs_a_layer(copied_package: Path) -> None:
    (copied_package / "dpt_zoo" / "elsewhere.py").touch()
    status, output = lint_imports(copied_package)
    assert status == 1
    assert "elsewhere" in output


def test_no_folder_is_too_large() -> None:
    folders = [path for path in (ROOT / "dpt_zoo").iterdir() if path.is_dir() and path.name != "__pycache__"]
    lines = {folder.name: sum(len(p.read_text().splitlines()) for p in folder.rglob("*.py")) for folder in folders}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}
