"""`dpt-zoo detect`, as a user sees it: what it takes, writes and tells, and what an interruption leaves."""

import functools
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from detection_runs import read_names
from PIL import Image
from reference_data import PHOTO
from running import Run
from web_server import WebServer

import dpt_zoo
from dpt_zoo.batch.image_writer import Saver
from dpt_zoo.batch.journal import Journal, RunSettings
from dpt_zoo.batch.runner import Run as DetectionRun
from dpt_zoo.batch.runner import Video
from dpt_zoo.cli.detect import FORMATS
from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.inference import Detector
from dpt_zoo.inference.inputs import find_inputs

MASK_RCNN = ("--model", "mrcnn_dpt_nano_digits")
RETINANET = ("--model", "retinanet_dpt_nano_digits")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six scenes of digits."""
    folder = tmp_path_factory.mktemp("digits")
    make_digit_scenes(folder, num_train=1, num_test=6)
    return sorted((folder / "val2017").iterdir())


@pytest.fixture
def many(scenes: list[Path], tmp_path: Path) -> Path:
    """A folder of 30 scenes in two folders, and a bad one."""
    folder = tmp_path / "many"
    for number in range(30):
        path = folder / f"{number % 2}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scenes[number % 6], path)
    (folder / "1" / "05.png").write_text("no image")
    return folder


@pytest.fixture
def clip(scenes: list[Path], tmp_path: Path) -> Path:
    """A video of 12 frames, two a second."""
    return make_video(tmp_path / "clip.mp4", 12, scenes)


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
    def test_what_is_told_and_written(self, run: Run, scenes: list[Path], tmp_path: Path) -> None:
        status, told, err = run("detect", scenes[0], *MASK_RCNN, "--out", tmp_path / "out")
        first, summary, where = told.splitlines()
        found = Detector("mrcnn_dpt_nano_digits")(scenes[0])
        assert (status, err) == (0, "")
        assert first.startswith(f"{scenes[0]}: ")
        counts = [part.split() for part in first.partition(": ")[2].split(", ")]
        assert sum(int(count) for count, _ in counts) == len(found) and {name for _, name in counts} == set(found.names)
        assert summary.startswith(f"1 image, {len(found)} objects in ")
        assert where == f"{tmp_path / 'out'}: run.json, detections.jsonl, detections.json, pictures"
        (line,) = lines_of(tmp_path / "out")
        assert line == {"name": scenes[0].name, "stem": scenes[0].stem, **found.to_json()}
        with Image.open(tmp_path / "out" / "pictures" / scenes[0].name) as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(found.plot()))

    def test_what_can_be_asked_for(self, run: Run, scenes: list[Path], tmp_path: Path) -> None:
        options = ("--classes", "1", "2", "--score-threshold", "0.6", "--no-images", "--save-crops", "--save-masks")
        status, _, err = run("detect", scenes[0], scenes[1], *MASK_RCNN, "--out", tmp_path / "out", *options)
        objects = [thing for line in lines_of(tmp_path / "out") for thing in line["objects"]]
        assert (status, err) == (0, "")
        assert {thing["name"] for thing in objects} == {"1", "2"} and min(thing["score"] for thing in objects) >= 0.6
        assert not (tmp_path / "out" / "pictures").exists()
        assert len(list((tmp_path / "out" / "crops").rglob("*.jpg"))) == len(objects)
        for line in lines_of(tmp_path / "out"):
            with Image.open(tmp_path / "out" / "masks" / f"{line['stem']}.png") as masks:
                assert set(np.unique(np.asarray(masks))) - {0} <= set(range(1, len(line["objects"]) + 1))

    def test_a_model_of_ones_own_classes(self, run: Run, tmp_path: Path) -> None:
        model = dpt_zoo.create_model("mrcnn_dpt_nano_digits", pretrained=False, num_classes=2)
        meta = {"dataset_meta": {"classes": ("cat", "../café")}}  # as MMEngine writes it
        torch.save({"state_dict": model.state_dict(), "meta": meta}, tmp_path / "mine.pth")
        options = ("--weights", tmp_path / "mine.pth", "--score-threshold", 0, "--save-crops", "--size", 192, 192)
        status, told, err = run("detect", PHOTO, *MASK_RCNN, *options, "--out", tmp_path / "out")
        assert (status, err) == (0, "") and "../café" in told
        assert {path.name for path in (tmp_path / "out" / "crops").iterdir()} <= {"cat", "__café"}

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            (["--model", "mrcnn"], "there is no model 'mrcnn'"),
            ([*MASK_RCNN, "--weights", "none.pth"], "none.pth: there is no such file"),
            ([*MASK_RCNN, "--score-threshold", "2"], "score_threshold must be from 0 to 1"),
            ([*MASK_RCNN, "--device", "gpu"], "device 'gpu' cannot be used"),
            ([*MASK_RCNN, "--classes", "dog"], "--classes: mrcnn_dpt_nano_digits knows no 'dog', only 0, 1, 2, 3"),
            ([*RETINANET, "--save-masks"], "--save-masks: retinanet_dpt_nano_digits finds boxes only"),
            ([*MASK_RCNN, "--out", "/dev/null/folder"], "no folder can be made there"),
        ],
    )
    def test_one_clear_line(self, run: Run, tmp_path: Path, options: list[str], complaint: str) -> None:
        status, told, err = run("detect", PHOTO, "--out", tmp_path / "out", *options)
        assert (status, told) == (2, "")
        assert err.startswith("dpt-zoo: ") and complaint in err and err.count("\n") == 1


class TestSources:
    def test_of_all_kinds(self, run: Run, scenes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder and one in it, a quoted pattern, an address, standard input, and files of one name."""
        (tmp_path / "in" / "deep").mkdir(parents=True)
        for name in ("in/b.png", "in/deep/a.png", "in/notes.txt", "p1.png", "p2.png"):
            shutil.copy(scenes[0], tmp_path / name)
        Image.open(scenes[1]).save(tmp_path / "in" / "b.webp")
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(scenes[2].read_bytes())))
        monkeypatch.chdir(tmp_path)
        with WebServer({"/x/p1.png": scenes[3].read_bytes()}) as server:
            status, told, err = run("detect", "in", "p?.png", f"{server.url}/x/p1.png", "-", *MASK_RCNN)
        assert (status, err) == (0, "")
        expected = ["in/b.png", "in/b.webp", "in/deep/a.png", "p1.png", "p2.png", f"{server.url}/x/p1.png"]
        assert [line.rpartition(": ")[0] for line in told.splitlines()[:7]] == [*expected, "standard input"]
        names = [line["name"] for line in lines_of(Path("detections"))]
        assert names == ["b.png", "b.webp", "deep/a.png", "p1.png", "p2.png", "p1-2.png", "stdin"]
        pictures = files_of(Path("detections/pictures"))
        assert set(pictures) == {"b.png", "b.webp.jpg", "deep/a.png", "p1.png", "p2.png", "p1-2.png", "stdin.jpg"}

    @pytest.mark.parametrize(
        ("name", "told_as", "stem"),
        [
            (b"caf\xe9.png", "caf\\udce9", "caf"),
            ("日本 é.png".encode(), "日本 é", "日本 é"),
            (b"two\nlines.png", "two\\nlines", "two\nlines"),
            (b"[0-9].png", "[0-9]", "[0-9]"),
            (b"x" * 240 + b".png", "x" * 240, "x" * 160),
        ],
    )
    def test_odd_names(
        self, run: Run, scenes: list[Path], tmp_path: Path, name: bytes, told_as: str, stem: str
    ) -> None:
        path = tmp_path / os.fsdecode(name)
        shutil.copy(scenes[0], path)
        status, told, err = run("detect", path, *MASK_RCNN, "--out", tmp_path / "out", "--format", *FORMATS)
        assert (status, err) == (0, "") and told.startswith(f"{tmp_path}/{told_as}.png: ")
        assert {each.stem for each in (tmp_path / "out" / "pictures").iterdir()} == {stem}
        assert {len(names) for names in read_names(tmp_path / "out").values()} == {1}

    def test_bad_ones_are_told_at_the_end(self, run: Run, scenes: list[Path], tmp_path: Path) -> None:
        scene = Image.open(scenes[0])
        for name, image in {"grey.png": scene.convert("L"), "dot.gif": scene.resize((1, 1))}.items():
            image.save(tmp_path / name)
        (tmp_path / "empty.png").touch()
        (tmp_path / "text.mp4").write_text("no video")
        (tmp_path / "cut\x1b[31m.png").write_bytes(scenes[0].read_bytes()[:9000])
        names = ["empty.png", "grey.png", "text.mp4", "cut\x1b[31m.png", "none.png", "dot.gif"]
        sources = [*(tmp_path / name for name in names), "camera:77"]
        with WebServer({}) as server:
            status, told, err = run("detect", *sources, f"{server.url}/a.jpg", *MASK_RCNN, "--out", tmp_path / "out")
        assert status == 2
        count, *failures = err.splitlines()
        assert count == "dpt-zoo: 6 sources failed:"
        reasons = [
            *("empty.png: the file is empty", "cut\\x1b[31m.png: ", "none.png: there is no such file"),
            *("/a.jpg: the server answers 404", "text.mp4: ", "camera 77 gives no picture"),
        ]
        for failure, reason in zip(failures, reasons, strict=True):
            assert failure.startswith("  ") and reason in failure
        assert [line["name"] for line in lines_of(tmp_path / "out")] == ["grey.png", "dot.gif"]
        assert "2 images, " in told

    def test_many_are_not_told_one_by_one(self, run: Run, many: Path, tmp_path: Path) -> None:
        status, told, err = run("detect", many, *MASK_RCNN, "--out", tmp_path / "out", "--no-images")
        assert status == 2 and "05.png" in err
        assert told.startswith("29 images, ") and told.count("\n") == 2

    @pytest.mark.parametrize("source", ["empty", "none/*.png"])
    def test_nothing_there(self, run: Run, tmp_path: Path, source: str) -> None:
        (tmp_path / "empty").mkdir()
        status, told, err = run("detect", tmp_path / source, *MASK_RCNN, "--out", tmp_path / "out")
        assert (status, told, err.count("\n")) == (2, "", 1)


