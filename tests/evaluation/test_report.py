"""The error analysis, the pictures and the report."""

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from reference_data import ROOT

from dpt_zoo.data.digits import CLASSES, make_digit_scenes
from dpt_zoo.errors import OutputError
from dpt_zoo.evaluation import matching
from dpt_zoo.evaluation.error_analysis import Comparison, ErrorAnalysis
from dpt_zoo.evaluation.error_types import compute_error_types
from dpt_zoo.evaluation.matching import Matches
from dpt_zoo.evaluation.metrics import NAMES, CocoDict, Metrics, Task
from dpt_zoo.evaluation.plots import plot_confusion, plot_precision_recall
from dpt_zoo.evaluation.report import write_report
from dpt_zoo.evaluation.result import Evaluation
from dpt_zoo.evaluation.thresholds import tune_thresholds
from dpt_zoo.evaluation.visualize import describe, draw_worst, save_comparison

CAT, DOG = 7, 3  # COCO's ids need no order
CATEGORIES = [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}]


def real(category: int, x: float, *, width: float = 20, is_crowd: bool = False, image_id: int = 1) -> CocoDict:
    box = [x, 0, width, 10]
    return {"image_id": image_id, "category_id": category, "bbox": box, "area": 10 * width, "iscrowd": int(is_crowd)}


def seen(category: int, x: float, score: float = 0.9, *, width: float = 20, image_id: int = 1) -> CocoDict:
    return {"image_id": image_id, "category_id": category, "bbox": [x, 0, width, 10], "score": score}


def content(annotations: list[CocoDict], num_images: int = 1) -> dict[str, Any]:
    images = [{"id": id, "file_name": f"{id}.png", "width": 80, "height": 40} for id in range(1, num_images + 1)]
    numbered = [{"id": id, **annotation} for id, annotation in enumerate(annotations, 1)]
    return {"images": images, "annotations": numbered, "categories": CATEGORIES}


def analyze(
    ground_truth: dict[str, Any], predictions: Iterable[tuple[int, list[CocoDict]]], num_worst: int = 9
) -> ErrorAnalysis:
    errors = ErrorAnalysis(ground_truth, num_worst)
    for image_id, each in predictions:
        errors.add(image_id, each)
    return errors


def show(
    folder: Path, images: Path, ground_truth: dict[str, Any], predictions: list[tuple[int, list[CocoDict]]]
) -> None:
    """Save the comparisons of images."""
    errors = ErrorAnalysis(ground_truth)
    for image_id, each in predictions:
        save_comparison(folder, images, errors.add(image_id, each), errors.classes)


# --- Error analysis

RIGHT, MISSED, DOG_FOR_CAT, NO_CAT, NO_DOG = (CAT, CAT), (CAT, None), (CAT, DOG), (None, CAT), (None, DOG)
"""What is there, and what was found."""

