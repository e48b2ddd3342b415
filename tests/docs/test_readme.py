"""The README: every command in it runs, and its tables are those of the manifest."""

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from reference_data import PHOTO, ROOT
from running import Run
from update_readme_tables import update_tables

README = (ROOT / "README.md").read_text()

pytestmark = pytest.mark.slow


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.fixture
def folder(tmp_path: Path, rule_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: photographs, and the weights that the README's commands name, in a mirror."""
    (tmp_path / "photos").mkdir()
    for name in ("photo.jpg", "photos/1.jpg"):
        Image.open(PHOTO).convert("RGB").save(tmp_path / name)
    (tmp_path / "mine.pth").symlink_to(rule_file)  # read by content, whatever the name
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "mrcnn_dpt_t_1x.safetensors").symlink_to(rule_file)
    monkeypatch.setenv("DPT_ZOO_MIRROR", str(tmp_path / "mirror"))
    return tmp_path


@pytest.fixture
def run_block(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that runs a block of `dpt-zoo` commands in this process and a user's folder.

    It returns their standard error.
    """
    monkeypatch.chdir(tmp_path)

    def run_lines(block: str) -> str:
        log = ""
        for line in block.splitlines():
            command, *arguments = shlex.split(line)
            assert command == "dpt-zoo"
            status, _, err = run(*arguments)
            assert status == 0, err
            log += err
        return log

    return run_lines


def test_python(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    exec("\n".join(blocks("python")).replace("path/to/this/checkout", str(ROOT)), {})
    out, err = capsys.readouterr()
    assert out.count("<Detections in photo") == 2
    assert not err


def test_shell(folder: Path, run_block: Callable[[str], str]) -> None:
    set_up, *others = blocks("bash")
    assert re.findall(r"^bash (\S+)", set_up, re.M) == ["scripts/demo.sh", "scripts/test.sh"]
    for block in others:
        run_block(block.replace("--num-train 40 --num-test 10", "--num-train 8 --num-test 4"))
    assert {path.name for path in (folder / "detections/labels").iterdir()} == {"photo.txt", "1.txt"}
    assert (folder / "detections/pictures/photo.jpg").is_file()


def test_demo(checkout: Path, quick_python: Path, tmp_path: Path) -> None:
    """The first of the two set-up commands; the second is what runs this test."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
    (programs / "python").symlink_to(quick_python)
    (programs / "dpt-zoo").write_text('#!/bin/sh\nexec python -m dpt_zoo "$@"\n')
    (programs / "dpt-zoo").chmod(0o755)
    with (checkout / "setup.py").open("rb") as setup, (tmp_path / "venv" / "installed-demo").open("wb") as stamp:
        subprocess.run("cksum", stdin=setup, stdout=stamp, check=True)  # so that nothing is installed
    environment = {**os.environ, "VENV": str(tmp_path / "venv")}
    done = subprocess.run(["bash", checkout / "scripts/demo.sh"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()
    assert re.search(r"^bbox( +\d+\.\d| +-){12}$", done.stdout, re.M)
    assert re.search(r"^epoch 2/2  box AP \d+\.\d, mask AP \d+\.\d$", done.stderr, re.M)
    picture = Path(done.stdout.splitlines()[-1].removeprefix("The picture: "))
    assert picture == checkout / "runs/demo/detections.png"
    with Image.open(picture) as image:
        assert image.size == (4 * 388 + 4, 3 * 388 + 4)


def test_the_worked_example_of_training(tmp_path: Path, run_block: Callable[[str], str]) -> None:
    _, example, *_ = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.S)
    log = run_block(example.replace("--num-train 60 --num-test 20", "--num-train 12 --num-test 4"))
    assert list(tmp_path.glob("runs/*/pictures/000001.png"))
    assert re.search(r"^epoch 3/3  box AP \d+\.\d$", log, re.M)


def test_the_example_of_evaluation(tmp_path: Path, run_block: Callable[[str], str]) -> None:
    _, example, *_ = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/evaluation.md").read_text(), re.S)
    run_block(example.replace("--num-train 40", "--num-train 1"))
    assert len(list((tmp_path / "runs/shown").iterdir())) == 10
    table = re.findall(r"^\| `(.+?)`", (ROOT / "docs/evaluation.md").read_text(), re.M)
    written = {path.name for path in (tmp_path / "runs/evaluation").iterdir()}
    expected = {name.rstrip("/") for name in table if not name.startswith("--")}
    assert expected == written | {"thresholds.png"}  # --tune-thresholds writes it


def test_the_tables_are_up_to_date(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(README)
    update_tables(copy)
    assert copy.read_text() == README, "run: python scripts/update_readme_tables.py"


def test_links_have_targets() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
