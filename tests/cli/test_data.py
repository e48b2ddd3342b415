"""`dpt-zoo check-data`, as a user sees it."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from reference_data import ROOT
from running import Run
from small_data import Json, make_coco, make_voc, make_yolo


def test_valid_data(run: Run, tmp_path: Path) -> None:
    make_coco(tmp_path)
    make_coco(tmp_path, split="val2017")
    overview = "4 images, 1 without objects; 5 objects, 4 with masks; 2 classes\n  cat 3, dog 2\n"
    expected = "".join(f"{name}: {overview}{name}: no issues\n" for name in ("train2017", "val2017"))
    assert run("check-data", tmp_path) == (0, expected, "")


@pytest.mark.parametrize("make", [make_yolo, make_voc])
def test_other_layouts(run: Run, tmp_path: Path, make: object) -> None:
    assert callable(make)
    status, out, err = run("check-data", make(tmp_path / "data"))
    assert (status, err) == (0, "")
    assert out.startswith("train: 2 images, 1 without objects; 2 objects, 1 with masks; 2 classes\n")


def spoil(content: Json) -> None:
    content["annotations"][0]["category_id"] = 9
    content["annotations"][1]["bbox"] = [1, 2, 3]
    content["annotations"][2]["bbox"] = [60, 10, 18, 10]
    content["categories"][0]["name"] = "cat\x1b[2J"


def test_issues_by_type(run: Run, tmp_path: Path) -> None:
    make_coco(tmp_path, spoil)
    make_coco(tmp_path, lambda content: content["images"].clear(), split="val2017")
    status, out, err = run("check-data", tmp_path)
    assert (status, err) == (2, "")
    assert out.startswith(
        """train2017: 4 images, 1 without objects; 5 objects, 4 with masks; 2 classes
  cat\\x1b[2J 2, dog 2
train2017: 2 errors
  unknown category (1): the object would be learned as background
    instances_train2017.json, annotation 11 (image 1): the file has no category 9
  invalid box (1): bbox must be [x, y, width, height] in pixels: finite numbers, no negative width or height
    instances_train2017.json, annotation 12 (image 1): bbox is [1, 2, 3]
train2017: 1 warning
  box across the border (1): training clips it to the image
    instances_train2017.json, annotation 13 (image 2): bbox is [60, 10, 18, 10], the image is 64x48
val2017: 0 images"""
    )
    assert "instances_val2017.json: the file has no images" in out


def test_warnings_leave_data_usable(run: Run, tmp_path: Path) -> None:
    make_coco(tmp_path, lambda content: content["annotations"][0].update(area=0))
    status, out, _ = run("check-data", tmp_path)
    assert status == 0 and "zero area (1)" in out and "no issues" not in out


def test_json(run: Run, tmp_path: Path) -> None:
    make_coco(tmp_path, lambda content: content["images"][1].update(file_name="lost.png"))
    status, out, _ = run("check-data", tmp_path, "--json", "--jobs", 1)
    (split,) = json.loads(out)
    path = str(tmp_path / "train2017" / "lost.png")
    assert status == 2
    assert split == {
        "split": "train2017",
        "num_images": 4,
        "num_empty_images": 1,
        "num_objects": 5,
        "num_masks": 4,
        "classes": {"cat": 3, "dog": 2},
        "issues": [
            {
                "type": "missing image",
                "is_error": True,
                "where": "instances_train2017.json, image 2 ('lost.png')",
                "message": f"there is no file {path!r}",
                "image_id": 2,
            }
        ],
    }


def test_a_file_and_a_folder(run: Run, tmp_path: Path) -> None:
    path = make_coco(tmp_path)
    status, out, _ = run("check-data", "--annotations", path, "--images", tmp_path / "train2017")
    assert status == 0 and out.endswith("instances_train2017: no issues\n")
    assert run("check-data", "--annotations", path, "--images", tmp_path / "none")[0] == 2
    for arguments in ([], ["--annotations", path], [tmp_path, "--annotations", path], [tmp_path, "--images", tmp_path]):
        complaint = "dpt-zoo: give a data set's folder, or both --annotations and --images\n"
        assert run("check-data", *arguments) == (2, "", complaint)


def test_no_data_set(run: Run, tmp_path: Path) -> None:
    status, out, err = run("check-data", tmp_path)
    assert (status, out) == (2, "")
    assert err.startswith(f"dpt-zoo: {tmp_path}: no data set is found here") and err.count("\n") == 1
    assert "jobs must be a whole number from 1" in run("check-data", make_yolo(tmp_path / "yolo"), "--jobs", 0)[2]


def test_a_terminal_shows_progress(tmp_path: Path) -> None:
    make_coco(tmp_path)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "dpt_zoo", "check-data", str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # its end is an error
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert done.returncode == 0 and done.stdout.endswith(b"train2017: no issues\n")
    assert b"reading images" in shown and b"4/4" in shown


@pytest.mark.slow
def test_the_commands_of_the_page_on_data(tmp_path: Path) -> None:
    commands = re.search(r"```bash\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)
    assert commands
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euc", commands[1]], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "train2017: no issues\n" in done.stdout and done.stdout.endswith("val2017: no issues\n")
