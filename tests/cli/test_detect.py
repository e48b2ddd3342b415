"""`dpt-zoo detect`: its inputs, files and messages, and how an interrupted run is resumed."""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from detection_runs import read_names
from digit_film import make_film, write_film
from exported_files import make_onnx, make_openvino
from PIL import Image
from reference_data import PHOTO
from running import Run
from web_server import WebServer

import dpt_zoo
from dpt_zoo import Detector
from dpt_zoo.batch.image_writer import ImageWriter
from dpt_zoo.batch.journal import ImageResult, Journal, RunSettings
from dpt_zoo.batch.runner import DetectionRun, VideoInput
from dpt_zoo.cli import main
from dpt_zoo.cli.detect import FORMATS
from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.inference.inputs import find_inputs, input_key

MASK_RCNN = ("--model", "mrcnn_dpt_nano_digits")
RETINANET = ("--model", "retinanet_dpt_nano_digits")
OF_IMAGES = [name for name in FORMATS if name != "mot"]  # which is for videos


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six scenes of digits."""
    folder = tmp_path_factory.mktemp("digits")
    make_digit_scenes(folder, num_train=1, num_test=6)
    return sorted((folder / "val2017").iterdir())


@pytest.fixture
def many(scenes: list[Path], tmp_path: Path) -> Path:
    """A folder of 24 images in two folders; one of them is damaged."""
    return make_folder(tmp_path / "many", scenes, 24)


@pytest.fixture
def some(scenes: list[Path], tmp_path: Path) -> Path:
    """A folder as `many`, of 12 images."""
    return make_folder(tmp_path / "some", scenes, 12)


def make_folder(folder: Path, scenes: list[Path], num_images: int) -> Path:
    for number in range(num_images):
        path = folder / f"{number % 2}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scenes[number % 6], path)
    (folder / "1" / "05.png").write_text("no image")
    return folder


@pytest.fixture
def clip(scenes: list[Path], tmp_path: Path) -> Path:
    """A video of 8 frames, two a second."""
    return make_video(tmp_path / "clip.mp4", 8, scenes)


def make_video(path: Path, num_frames: int, scenes: list[Path]) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=2)
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = 192
        for index in range(num_frames):
            with Image.open(scenes[index // 2 % 6]) as scene:
                output.mux(stream.encode(av.VideoFrame.from_image(scene.convert("RGB"))))
        output.mux(stream.encode())
    return path


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "detections.jsonl").read_text().splitlines()]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestOneImage:
    def test_output_and_files(self, run: Run, scenes: list[Path], tmp_path: Path) -> None:
        status, output, err = run("detect", scenes[0], *MASK_RCNN, "--work-dir", tmp_path / "out")
        first, summary, where = output.splitlines()
        detections = Detector("mrcnn_dpt_nano_digits")(scenes[0])
        assert (status, err) == (0, "")
        assert first.startswith(f"{scenes[0]}: ")
        counts = [part.split() for part in first.partition(": ")[2].split(", ")]
        assert sum(int(count) for count, _ in counts) == len(detections) and {name for _, name in counts} == set(
            detections.names
        )
        assert summary.startswith(f"1 image, {len(detections)} objects in ")
        assert where == f"{tmp_path / 'out'}: run.json, detections.jsonl, detections.json, pictures"
        (line,) = lines_of(tmp_path / "out")
        key = input_key(str(scenes[0]))
        assert line == {"name": scenes[0].name, "stem": scenes[0].stem, "key": key, **detections.to_json()}
        with Image.open(tmp_path / "out" / "pictures" / scenes[0].name) as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(detections.plot()))

    def test_options(self, run: Run, scenes: list[Path], tmp_path: Path) -> None:
        options = ("--classes", "1", "2", "--score-threshold", "0.6", "--no-pictures", "--save-crops", "--save-masks")
        status, _, err = run("detect", scenes[0], scenes[1], *MASK_RCNN, "--work-dir", tmp_path / "out", *options)
        objects = [each for line in lines_of(tmp_path / "out") for each in line["objects"]]
        assert (status, err) == (0, "")
        assert {each["name"] for each in objects} == {"1", "2"} and min(each["score"] for each in objects) >= 0.6
        assert not (tmp_path / "out" / "pictures").exists()
        assert len(list((tmp_path / "out" / "crops").rglob("*.jpg"))) == len(objects)
        for line in lines_of(tmp_path / "out"):
            with Image.open(tmp_path / "out" / "masks" / f"{line['stem']}.png") as masks:
                assert set(np.unique(np.asarray(masks))) - {0} <= set(range(1, len(line["objects"]) + 1))

    @pytest.mark.slow
    def test_a_model_with_other_classes(self, run: Run, tmp_path: Path) -> None:
        model = dpt_zoo.create_model("mrcnn_dpt_nano_digits", pretrained=False, num_classes=2)
        meta = {"dataset_meta": {"classes": ("cat", "../café")}}  # as MMEngine writes it
        torch.save({"state_dict": model.state_dict(), "meta": meta}, tmp_path / "mine.pth")
        options = ("--weights", tmp_path / "mine.pth", "--score-threshold", 0, "--save-crops", "--scale", 192, 192)
        status, output, err = run("detect", PHOTO, *MASK_RCNN, *options, "--work-dir", tmp_path / "out")
        assert (status, err) == (0, "") and "../café" in output
        assert {path.name for path in (tmp_path / "out" / "crops").iterdir()} <= {"cat", "__café"}

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            (["--model", "mrcnn"], "there is no model 'mrcnn'"),
            ([*MASK_RCNN, "--weights", "none.pth"], "none.pth: there is no such file"),
            ([*MASK_RCNN, "--score-threshold", "2"], "score_threshold must be"),
            ([*MASK_RCNN, "--device", "gpu"], "device 'gpu' cannot be used"),
            ([*MASK_RCNN, "--classes", "dog"], "--classes: mrcnn_dpt_nano_digits has no class 'dog', only 0, 1, 2, 3"),
            ([*RETINANET, "--save-masks"], "--save-masks: retinanet_dpt_nano_digits has no masks"),
            (
                [*MASK_RCNN, "--work-dir", "/dev/null/folder"],
                "/dev/null/folder cannot be made: Not a directory: choose another --work-dir",
            ),
        ],
    )
    def test_one_clear_line(self, run: Run, tmp_path: Path, options: list[str], complaint: str) -> None:
        status, output, err = run("detect", PHOTO, "--work-dir", tmp_path / "out", *options)
        assert (status, output) == (2, "")
        assert err.startswith("dpt-zoo: ") and complaint in err and err.count("\n") == 1


class TestInputs:
    @pytest.mark.network
    def test_of_all_kinds(self, run: Run, scenes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nested folders, a quoted pattern, a URL with secrets, standard input, and files with the same name."""
        (tmp_path / "in" / "deep").mkdir(parents=True)
        for name in ("in/b.png", "in/deep/a.png", "in/notes.txt", "p1.png", "p2.png"):
            shutil.copy(scenes[0], tmp_path / name)
        Image.open(scenes[1]).save(tmp_path / "in" / "b.webp")
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(scenes[2].read_bytes())))
        monkeypatch.chdir(tmp_path)
        with WebServer({"/x/p1.png?TOKEN": scenes[3].read_bytes()}) as server:
            url, shown = (f"{server.url.replace('://', f'://{user}@')}/x/p1.png?" for user in ("u:PASS", "..."))
            status, output, err = run("detect", "in", "p?.png", f"{url}TOKEN", "-", *MASK_RCNN, "--format", *OF_IMAGES)
        assert (status, err) == (0, "")
        expected = ["in/b.png", "in/b.webp", "in/deep/a.png", "p1.png", "p2.png", f"{shown}..."]
        assert [line.rpartition(": ")[0] for line in output.splitlines()[:7]] == [*expected, "standard input"]
        names = [line["name"] for line in lines_of(Path("detections"))]
        assert names == ["b.png", "b.webp", "deep/a.png", "p1.png", "p2.png", "p1-2.png", "stdin"]
        pictures = files_of(Path("detections/pictures"))
        assert set(pictures) == {"b.png", "b.webp.jpg", "deep/a.png", "p1.png", "p2.png", "p1-2.png", "stdin.jpg"}
        for content in files_of(Path("detections")).values():
            assert b"TOKEN" not in content and b"PASS" not in content

    def test_odd_names(self, run: Run, scenes: list[Path], tmp_path: Path) -> None:
        names = {  # each name, as it is printed, and the stem of its files
            b"caf\xe9": ("caf\\udce9", "caf"),
            "日本 é".encode(): ("日本 é", "日本 é"),
            b"two\nlines": ("two\\nlines", "two\nlines"),
            b"[0-9]": ("[0-9]", "[0-9]"),
            b"x" * 240: ("x" * 240, "x" * 160),
        }
        paths = [tmp_path / os.fsdecode(name + b".png") for name in names]
        for path in paths:
            shutil.copy(scenes[0], path)
        status, output, err = run("detect", *paths, *MASK_RCNN, "--work-dir", tmp_path / "out", "--format", *OF_IMAGES)
        assert (status, err) == (0, "")
        for line, (printed, _) in zip(output.splitlines(), names.values(), strict=False):
            assert line.startswith(f"{tmp_path}/{printed}.png: ")
        assert {path.stem for path in (tmp_path / "out" / "pictures").iterdir()} == {stem for _, stem in names.values()}
        assert {len(read) for read in read_names(tmp_path / "out").values()} == {5}

    @pytest.mark.network
    def test_errors_are_printed_at_the_end(self, run: Run, scenes: list[Path], tmp_path: Path) -> None:
        scene = Image.open(scenes[0])
        for name, image in {"grey.png": scene.convert("L"), "dot.gif": scene.resize((1, 1))}.items():
            image.save(tmp_path / name)
        (tmp_path / "empty.png").touch()
        (tmp_path / "text.mp4").write_text("no video")
        (tmp_path / "cut\x1b[31m.png").write_bytes(scenes[0].read_bytes()[:9000])
        names = ["empty.png", "grey.png", "text.mp4", "cut\x1b[31m.png", "none.png", "dot.gif"]
        inputs = [*(tmp_path / name for name in names), "camera:77"]
        with WebServer({}) as server:
            status, output, err = run(
                "detect", *inputs, f"{server.url}/a.jpg", *MASK_RCNN, "--work-dir", tmp_path / "out"
            )
        assert status == 2
        count, *failures = err.splitlines()
        assert count == "dpt-zoo: 6 inputs failed:"
        reasons = [
            *("empty.png: the file is empty", "cut\\x1b[31m.png: ", "none.png: there is no such file"),
            *("/a.jpg: the server answers 404", "text.mp4: ", "camera 77 gives no picture"),
        ]
        for failure, reason in zip(failures, reasons, strict=True):
            assert failure.startswith("  ") and reason in failure
        assert [line["name"] for line in lines_of(tmp_path / "out")] == ["grey.png", "dot.gif"]
        assert "2 images, " in output

    @pytest.mark.slow
    def test_many_are_not_printed_one_by_one(self, run: Run, many: Path, tmp_path: Path) -> None:
        status, output, err = run("detect", many, *MASK_RCNN, "--work-dir", tmp_path / "out", "--no-pictures")
        assert status == 2 and "05.png" in err
        assert output.startswith("23 images, ") and output.count("\n") == 2

    @pytest.mark.parametrize("name", ["empty", "none/*.png"])
    def test_nothing_there(self, run: Run, tmp_path: Path, name: str) -> None:
        (tmp_path / "empty").mkdir()
        status, output, err = run("detect", tmp_path / name, *MASK_RCNN, "--work-dir", tmp_path / "out")
        assert (status, output, err.count("\n")) == (2, "", 1)