CASES: dict[str, tuple[list[CocoDict], list[CocoDict], list[tuple[int | None, int | None]]]] = {
    "nothing": ([], [], []),
    "right": ([real(CAT, 0)], [seen(CAT, 1)], [RIGHT]),
    "missed": ([real(CAT, 0)], [], [MISSED]),
    "wrong class": ([real(CAT, 0)], [seen(DOG, 1)], [DOG_FOR_CAT]),
    "nothing there": ([], [seen(CAT, 0)], [NO_CAT]),
    "twice": ([real(CAT, 0)], [seen(CAT, 0, 0.5), seen(CAT, 0, 0.6)], [RIGHT, NO_CAT]),
    "twice, once of another class": ([real(CAT, 0)], [seen(DOG, 0, 0.9), seen(CAT, 4, 0.4)], [RIGHT, NO_DOG]),
    "IoU 0.5": ([real(CAT, 0)], [seen(CAT, 0, width=10)], [RIGHT]),
    "IoU below": ([real(CAT, 0)], [seen(CAT, 0, width=9.99)], [MISSED, NO_CAT]),
    "score 0.3": ([real(CAT, 0)], [seen(CAT, 0, 0.3)], [RIGHT]),
    "score below": ([real(CAT, 0)], [seen(CAT, 0, 0.299)], [MISSED]),
    "neighbours": ([real(CAT, 0), real(CAT, 5)], [seen(CAT, 4), seen(CAT, 1)], [RIGHT, RIGHT]),
    "the better score first": ([real(CAT, 0), real(CAT, 9)], [seen(CAT, 4, 0.5), seen(CAT, 2)], [RIGHT, RIGHT]),
    "classes changed": ([real(CAT, 0), real(DOG, 2)], [seen(DOG, 0), seen(CAT, 2)], [RIGHT, (DOG, DOG)]),
    "a crowd": ([real(CAT, 0, width=80, is_crowd=True)], [], []),
    "in a crowd": ([real(CAT, 0, width=80, is_crowd=True)], [seen(CAT, 0), seen(CAT, 1), seen(CAT, 70)], []),
    "half in a crowd": ([real(CAT, 10, is_crowd=True)], [seen(CAT, 0)], []),
    "beside a crowd": ([real(CAT, 11, is_crowd=True)], [seen(CAT, 0)], [NO_CAT]),
    "in a crowd of others": ([real(CAT, 0, width=80, is_crowd=True)], [seen(DOG, 0)], [NO_DOG]),
    "before a crowd": ([real(CAT, 0, width=80, is_crowd=True), real(CAT, 0)], [seen(CAT, 0), seen(CAT, 0)], [RIGHT]),
    "before a dog before a crowd": (
        [real(CAT, 0, width=80, is_crowd=True), real(DOG, 0)],
        [seen(CAT, 0)],
        [(DOG, None)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_pairs(case: str) -> None:
    truth, found, expected = CASES[case]
    errors = analyze(content(truth), [(1, found)])
    places: dict[int | None, int] = {DOG: 0, CAT: 1, None: 2}
    confusion = np.zeros((3, 3), int)
    for pair in expected:
        confusion[places[pair[0]], places[pair[1]]] += 1
    assert errors.confusion.tolist() == confusion.tolist()
    assert errors.classes == {DOG: "dog", CAT: "cat"}
    assert list(errors.classes) == [DOG, CAT]
    num_errors = sum(row != column for row, column in expected)
    assert [len(comparison.errors) for comparison in errors.worst] == ([num_errors] if num_errors else [])


@pytest.mark.parametrize("seed", range(20))
def test_what_is_right_is_right_for_coco(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """What has the right class is what pycocotools matches at IoU 0.5, and what it ignores is not an error."""
    rng = np.random.default_rng(seed)
    boxes = {id: rng.uniform(0, 60, int(rng.integers(0, 12))) for id in range(1, 11)}
    truth = content(
        [
            real(int(rng.choice([CAT, DOG])), x, is_crowd=rng.random() < 0.2, image_id=id)
            for id, places in boxes.items()
            for x in places
        ],
        num_images=10,
    )
    found = {
        id: [
            seen(int(rng.choice([CAT, DOG])), x + rng.normal(0, 4), rng.uniform(0.3, 1), image_id=id)
            for x in np.concatenate([places, rng.uniform(0, 60, 3)])
        ]
        for id, places in boxes.items()
    }
    confusion = analyze(truth, found.items()).confusion

    index = COCO()
    index.dataset = truth
    index.createIndex()
    run = COCOeval(index, index.loadRes([record for records in found.values() for record in records]), "bbox")
    run.params.iouThrs, run.params.areaRng = np.array([0.5]), [[0, 1e10]]
    run.evaluate()
    images = [image for image in run.evalImgs if image]
    matched = np.concatenate([image["dtMatches"][0] > 0 for image in images])
    ignored = np.concatenate([image["dtIgnore"][0] for image in images]).astype(bool)
    assert confusion.trace() == np.sum(matched & ~ignored) > 0
    # A false one may be a missed object's: it counts either way.
    assert confusion[:, :-1].sum() - confusion.trace() == np.sum(~matched & ~ignored)
    assert confusion[:-1].sum() == sum(not record["iscrowd"] for record in truth["annotations"])


def test_the_worst_images() -> None:
    numbers = {1: 0, 2: 2, 3: 1, 4: 3, 5: 2, 6: 0}  # of errors
    found = [(id, [seen(CAT, 10 * place) for place in range(number)]) for id, number in numbers.items()]
    for order in (found, found[::-1]):
        errors = analyze(content([], num_images=6), order, num_worst=3)
        assert [comparison.image["id"] for comparison in errors.worst] == [4, 2, 5]
    assert len(analyze(content([], num_images=6), found).worst) == 4
    assert analyze(content([], num_images=6), []).worst == []


def test_images_that_are_not_counted() -> None:
    truth = content([real(CAT, 0, image_id=1), real(CAT, 0, image_id=2)], num_images=2)
    assert analyze(truth, [(2, [])]).confusion.sum() == 1


def test_memory_does_not_grow() -> None:
    def found() -> Iterator[tuple[int, list[CocoDict]]]:
        for id in range(1, 201):  # of 1 MB each
            yield id, [{**seen(CAT, place), "segmentation": str(id) * 10_000} for place in range(50)]

    truth = content([], num_images=200)
    tracemalloc.start()
    try:
        analyze(truth, found(), num_worst=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12e6


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("right", "no errors"),
        ("missed", "1 missed"),
        ("wrong class", "1 with a wrong class"),
        ("twice", "1 without an object"),
        ("IoU below", "1 missed, 1 without an object"),
    ],
)
def test_errors_in_words(case: str, text: str) -> None:
    truth, found, _ = CASES[case]
    assert describe(Comparison({}, truth, found)) == text


# --- Pictures

POLYGON = [[20, 10, 60, 10, 60, 30, 20, 30]]
MASK = np.zeros((40, 80), np.uint8, order="F")
MASK[10:30, 20:60] = 1
RLE = {"size": [40, 80], "counts": coco_mask.encode(MASK)["counts"].decode()}
RUNS = {"size": [40, 80], "counts": [20 * 40 + 10, *[20, 20] * 39, 20, 20 * 40 - 30 + 20]}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three grey images, whose annotations are `content(..., num_images=3)`."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in (1, 2, 3):
        Image.new("RGB", (80, 40), (100, 100, 100)).save(folder / f"{number}.png")
    return folder


def show_one(images: Path, annotations: list[CocoDict], found: list[CocoDict]) -> tuple[NDArray[np.bool_], ...]:
    """Where the picture of the first image is coloured, in its left and in its right half."""
    folder = images.parent / "shown"
    show(folder, images, content(annotations), [(1, found)])
    with Image.open(folder / "1.png.jpg") as picture:
        assert picture.format == "JPEG"
        pixels = np.asarray(picture).astype(int)
    assert np.ptp(pixels[..., 0]) == 255  # text on white
    coloured = np.ptp(pixels, axis=2) > 50
    return coloured[:, : pixels.shape[1] // 2], coloured[:, pixels.shape[1] // 2 :]


def test_truth_is_on_the_left_and_what_was_found_on_the_right(images: Path) -> None:
    for annotations, found in (
        ([], []),
        ([real(CAT, 20)], []),
        ([], [seen(CAT, 20)]),
        ([real(CAT, 9)], [seen(CAT, 9)]),
    ):
        left, right = show_one(images, annotations, found)
        assert [left.any(), right.any()] == [bool(annotations), bool(found)]
    left, right = show_one(images, [], [seen(CAT, 20, 0.29)])
    assert not right.any()


@pytest.mark.parametrize(
    "segmentation", [POLYGON, RLE, RUNS, [], None], ids=["polygon", "RLE", "runs", "empty", "none"]
)
def test_masks_are_drawn(images: Path, segmentation: Any) -> None:
    thing = {"image_id": 1, "category_id": CAT, "bbox": [20, 10, 40, 20], "segmentation": segmentation}
    left, right = show_one(images, [{**thing, "iscrowd": 0}], [{**thing, "score": 0.9}])
    share = 0.2 if segmentation else 0.0  # of the half picture
    assert share <= left.mean() < share + 0.08
    assert share <= right.mean() < share + 0.08


def test_pictures_are_named_after_their_images(images: Path) -> None:
    truth = content([], num_images=3)
    names = ["a/one.JPG", "b/one.JPG", "one.png"]
    for record, name in zip(truth["images"], names, strict=True):
        (images / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 50)).save(images / name)
        record["file_name"] = name
    folder = images.parent / "new" / "shown"
    show(folder, images, truth, [(id, []) for id in (1, 2, 3)])
    assert [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.*"))] == [*names[:2], "one.png.jpg"]


def test_an_unreadable_image_is_left_out(images: Path) -> None:
    (images / "1.png").write_bytes(b"no image")
    (images / "2.png").unlink()
    truth = content([real(CAT, 0, image_id=id) for id in (1, 2, 3)], num_images=3)
    found: list[tuple[int, list[CocoDict]]] = [(1, []), (2, []), (3, [])]
    show(images.parent / "shown", images, truth, found)
    assert [path.name for path in (images.parent / "shown").iterdir()] == ["3.png.jpg"]
    sizes = []
    for _ in range(2):
        draw_worst(images.parent / "worst.png", images, analyze(truth, found))
        sizes.append(check_png(images.parent / "worst.png"))
        (images / "3.png").unlink(missing_ok=True)
    assert sizes[0] > sizes[1]  # a picture, and a line that there is none


def test_pictures_that_cannot_be_written(images: Path) -> None:
    (images.parent / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be made: .*: choose another folder"):
        show(images.parent / "file", images, content([]), [(1, [])])


def test_the_worst_images_are_in_a_grid(images: Path) -> None:
    path = images.parent / "worst.png"
    sizes = []
    for number in (0, 1, 3, 4):
        records = [real(CAT, 0, image_id=id % 3 + 1) for id in range(number)]
        truth = content(records, num_images=3)
        errors = ErrorAnalysis(truth)
        errors.worst = [Comparison(truth["images"][id % 3], [record], []) for id, record in enumerate(records)]
        draw_worst(path, images, errors)
        sizes.append(check_png(path))
    nothing, one, three, four = sizes
    assert nothing < one
    assert three == (3 * one[0], one[1])
    assert four == (3 * one[0], 2 * one[1])


# --- Plots


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [1, 2, 10, 80, 300])
def test_confusion(tmp_path: Path, num_classes: int) -> None:
    classes = ["a $b$ \\frac$", "a" * 200, "猫", *map(str, range(num_classes))][:num_classes]
    confusion = np.eye(num_classes + 1, dtype=np.int64) * 50
    confusion[0] = confusion[-1, -1] = 0  # a class without objects
    plot_confusion(tmp_path / "confusion.png", classes, confusion)
    width, height = check_png(tmp_path / "confusion.png")
    assert 600 < height < width < 3000


def test_confusion_is_seen(tmp_path: Path) -> None:
    pictures = []
    for column in (0, 1):
        confusion = np.diag([50, 50, 0])
        confusion[0, column] += 1
        plot_confusion(tmp_path / "confusion.png", ["cat", "dog"], confusion)
        pictures.append((tmp_path / "confusion.png").read_bytes())
    assert pictures[0] != pictures[1]


def test_precision_recall(tmp_path: Path) -> None:
    precision = np.linspace(1, 0, 101)[:, None] * np.ones((10, 1, 2))
    one, two, absent = (tmp_path / f"{name}.png" for name in ("one", "two", "absent"))
    plot_precision_recall(one, {"bbox": precision})
    plot_precision_recall(two, {"bbox": precision, "segm": precision})
    assert check_png(two)[0] > 1.8 * check_png(one)[0]
    plot_precision_recall(absent, {"bbox": np.concatenate([precision, np.full((10, 101, 3), -1)], axis=2)})
    assert absent.read_bytes() == one.read_bytes()


@pytest.mark.parametrize("num_classes", [0, 3])
def test_precision_recall_of_nothing(tmp_path: Path, num_classes: int) -> None:
    plot_precision_recall(tmp_path / "nothing.png", {"bbox": np.full((10, 101, num_classes), -1.0)})
    check_png(tmp_path / "nothing.png")


@pytest.mark.slow
def test_what_is_heavy_is_imported_late_and_pyplot_never(tmp_path: Path) -> None:
    code = """
import sys
import dpt_zoo.evaluation.report
assert not {"matplotlib", "supervision", "torch"} & sys.modules.keys()
import numpy, pathlib
dpt_zoo.evaluation.report.plot_confusion(pathlib.Path("new.png"), ["cat"], numpy.eye(2))
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


# --- The report


def metrics(mean: float | None) -> Metrics:
    return {**dict.fromkeys(NAMES, 50.04), "mAP": mean, "APl": None}


def evaluation(tasks: tuple[Task, ...] = ("bbox", "segm"), **changes: Any) -> Evaluation:
    content: dict[str, Any] = {
        "metrics": {task: metrics(40.26 - 3 * number) for number, task in enumerate(tasks)},
        "per_class": {task: {"cat": metrics(20), "a|b": metrics(None), "dog": metrics(60.5)} for task in tasks},
        "num_images": 5000,
        "limit": None,
        "amp": False,
        "max_detections": 100,
        "skipped": (),
        "weights": {"path": "zoo/mrcnn_dpt_t_1x.safetensors", "sha256": "ab" * 32},
        "annotations": {"path": "coco/val.json", "sha256": "cd" * 32},
        "seconds": {"detecting": 1234.5, "measuring": 6.78},
        "processes": 2,
        "device": "AMD EPYC",
        "runtime": "ONNX Runtime 1.32.0",
        "versions": {"python": "3.11.7", "torch": "2.15.0"},
        **changes,
    }
    return Evaluation(**content)


CONFUSION = np.array([[60, 1, 0, 2], [9, 70, 0, 5], [0, 0, 0, 0], [3, 4, 0, 0]])


def analysis(classes: Sequence[str], confusion: NDArray[np.int64]) -> ErrorAnalysis:
    categories = [{"id": id, "name": name} for id, name in enumerate(classes, 1)]
    errors = ErrorAnalysis({"images": [], "annotations": [], "categories": categories})
    errors.confusion = confusion
    return errors


ERRORS = analysis(["cat", "dog", "a|b"], CONFUSION)
PRECISION: dict[Task, NDArray[np.float64]] = {"bbox": np.full((10, 101, 3), 0.5)}


MATCHES = Matches(
    classes=("cat", "dog", "a|b"),
    scores=np.array([0.9, 0.8, 0.4, 0.2]),
    labels=np.array([0, 1, 0, 0]),
    outcomes=np.array([matching.RIGHT, matching.RIGHT, matching.BACKGROUND, matching.RIGHT]),
    corrected=np.full(4, -1),
    num_objects=np.array([2, 1, 0]),
    num_missed=np.zeros(3, int),
)
TYPES = compute_error_types(MATCHES)


def page(folder: Path, content: Evaluation, errors: ErrorAnalysis = ERRORS) -> str:
    write_report(folder, content, PRECISION, errors, TYPES, MATCHES, folder)
    return (folder / "report.md").read_text(encoding="utf-8")


def test_thresholds(tmp_path: Path) -> None:
    thresholds = {name: each._asdict() for name, each in tune_thresholds(MATCHES, 0.9).items()}
    text = page(tmp_path, evaluation(thresholds=thresholds))
    assert "| cat | 0.650 | 1.000 | 0.500 | 0.667 |" in text and "| dog | 0.800 | 1.000 | 1.000 | 1.000 |" in text
    assert "![Precision, recall and F1 by threshold](thresholds.png)" in text
    check_png(tmp_path / "thresholds.png")


def test_report(tmp_path: Path) -> None:
    lines = page(tmp_path, evaluation()).splitlines()
    for line in (
        "**box AP 40.3, mask AP 37.3** on 5,000 images.",
        "| | box | mask | |",
        "| mAP | 40.3 | 37.3 | average precision, the mean over IoU thresholds .50, .55, ... .95 |",
        "| APl | - | - | of large objects |",
        "| class | box mAP | box AP50 | box AP75 | mask mAP | mask AP50 | mask AP75 |",
        "| cat | 20.0 | 50.0 | 50.0 | 20.0 | 50.0 | 50.0 |",
        "Predictions with a score of at least 0.3 and an IoU of at least 0.5 count. Of 147 objects:",
        "130 detected (88.4%),",
        "10 detected as another class (6.8%),",
        "7 missed (4.8%).",
        "Predictions without an object: 7.",
        "| background | 1 | 8.25 | no object there (IoU of at most 0.1) |",
        "Most often detected as another class: dog as cat (9 of 84), cat as dog (1 of 63).",
        f"| annotations | coco/val.json (SHA-256 {'cd' * 32}) |",
        f"| weights | zoo/mrcnn\\_dpt\\_t\\_1x.safetensors (SHA-256 {'ab' * 32}) |",
        "| images | 5,000 |",
        "| limit | - |",
        "| skipped | 0 |",
        "| device | AMD EPYC |",
        "| computed with | ONNX Runtime 1.32.0 |",
        "| processes | 2 |",
        "| seconds, detecting | 1,234 |",
        "| seconds per image | 0.247 |",
        "| seconds, measuring | 6.78 |",
        "| versions | python 3.11.7, torch 2.15.0 |",
    ):
        assert line in lines
    assert [name for name in NAMES if f"| {name} |" in "\n".join(lines)] == list(NAMES)
    order = [lines.index(line) for line in lines if line.startswith(("| dog", "| cat", "| a\\|b"))]
    assert [lines[place].split(" | ")[0] for place in order] == ["| dog", "| cat", "| a\\|b"]
    assert not any(line.startswith(">") for line in lines)


def test_every_picture_is_there(tmp_path: Path) -> None:
    text = page(tmp_path, evaluation())
    pictures = sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".png")
    assert pictures == ["confusion.png", "precision_recall.png", "worst.png"]
    for name in pictures:
        assert f"]({name})" in text
        check_png(tmp_path / name)


def test_report_of_boxes_alone(tmp_path: Path) -> None:
    text = page(tmp_path, evaluation(("bbox",)))
    assert "**box AP 40.3** on 5,000 images." in text
    assert "| APm | 50.0 | of medium objects, up to 96 x 96 pixels |" in text
    assert "| dog | 60.5 | 50.0 | 50.0 |\n" in text
    assert "mask" not in text


def test_a_part_is_marked_as_one(tmp_path: Path) -> None:
    skipped = tuple(f"{number}.jpg: damaged <b>" for number in range(12))
    text = page(tmp_path, evaluation(limit=20, skipped=skipped, num_images=8))
    assert "\n> **Part of the data only (`--limit 20`): not a result of the whole set.**\n" in text
    assert "\n> **12 images skipped**" in text
    assert "\n- 0.jpg: damaged \\<b\\>\n" in text
    assert text.count("damaged") == 10
    assert text.endswith("- and 2 more: see `evaluation.json`\n")


def test_more_predictions_than_cocos(tmp_path: Path) -> None:
    task: Any = {name.replace("100", "300"): value for name, value in metrics(50).items()}
    text = page(tmp_path, evaluation(("bbox",), metrics={"bbox": task}, max_detections=300))
    assert "\n> **300 predictions of an image count: AP is not COCO's, which counts 100.**\n" in text
    assert "| AR300 | 50.0 | with 300 |" in text and "AR100" not in text


def test_report_of_nothing(tmp_path: Path) -> None:
    nothing: dict[str, Any] = {"metrics": {"bbox": dict.fromkeys(NAMES)}, "per_class": {"bbox": {}}}
    text = page(tmp_path, evaluation(("bbox",), num_images=0, **nothing), analysis([], np.zeros((1, 1), np.int64)))
    assert "**box AP -** on 0 images." in text
    assert "Of 0 objects:\n0 detected,\n0 detected as another class,\n0 missed.\n" in text


def test_names_stay_in_their_cells(tmp_path: Path) -> None:
    name = "a|b\nc *d* <img src=x> `e` [f](g)"
    content = evaluation(("bbox",), per_class={"bbox": {name: metrics(1)}})
    text = page(tmp_path, content, analysis([name], np.diag([5, 0])))
    assert "\n| a\\|b\\\\nc \\*d\\* \\<img src=x\\> \\`e\\` \\[f\\](g) | 1.0 | 50.0 | 50.0 |\n" in text


def test_report_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        page(tmp_path / "none", evaluation())


@pytest.mark.slow
def test_report_of_digit_scenes(tmp_path: Path) -> None:
    """Every fifth digit is missed, or taken for the next."""
    make_digit_scenes(tmp_path / "digits", num_train=1, num_test=12, size=96)
    truth = json.loads((tmp_path / "digits" / "annotations" / "instances_val2017.json").read_text())
    found: dict[int, list[CocoDict]] = {image["id"]: [] for image in truth["images"]}
    for number, annotation in enumerate(truth["annotations"]):
        category = annotation["category_id"] % 10 + 1 if number % 10 == 5 else annotation["category_id"]
        if number % 10:
            found[annotation["image_id"]].append({**annotation, "category_id": category, "score": 0.8})
    errors = analyze(truth, found.items())
    num_objects = len(truth["annotations"])
    num_missed, num_wrong = len(range(0, num_objects, 10)), len(range(5, num_objects, 10))
    assert tuple(errors.classes.values()) == CLASSES
    assert errors.confusion[:-1, -1].sum() == num_missed
    assert errors.confusion.trace() == num_objects - num_missed - num_wrong
    assert not errors.confusion[-1].any()

    write_report(tmp_path, evaluation(), PRECISION, errors, TYPES, MATCHES, tmp_path / "digits" / "val2017")
    assert check_png(tmp_path / "worst.png") > (2000, 1000)
    assert f"{num_wrong} detected as another class" in (tmp_path / "report.md").read_text()


def check_png(path: Path) -> tuple[int, int]:
    """A PNG's size, after its pixels were read and found not to be all alike."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("L"))
        assert pixels.std() > 5
        return picture.size
