"""Evaluation: MMDetection's metrics, by any number of processes and after any interruption."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from benchmarks.measuring import MIB, run_in_child
from evaluation_memory import measure_peak
from exported_files import BOXES, make_onnx
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image, ImageOps
from reference_data import ROOT
from running import Run

import dpt_zoo
from dpt_zoo.analysis.metrics import NAMES
from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.engine.config import load_config, set_files
from dpt_zoo.engine.runner import quiet_runner
from dpt_zoo.errors import DataError, DPTZooError, InputError
from dpt_zoo.evaluation import evaluator
from dpt_zoo.evaluation.plan import Plan, make_plan
from dpt_zoo.evaluation.predictions import read_image_ids, read_predictions
from dpt_zoo.evaluation.result import Evaluation
from dpt_zoo.exporting import exporter
from dpt_zoo.models.metadata import describe_record
from dpt_zoo.reproduction.worker import run as run_worker
from dpt_zoo.weights.metadata import write_metadata

MODEL, CONFIG = "mrcnn_dpt_nano_digits", "configs/demo/mask_rcnn_dpt_nano_digits.py"
WEIGHTS = ROOT / "configs/demo" / f"{MODEL}.safetensors"
NUM_IMAGES = 7

Metrics = dict[str, dict[str, float | None]]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digit scenes: 1 to train on, 7 to test with."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    make_digit_scenes(folder, num_train=1, num_test=NUM_IMAGES, seed=3)
    return folder


@pytest.fixture(scope="module")
def work_dir(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole evaluation, which is not to be changed."""
    folder = tmp_path_factory.mktemp("evaluation") / "whole"
    measure(digits, work_dir=folder, output=folder.parent / "results")
    return folder


@pytest.fixture
def data(digits: Path, tmp_path: Path) -> Path:
    """The same scenes, which a test may change."""
    folder = tmp_path / "data"
    for name in ("annotations", "val2017"):
        (folder / name).mkdir(parents=True)
        for file in (digits / name).iterdir():
            os.link(file, folder / name / file.name)
    return folder


def measure(data: Path, **options: Any) -> Evaluation:
    return dpt_zoo.evaluate(MODEL, **{"data_root": data, "workers": 0, "batch_size": 1, **options})


def annotations(data: Path) -> Path:
    return data / "annotations/instances_val2017.json"


def change(data: Path, break_it: Callable[[dict[str, Any]], object]) -> None:
    """Change the annotation file."""
    content = json.loads(annotations(data).read_text())
    break_it(content)
    annotations(data).unlink()  # it is another folder's, too
    annotations(data).write_text(json.dumps(content))


def kept(folder: Path) -> Metrics:
    """The metrics that an evaluation left."""
    metrics: Metrics = json.loads((folder / "evaluation.json").read_text())["metrics"]
    return metrics


def numbers(row: dict[str, float | None]) -> list[float]:
    return [-1 if value is None else value for value in row.values()]


def lines(folder: Path) -> list[dict[str, Any]]:
    """The predictions, by image."""
    return [json.loads(line) for file in (folder / "predictions").glob("*.jsonl") for line in file.open()]


@pytest.fixture
def wide_data(data: Path) -> Path:
    """The scenes with a black border of different widths at the right, and without masks."""

    def widen(content: dict[str, Any]) -> None:
        for number, image in enumerate(content["images"]):
            path, image["width"] = data / "val2017" / image["file_name"], 192 + 64 * (number % 3)
            with Image.open(path) as scene:
                path.unlink()
                ImageOps.pad(scene, (image["width"], 192), centering=(0, 0)).save(path)
        for each in content["annotations"]:
            del each["segmentation"]

    change(data, widen)
    return data