class TestExportedFiles:
    @pytest.mark.parametrize("kind", ["onnx", "xml"])
    def test_as_with_a_name(self, run: Run, scenes: list[Path], clip: Path, tmp_path: Path, kind: str) -> None:
        make = {"onnx": make_onnx, "xml": make_openvino}[kind]
        file = make(tmp_path / f"model.{kind}")
        options = ("--score-threshold", 0.05, "--batch-size", 4, "--num-threads", 1, "--save-masks", "--device", "cpu")
        command = ("detect", *scenes, clip, "--model", file, "--work-dir", tmp_path / "out", *options)
        status, output, err = run(*command)
        assert (status, err) == (0, "") and f"{scenes[0]}: 1 red, 1 green, 1 blue\n" in output
        lines = lines_of(tmp_path / "out")
        assert len(lines) == 6 + 8 and all(len(line["objects"]) == 3 for line in lines)
        settings = json.loads((tmp_path / "out" / "run.json").read_text())
        assert (settings["model"], settings["weights"]) == (str(file), "0" * 64)
        assert run(*command, "--resume")[1].startswith("0 images, 0 objects in ")

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            (["--amp"], "amp is not for an exported file"),
            (["--weights", "mine.pth"], "weights is not for an exported file"),
            (["--save-masks"], "--save-masks: "),
            (["--track"], "000001.png is not a video"),
            (["--format", "csv", "mot"], "--format mot: this format is for tracks: add --track"),
            (["--device", "openvino:TPU"], "device 'openvino:TPU' is not available"),
            (["--model", "none.onnx"], "none.onnx cannot be read: No such file"),
            ([*MASK_RCNN, "--num-threads", "1"], "num_threads is only for exported files"),
        ],
    )
    def test_errors(self, run: Run, scenes: list[Path], tmp_path: Path, options: list[str], complaint: str) -> None:
        file = make_onnx(tmp_path / "model.onnx", has_masks=False)
        status, output, err = run("detect", scenes[0], "--model", file, "--work-dir", tmp_path / "out", *options)
        assert (status, output, err.count("\n")) == (2, "", 1) and complaint in err


