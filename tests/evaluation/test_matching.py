"""Errors by type and tuned thresholds, compared with their definitions on generated data."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from dpt_zoo.evaluation.error_types import TYPES, average_precision, compute_error_types
from dpt_zoo.evaluation.matching import RIGHT, Matches, Matching
from dpt_zoo.evaluation.metrics import CocoDict, CocoMetrics
from dpt_zoo.evaluation.thresholds import DEFAULT, tune_thresholds

CLASSES = {3: "cat", 7: "dog", 8: "cow"}

Predictions = dict[int, list[CocoDict]]


def make_case(seed: int) -> tuple[dict[str, Any], Predictions]:
    """Return random ground truth and predictions: good ones, shifted ones, doubles, wrong classes, empty images."""
    rng = np.random.default_rng(seed)
    annotations: list[CocoDict] = []
    predictions: Predictions = {}
    for image_id in range(1, int(rng.integers(2, 8))):
        objects = []
        for _ in range(int(rng.integers(0, 6))):
            box = [*rng.uniform(0, 60, 2).round(), *rng.integers(8, 30, 2).astype(float)]
            category = int(rng.choice([*CLASSES]))
            is_crowd = int(rng.random() < 0.1)
            objects.append(
                {
                    "id": len(annotations) + len(objects) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": is_crowd,
                }
            )
        annotations += objects
        found = []
        for _ in range(int(rng.integers(0, 12))):
            box, category = [*rng.uniform(0, 60, 2), *rng.uniform(8, 30, 2)], int(rng.choice([*CLASSES]))
            if objects and rng.random() < 0.8:
                model = objects[int(rng.integers(len(objects)))]
                shift = rng.normal(0, rng.choice([0, 1, 5, 9]), 4)
                box = (np.maximum(np.add(model["bbox"], shift), 1)).tolist()
                category = model["category_id"] if rng.random() < 0.7 else category
            score = float(rng.integers(1, 20) / 20)  # with ties
            found.append({"image_id": image_id, "category_id": category, "bbox": box, "score": score})
        predictions[image_id] = found
    images = [{"id": image_id, "file_name": f"{image_id}.png", "width": 90, "height": 90} for image_id in predictions]
    categories = [{"id": id, "name": name} for id, name in CLASSES.items()]
    return {"images": images, "annotations": annotations, "categories": categories}, predictions


def match(ground_truth: Mapping[str, Any], predictions: Predictions, min_score: float = 0) -> Matches:
    matching = Matching(ground_truth)
    for image_id, found in predictions.items():
        matching.add(image_id, [each for each in found if each["score"] >= min_score])
    return matching.finish()


def iou(a: list[float], b: list[float], is_crowd: bool = False) -> float:
    """The definition, for boxes xywh; for a crowd, the fraction of `a` inside `b`."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inside = max(width, 0) * max(height, 0)
    return inside / (a[2] * a[3] if is_crowd else a[2] * a[3] + b[2] * b[3] - inside)


def define_errors(ground_truth: Mapping[str, Any], predictions: Predictions) -> tuple[dict[str, int], dict[str, float]]:
    """TIDE's definition, object by object: the number of errors of each type, and the rise of AP without them."""
    # One entry for each prediction: [score, class, is right, error, class when corrected].
    entries: list[list[Any]] = []
    num_objects, num_missed = dict.fromkeys(CLASSES, 0), dict.fromkeys(CLASSES, 0)
    for image_id, found in predictions.items():
        annotations = [each for each in ground_truth["annotations"] if each["image_id"] == image_id]
        objects = [each for each in annotations if not each["iscrowd"]]
        crowds = [each for each in annotations if each["iscrowd"]]
        owner: dict[int, Any] = {}
        wrong = []
        for prediction in sorted(found, key=lambda each: -each["score"]):
            free = [
                each
                for each in objects
                if each["id"] not in owner
                and each["category_id"] == prediction["category_id"]
                and iou(prediction["bbox"], each["bbox"]) >= 0.5
            ]
            entry = [prediction["score"], prediction["category_id"], bool(free), None, None]
            if free:
                best = max(reversed(free), key=lambda each: iou(prediction["bbox"], each["bbox"]))
                owner[best["id"]] = entry
            elif any(
                each["category_id"] == prediction["category_id"] and iou(prediction["bbox"], each["bbox"], True) >= 0.5
                for each in crowds
            ):
                continue
            else:
                wrong.append((prediction, entry))
            entries.append(entry)
        taken, corrected = set(owner), set()
        for prediction, entry in wrong:
            same = [each for each in objects if each["category_id"] == prediction["category_id"]]
            other = [each for each in objects if each["category_id"] != prediction["category_id"]]
            overlap = {each["id"]: iou(prediction["bbox"], each["bbox"]) for each in objects}
            close = max(same, key=lambda each: overlap[each["id"]], default=None)
            alike = max(other, key=lambda each: overlap[each["id"]], default=None)
            target = None
            if close and 0.1 <= overlap[close["id"]] <= 0.5:
                entry[3], target = "localisation", close
            elif alike and overlap[alike["id"]] >= 0.5:
                entry[3], target = "classification", alike
            elif any(overlap[each["id"]] >= 0.5 for each in same if each["id"] in taken):
                entry[3] = "duplicate"
            elif max(overlap.values(), default=0) <= 0.1:
                entry[3] = "background"
            else:
                entry[3] = "both"
            if target and target["id"] not in taken | corrected:
                corrected.add(target["id"])
                entry[4] = target["category_id"]
        for each in objects:
            num_objects[each["category_id"]] += 1
            num_missed[each["category_id"]] += each["id"] not in taken | corrected
    base = define_ap(entries, num_objects)
    counts = {name: sum(entry[3] == name for entry in entries) for name in TYPES}
    costs = {}
    for name in TYPES:
        others = [entry for entry in entries if entry[3] != name]
        fixed = [[entry[0], entry[4], True, None, None] for entry in entries if entry[3] == name and entry[4]]
        costs[name] = define_ap(others + fixed, num_objects) - base
    left = {category: num_objects[category] - num_missed[category] for category in CLASSES}
    return {**counts, "missed": sum(num_missed.values())}, {
        **costs,
        "missed": define_ap(entries, left) - base,
    }