@pytest.mark.slow
class TestBatches:
    """MMDetection would pad images of different sizes to the largest of their batch."""

    def test_predictions_do_not_depend_on_the_batch(self, wide_data: Path, tmp_path: Path) -> None:
        def predict(batch_size: int) -> dict[int, Any]:
            folder = tmp_path / str(batch_size)
            measure(wide_data, work_dir=folder, batch_size=batch_size, tasks="bbox")
            return {each["image_id"]: each["predictions"] for each in lines(folder)}

        alone, batched = predict(1), predict(NUM_IMAGES)
        assert len(alone) == NUM_IMAGES and alone.keys() == batched.keys()
        for image_id, expected in alone.items():
            found = batched[image_id]
            assert [each["category_id"] for each in found] == [each["category_id"] for each in expected]
            for ours, theirs in zip(found, expected, strict=True):
                assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
                assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-3)

    def test_nor_does_the_validation_of_a_training(self, wide_data: Path, tmp_path: Path) -> None:
        def validate(batch_size: int) -> dict[str, float]:
            cfg = load_config(MODEL)
            cfg.work_dir = str(tmp_path / str(batch_size))
            cfg.val_dataloader.update(batch_size=batch_size, num_workers=0, persistent_workers=False)
            set_files(cfg.val_dataloader.dataset, annotations(wide_data), wide_data / "val2017")
            cfg.val_evaluator.update(ann_file=str(annotations(wide_data)), metric="bbox")
            for name in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler"):
                cfg[name] = None
            cfg.default_hooks.checkpoint = None
            with quiet_runner(cfg, "cpu") as runner:
                runner.model.load_state_dict(dpt_zoo.create_model(MODEL).state_dict())
                return dict(runner.val())

        alone = validate(1)
        assert alone["coco/bbox_mAP"] > 0.3
        assert validate(NUM_IMAGES) == pytest.approx(alone, abs=0.002)  # it rounds


