"""What a contributor meets: workflows, hooks, templates, the set-up script and the documentation site."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from reference_data import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
GIVEN = {"pip", "python", "uv", "source", "git"}
"""Commands that a workflow's or a contributor's machine has, or has just installed."""


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def steps(workflow: Path) -> Iterator[dict[str, Any]]:
    """The steps of all jobs of a workflow."""
    for job in read_yaml(workflow)["jobs"].values():
        yield from job["steps"]


def check_command(command: str) -> None:
    """Check that a shell command starts a program that exists, with scripts of this project that exist."""
    words = [word for word in command.split() if not re.fullmatch(r"\w+=\S*", word)]
    program = words[0]
    if not program.startswith("/tmp/clean/bin/"):
        scripts = os.pathsep.join([sysconfig.get_path("scripts"), str(Path(sys.executable).parent)])
        assert program in GIVEN or shutil.which(program) or shutil.which(program, path=scripts), command
    for word in words:
        if re.match(r"(\./)?(scripts|tests|docs)/", word):
            assert (ROOT / word).exists(), command


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows(workflow: Path) -> None:
    content = read_yaml(workflow)
    assert set(content[True]) >= {"push", "pull_request"}  # YAML reads the key `on` as a boolean
    assert content["permissions"] == {"contents": "read"}
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step), step
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
        for line in step.get("run", "").splitlines():
            check_command(line)


def test_the_workflows_lint_and_test_as_the_script_does() -> None:
    commands = [line for workflow in WORKFLOWS for step in steps(workflow) for line in step.get("run", "").splitlines()]
    script = (ROOT / "scripts" / "test.sh").read_text()
    found = re.findall(r"^ *((?:ruff|mypy|lint-imports|pytest).*?)(?: \"\$@\".*)?$", script, re.MULTILINE)
    assert len(found) == 5 and set(found) <= set(commands)


def test_every_python_that_setup_names_is_tested() -> None:
    tested = read_yaml(ROOT / ".github/workflows/tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert tested == re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.py").read_text())


def test_hooks() -> None:
    for repository in read_yaml(ROOT / ".pre-commit-config.yaml")["repos"]:
        for hook in repository["hooks"]:
            if repository["repo"] == "local":
                check_command(hook["entry"])
            else:
                assert re.fullmatch(r"v\d+\.\d+\.\d+", repository["rev"])


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_issue_forms(form: Path) -> None:
    content = read_yaml(form)
    assert content["name"] and content["description"]
    names = [field["id"] for field in content["body"]]
    assert len(set(names)) == len(names)
    for field in content["body"]:
        assert field["type"] in ("input", "textarea", "checkboxes", "dropdown")
        assert field["attributes"]["label"]


def test_contributing() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (block,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    commands = [line.partition("#")[0] for line in block.splitlines()] + re.findall(
        r"^\| `(.+?)` \|", text, re.MULTILINE
    )
    assert len(commands) > 5
    for command in commands:
        if "pre-commit" not in command:
            check_command(command)
    for name in re.findall(r"`((?:docs|tests|configs|dpt_zoo|scripts)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site" / "api" / "index.html").read_text()
    for name in ("Detector", "Detections.filter", "create_model", "train", "evaluate", "list_models", "get_model_info"):
        assert f'id="dpt_zoo.{name}"' in reference
    assert "Keep a Changelog" in (tmp_path / "site" / "changelog" / "index.html").read_text()


def write_program(path: Path, code: str) -> None:
    path.write_text(f"#!/bin/sh\n{code}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("has_desktop_build", [True, False])
def test_set_up_keeps_only_the_headless_opencv(has_desktop_build: bool, tmp_path: Path) -> None:
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
    status = 0 if has_desktop_build else 1
    write_program(programs / "pip", f'case "$1" in show) exit {status};; esac; echo "$@" >>{tmp_path}/log')
    write_program(programs / "python", 'case "$2" in *metadata*) echo 5.0.0.93;; esac')
    code = "set -euo pipefail; . scripts/venv.sh; use_venv test; use_venv test"
    environment = os.environ | {"VENV": str(tmp_path / "venv")}
    subprocess.run(["bash", "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True)
    install, *others = (tmp_path / "log").read_text().splitlines()
    assert install == "install --quiet --disable-pip-version-check --editable .[test]"
    replace = [
        "uninstall --quiet --yes opencv-python",
        "install --quiet --disable-pip-version-check --force-reinstall --no-deps opencv-python-headless==5.0.0.93",
    ]
    assert others == (replace if has_desktop_build else [])


def test_set_up_refuses_an_old_python(tmp_path: Path) -> None:
    write_program(tmp_path / "python", 'case "$1" in -c) exit 1;; --version) echo Python 3.9.18;; esac')
    environment = os.environ | {"VENV": str(tmp_path / "venv"), "PYTHON": str(tmp_path / "python")}
    command = ["bash", "-c", ". scripts/venv.sh; use_venv"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Python 3.10 or later is required")
    assert "Python 3.9.18" in done.stderr
