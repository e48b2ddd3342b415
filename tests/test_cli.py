"""The dpt-zoo command, as a user sees it."""

import functools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image
from reference_data import PHOTO

import dpt_zoo
from dpt_zoo.manifest import list_demos, read_manifest

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
        assert title == "Trained by this project on digit scenes, and shipped with it:"
        assert head.split() == ["name", "params", "box", "AP", "mask", "AP", "measured", "on"]
        assert [row.split()[0] for row in rows] == list_demos()
        for row, demo in zip(rows, read_manifest().demos.values(), strict=True):
            mask = demo.measured["segm"]["mAP"] if "segm" in demo.measured else "-"
            assert row.split()[3:5] == [str(demo.measured["bbox"]["mAP"]), str(mask)]
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
    @pytest.mark.parametrize(
        ("arguments", "limit"), [(["-c", "import dpt_zoo"], 0.05), (["-m", "dpt_zoo", "list"], 0.4)]
    )
    def test_it_is_quick(self, arguments: list[str], limit: float) -> None:
        assert fastest(arguments) - fastest(["-c", "pass"]) < limit

    @pytest.mark.parametrize("statement", ["import dpt_zoo", "from dpt_zoo.cli import main; main(['list'])"])
    def test_no_torch_is_loaded(self, statement: str) -> None:
        check = f"import sys; {statement}; assert not {{'torch', 'numpy', 'mmengine', 'PIL'}} & sys.modules.keys()"
        subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def fastest(arguments: list[str]) -> float:
    """Seconds of the fastest of five runs: the machine may be busy with other tests."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


class TestInfo:
    def test_known_and_unknown_facts(self, run: Run) -> None:
        status, out, _ = run("info", "mrcnn_dpt_t_1x")
        assert status == 0
        for fact in (
            "Mask R-CNN DPT-Tiny 1x",
            "34,805,814",
            "mAP 40.2",
            "mAP 37.7",
            "1jCp5mYqHnNs1Uzrh8uopOyRSw0aVLDQp",
        ):
            assert fact in out
        assert re.search("\n  sha256 +unknown: nobody has recorded it yet\n  size +unknown\n", out)

    def test_a_demo(self, run: Run) -> None:
        demo = read_manifest().demos[DEMO]
        status, out, err = run("info", demo.name)
        facts = dict(re.findall(r"^  (\w[\w ]*?)  +(.*)$", out, re.M))
        assert (status, err) == (0, "")
        assert (facts["model"], facts["classes"]) == ("Mask R-CNN DPT-Nano for digit scenes", "10 (digit scenes)")
        assert facts["measured segm"].startswith(f"mAP {demo.measured['segm']['mAP']}  AP50 ")
        assert (facts["measured on"], facts["command"]) == (demo.data, demo.command)
        assert (facts["seed"], facts["machine"]) == (str(demo.seed), demo.machine)
        assert f"torch {demo.versions['torch']}" in facts["versions"] and float(facts["minutes"]) > 0
        assert Path(facts["log"]) == demo.log_path and Path(facts["sources"]).is_file()
        assert facts["sha256"] == demo.sha256 and facts["size"] == f"{demo.num_bytes:,} bytes"
        assert facts["cached"] == "not needed: shipped with the project"

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
        complaint = f"dpt-zoo: {DEMO} is shipped with this project: `publish` is for the authors' models\n"
        assert run("publish", DEMO, "--repo", "org/name") == (2, "", complaint)


class TestDetect:
    def test_picture_and_json(self, run: Run, rule_file: Path, tmp_path: Path) -> None:
        image = tmp_path / "000000000139.jpg"
        Image.open(PHOTO).convert("RGB").save(image, quality=100)
        out = tmp_path / "new" / "folder"
        status, printed, err = run(
            "detect",
            image,
            "--model",
            "mrcnn_dpt_t_1x",
            "--weights",
            rule_file,
            "--out",
            out,
            "--score-threshold",
            0.45,
        )
        assert (status, err) == (0, "")
        records = json.loads((out / "000000000139.detections.json").read_text())
        assert printed.startswith(f"{image}: ") and str(out / "000000000139.detections.jpg") in printed
        assert 1 <= len(records) < 100
        assert sum(int(part.split()[0]) for part in printed.splitlines()[0].split(": ")[1].split(", ")) == len(records)
        assert all(record["image_id"] == 139 and record["score"] >= 0.45 for record in records)
        with Image.open(out / "000000000139.detections.jpg") as picture:
            assert picture.size == (320, 240)

    def test_a_model_of_ones_own_classes(self, run: Run, tmp_path: Path) -> None:
        model = dpt_zoo.create_model("mrcnn_dpt_t_1x", pretrained=False, num_classes=2)
        meta = {"dataset_meta": {"classes": ("cat", "café")}}  # as MMEngine writes it
        torch.save({"state_dict": model.state_dict(), "meta": meta}, tmp_path / "mine.pth")
        status, printed, err = run(
            *("detect", PHOTO, "--model", "mrcnn_dpt_t_1x", "--weights", tmp_path / "mine.pth"),
            *("--out", tmp_path, "--score-threshold", 0),
        )
        assert (status, err) == (0, "")
        assert re.match(rf"{re.escape(str(PHOTO))}: \d+ (cat|café)(, \d+ (cat|café))?\n", printed)

    def test_bad_images_are_told_and_the_others_are_done(self, run: Run, rule_file: Path, tmp_path: Path) -> None:
        photo = Image.open(PHOTO).convert("RGB")
        good = {"grey": photo.convert("L"), "rgba": photo.convert("RGBA"), "dot": photo.resize((1, 1))}
        for name, image in good.items():
            image.save(tmp_path / f"{name}.png")
        photo.resize((20000, 10)).save(tmp_path / "strip.png")
        Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
        (tmp_path / "empty.png").touch()
        (tmp_path / "text.jpg").write_text("no image")
        (tmp_path / "cut.png").write_bytes(PHOTO.read_bytes()[:60_000])
        (tmp_path / "folder.png").mkdir()
        names = ["empty", "grey", "text.jpg", "rgba", "cut", "folder", "dot", "none", "strip", "deep"]
        images = [tmp_path / (name if "." in name else f"{name}.png") for name in names]
        status, out, err = run(
            "detect", *images, "--model", "mrcnn_dpt_t_1x", "--weights", rule_file, "--out", tmp_path / "out"
        )
        assert status == 2
        assert [line.split(": ")[1] for line in err.splitlines()] == [str(images[i]) for i in (0, 2, 4, 5, 7)]
        done = [images[i] for i in (1, 3, 6, 8, 9)]
        assert [line.split(": ")[0] for line in out.splitlines() if not line.startswith("  ")] == list(map(str, done))
        assert len(list((tmp_path / "out").iterdir())) == 2 * len(done)
        for path in done:
            json.loads((tmp_path / "out" / f"{path.stem}.detections.json").read_text())
            with Image.open(path) as before, Image.open(tmp_path / "out" / f"{path.stem}.detections.png") as after:
                assert before.size == after.size

    def test_an_interrupt_ends_it_quietly(self, rule_file: Path, tmp_path: Path) -> None:
        options = ["--model", "mrcnn_dpt_t_1x", "--weights", str(rule_file), "--out", str(tmp_path)]
        command = [sys.executable, "-m", "dpt_zoo", "detect", *[str(PHOTO)] * 50, *options]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # A shell's background jobs, and so their children, ignore the signal: these tests may be one.
        heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        with subprocess.Popen(command, preexec_fn=heed, **pipes) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(str(PHOTO))
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (130, "")
        assert not list(tmp_path.glob(".*"))  # nothing half-written stays

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            (["--model", "mrcnn"], "there is no model 'mrcnn'"),
            (["--model", "mrcnn_dpt_t_1x", "--weights", "none.pth"], "none.pth: there is no such file"),
            (["--model", "mrcnn_dpt_t_1x", "--score-threshold", "2"], "score_threshold must be from 0 to 1"),
            (["--model", "mrcnn_dpt_t_1x", "--device", "gpu"], "device 'gpu' cannot be used"),
            (["--model", "mrcnn_dpt_t_1x", "--out", "/dev/null/folder"], "no folder can be made there"),
        ],
    )
    def test_one_clear_line(self, run: Run, tmp_path: Path, options: list[str], complaint: str) -> None:
        status, out, err = run("detect", PHOTO, "--out", tmp_path, *options)
        assert (status, out) == (2, "")
        assert err.startswith("dpt-zoo: ") and complaint in err and err.count("\n") == 1


def test_wrong_words_exit_with_2(run: Run) -> None:
    for arguments in ([], ["detect"], ["fly"], ["detect", "a.png", "--model"]):
        status, out, err = run(*arguments)
        assert (status, out) == (2, "") and err.startswith("usage: dpt-zoo")