def define_ap(entries: list[list[Any]], num_objects: Mapping[int, int]) -> float:
    """COCO's AP at IoU 0.5: the mean over recalls 0, 0.01, ... 1 of the highest precision at this recall or more."""
    means = []
    for category in CLASSES:
        if not num_objects[category]:
            continue
        points = []
        right = 0
        mine = sorted((entry for entry in entries if entry[1] == category), key=lambda entry: -entry[0])
        for number, entry in enumerate(mine, 1):
            right += entry[2]
            points.append((right / num_objects[category], right / number))
        recalls = np.linspace(0, 1, 101)
        means.append(np.mean([max((p for r, p in points if r >= recall), default=0) for recall in recalls]))
    return 100 * float(np.mean(means)) if means else 0.0


@pytest.mark.parametrize("seed", range(100))
def test_errors_by_type_are_as_defined(seed: int) -> None:
    ground_truth, predictions = make_case(seed)
    for found in predictions.values():  # without ties, whose order over images is not defined
        for number, each in enumerate(found):
            each["score"] += 1e-3 * (number + 20 * each["image_id"]) / 400
    errors = compute_error_types(match(ground_truth, predictions))
    counts, costs = define_errors(ground_truth, predictions)
    assert {name: error.number for name, error in errors.items()} == counts
    assert {name: error.cost for name, error in errors.items()} == pytest.approx(costs, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_the_ap_is_cocos(seed: int) -> None:
    ground_truth, predictions = make_case(seed)
    metrics = CocoMetrics(ground_truth, ["bbox"])
    for found in predictions.values():
        metrics.add(found)
    matches = match(ground_truth, predictions)
    ap = average_precision(matches.scores, matches.labels, matches.outcomes == RIGHT, matches.num_objects)
    assert ap == pytest.approx(metrics.compute()["bbox"].metrics["AP50"] or 0, abs=1e-9)


@pytest.mark.parametrize("criterion", ["f1", 0.8])
@pytest.mark.parametrize("seed", range(50))
def test_thresholds_are_those_of_a_search(seed: int, criterion: Any) -> None:
    """Each score is tried: the predictions below are removed, and the others are matched again."""
    ground_truth, predictions = make_case(seed)
    everything = match(ground_truth, predictions)
    thresholds = tune_thresholds(everything, criterion)
    for label, name in enumerate(everything.classes):
        num_objects = int(everything.num_objects[label])
        assert (name in thresholds) == (num_objects > 0)
        tried = []
        scores = sorted(set(everything.scores[everything.labels == label].tolist()), reverse=True)
        for score in scores if num_objects else ():
            matches = match(ground_truth, predictions, score)
            is_right = matches.outcomes[matches.labels == label] == RIGHT
            right, wrong, missed = is_right.sum(), (~is_right).sum(), num_objects - is_right.sum()
            precision, recall = right / (right + wrong), right / num_objects
            tried.append((score, precision, recall, 2 * right / (2 * right + wrong + missed)))
        if not any(recall for _, _, recall, _ in tried):
            assert name not in thresholds or thresholds[name].score == DEFAULT
            continue
        if criterion == "f1":
            best = max(tried, key=lambda each: (each[3], each[0]))
        elif precise := [each for each in tried if each[1] >= criterion]:
            best = max(precise, key=lambda each: (each[2], each[0]))
        else:
            best = max(tried, key=lambda each: (each[1], each[0]))
        next_lower = max((score for score in scores if score < best[0]), default=best[0])
        assert thresholds[name] == pytest.approx(((best[0] + next_lower) / 2, *best[1:]))


def test_a_precision_that_no_threshold_has() -> None:
    matches = Matches(
        ("cat",), np.array([0.9, 0.8, 0.7, 0.6]), np.zeros(4, int), np.array([5, RIGHT, RIGHT, 5]), np.full(4, -1),
        np.array([3]), np.array([1]),
    )  # fmt: skip
    threshold = tune_thresholds(matches, 0.99)["cat"]
    assert threshold[:3] == pytest.approx((0.65, 2 / 3, 2 / 3))


def test_more_predictions_than_coco_counts_are_ignored() -> None:
    annotation = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}
    ground_truth = {"categories": [{"id": 3, "name": "cat"}], "annotations": [annotation], "images": [{"id": 1}]}
    found = [{"image_id": 1, "category_id": 3, "bbox": [50, 50, 9, 9], "score": 0.9}] * 100
    matches = match(ground_truth, {1: [*found, {**found[0], "bbox": [0, 0, 9, 9], "score": 0.5}]})
    assert len(matches.scores) == 100 and RIGHT not in matches.outcomes
