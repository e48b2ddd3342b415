"""The dpt-zoo command, as a user sees it."""

import subprocess
import sys
from pathlib import Path

import pytest
from running import Run

import dpt_zoo
from dpt_zoo.manifest.records import read_manifest

DEMO = "mrcnn_dpt_nano_digits"


class TestList:
    def test_all(self, run: Run, empty_cache: Path) -> None:
        empty_cache.mkdir()
        (empty_cache / "mrcnn_dpt_t_ms3x.safetensors").touch()
        status, out, err = run("list")
        head, *rows = out.partition("\n\n")[0].splitlines()
        assert (status, err) == (0, "")
        assert head.split("  ")[0] == "name" and head.endswith("cached")
        assert [row.split()[0] for row in rows] == dpt_zoo.list_models()
        assert rows[7].split() == ["mrcnn_dpt_t_ms3x", "34.8", "M", "MS+3x", "42.2", "39.4", "unchecked"]
        assert rows[0].split() == ["retinanet_dpt_t_1x", "24.9", "M", "1x", "39.5", "-", "no"]

    def test_the_demos_have_a_table_of_their_own(self, run: Run) -> None:
        title, head, *rows = run("list")[1].partition("\n\n")[2].splitlines()
        assert title == "Demos, trained by this project on digit scenes and shipped with it:"
        assert head.split() == ["name", "params", "box", "AP", "mask", "AP", "measured", "on"]
        assert [row.split()[0] for row in rows] == list(read_manifest().demos)
        for row, demo in zip(rows, read_manifest().demos.values(), strict=True):
            mask = demo.metrics["segm"]["mAP"] if "segm" in demo.metrics else "-"
            assert row.split()[3:5] == [str(demo.metrics["bbox"]["mAP"]), str(mask)]
            assert row.endswith(demo.data)

    def test_some(self, run: Run) -> None:
        assert len(run("list", "*_m_*")[1].splitlines()) == 5
        assert run("list", "*nano*")[1] == run("list")[1].partition("\n\n")[2]
        assert run("list", "yolo*") == (2, "", "dpt-zoo: no model's name matches 'yolo*': `dpt-zoo list` shows all\n")

    def test_a_closed_pipe_is_no_error(self) -> None:
        command = f"{sys.executable} -m dpt_zoo list | head -1"
        done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


class TestStart:
    """Starting is quick, since nothing heavy is imported."""

    @pytest.mark.parametrize(
        "statement",
        [
            "import dpt_zoo",
            "from dpt_zoo.cli import main; main(['list'])",
            "import runpy, sys; sys.argv[1:] = ['--help']; runpy.run_module('dpt_zoo.download', run_name='__main__')",
        ],
    )
    def test_light_imports(self, statement: str) -> None:
        code = f"""
import atexit, sys
atexit.register(lambda: print(*{{name.partition(".")[0] for name in sys.modules}}))
{statement}
"""
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        imported = set(done.stdout.splitlines()[-1].split())
        assert not imported & {"torch", "numpy", "mmengine", "timm", "PIL", "cv2", "yaml", "requests", "rich", "jinja2"}


class TestInfo:
    def test_a_wrong_name(self, run: Run) -> None:
        expected = "dpt-zoo: there is no model 'mrcnn_dpt_t': did you mean mrcnn_dpt_t_1x?\n"
        assert run("info", "mrcnn_dpt_t") == (2, "", expected)


class TestTheTwelve:
    """What is about the authors' models leaves the demos out."""

    def test_downloads_of_many(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DPT_ZOO_OFFLINE", "1")
        _, out, _ = run("download", "--all", "mrcnn*", "*nano*", "dpt_tiny")
        assert out == ""  # no authors' model has such a name
        _, out, _ = run("download", "--all", "mrcnn*")
        assert [line.split()[0] for line in out.splitlines()] == ["name", *dpt_zoo.list_models()]

    def test_publishing(self, run: Run) -> None:
        complaint = f"dpt-zoo: {DEMO} is shipped with this project: `publish` is for the authors' models and your own\n"
        assert run("publish", DEMO, "--repo", "org/name") == (2, "", complaint)


def test_wrong_words_exit_with_2(run: Run) -> None:
    for arguments in ([], ["detect"], ["fly"], ["detect", "a.png", "--model"]):
        status, out, err = run(*arguments)
        assert (status, out) == (2, "") and err.startswith("usage: dpt-zoo")
