"""Evaluations side by side."""

import json
from pathlib import Path
from typing import Any

import pytest
from running import Run

from dpt_zoo.analysis.metrics import NAMES
from dpt_zoo.errors import InputError
from dpt_zoo.evaluation.comparing import compare
from dpt_zoo.evaluation.result import Evaluation
from dpt_zoo.utils.files import hash_file

BOX = [10.0, 10.0, 20.0, 20.0]


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """Three images: two with a cat, one with a dog."""
    content = {
        "images": [{"id": id, "file_name": f"{id}.png", "width": 64, "height": 64} for id in (1, 2, 3)],
        "annotations": [
            {"id": id, "image_id": id, "category_id": category, "bbox": BOX, "area": 400, "iscrowd": 0}
            for id, category in ((1, 1), (2, 1), (3, 2))
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def make_evaluation(folder: Path, annotations: Path, found: dict[int, list[int]], ap: dict[str, float]) -> Path:
    """Write an evaluation: by image id, the categories that were predicted at the object's place."""
    predictions = folder / "predictions"
    predictions.mkdir(parents=True)
    lines = [
        {
            "image_id": image_id,
            "seconds": 0.1,
            "predictions": [
                {"image_id": image_id, "category_id": category, "bbox": BOX, "score": 0.9} for category in categories
            ],
        }
        for image_id, categories in found.items()
    ]
    (predictions / "a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    metrics: dict[str, Any] = {name: dict.fromkeys(NAMES, value) for name, value in ap.items()}
    evaluation = Evaluation(
        metrics={"bbox": dict.fromkeys(NAMES, sum(ap.values()) / len(ap))},
        per_class={"bbox": metrics},
        num_images=3,
        limit=None,
        max_detections=100,
        amp=False,
        skipped=(),
        weights={"path": "a", "sha256": "b"},
        annotations={"path": str(annotations), "sha256": hash_file(annotations).hexdigest()},
        seconds={"detecting": 1.0, "measuring": 1.0},
        processes=1,
        device="CPU",
        runtime="PyTorch",
        versions={},
    )
    evaluation.write(folder, {})
    return folder


@pytest.fixture
def folders(tmp_path: Path, annotations: Path) -> list[Path]:
    """The first finds both cats, the second a cat and the dog; in the last image the first finds two wrong things."""
    first = make_evaluation(tmp_path / "a", annotations, {1: [1], 2: [1], 3: [1, 1]}, {"cat": 90.0, "dog": 20.0})
    second = make_evaluation(tmp_path / "b", annotations, {1: [1], 2: [], 3: [2]}, {"cat": 60.0, "dog": 100.0})
    return [first, second]


def test_metrics_classes_and_images(folders: list[Path]) -> None:
    comparison = compare(folders)
    assert comparison.metrics("bbox")["mAP"] == (55, 80)
    assert list(comparison.class_differences("bbox").items()) == [("dog", (20, 100)), ("cat", (90, 60))]
    assert comparison.num_errors == {"1.png": (0, 0), "2.png": (0, 1), "3.png": (2, 0)}
    assert comparison.only_right_in(0, 1) == ["2.png"]
    assert comparison.only_right_in(1, 0) == ["3.png"]


def test_the_command(folders: list[Path], run: Run) -> None:
    status, out, err = run("compare", *folders)
    assert (status, err) == (0, "")
    a, b = folders
    rows = [line.split() for line in out.splitlines()]
    assert ["mAP", "55.0", "80.0", "(+25.0)"] in rows and ["cat", "90.0", "60.0", "(-30.0)"] in rows
    assert f"1 image right only in {a}, not in {b}\n  2.png: 1 error\n" in out
    assert f"1 image right only in {b}, not in {a}\n  3.png: 2 errors\n" in out


def test_refusals(folders: list[Path], annotations: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs two or more evaluations"):
        compare(folders[:1])
    with pytest.raises(InputError, match="none has no finished evaluation"):
        compare([*folders, tmp_path / "none"])
    other = make_evaluation(tmp_path / "c", annotations, {1: [1]}, {"cat": 1.0, "dog": 1.0})
    with pytest.raises(InputError, match=r"c and .*a are evaluations of other images"):
        compare([folders[0], other])
    annotations.write_text(annotations.read_text().replace("cat", "cow"))
    with pytest.raises(InputError, match="is missing or has changed: evaluate again"):
        compare(folders)
