"""The light installation: the wheel and what it requires, without PyTorch. pip fetches it from its package index."""

import json
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_data import ROOT

import dpt_zoo
from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.utils.dependencies import EXTRAS

MAX_BYTES = 350_000_000
DEMO = "mrcnn_dpt_nano_digits"
Shell = Callable[..., tuple[int, str, str]]

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.xdist_group("wheel")]


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment in which only the wheel and its requirements are installed."""
    folder = tmp_path_factory.mktemp("light")
    venv.create(folder, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-compile", str(wheel)], check=True)
    return folder


@pytest.fixture
def shell(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Return a function that runs a program of the environment: exit status, standard output, standard error."""
    monkeypatch.setenv("DPT_ZOO_OFFLINE", "1")
    monkeypatch.setenv("DPT_ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def run(program: str, *arguments: object) -> tuple[int, str, str]:
        command = [str(environment / "bin" / program), *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    return run


def test_it_is_small(environment: Path) -> None:
    folder = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    sizes = {path: path.lstat().st_size for path in folder.rglob("*") if "__pycache__" not in path.parts}
    assert sum(sizes.values()) < MAX_BYTES, sorted(sizes.items(), key=lambda item: -item[1])[:10]


def test_it_has_no_package_of_an_extra(shell: Shell) -> None:
    packages = [package for names in EXTRAS.values() for package in names]
    code = f"import importlib.util; print([name for name in {packages} if importlib.util.find_spec(name)])"
    assert shell("python", "-c", code) == (0, "[]\n", "")


def test_the_extras_are_those_of_setup() -> None:
    setup = (ROOT / "setup.py").read_text()
    (extras,) = re.findall(r"extras_require=\{(.*?)\n    \}", setup, re.DOTALL)
    assert set(EXTRAS) == set(re.findall(r'^        "(\w+)":', extras, re.MULTILINE)) - {"all", "docs", "test"}
    top_level: dict[str, set[str]] = {}
    for distribution in distributions():
        name = distribution.name
        for line in (distribution.read_text("RECORD") or "").splitlines():
            top_level.setdefault(line.partition("/")[0], set()).add(name)
    for package in (package for names in EXTRAS.values() for package in names):
        (name,) = top_level[package]
        assert re.search(rf'"{name}[\[>"]', setup)


def test_models_and_weights(shell: Shell, rule_file: Path) -> None:
    for arguments in (("list",), ("info", DEMO), ("download", DEMO), ("cache", "list")):
        status, output, errors = shell("dpt-zoo", *arguments)
        assert (status, errors) == (0, "")
        assert DEMO in output or "cache" in arguments
    name = rule_file.stem
    status, output, errors = shell("dpt-zoo", "import", name, rule_file)
    assert (status, errors) == (0, "")
    assert output.startswith(f"{name}: checked and converted, ")
    assert shell("dpt-zoo", "cache", "verify") == (0, f"{name}: unchanged\n", "")
    status, _, errors = shell("dpt-zoo", "import", "mrcnn_dpt_s_1x", rule_file)
    assert status == 2
    assert "are those of mrcnn_dpt_t_1x" in errors


def test_detection(shell: Shell, exported_demo: Path, tmp_path: Path) -> None:
    make_digit_scenes(tmp_path / "digits", num_train=1, num_test=1)
    scene = tmp_path / "digits" / "val2017" / "000001.png"
    status, _, errors = shell("dpt-zoo", "detect", scene, "--model", exported_demo, "--work-dir", "out")
    assert (status, errors) == (0, "")
    (line,) = (tmp_path / "out" / "detections.jsonl").read_text().splitlines()
    expected = dpt_zoo.Detector(DEMO, device="cpu")(scene)
    objects = json.loads(line)["objects"]
    assert len(objects) == len(expected) > 0
    np.testing.assert_allclose([each["box"] for each in objects], expected.boxes, atol=0.01)
    np.testing.assert_allclose([each["score"] for each in objects], expected.scores, atol=1e-4)


@pytest.mark.parametrize(
    ("extra", "program", "arguments"),
    [
        ("torch", "dpt-zoo", ("train", DEMO, "--data-root", "data")),
        ("torch", "dpt-zoo", ("evaluate", DEMO, "--data-root", "data")),
        ("torch", "dpt-zoo", ("detect", "photo.png", "--model", DEMO)),
        ("torch", "dpt-zoo", ("import", "mrcnn_dpt_t_1x", "weights.pth")),
        ("app", "dpt-zoo", ("app", "--port", "0")),
        ("torch", "python", ("-c", f"import dpt_zoo; dpt_zoo.Detector({DEMO!r})")),
        ("torch", "python", ("-c", f"import dpt_zoo; dpt_zoo.create_model({DEMO!r})")),
        ("torch", "python", ("-c", f"import dpt_zoo; dpt_zoo.evaluate({DEMO!r}, data_root='data')")),
        ("torch", "python", ("-c", f"import dpt_zoo; dpt_zoo.export({DEMO!r}, 'model.onnx')")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_what_needs_an_extra_names_it(
    extra: str, program: str, arguments: tuple[str, ...], shell: Shell, tmp_path: Path
) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pth")
    (tmp_path / "photo.png").write_bytes((ROOT / "docs" / "detections.jpg").read_bytes())
    status, _, errors = shell(program, *arguments)
    assert status == (2 if program == "dpt-zoo" else 1)
    assert f'pip install "dpt-zoo[{extra}]"' in errors.splitlines()[-1]