class TestFolders:
    def test_an_earlier_run_is_left_alone(self, run: Run, scenes: list[Path], tmp_path: Path) -> None:
        command = ("detect", scenes[0], *MASK_RCNN, "--out", tmp_path / "out")
        run(*command)
        before = files_of(tmp_path / "out")
        status, told, err = run(*command)
        assert (status, told) == (2, "")
        ways_out = "add --resume to go on with it, or name another --out"
        assert err == f"dpt-zoo: {tmp_path / 'out'} holds an earlier run: {ways_out}\n"
        assert files_of(tmp_path / "out") == before

    def test_the_default_one_is_a_new_one_each_time(
        self, run: Run, scenes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        told = [run("detect", scene, *MASK_RCNN, "--no-images")[1] for scene in scenes[:3]]
        assert [each.splitlines()[-1].partition(":")[0] for each in told] == [
            "detections",
            "detections-2",
            "detections-3",
        ]
        run("detect", scenes[3], *MASK_RCNN, "--no-images", "--resume")
        assert [len(lines_of(tmp_path / name)) for name in ("detections", "detections-2", "detections-3")] == [1, 1, 2]

    @pytest.mark.parametrize("name", ["labels/1.txt", "masks/1.png", "data.yaml"])
    def test_what_is_somebodys_own_is_left_alone(self, run: Run, scenes: list[Path], tmp_path: Path, name: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
        status, _, err = run("detect", scenes[0], *MASK_RCNN, "--out", tmp_path)
        assert status == 2 and "is there, and of no run of this command: name another --out" in err
        assert (tmp_path / name).read_text() == "mine" and not (tmp_path / "run.json").exists()


class TestResuming:
    def test_what_was_bad_is_tried_again(self, run: Run, many: Path, scenes: list[Path], tmp_path: Path) -> None:
        command = ("detect", many, *MASK_RCNN, "--out", tmp_path / "out", "--resume")
        assert run(*command)[0] == 2
        shutil.copy(scenes[5], many / "1" / "05.png")
        status, told, _ = run(*command)
        assert status == 0 and "05.png: " in told and "\n1 image, " in told
        assert len({line["name"] for line in lines_of(tmp_path / "out")}) == 30

    def test_other_formats_can_be_had_later(self, run: Run, scenes: list[Path], tmp_path: Path) -> None:
        command = ("detect", *scenes, *MASK_RCNN, "--out", tmp_path / "out", "--no-images")
        run(*command)
        status, told, err = run(*command, "--resume", "--format", *FORMATS)
        assert (status, err) == (0, "") and told.startswith("0 images, 0 objects in ")
        assert {len(names) for names in read_names(tmp_path / "out").values()} == {6}

    def test_another_threshold_is_another_run(self, run: Run, scenes: list[Path], tmp_path: Path) -> None:
        command = ("detect", scenes[0], *MASK_RCNN, "--out", tmp_path / "out")
        run(*command)
        status, _, err = run(*command, "--resume", "--score-threshold", 0.5)
        assert status == 2 and "with score threshold 0.3, not score threshold 0.5" in err and err.count("\n") == 1

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
    def test_an_interrupted_run_gives_the_same(
        self, run: Run, many: Path, clip: Path, tmp_path: Path, number: signal.Signals
    ) -> None:
        """Stopped among the images, and again within the video."""
        command = [
            "detect",
            str(many),
            str(clip),
            *MASK_RCNN,
            "--save-crops",
            "--save-masks",
            "--format",
            "json",
            "coco",
        ]
        interrupted, whole = tmp_path / "interrupted", tmp_path / "whole"
        for num_lines in (7, 32):
            done = stop(
                [*command, "--out", str(interrupted), "--resume"], number, interrupted / "detections.jsonl", num_lines
            )
            if number == signal.SIGINT:
                assert done.returncode == 130
                assert done.stderr.endswith(f"done: to go on, add --out {interrupted} --resume\n")
                told = [line.startswith(f"{many}/") for line in done.stdout.splitlines()]  # when only a few were left
                assert all(told) and done.stderr.count("\n") == 1
                assert not [name for name in files_of(interrupted) if "partial" in name]
        assert run(*command, "--out", interrupted, "--resume")[0] == 2
        assert run(*command, "--out", whole)[0] == 2
        ours = {name: content for name, content in files_of(interrupted).items() if "partial" not in name}
        expected = files_of(whole)
        assert set(ours) == set(expected) and len(lines_of(whole)) == 29 + 12
        assert {name for name in ours if ours[name] != expected[name]} <= {"pictures/clip.mp4"}  # x264's threads

    def test_a_full_disk(self, run: Run, many: Path, tmp_path: Path) -> None:
        command = ["detect", str(many), *MASK_RCNN, "--out", str(tmp_path / "out"), "--no-images"]
        limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20_000, 20_000))
        done = subprocess.run(
            [sys.executable, "-m", "dpt_zoo", *command], preexec_fn=limit, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.endswith("make room, and go on with --resume\n") and done.stderr.count("\n") == 1
        assert 0 < len(lines_of(tmp_path / "out")) < 29
        assert run(*command, "--resume")[0] == 2
        assert len(lines_of(tmp_path / "out")) == 29


class TestVideo:
    def test_frames(self, run: Run, clip: Path, tmp_path: Path) -> None:
        options = ("--out", tmp_path / "out", "--save-crops", "--save-masks", "--format", *FORMATS)
        status, told, err = run("detect", clip, *MASK_RCNN, *options)
        assert (status, err) == (0, "") and told.startswith("12 images, ")
        outputs = told.splitlines()[1].partition(": ")[2].split(", ")
        assert sorted(outputs) == sorted(path.name for path in (tmp_path / "out").iterdir())
        lines = lines_of(tmp_path / "out")
        assert [(line["name"], line["frame"], line["time"]) for line in lines] == [
            (f"clip.mp4/{index:06d}", index, index / 2) for index in range(12)
        ]
        assert [line["last"] for line in lines] == [False] * 11 + [True]
        assert {line["path"] for line in lines} == {str(clip)} and all(line["objects"] for line in lines)
        assert len(list((tmp_path / "out" / "masks" / "clip.mp4").iterdir())) == 12
        assert {len(names) for names in read_names(tmp_path / "out").values()} == {12}
        with av.open(str(tmp_path / "out" / "pictures" / "clip.mp4")) as video, av.open(str(clip)) as before:
            stream = video.streams.video[0]
            assert (stream.width, stream.height, stream.average_rate) == (192, 192, Fraction(2))
            drawn = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
            plain = [frame.to_ndarray(format="rgb24") for frame in before.decode(video=0)]
        assert len(drawn) == 12
        for line, after, image in zip(lines, drawn, plain, strict=True):
            change = np.abs(after.astype(int) - image).max(axis=2) > 60
            x1, y1, x2, y2 = (round(side) for side in line["objects"][0]["box"])
            assert change[y1 : y2 + 1, x1 : x2 + 1].any() and not change.all()

    def test_a_damaged_one_gives_what_is_before_the_damage(self, run: Run, scenes: list[Path], tmp_path: Path) -> None:
        clip = make_video(tmp_path / "clip.mkv", 40, scenes)
        clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
        status, _, err = run("detect", clip, scenes[0], *RETINANET, "--out", tmp_path / "out")
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

        def report(done: int, total: int | None) -> None:
            if done == 5:
                signal.raise_signal(signal.SIGINT)

        with Journal(tmp_path / "out", settings) as journal:
            run = DetectionRun(detector, journal, Saver(tmp_path / "out"))
            run.detect_video(Video("camera-0", "camera:0", 0), report)
        lines = lines_of(tmp_path / "out")
        assert run.failures == [] and 5 <= len(lines) < 15 and lines[-1]["last"]
        assert lines[0]["name"] == "camera-0/000000" and lines[0]["path"] == "camera:0"
        with av.open(str(tmp_path / "out" / "pictures" / "camera-0.mp4")) as video:
            assert sum(1 for _ in video.decode(video=0)) == len(lines)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_memory_does_not_grow(scenes: list[Path], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with Image.open(scenes[0]) as scene:
        scene.resize((512, 512)).save(tmp_path / "0.jpg")  # 50 of them are 39 MB
    for number in range(100):
        os.link(tmp_path / "0.jpg", tmp_path / "in" / f"{number}.jpg")
    detector = Detector("mrcnn_dpt_nano_digits", scale=(96, 96))
    settings = RunSettings("mrcnn_dpt_nano_digits", "", detector.classes, detector.classes, 0.3)
    resident: list[int] = []

    def report(done: int, total: int | None) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * resource.getpagesize())

    with Journal(tmp_path, settings) as journal:
        run = DetectionRun(detector, journal, Saver(tmp_path, masks=True))
        run.detect_images(list(find_inputs(tmp_path / "in")), report, tell=lambda found: None)
    assert run.num_images == 100
    assert max(resident[50:]) - max(resident[:50]) < 8 << 20


def test_the_bar_tells_how_fast_it_goes(tmp_path: Path) -> None:
    code = (
        "import time; from dpt_zoo.utils.progress import progress_bar\n"
        "with progress_bar('images') as report:\n"
        "    for done in range(1, 13): report(done, 24); time.sleep(0.1)\n"
    )
    ours, theirs = os.openpty()
    subprocess.run([sys.executable, "-c", code], stderr=theirs, env={**os.environ, "COLUMNS": "120"}, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 20).decode()
    os.close(ours)
    assert "images" in shown and "12/24" in shown and "/s" in shown


def stop(
    command: list[str], number: signal.Signals, journal: Path, num_lines: int
) -> "subprocess.CompletedProcess[str]":
    """Run the command, and send it a signal when the journal has so many lines."""
    # A shell's background jobs, and so their children, ignore the signal: these tests may be one.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # others give other last digits
    with subprocess.Popen(
        [sys.executable, "-m", "dpt_zoo", *command], preexec_fn=heed, env=threads, **pipes
    ) as process:
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= num_lines):
            time.sleep(0.005)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, out, err)