@pytest.mark.slow
class TestMetrics:
    def test_metrics_and_predictions_are_mmdetections(self, digits: Path, work_dir: Path, tmp_path: Path) -> None:
        cfg = Config.fromfile(ROOT / CONFIG)
        cfg.work_dir, cfg.load_from = str(tmp_path), str(tmp_path / "weights.pth")
        model = dpt_zoo.create_model(MODEL)
        import torch

        torch.save(model.state_dict(), cfg.load_from)
        cfg.test_dataloader.update(batch_size=1, num_workers=0, persistent_workers=False)
        cfg.test_dataloader.dataset.data_root = f"{digits}/"
        cfg.test_evaluator.update(
            ann_file=str(annotations(digits)), outfile_prefix=str(tmp_path / "stock"), collect_device="gpu"
        )
        stock = Runner.from_cfg(cfg).test()
        for task, row in kept(work_dir).items():
            prefix = f"coco/{task}_mAP"
            keys = (prefix, *(f"{prefix}_{key}" for key in ("50", "75", "s", "m", "l")))
            for name, key in zip(NAMES, keys, strict=False):
                value = row[name]
                assert (value is None) == (stock[key] < 0)
                assert value is None or value == pytest.approx(100 * stock[key], abs=0.05 + 1e-9)  # it rounds
            ours = json.loads((work_dir.parent / f"results.{task}.json").read_text())
            theirs = json.loads((tmp_path / f"stock.{task}.json").read_text())
            assert len(ours) > 50
            names = ours[0].keys()
            assert ours == [{name: record[name] for name in names} for record in theirs]

    def test_both_evaluators_agree(self, digits: Path, work_dir: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(work_dir, tmp_path / "copy")
        again = measure(digits, work_dir=folder, resume=True, evaluator="pycocotools")
        assert sorted(row["image_id"] for row in lines(folder)) == list(range(1, NUM_IMAGES + 1))  # none anew
        for task, row in kept(work_dir).items():
            assert numbers(again.metrics[task]) == pytest.approx(numbers(row), rel=1e-9)  # type: ignore[index]

    def test_the_file_says_what_was_measured(self, digits: Path, work_dir: Path) -> None:
        content = json.loads((work_dir / "evaluation.json").read_text())
        assert content["num_images"] == NUM_IMAGES
        assert content["limit"] is None
        assert content["weights"]["sha256"] == dpt_zoo.get_model_info(MODEL).sha256
        assert content["annotations"]["path"] == str(annotations(digits))
        assert content["versions"]["faster-coco-eval"]
        assert content["seconds"]["detecting"] > 0
        assert list(content["per_class"]["segm"]) == content["errors"]["classes"] == list("0123456789")
        num_objects = len(json.loads(annotations(digits).read_text())["annotations"])
        assert sum(map(sum, content["errors"]["confusion"][:-1])) == num_objects
        assert content["errors"]["worst"][0]["errors"] >= content["errors"]["worst"][-1]["errors"] > 0

    def test_a_limit_is_the_first_images(self, data: Path) -> None:
        limited = measure(data, limit=3)
        change(data, lambda content: content["images"].__delitem__(slice(3, None)))
        assert limited.num_images == 3
        assert limited.metrics == measure(data).metrics

    def test_classes_are_matched_by_name(self, data: Path, work_dir: Path) -> None:
        def renumber(content: dict[str, Any]) -> None:
            content["categories"] = [{**each, "id": 90 - each["id"]} for each in content["categories"][::-1]]
            for each in content["annotations"]:
                each["category_id"] = 90 - each["category_id"]

        change(data, renumber)
        for task, row in measure(data).metrics.items():
            assert numbers(row) == pytest.approx(numbers(kept(work_dir)[task]))

    def test_of_a_class_that_the_data_lack_nothing_counts(self, data: Path, work_dir: Path) -> None:
        def remove_a_class(content: dict[str, Any]) -> None:
            content["annotations"] = [each for each in content["annotations"] if each["category_id"] != 1]
            content["categories"] = content["categories"][1:]

        change(data, remove_a_class)
        per_class = json.loads((work_dir / "evaluation.json").read_text())["per_class"]["bbox"]
        assert next(iter(per_class)) == "0"
        del per_class["0"]
        assert measure(data, tasks="bbox").per_class == {"bbox": per_class}


@pytest.mark.slow
class TestProcesses:
    def test_they_count_each_image_once(self, digits: Path, work_dir: Path, tmp_path: Path, quick_python: Path) -> None:
        done = launch(3, digits, tmp_path, quick_python)
        output, errors = done.communicate(timeout=300)
        assert done.returncode == 0, errors
        assert sorted(row["image_id"] for row in lines(tmp_path)) == list(range(1, NUM_IMAGES + 1))
        assert len(list((tmp_path / "predictions").glob("*.jsonl"))) == 3
        assert kept(tmp_path) == kept(work_dir)
        assert output.count("segm") == 1

    def test_a_killed_one_ends_the_others_and_the_evaluation_can_be_resumed(
        self, digits: Path, work_dir: Path, tmp_path: Path, quick_python: Path
    ) -> None:
        (tmp_path / "evaluation.json").write_text("of an earlier evaluation")
        run = launch(2, digits, tmp_path, quick_python)
        found = wait_for_results(tmp_path, 2)
        children = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True, check=True)
        os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
        _, errors = run.communicate(timeout=120)
        assert run.returncode != 0
        assert "SIGKILL" in errors
        assert not (tmp_path / "evaluation.json").exists()

        begun = max((tmp_path / "predictions").glob("*.jsonl"), key=lambda path: path.stat().st_size)
        with begun.open("a") as file:  # as one that was killed in the middle of a line
            file.write('{"image_id": 7, "seconds": 0.1, "predictions": [{"image_')
        measure(digits, work_dir=tmp_path, resume=True)
        assert kept(tmp_path) == kept(work_dir)
        text = "".join(file.read_text() for file in (tmp_path / "predictions").glob("*.jsonl"))
        assert all(text.count(line) == 1 for line in found)

    def test_others_in_the_folder_are_refused(
        self, digits: Path, work_dir: Path, tmp_path: Path, quick_python: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refused: list[str] = []

        def start_others(*arguments: Any) -> Plan:
            others = launch(2, digits, tmp_path, quick_python)
            refused.append(others.communicate(timeout=120)[1])
            assert others.returncode != 0
            return make_plan(*arguments)

        monkeypatch.setattr(evaluator, "make_plan", start_others)
        measure(digits, work_dir=tmp_path)
        assert refused[0].count(f"dpt-zoo: {tmp_path} is in use by another run: wait for its end") == 1
        assert kept(tmp_path) == kept(work_dir)


def launch(count: int, data: Path, work_dir: Path, python: Path) -> subprocess.Popen[str]:
    """Start an evaluation in several processes by scripts/dist_test.sh."""
    script, options = (
        ROOT / "scripts/dist_test.sh",
        f"--data-root {data} --work-dir {work_dir} --workers 0 --batch-size 1",
    )
    command = [script, CONFIG, WEIGHTS, str(count), "--tasks", "bbox", "segm", *options.split()]
    environment = {
        **os.environ,
        "VIRTUAL_ENV": sys.prefix,
        "PYTHON_EXEC": str(python),  # what torchrun starts
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    pipe = subprocess.PIPE
    return subprocess.Popen(list(map(str, command)), stdout=pipe, stderr=pipe, text=True, env=environment)


def wait_for_results(work_dir: Path, count: int) -> list[str]:
    """Wait for the predictions of `count` images, and return their lines."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        text = "".join(file.read_text() for file in (work_dir / "predictions").glob("*.jsonl"))
        if text.count("\n") >= count:
            return text[: text.rindex("\n")].splitlines()
        time.sleep(0.02)
    raise AssertionError(f"no predictions for {count} images")


@pytest.mark.slow
class TestResuming:
    def test_another_evaluation_is_refused(self, digits: Path, work_dir: Path) -> None:
        with pytest.raises(InputError, match="has an evaluation with other weights and config"):
            dpt_zoo.evaluate("retinanet_dpt_nano_digits", data_root=digits, work_dir=work_dir, resume=True)
        assert len(lines(work_dir)) == NUM_IMAGES
        assert kept(work_dir)

    def test_without_resume_all_is_measured_again(self, digits: Path, tmp_path: Path) -> None:
        measure(digits, work_dir=tmp_path, limit=2)
        measure(digits, work_dir=tmp_path, limit=1)
        assert len(lines(tmp_path)) == 1

    def test_a_limited_evaluation_can_be_completed(self, digits: Path, work_dir: Path, tmp_path: Path) -> None:
        measure(digits, work_dir=tmp_path, limit=2)
        measure(digits, work_dir=tmp_path, resume=True)
        assert len(lines(tmp_path)) == NUM_IMAGES
        assert kept(tmp_path) == kept(work_dir)


@pytest.mark.slow
class TestCocoResults:
    def test_a_test_servers_data_have_no_objects(self, data: Path, tmp_path: Path) -> None:
        change(data, lambda content: content.pop("annotations"))
        evaluation = measure(data, format_only=True, output=tmp_path / "results")
        assert evaluation.metrics == {}
        for task, key in (("bbox", "bbox"), ("segm", "segmentation")):
            records = json.loads((tmp_path / f"results.{task}.json").read_text())
            assert {record["image_id"] for record in records} == set(range(1, NUM_IMAGES + 1))
            assert records[0].keys() == {"image_id", "category_id", key, "score"}


@pytest.mark.slow
class TestPictures:
    def test_a_report_and_all_images(self, digits: Path, work_dir: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(work_dir, tmp_path / "copy")
        measure(digits, work_dir=folder, resume=True, show_dir=tmp_path / "shown")
        assert len(list((tmp_path / "shown").glob("*.jpg"))) == NUM_IMAGES
        text = (folder / "report.md").read_text()
        assert f"{kept(folder)['segm']['mAP']:.1f}" in text
        for name in re.findall(r"\]\((.+?\.png)\)", text):
            with Image.open(folder / name) as picture:
                assert picture.width > 300

    def test_they_do_not_overwrite_the_images(self, digits: Path) -> None:
        with pytest.raises(InputError, match="would be overwritten"):
            measure(digits, show_dir=digits / "val2017")


def corrupt(data: Path) -> None:
    path = sorted((data / "val2017").iterdir())[2]
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def remove_image(data: Path) -> None:
    sorted((data / "val2017").iterdir())[4].unlink()


def cut_off(data: Path) -> None:
    annotations(data).unlink()
    annotations(data).write_text('{"images": [')


def rename_class(content: dict[str, Any]) -> None:
    content["categories"][3]["name"] = "person"


class TestBadData:
    """It is refused before the weights, which do not exist, are read."""

    @pytest.mark.parametrize(
        ("break_it", "text"),
        [
            (lambda data: annotations(data).unlink(), "no split is named val"),
            (lambda data: (data / "val2017").rename(data / "train2017"), "there is no such folder"),
            (lambda data: [path.unlink() for path in (data / "val2017").iterdir()], "another split's folder"),
            (remove_image, r"missing image \(1\)"),
            (corrupt, r"unreadable image \(1\)"),
            (cut_off, "the file is not JSON"),
            (lambda data: change(data, lambda content: content["annotations"].clear()), "the file has no objects"),
            (
                lambda data: change(data, lambda content: content["annotations"][0].update(segmentation=[])),
                r"missing mask \(1\)",
            ),
        ],
    )
    def test_it_is_refused(self, break_it: Callable[[Path], object], text: str, data: Path) -> None:
        break_it(data)
        with pytest.raises(DataError, match=text):
            dpt_zoo.evaluate(CONFIG, weights="no.safetensors", data_root=data)

    def test_other_classes(self, data: Path) -> None:
        change(data, rename_class)
        with pytest.raises(
            DataError, match="the model does not know 1 of its 10 classes: 'person'; the model's 10 classes are '0'"
        ):
            measure(data)

    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="there is no such folder"):
            dpt_zoo.evaluate(CONFIG, weights="no.safetensors", data_root=tmp_path / "nowhere")

    @pytest.mark.slow
    def test_missing_images_can_be_skipped(self, data: Path, run: Run) -> None:
        corrupt(data)
        remove_image(data)
        evaluation = measure(data, skip_missing=True)
        assert evaluation.num_images == NUM_IMAGES - 2
        assert ["no file" in each for each in evaluation.skipped] == [False, True]
        change(data, lambda content: [content["images"].pop(at) for at in (4, 2)])
        assert measure(data).metrics == evaluation.metrics

    def test_but_not_all_of_it(self, data: Path) -> None:
        change(data, lambda content: content["images"].__delitem__(slice(1, None)))
        sorted((data / "val2017").iterdir())[0].unlink()
        with pytest.raises(DataError, match="none of its images can be read"):
            measure(data, skip_missing=True)


def test_a_config_needs_weights() -> None:
    with pytest.raises(InputError, match="weights is required"):
        dpt_zoo.evaluate(CONFIG)


def test_a_task_that_the_model_does_not_have() -> None:
    with pytest.raises(InputError, match="this model does not predict 'segm', only bbox"):
        dpt_zoo.evaluate("retinanet_dpt_nano_digits", tasks="segm")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"limit": 0}, "limit must be a whole number from 1, not 0"),
        ({"batch_size": -1}, "batch_size must be"),
        ({"tasks": ["keypoints"]}, "tasks must be bbox or segm, not 'keypoints'"),
        ({"device": "nonsense"}, "device 'nonsense' cannot be used"),
        ({"evaluator": "mine"}, "evaluator must be faster-coco-eval or pycocotools"),
        ({"resume": True}, "resume=True requires work_dir"),
        ({"format_only": True}, "requires output"),
        ({"annotations": "a.json"}, "annotations and images together"),
        ({"annotations": "a.json", "images": "a", "data_root": "b"}, "annotations and images together"),
        ({"amp": True}, "amp needs a GPU"),
        ({"work_dir": "/dev/null/a"}, "cannot be made"),
    ],
)
def test_bad_arguments(options: dict[str, Any], text: str, digits: Path) -> None:
    with pytest.raises(DPTZooError, match=text):
        dpt_zoo.evaluate(MODEL, **options)


class TestCommand:
    @pytest.mark.slow
    def test_it_prints_the_metrics_of_all_and_of_each_class(self, data: Path, work_dir: Path, run: Run) -> None:
        remove_image(data)
        pair = ["--annotations", annotations(data), "--images", data / "val2017"]
        options = [*pair, "--workers", "0", "--skip-missing", "--per-class", "--tasks", "bbox"]
        status, printed, errors = run("evaluate", MODEL, *options)
        assert status == 0
        head, row, _, *rest = [line.split() for line in printed.splitlines()]
        assert head == list(NAMES)
        assert [row[0], len(row)] == ["bbox", 13]
        assert [line[0] for line in rest[1:]] == list("0123456789")
        assert f"skipped, of {NUM_IMAGES} images:\n" in errors  # after lines of progress on a slow machine

    def test_bad_data_are_one_message(self, data: Path, run: Run) -> None:
        annotations(data).unlink()
        status, printed, errors = run("evaluate", MODEL, "--data-root", data)
        assert (status, printed) == (2, "")
        assert errors.startswith("dpt-zoo: ") and errors.count("\n") == 1


def test_predictions_of_several_runs_are_read_in_order(tmp_path: Path) -> None:
    """A line that was cut off, and all after a damaged line, count as missing; an image counts once."""

    def line(image_id: int) -> str:
        return json.dumps({"image_id": image_id, "seconds": 0.5, "predictions": [{"score": image_id / 10}]})

    (tmp_path / "a.jsonl").write_text(f"{line(9)}\n{line(2)}\n{line(7)}\n{line(4)[:-5]}")
    (tmp_path / "b.jsonl").write_text(f"{line(8)}\n{line(2)}\n{line(6)}\n\0\0\n{line(3)}\n")
    read = list(read_predictions(tmp_path, [9, 8, 2, 6, 7, 4, 3]))
    assert [image.image_id for image in read] == [9, 8, 2, 6, 7]
    assert read[2].predictions == [{"score": 0.2}]
    assert [image.image_id for image in read_predictions(tmp_path, [8, 7])] == [8, 7]
    assert read_image_ids(tmp_path) == {9, 8, 2, 6, 7}
    assert list(read_predictions(tmp_path / "nowhere", [1])) == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    peaks = []
    for count in (5, 45):
        make_digit_scenes(tmp_path / str(count), num_train=1, num_test=count)
        peaks.append(run_in_child(measure_peak, model=MODEL, data_root=tmp_path / str(count)))
    masks = 40 * 100 * 192 * 192 / MIB  # what 100 masks of each image would need, were they kept
    assert peaks[1] - peaks[0] < masks / 4


class TestExportedFiles:
    """The file's graph detects three objects in each image; their scores are the first pixel's channels."""

    @pytest.fixture
    def scenes(self, tmp_path: Path) -> Path:
        """Images of 60x40 pixels with one object, which is the graph's "red" one."""
        folder = tmp_path / "scenes"
        box = dict(zip(("x1", "y1", "x2", "y2"), (BOXES[0] * (60, 40, 60, 40)).tolist(), strict=True))
        corners = [box["x1"], box["y1"], box["x2"], box["y1"], box["x2"], box["y2"], box["x1"], box["y2"]]
        width, height = box["x2"] - box["x1"], box["y2"] - box["y1"]
        content = {
            "images": [{"id": 9 - n, "file_name": f"{n}.png", "width": 60, "height": 40} for n in range(NUM_IMAGES)],
            "categories": [{"id": 8, "name": "blue"}, {"id": 4, "name": "red"}],
            "annotations": [
                {
                    "id": n,
                    "image_id": n,
                    "category_id": 4,
                    "bbox": [box["x1"], box["y1"], width, height],
                    "area": width * height,
                    "segmentation": [corners],
                    "iscrowd": 0,
                }
                for n in range(3, 10)
            ],
        }
        (folder / "annotations").mkdir(parents=True)
        annotations(folder).write_text(json.dumps(content))
        (folder / "val2017").mkdir()
        for n in range(NUM_IMAGES):
            Image.new("RGB", (60, 40), (200 - n, 100, 50)).save(folder / "val2017" / f"{n}.png")
        return folder

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return make_onnx(tmp_path / "model.onnx")

    def test_metrics_predictions_and_report(self, scenes: Path, file: Path, tmp_path: Path) -> None:
        folder = tmp_path / "work"
        options: dict[str, Any] = {"batch_size": 3, "output": tmp_path / "results"}
        evaluation = dpt_zoo.evaluate(file, data_root=scenes, work_dir=folder, **options)
        assert evaluation.metrics["bbox"]["mAP"] == pytest.approx(100)
        assert list(evaluation.metrics) == ["bbox", "segm"]
        assert evaluation.runtime == f"ONNX Runtime {onnxruntime.__version__}"
        assert evaluation.weights == {"path": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        assert [each["image_id"] for each in lines(folder)] == [9 - n for n in range(NUM_IMAGES)]
        results = json.loads((tmp_path / "results.bbox.json").read_text())
        assert [each["category_id"] for each in results] == [4, 8] * NUM_IMAGES  # the data have no "green"
        scores = [score / 255 for n in range(NUM_IMAGES) for score in (200 - n, 50)]
        assert [each["score"] for each in results] == pytest.approx(scores)
        assert f"| computed with | {evaluation.runtime} |" in (folder / "report.md").read_text()

    @pytest.mark.slow
    def test_it_can_be_resumed(self, scenes: Path, file: Path, tmp_path: Path) -> None:
        folder = tmp_path / "work"
        dpt_zoo.evaluate(file, data_root=scenes, work_dir=folder, limit=2)
        first = lines(folder)
        evaluation = dpt_zoo.evaluate(file, data_root=scenes, work_dir=folder, resume=True)
        assert evaluation.num_images == len(lines(folder)) == NUM_IMAGES
        assert all(each in lines(folder) for each in first)
        make_onnx(file, mask_threshold=0.25)
        with pytest.raises(InputError, match="has an evaluation with other weights"):
            dpt_zoo.evaluate(file, data_root=scenes, work_dir=folder, resume=True)

    def test_the_command(self, scenes: Path, file: Path, run: Run) -> None:
        change(scenes, lambda content: content["categories"].append({"id": 5, "name": "person"}))
        status, _, errors = run("evaluate", file, "--data-root", scenes)
        assert (status, errors.count("\n")) == (2, 1)
        assert "the model does not know 1 of its 3 classes: 'person'" in errors
        change(scenes, lambda content: content["categories"].pop())
        status, printed, _ = run("evaluate", file, "--data-root", scenes, "--tasks", "bbox")
        assert (status, printed.splitlines()[1].split()[:2]) == (0, ["bbox", "100.0"])

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({}, "names no data: choose data_root, or annotations and images"),
            ({"weights": "a.safetensors"}, "weights is not for an exported file"),
            ({"workers": 2}, "workers is not for an exported file"),
            ({"amp": True}, "amp is not for an exported file"),
            ({"tasks": "segm", "data_root": "."}, "this model does not predict 'segm', only bbox"),
        ],
    )
    def test_bad_arguments(self, options: dict[str, Any], text: str, tmp_path: Path) -> None:
        file = make_onnx(tmp_path / "model.onnx", has_masks=False)
        with pytest.raises(InputError, match=text):
            dpt_zoo.evaluate(file, **options)

    @pytest.mark.slow
    def test_the_demos_ap_is_pytorchs(
        self, digits: Path, work_dir: Path, exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As the process of `dpt-zoo reproduce --format onnx` evaluates it."""
        file = exported(MODEL)
        monkeypatch.setattr(exporter, "export", lambda name, path: shutil.copyfile(file, path))
        arguments = {"data_root": digits, "work_dir": tmp_path, "batch_size": 3}
        assert run_worker({"exported_from": MODEL, "model": str(tmp_path / f"{MODEL}.onnx"), **arguments}) == 0
        for task, row in kept(tmp_path).items():
            assert numbers(row) == pytest.approx(numbers(kept(work_dir)[task]), abs=0.01)


class TestTunedThresholds:
    @pytest.fixture
    def described(self, tmp_path: Path) -> Path:
        path = tmp_path / "mine.safetensors"
        write_metadata(describe_record(dpt_zoo.get_model_info(MODEL)), WEIGHTS, path)  # type: ignore[arg-type]
        return path

    def test_they_are_written_and_used(self, digits: Path, described: Path, tmp_path: Path) -> None:
        options: dict[str, Any] = {"data_root": digits, "workers": 0, "work_dir": tmp_path / "work"}
        thresholds = dpt_zoo.evaluate(described, tune_thresholds="f1", **options).thresholds
        detector = dpt_zoo.Detector(described, score_threshold="tuned")
        assert thresholds and detector.score_thresholds
        tuned = dict(zip(detector.classes, detector.score_thresholds, strict=True))
        assert tuned == {name: thresholds[name]["score"] if name in thresholds else 0.3 for name in tuned}
        everything = dpt_zoo.Detector(described, score_threshold=0)
        for path in sorted((digits / "val2017").iterdir()):
            detections, unfiltered = detector(path), everything(path)
            kept = [score >= tuned[name] for name, score in zip(unfiltered.names, unfiltered.scores, strict=True)]
            assert 0 < len(detections) < len(unfiltered)
            assert detections.boxes.tolist() == unfiltered.boxes[kept].tolist()
            assert detections.rles is not None and len(detections.rles) == len(detections)
        # The file changed, but not the weights: the predictions are still theirs.
        lines = [path.read_bytes() for path in (tmp_path / "work" / "predictions").glob("*.jsonl")]
        evaluation = dpt_zoo.evaluate(described, tune_thresholds=0.99, resume=True, **options)
        assert Evaluation.read(tmp_path / "work") == evaluation
        assert [path.read_bytes() for path in (tmp_path / "work" / "predictions").glob("*.jsonl")] == lines

    @pytest.mark.parametrize(
        ("model", "options", "text"),
        [
            (MODEL, {}, "tune_thresholds needs a safetensors file to write them into, not mrcnn_dpt_nano_digits"),
            (MODEL, {"weights": "a.pth"}, "needs a safetensors file"),
            (MODEL, {"weights": WEIGHTS}, "does not say which model it is for"),
            (MODEL, {"tune_thresholds": 1.5}, "tune_thresholds must be a number from 0 to 1"),
            (MODEL, {"format_only": True, "output": "out"}, "leave one of them out"),
        ],
    )
    def test_refusals(self, model: str, options: dict[str, Any], text: str) -> None:
        with pytest.raises(DPTZooError, match=text):
            dpt_zoo.evaluate(model, **{"tune_thresholds": "f1", **options})

    def test_a_model_without_them(self) -> None:
        with pytest.raises(InputError, match="tune the thresholds of this model by `dpt-zoo evaluate` first"):
            dpt_zoo.Detector(MODEL, score_threshold="tuned")

    def test_the_command(self, digits: Path, described: Path, run: Run, tmp_path: Path) -> None:
        arguments = ("--data-root", digits, "--workers", 0, "--limit", 2, "--tune-thresholds", "0.9")
        status, out, _ = run("evaluate", described, *arguments)
        assert status == 0 and re.search(r"threshold +score +precision +recall +f1\n", out)
        scene = next((digits / "val2017").iterdir())
        command = (
            "detect",
            scene,
            "--model",
            described,
            "--score-threshold",
            "tuned",
            "--work-dir",
            tmp_path / "found",
        )
        assert run(*command)[0] == 0
        settings = json.loads((tmp_path / "found" / "run.json").read_text())
        assert settings["score_threshold"] == list(
            dpt_zoo.Detector(described, score_threshold="tuned").score_thresholds or ()
        )
