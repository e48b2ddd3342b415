"""The README: every command in it runs, and its table is the manifest's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from reference_data import PHOTO, ROOT

import dpt_zoo

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.fixture
def folder(tmp_path: Path, rule_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a photograph, and the weights that the README's commands name, in a mirror."""
    Image.open(PHOTO).convert("RGB").save(tmp_path / "photo.jpg")
    (tmp_path / "mine.pth").symlink_to(rule_file)  # read by content, whatever the name
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "mrcnn_dpt_t_1x.safetensors").symlink_to(rule_file)
    monkeypatch.setenv("DPT_ZOO_MIRROR", str(tmp_path / "mirror"))
    return tmp_path


def test_python(folder: Path) -> None:
    code = "\n".join(blocks("python")).replace("path/to/this/checkout", str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_shell(folder: Path) -> None:
    set_up, *others = blocks("bash")
    assert re.findall(r"^bash (\S+)", set_up, re.M) == ["scripts/demo.sh", "scripts/test.sh"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in others:
        done = subprocess.run(
            ["bash", "-euc", block], cwd=folder, capture_output=True, text=True, env={**os.environ, "PATH": path}
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "detections" / "photo.detections.jpg").is_file()


def test_demo(checkout: Path) -> None:
    """The first of the two set-up commands; the second is what runs this test."""
    stamp = Path(sys.prefix) / "installed-test"
    if not stamp.exists():
        pytest.fail(f"{stamp} is missing: run the tests through scripts/test.sh")
    environment = {**os.environ, "VENV": sys.prefix, "PYTHONPATH": str(checkout)}
    done = subprocess.run(["bash", checkout / "scripts/demo.sh"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "100 of the authors' 100 detections came back" in done.stdout
    picture = Path(done.stdout.splitlines()[-1].removeprefix("The picture: "))
    assert picture == checkout / "runs/demo/img_coffee_320x240.detections.png"
    with Image.open(picture) as image:
        assert image.size == (320, 240)


def test_the_table_is_the_manifests() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line[:3] == "| `"]
    assert [row[0].strip("`") for row in rows] == dpt_zoo.list_models()
    for row in rows:
        checkpoint = dpt_zoo.get_checkpoint(row[0].strip("`"))
        assert f"{row[1]} {row[3]}" == checkpoint.title
        assert row[2] == f"{checkpoint.num_params / 1e6:.1f} M"
        figures = [
            str(checkpoint.published.get(task, {}).get(figure, "-"))
            for task in ("bbox", "segm")
            for figure in ("mAP", "AP50", "AP75")
        ]
        assert row[4:] == figures


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