class TestFolders:
    def test_an_earlier_run_is_left_alone(self, run: Run, scenes: list[Path], tmp_path: Path) -> None:
        command = ("detect", scenes[0], *MASK_RCNN, "--work-dir", tmp_path / "out")
        run(*command)
        before = files_of(tmp_path / "out")
        status, output, err = run(*command)
        assert (status, output) == (2, "")
        ways_out = "add --resume to continue it, or use another --work-dir"
        assert err == f"dpt-zoo: {tmp_path / 'out'} holds an earlier run: {ways_out}\n"
        assert files_of(tmp_path / "out") == before

    @pytest.mark.slow
    def test_the_default_is_a_new_folder_each_time(
        self, run: Run, scenes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        output = [run("detect", scene, *MASK_RCNN, "--no-pictures")[1] for scene in scenes[:3]]
        assert [each.splitlines()[-1].partition(":")[0] for each in output] == [
            "detections",
            "detections-2",
            "detections-3",
        ]
        run("detect", scenes[3], *MASK_RCNN, "--no-pictures", "--resume")
        assert [len(lines_of(tmp_path / name)) for name in ("detections", "detections-2", "detections-3")] == [1, 1, 2]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "work_dir", [[], ["--work-dir", "."], ["--work-dir", "deep/out"]], ids=["default", ".", "deep"]
    )
    def test_what_a_run_wrote_is_no_input(
        self, run: Run, scenes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work_dir: list[str]
    ) -> None:
        for scene in scenes[:2]:
            shutil.copy(scene, tmp_path)
        monkeypatch.chdir(tmp_path)
        command = ("detect", ".", *RETINANET, *work_dir, "--save-crops")
        assert run(*command)[0] == 0
        status, output, err = run(*command, "--resume")
        assert (status, err) == (0, "") and output.startswith("0 images")
        assert run("detect", ".", *RETINANET, "--work-dir", "new", "--no-pictures")[0] == 0
        assert [line["name"] for line in lines_of(Path("new"))] == [scene.name for scene in scenes[:2]]

    @pytest.mark.parametrize("options", [["--no-pictures", "--format", "jsonl"], ["--format", "coco"]])
    def test_a_folder_that_is_removed_during_the_run(
        self, run: Run, scenes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
    ) -> None:
        append = Journal.append

        def append_and_remove(journal: Journal, result: ImageResult) -> None:
            append(journal, result)
            shutil.rmtree(tmp_path / "out", ignore_errors=True)

        monkeypatch.setattr(Journal, "append", append_and_remove)
        status, _, err = run("detect", *scenes[:2], *RETINANET, "--work-dir", tmp_path / "out", *options)
        assert status == 2 and err.startswith("dpt-zoo: ") and err.count("\n") == 1

    @pytest.mark.parametrize("name", ["labels/1.txt", "masks/1.png", "data.yaml"])
    def test_other_files_are_left_alone(self, run: Run, scenes: list[Path], tmp_path: Path, name: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
        status, _, err = run("detect", scenes[0], *MASK_RCNN, "--work-dir", tmp_path)
        assert status == 2 and "exists, but is not from a run: use another --work-dir" in err
        assert (tmp_path / name).read_text() == "mine" and not (tmp_path / "run.json").exists()


class TestResuming:
    @pytest.mark.slow
    def test_failed_images_are_tried_again(self, run: Run, many: Path, scenes: list[Path], tmp_path: Path) -> None:
        command = ("detect", many, *MASK_RCNN, "--work-dir", tmp_path / "out", "--resume")
        assert run(*command)[0] == 2
        shutil.copy(scenes[5], many / "1" / "05.png")
        status, output, _ = run(*command)
        assert status == 0 and "05.png: " in output and "\n1 image, " in output
        assert len({line["name"] for line in lines_of(tmp_path / "out")}) == 24

    @pytest.mark.slow
    def test_other_formats_can_be_written_later(self, run: Run, scenes: list[Path], tmp_path: Path) -> None:
        command = ("detect", *scenes, *MASK_RCNN, "--work-dir", tmp_path / "out", "--no-pictures")
        run(*command)
        status, output, err = run(*command, "--resume", "--format", *OF_IMAGES)
        assert (status, err) == (0, "") and output.startswith("0 images, 0 objects in ")
        assert {len(names) for names in read_names(tmp_path / "out").values()} == {6}

    @pytest.mark.slow
    def test_any_order_and_spelling_of_the_inputs(
        self, run: Run, scenes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for folder, scene in zip("ab", scenes, strict=False):
            (tmp_path / folder).mkdir()
            shutil.copy(scene, tmp_path / folder / "x.png")
        monkeypatch.chdir(tmp_path)
        options = (*RETINANET, "--work-dir", "out", "--no-pictures", "--format", "coco")
        run("detect", "a", "b", *options)
        for inputs in (["b", "a"], ["./a", tmp_path / "b"], ["a/x.png", "*/x.png"], [tmp_path / "b" / "x.png"]):
            assert run("detect", *inputs, *options, "--resume")[::2] == (0, "")
        images = json.loads(Path("out/coco.json").read_text())["images"]
        assert [image["file_name"] for image in images] == ["x.png", "x-2.png"]

    def test_nobody_reads_the_output(
        self, run: Run, scenes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As with `| head -1`: all images are done."""

        class Closed(io.StringIO):
            def write(self, text: str) -> int:
                raise BrokenPipeError

        monkeypatch.setattr(sys, "stdout", Closed())
        options = ("--work-dir", tmp_path / "out", "--no-pictures", "--format", "coco")
        assert main(["detect", *map(str, scenes), *RETINANET, *map(str, options)]) == 0
        assert (
            len(lines_of(tmp_path / "out")) == len(json.loads((tmp_path / "out/coco.json").read_text())["images"]) == 6
        )

    def test_another_threshold_is_another_run(self, run: Run, scenes: list[Path], tmp_path: Path) -> None:
        command = ("detect", scenes[0], *MASK_RCNN, "--work-dir", tmp_path / "out")
        run(*command)
        status, _, err = run(*command, "--resume", "--max-detections", 300)
        assert (status, "a run with max_detections None instead of 300: use the same settings" in err) == (2, True)
        status, _, err = run(*command, "--resume", "--score-threshold", 0.5)
        assert status == 2 and "with score_threshold 0.3 instead of 0.5" in err and err.count("\n") == 1

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
    def test_an_interrupted_run_gives_the_same(
        self, run: Run, some: Path, clip: Path, tmp_path: Path, number: signal.Signals, quick_python: Path
    ) -> None:
        """Interrupt a run among the images, and again within the video."""
        command = ["detect", some, clip, *MASK_RCNN, "--save-crops", "--save-masks", "--format", "json", "coco"]
        interrupted, whole = tmp_path / "interrupted", tmp_path / "whole"
        for num_lines in (4, 11 + 3):
            done = run_until(
                quick_python, [*command, "--work-dir", interrupted, "--resume"], interrupted, num_lines, number
            )
            assert len(lines_of(interrupted)) >= num_lines
            if number == signal.SIGKILL:
                assert done.returncode == -signal.SIGKILL
                continue
            assert done.returncode == 130
            assert done.stderr.endswith(f"done: to continue, add --work-dir {interrupted} --resume\n")
            printed = [
                line.startswith((f"{some}/", str(clip))) for line in done.stdout.splitlines()
            ]  # if only a few are left
            assert all(printed) and done.stderr.count("\n") == 1
            assert not [name for name in files_of(interrupted) if "partial" in name]
        assert run(*command, "--work-dir", interrupted, "--resume")[0] == 2
        assert run(*command, "--work-dir", whole)[0] == 2
        ours = {name: content for name, content in files_of(interrupted).items() if "partial" not in name}
        expected = files_of(whole)
        assert set(ours) == set(expected) and len(lines_of(whole)) == 11 + 8
        assert {name for name in ours if ours[name] != expected[name]} <= {"pictures/clip.mp4"}  # x264's threads

    @pytest.mark.slow
    def test_a_full_disk(self, run: Run, many: Path, tmp_path: Path, quick_python: Path) -> None:
        command = ["detect", str(many), *MASK_RCNN, "--work-dir", str(tmp_path / "out"), "--no-pictures"]
        code = (
            "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
            "from dpt_zoo.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        done = subprocess.run([quick_python, "-c", code, *command], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.endswith("make room, then resume\n") and done.stderr.count("\n") == 1
        assert 0 < len(lines_of(tmp_path / "out")) < 23
        assert run(*command, "--resume")[0] == 2
        assert len(lines_of(tmp_path / "out")) == 23


class TestVideo:
    @pytest.mark.slow
    def test_frames(self, run: Run, clip: Path, tmp_path: Path) -> None:
        options = ("--work-dir", tmp_path / "out", "--save-crops", "--save-masks", "--track", "--format", *FORMATS)
        status, output, err = run("detect", clip, *MASK_RCNN, *options)
        assert (status, err) == (0, "") and output.startswith("8 images, ")
        outputs = output.splitlines()[1].partition(": ")[2].split(", ")
        assert sorted(outputs) == sorted(path.name for path in (tmp_path / "out").iterdir())
        lines = lines_of(tmp_path / "out")
        assert [(line["name"], line["frame"], line["time"]) for line in lines] == [
            (f"clip.mp4/{index:06d}", index, index / 2) for index in range(8)
        ]
        assert [line["last"] for line in lines] == [False] * 7 + [True]
        assert {line["path"] for line in lines} == {str(clip)} and all(line["objects"] for line in lines)
        assert len(list((tmp_path / "out" / "masks" / "clip.mp4").iterdir())) == 8
        assert {len(names) for names in read_names(tmp_path / "out").values()} == {8}
        with av.open(str(tmp_path / "out" / "pictures" / "clip.mp4")) as video, av.open(str(clip)) as before:
            stream = video.streams.video[0]
            assert (stream.width, stream.height, stream.average_rate) == (192, 192, Fraction(2))
            drawn = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
            plain = [frame.to_ndarray(format="rgb24") for frame in before.decode(video=0)]
        assert len(drawn) == 8
        for line, after, image in zip(lines, drawn, plain, strict=True):
            change = np.abs(after.astype(int) - image).max(axis=2) > 60
            x1, y1, x2, y2 = (round(side) for side in line["objects"][0]["box"])
            assert change[y1 : y2 + 1, x1 : x2 + 1].any() and not change.all()

    @pytest.mark.slow
    @pytest.mark.xdist_group("exported")
    def test_tracks_are_the_same_after_a_kill(
        self, run: Run, exported_demo: Path, tmp_path: Path, quick_python: Path
    ) -> None:
        """Kill a run within the second of two equal videos."""
        one = write_film(tmp_path / "one.mp4", make_film().frames[:12])
        videos = [one, shutil.copy(one, tmp_path / "two.mp4")]  # x264 does not write equal bytes twice
        command = ["detect", *videos, "--model", exported_demo, "--track", "--format", "json", "coco", "csv", "mot"]
        killed, whole = tmp_path / "killed", tmp_path / "whole"
        done = run_until(quick_python, [*command, "--work-dir", killed], killed, 12 + 7, signal.SIGKILL)
        assert done.returncode == -signal.SIGKILL and len(lines_of(killed)) == 19
        assert run(*command, "--work-dir", killed, "--resume")[0] == 0
        assert run(*command, "--work-dir", whole)[0] == 0
        ours, expected = files_of(killed), files_of(whole)
        names = {name for name in expected if "partial" not in name and not name.startswith("pictures")}
        assert {name: ours[name] for name in names} == {name: expected[name] for name in names}
        assert expected["mot/one.mp4.txt"] == expected["mot/two.mp4.txt"] and expected["mot/one.mp4.txt"].count(b",1,")
        status, _, err = run(*command[:-5], "ocsort", "--work-dir", whole, "--resume")
        assert (status, "a run with tracker bytetrack instead of ocsort" in err) == (2, True)

    @pytest.mark.slow
    def test_a_damaged_one_gives_what_is_before_the_damage(self, run: Run, scenes: list[Path], tmp_path: Path) -> None:
        clip = make_video(tmp_path / "clip.mkv", 40, scenes)
        clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
        status, _, err = run("detect", clip, scenes[0], *RETINANET, "--work-dir", tmp_path / "out")
        lines = lines_of(tmp_path / "out")
        assert (status, err.count("\n")) == (2, 2) and "clip.mkv" in err.splitlines()[1]
        assert lines[0]["name"] == scenes[0].name
        assert 0 < len(lines) - 1 < 40 and lines[-1]["last"]
        with av.open(str(tmp_path / "out" / "pictures" / "clip.mkv.mp4")) as video:
            assert sum(1 for _ in video.decode(video=0)) == len(lines) - 1

    def test_ctrl_c_ends_a_camera_well(
        self, scenes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """OpenCV reads a file as it reads a camera."""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        clip = make_video(tmp_path / "clip.mp4", 40, scenes)
        monkeypatch.setattr(cv2, "VideoCapture", lambda number, real=cv2.VideoCapture: real(str(clip)))
        detector = Detector("retinanet_dpt_nano_digits")
        (tmp_path / "out").mkdir()
        settings = RunSettings("retinanet_dpt_nano_digits", "", detector.classes, detector.classes, 0.3)

        def progress(done: int, total: int | None) -> None:
            if done == 5:
                signal.raise_signal(signal.SIGINT)

        with Journal(tmp_path / "out", settings) as journal:
            run = DetectionRun(detector, journal, ImageWriter(tmp_path / "out"))
            run.detect_video(VideoInput("camera-0", "camera:0", 0), progress)
        lines = lines_of(tmp_path / "out")
        assert run.failures == [] and 5 <= len(lines) < 15 and lines[-1]["last"]
        assert lines[0]["name"] == "camera-0/000000" and lines[0]["path"] == "camera:0"
        with av.open(str(tmp_path / "out" / "pictures" / "camera-0.mp4")) as video:
            assert sum(1 for _ in video.decode(video=0)) == len(lines)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_memory_does_not_grow(scenes: list[Path], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with Image.open(scenes[0]) as scene:
        scene.resize((512, 512)).save(tmp_path / "0.jpg")  # 50 of them are 39 MB
    for number in range(100):
        os.link(tmp_path / "0.jpg", tmp_path / "in" / f"{number}.jpg")
    detector = Detector("mrcnn_dpt_nano_digits", scale=(96, 96))
    settings = RunSettings("mrcnn_dpt_nano_digits", "", detector.classes, detector.classes, 0.3)
    resident: list[int] = []

    def progress(done: int, total: int | None) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * resource.getpagesize())

    with Journal(tmp_path, settings) as journal:
        run = DetectionRun(detector, journal, ImageWriter(tmp_path, masks=True))
        run.detect_images(list(find_inputs(tmp_path / "in")), progress, on_result=lambda detections: None)
    assert run.num_images == 100
    assert max(resident[50:]) - max(resident[:50]) < 20 << 20


def test_the_progress_bar_shows_the_rate(tmp_path: Path) -> None:
    code = (
        "import time; from dpt_zoo.utils.progress import progress_bar\n"
        "with progress_bar('images') as progress:\n"
        "    for done in range(1, 13): progress(done, 24); time.sleep(0.01)\n"
    )
    ours, theirs = os.openpty()
    shown = b""
    with subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env={**os.environ, "COLUMNS": "120"}):
        os.close(theirs)
        with contextlib.suppress(OSError):  # the end, on Linux
            while block := os.read(ours, 1 << 12):  # a terminal that nobody reads fills up
                shown += block
    os.close(ours)
    assert b"images" in shown and b"12/24" in shown and b"/s" in shown


def run_until(
    python: Path, command: Sequence[object], folder: Path, num_lines: int, number: signal.Signals
) -> "subprocess.CompletedProcess[str]":
    """Run the command in a process that receives a signal as soon as the folder's journal has a number of lines."""
    code = """
import runpy, signal, sys
from pathlib import Path
from dpt_zoo.batch.journal import Journal

append, journal_file, num_lines, number = Journal.append, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def append_and_signal(journal, result):
    append(journal, result)
    if journal_file.read_bytes().count(b"\\n") == num_lines:
        signal.raise_signal(number)

Journal.append = append_and_signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
del sys.argv[1:4]
runpy.run_module("dpt_zoo", run_name="__main__")
"""
    arguments = map(str, (folder / "detections.jsonl", num_lines, number.value, *command))
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # others give other last digits
    return subprocess.run([python, "-c", code, *arguments], env=threads, capture_output=True, text=True, check=False)
