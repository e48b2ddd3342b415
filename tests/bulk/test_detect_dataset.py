"""Whole runs: the same files from every runner, whatever is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from bulk_data import BAD, NUM_SCENES, read_parts, write_list, write_shard
from exported_files import CLASSES
from reference_data import ROOT
from running import Run

from dpt_zoo import Detector, evaluate
from dpt_zoo.bulk import images, process
from dpt_zoo.bulk.detect import DatasetRun, detect_dataset
from dpt_zoo.bulk.plan import Settings, make_plan
from dpt_zoo.bulk.results import Counts, Results
from dpt_zoo.bulk.sources import find_entries
from dpt_zoo.bulk.storage import Folder
from dpt_zoo.bulk.worker import PartError, PartWorker
from dpt_zoo.errors import ImageError, InputError, OutputError
from dpt_zoo.evaluation.dataset_results import evaluate_results
from dpt_zoo.inference.inputs import find_inputs
from dpt_zoo.utils.environment import child_variables

pytestmark = pytest.mark.slow

DYING_WORKER = ROOT / "tests" / "support" / "dying_worker.py"


def wait_until(is_done: Callable[[], object]) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + 120
    while not is_done():
        assert time.monotonic() < end
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    """Return the child processes of all threads of a process."""
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def settings_of(worker: PartWorker, run: DatasetRun) -> Settings:
    """Return the settings of a run, with the model of a worker."""
    return replace(Results(Folder(run.output)).settings, **worker.describe())


def test_rows_are_the_detections(finished: DatasetRun, scenes: Path, model: Path) -> None:
    detector = Detector(model, num_threads=1)
    rows = list(Results(Folder(finished.output)))
    for row, (image, result) in zip(rows, detector.detect_each(find_inputs(scenes)), strict=True):
        assert (row.uri, row.key) == (image.origin, image.key)
        if isinstance(result, ImageError):
            assert row.error == str(result)
        else:
            assert row.detections is not None and row.detections.to_json() == result.to_json()
    objects = sum(len(row.detections) for row in rows if row.detections is not None)
    assert finished.counts == Counts(NUM_SCENES, len(BAD), objects) and objects > NUM_SCENES
    assert (finished.num_parts, finished.set_aside) == (4, {})


def test_the_command(finished: DatasetRun, scenes: Path, model: Path, tmp_path: Path, run: Run) -> None:
    for name, content in read_parts(finished.output).items():
        if not name.startswith("part-000001"):
            (tmp_path / name).write_bytes(content)
    for name in ("_plan.arrow", "_run.json"):
        (tmp_path / name).write_bytes(Path(finished.output, name).read_bytes())
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    command = ("detect-dataset", scenes, "--output", tmp_path, "--model", model, "--images-per-part", 5, "--workers", 1)
    status, output, errors = run(*command)
    assert (status, errors) == (2, "dpt-zoo: 2 images could not be read: the column error says why\n")
    counts = finished.counts
    assert output == f"{counts.num_images} images, {counts.num_objects} objects\n{tmp_path}: 4 parts\n"
    assert read_parts(tmp_path) == read_parts(finished.output)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in times} == times
    status, _, errors = run(*command, "--score-threshold", 0.5)
    assert status == 2 and "holds a run with options" in errors


def test_two_ranks(
    finished: DatasetRun, scenes: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    counts = Counts()
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        share = detect_dataset(scenes, tmp_path, model=model, images_per_part=5, runner="rank")
        assert share.num_parts == 2
        counts += share.counts
    assert read_parts(tmp_path) == read_parts(finished.output)
    assert counts == finished.counts


def test_killed_processes(finished: DatasetRun, scenes: Path, model: Path, tmp_path: Path) -> None:
    """Only the part that a killed worker or runner had begun is done again."""
    inputs, output = tmp_path / "inputs", tmp_path / "out"
    inputs.mkdir()
    for name in ("1.png", "2.png", "3.png", "4-held.png", "5.png", "6.png"):
        (inputs / name).symlink_to(scenes / "000001.png")
    arguments = ["detect-dataset", inputs, "--output", output, "--model", model, "--images-per-part", 2]
    command = [sys.executable, DYING_WORKER, *arguments, "--workers", 1]
    killed = subprocess.Popen([*map(str, command)], env=child_variables())
    wait_until((inputs / "reached").exists)
    (worker,) = children_of(killed.pid)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: len(read_parts(output)) == 2)  # another worker has done the part after it
    (worker,) = children_of(killed.pid)
    killed.kill()
    killed.wait()
    wait_until(lambda: not Path(f"/proc/{worker}").exists())  # it has ended with its caller
    times = {path: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    run = detect_dataset(inputs, output, model=model, images_per_part=2, workers=1)
    assert (run.num_parts, run.counts.num_images) == (3, 6)
    assert len(times) == 2 and {path: path.stat().st_mtime_ns for path in times} == times
    assert not list(output.glob(".*"))
    rows, first = list(Results(Folder(str(output)))), next(iter(Results(Folder(finished.output))))
    assert [row.uri for row in rows] == sorted(map(str, inputs.glob("*.png")))
    for row in rows:
        assert row.detections and first.detections
        assert row.detections.to_json()["objects"] == first.detections.to_json()["objects"]


def test_a_part_that_kills_its_worker(
    scenes: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    names = ["000001.png", "000002.png", "poison.png", "000003.png"]
    for name in names:
        (tmp_path / name).symlink_to(scenes / names[0])
    monkeypatch.setattr(process, "PROGRAM", (sys.executable, str(DYING_WORKER)))
    command = ("detect-dataset", tmp_path, "--output", tmp_path / "out", "--model", model, "--images-per-part", 2)
    status, output, errors = run(*command, "--workers", 1)
    assert (status, output.splitlines()[1]) == (2, f"{tmp_path}/out: 1 part")
    first, second = errors.splitlines()
    assert first == "dpt-zoo: 1 part failed three times, and will be tried again by the same command:"
    assert second.startswith("  part-000001-") and second.endswith(": its process died (signal SIGKILL)")
    assert len((tmp_path / "deaths").read_text().splitlines()) == 3
    monkeypatch.undo()
    status, output, errors = run(*command, "--workers", 1)
    assert (status, errors, output.splitlines()[1]) == (0, "", f"{tmp_path}/out: 2 parts")


def test_a_model_that_cannot_be_loaded(scenes: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    command = ("detect-dataset", scenes, "--output", tmp_path / "out", "--model", tmp_path / "model.onnx")
    status, output, errors = run(*command, "--workers", 1)
    assert (status, output) == (2, "")
    assert errors.startswith(f"dpt-zoo: {tmp_path}/model.onnx: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["list.csv", "shard.tar", "shard.arrow", "shard.parquet"])
def test_every_form_gives_the_same_rows(
    name: str, finished: DatasetRun, scenes: Path, model: Path, tmp_path: Path
) -> None:
    files = sorted(scenes.iterdir())
    if name.startswith("list"):
        path = write_list(tmp_path / name, list(map(str, files)))
    else:
        path = write_shard(tmp_path / name, files)
    worker, folder = PartWorker(str(model), {}), Folder(str(tmp_path / "out"))
    plan = make_plan(folder, settings_of(worker, finished), find_entries([str(path)], None, 5))
    for index in range(plan.num_parts):
        worker.detect(folder.address, index)
    rows = pq.read_table(tmp_path / "out").drop_columns(["uri", "key", "error"])
    assert rows.equals(pq.read_table(finished.output).drop_columns(["uri", "key", "error"]))


def test_a_worker_refuses_another_model(model: Path, scenes: Path, finished: DatasetRun, tmp_path: Path) -> None:
    worker, folder = PartWorker(str(model), {}), Folder(str(tmp_path))
    settings = settings_of(worker, finished)
    with pytest.raises(InputError, match="has no plan here"):
        worker.detect(folder.address, 0)
    make_plan(folder, replace(settings, weights="1" * 64), [list(map(str, scenes.iterdir()))])
    with pytest.raises(InputError, match="a run with other weights"):
        worker.detect(folder.address, 0)


def test_what_fails_a_part_or_ends_the_run(
    model: Path, scenes: Path, finished: DatasetRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(address: str) -> bytes:
        raise PermissionError(f"no access to {address}?token=secret")

    worker, folder = PartWorker(str(model), {}), Folder(str(tmp_path / "out"))
    settings = replace(settings_of(worker, finished), images_per_part=1)
    plan = make_plan(folder, settings, [["s3://bucket/a.png", *map(str, sorted(scenes.iterdir()))]])
    monkeypatch.setattr(images, "read_object", fail)
    with pytest.raises(PartError, match=r"^PermissionError: no access to s3://bucket/a\.png\?\.\.\.$"):
        worker.detect(folder.address, 0)
    (tmp_path / "out" / plan.part_name(1)).mkdir()
    monkeypatch.setattr(Folder, "has", lambda folder, name: False)
    with pytest.raises(OutputError, match="cannot be written"):
        worker.detect(folder.address, 1)
    assert worker.detect(folder.address, 2).num_images == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("_plan.arrow", "_run.json", plan.part_name(1), plan.part_name(2)),
    ]


def test_export(finished: DatasetRun, scenes: Path, tmp_path: Path, run: Run) -> None:
    status, output, errors = run("export-dataset", finished.output, "--work-dir", tmp_path, "--format", "coco", "yolo")
    assert (status, output) == (0, f"{tmp_path}\n")
    assert errors == "dpt-zoo: 2 images could not be read, and are left out\n"
    coco = json.loads((tmp_path / "coco.json").read_text())
    good = sorted({path.name for path in scenes.iterdir()}.difference(BAD))
    assert [image["file_name"] for image in coco["images"]] == good
    assert len(coco["annotations"]) == finished.counts.num_objects
    assert sorted(path.with_suffix(".png").name for path in (tmp_path / "labels").iterdir()) == good


def test_evaluation(finished: DatasetRun, scenes: Path, model: Path, tmp_path: Path, run: Run) -> None:
    """The metrics of the results are those of the model, on annotations that are what it detects, moved a little."""
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for row in Results(Folder(finished.output)):
        height, width = row.detections.image_size if row.detections else (1, 1)
        images.append({"id": len(images), "file_name": Path(row.uri).name, "width": width, "height": height})
        for item in row.detections.to_coco(images[-1]["id"]) if row.detections else []:
            x, y, width, height = item["bbox"]
            box = {"bbox": [x + len(images) % 4 * 4, y, width, height], "area": width * height}
            objects.append({**item, **box, "id": len(objects) + 1, "iscrowd": 0})
    classes = [{"id": index, "name": name} for index, name in enumerate(CLASSES, 1)]
    annotations, good = tmp_path / "all.json", tmp_path / "good.json"
    for path, kept in ((annotations, images), (good, [each for each in images if each["file_name"] not in BAD])):
        path.write_text(json.dumps({"images": kept, "annotations": objects, "categories": classes}))
    status, _, errors = run("evaluate", "--predictions", finished.output, "--annotations", annotations)
    assert status == 2 and "has no results for 2 images" in errors and f"{BAD[0]}: " in errors
    command = ("evaluate", "--predictions", finished.output, "--annotations", good)
    status, table, errors = run(*command)
    assert (status, errors) == (0, "")
    expected = evaluate(model, annotations=good, images=scenes)
    measured = evaluate_results(finished.output, good)
    for task, metrics in expected.metrics.items():
        assert measured.metrics[task] == pytest.approx(metrics, abs=0.1)
        assert f"{measured.metrics[task]['mAP']:.1f}" in table
    assert 20 < (expected.metrics["bbox"]["mAP"] or 0) < 80
    assert measured.weights["sha256"] == Results(Folder(finished.output)).settings.weights
    assert run(*command, "--limit", 3)[2] == "dpt-zoo: --predictions does not allow limit: leave them out\n"
