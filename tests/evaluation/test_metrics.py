"""COCO's metrics: known by hand, and the same from every library that computes them."""

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as rle
from torchmetrics.detection import MeanAveragePrecision

from dpt_zoo.evaluation.metrics import EVALUATORS, NAMES, TASKS, CocoDict, CocoMetrics, Evaluator, Metrics, Score, Task

Mask = NDArray[np.uint8]

HEIGHT, WIDTH = 110, 130
AREAS = {"all": (0, np.inf), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}


@dataclass(frozen=True)
class Case:
    """What is there and what was found, in images of `HEIGHT` x `WIDTH`.

    Attributes:
        images: their ids.
        classes: the ids of the categories.
        objects: the annotations, without their ids.
        found: the results.
        counted: the images that count.
    """

    images: Sequence[int]
    classes: Sequence[int]
    objects: list[CocoDict]
    found: list[CocoDict]
    counted: list[int] | None = None

    @property
    def counted_images(self) -> list[int]:
        """In the order that ties of scores are broken in."""
        return sorted(self.images if self.counted is None else self.counted)

    def score(self, task: Task, evaluator: Evaluator = "faster-coco-eval") -> Score:
        return self.scores([task], evaluator)[task]

    def scores(self, tasks: Sequence[Task], evaluator: Evaluator, max_detections: int = 100) -> dict[Task, Score]:
        content = {
            "images": [{"id": id, "height": HEIGHT, "width": WIDTH, "file_name": f"{id}.png"} for id in self.images],
            "annotations": [{"id": number, **record} for number, record in enumerate(self.objects, 1)],
            "categories": [{"id": id, "name": f"class {id}"} for id in self.classes],
        }
        metrics = CocoMetrics(content, tasks, self.counted, evaluator, max_detections)
        for image in self.images:
            metrics.add(of_image(self.found, image))
        return metrics.compute()


def coded(mask: Mask) -> CocoDict:
    """A run-length code as a JSON file has it."""
    code = rle.encode(np.asfortranarray(mask))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def mask_of(segmentation: Any) -> Mask:
    """What any of COCO's forms stands for: polygons, run lengths, a run-length code."""
    if isinstance(segmentation, list):
        return rle.decode(rle.merge(rle.frPyObjects(segmentation, HEIGHT, WIDTH)))
    if isinstance(segmentation["counts"], list):
        return rle.decode(rle.frPyObjects(segmentation, HEIGHT, WIDTH))
    return rle.decode(segmentation)


# --- Known by hand


class Box(NamedTuple):
    x: int
    y: int
    width: int
    height: int


SMALL, MEDIUM, LARGE = Box(105, 0, 20, 20), Box(105, 25, 20, 60), Box(0, 0, 100, 100)
ELSEWHERE = Box(110, 40, 20, 60)  # of medium size
PART = Box(0, 0, 62, 100)  # its IoU with LARGE is 0.62, at or over 3 of the 10 thresholds
NOTHING: Metrics = dict.fromkeys(NAMES)
ALL: Metrics = dict.fromkeys(("mAP", "AP50", "AP75", "AR1", "AR10", "AR100"), 100.0)
NONE: Metrics = dict.fromkeys(ALL, 0.0)


def there(box: Box, label: int = 1, image: int = 1, **more: Any) -> CocoDict:
    (x, y, width, height), area = box, box.width * box.height
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    record = {"image_id": image, "category_id": label, "bbox": list(box), "area": area, "iscrowd": 0}
    return {**record, "segmentation": [corners], **more}


def found(box: Box, score: float = 0.5, label: int = 1, image: int = 1) -> CocoDict:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[box.y : box.y + box.height, box.x : box.x + box.width] = 1
    record = {"image_id": image, "category_id": label, "bbox": list(box), "score": score}
    return {**record, "segmentation": coded(mask)}


@pytest.fixture(params=EVALUATORS)
def evaluator(request: pytest.FixtureRequest) -> Evaluator:
    return request.param


Measure = Callable[..., Score]


@pytest.fixture(params=TASKS)
def measure(request: pytest.FixtureRequest, evaluator: Evaluator) -> Measure:
    """Compare objects and what was found, in two images of two classes, by boxes or by masks, which are the same."""

    def compare(objects: list[CocoDict], found: list[CocoDict], counted: list[int] | None = None) -> Score:
        return Case((1, 2), (1, 2), objects, found, counted).score(request.param, evaluator)

    return compare


def check(score: Score, metrics: Metrics | None = None, **more: float | None) -> None:
    expected = {**(metrics or {}), **more}
    assert {name: score.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_found(measure: Measure) -> None:
    score = measure([there(MEDIUM)], [found(MEDIUM, 0.1)])
    assert tuple(score.metrics) == NAMES
    check(score, NOTHING | ALL, APm=100, ARm=100)
    assert score.precision.shape == (10, 101, 2)
    assert score.precision[..., 0] == pytest.approx(np.ones((10, 101)))
    assert (score.precision[..., 1] == -1).all()


def test_missed(measure: Measure) -> None:
    check(measure([there(LARGE)], []), NOTHING | NONE, APl=0, ARl=0)
    check(measure([there(LARGE)], [found(LARGE, label=2)]), NONE)
    check(measure([there(LARGE)], [found(LARGE, image=2)]), NONE)
    half = measure([there(LARGE), there(MEDIUM)], [found(LARGE)])
    check(half, mAP=100 * 51 / 101, AR100=50, APl=100, APm=0)  # of the recalls 0, 0.01, ... 51 are at most 0.5


def test_found_roughly(measure: Measure) -> None:
    check(measure([there(LARGE)], [found(PART)]), mAP=30, AP50=100, AP75=0, AR1=30, AR10=30, AR100=30)


def test_found_twice(measure: Measure) -> None:
    check(measure([there(LARGE)], [found(LARGE, 0.9), found(PART, 0.8)]), ALL)
    # The surer one is right where its IoU suffices, and otherwise a false alarm before the right one.
    score = measure([there(LARGE)], [found(LARGE, 0.8), found(PART, 0.9)])
    check(score, mAP=(3 * 100 + 7 * 50) / 10, AP50=100, AP75=50, AR1=30, AR10=100, AR100=100)


def test_false_alarms(measure: Measure) -> None:
    check(measure([there(LARGE)], [found(LARGE, 0.9), found(ELSEWHERE, 0.8)]), ALL)
    check(measure([there(LARGE)], [found(LARGE, 0.8), found(ELSEWHERE, 0.9)]), mAP=50, AR1=0, AR10=100)


def test_the_first_of_a_tie_comes_first(measure: Measure) -> None:
    check(measure([there(LARGE)], [found(LARGE), found(ELSEWHERE)]), mAP=100)
    check(measure([there(LARGE)], [found(ELSEWHERE), found(LARGE)]), mAP=50)


def test_crowds(measure: Measure) -> None:
    crowd, members = there(LARGE, iscrowd=1), [found(Box(i, 20, 30, 60), 0.9) for i in range(5)]
    check(measure([crowd, there(MEDIUM)], [*members, found(MEDIUM, 0.5)]), ALL, AR1=0)  # the surest is of the crowd
    check(measure([crowd], members), NOTHING)


def test_ignore_flags(measure: Measure) -> None:
    """COCO's own metric puts "iscrowd" in their place."""
    check(measure([there(LARGE, ignore=1)], []), NONE)
    check(measure([there(LARGE, ignore=0, iscrowd=1)], []), NOTHING)


def test_the_hundred_surest_of_an_image_count(measure: Measure) -> None:
    alarms, right = [found(Box(i, 101, 30, 9), 0.9) for i in range(100)], found(LARGE, 0.5)
    check(measure([there(LARGE)], [*alarms[1:], right]), mAP=1, AR1=0, AR10=0, AR100=100)
    check(measure([there(LARGE)], [*alarms, right]), NONE)


def test_more_than_a_hundred_of_an_image_can_count(evaluator: Evaluator) -> None:
    predictions = [*(found(Box(i, 101, 30, 9), 0.9) for i in range(100)), found(LARGE, 0.5)]
    case = Case((1,), (1,), [there(LARGE)], predictions)
    metrics = case.scores(["bbox"], evaluator, max_detections=300)["bbox"].metrics
    assert (metrics["AR300"], metrics["AR10"]) == (100, 0) and "AR100" not in metrics
    assert metrics["mAP"] == pytest.approx(100 / 101)


def test_sizes(measure: Measure) -> None:
    objects = [there(SMALL), there(MEDIUM), there(LARGE)]
    check(measure(objects, [found(SMALL)]), APs=100, APm=0, APl=0, ARs=100, ARm=0, ARl=0)
    # A false alarm counts among those of its size.
    everything = [found(SMALL), found(ELSEWHERE, 0.9), found(MEDIUM), found(LARGE)]
    check(measure(objects, everything), APs=100, APm=50, APl=100)
    # An object's size is what the file says.
    check(measure([there(LARGE, area=500)], [found(LARGE)]), APs=100, APm=None, APl=None)


@pytest.mark.parametrize(
    ("side", "metrics"), [(32, {"APs": 100, "APm": 100, "APl": None}), (96, {"APs": None, "APm": 100, "APl": 100})]
)
def test_borders_of_sizes(measure: Measure, side: int, metrics: Metrics) -> None:
    """Both sizes have them."""
    box = Box(0, 0, side, side)
    check(measure([there(box)], [found(box)]), metrics)


@pytest.mark.parametrize(("task", "small"), [("bbox", 100), ("segm", 50)])
def test_the_size_of_a_false_alarm_is_that_of_its_task(task: Task, small: float, evaluator: Evaluator) -> None:
    few_pixels = {**found(LARGE, 0.9), "segmentation": found(Box(0, 0, 10, 10))["segmentation"]}
    case = Case([1], [1], [there(SMALL)], [few_pixels, found(SMALL, 0.5)])
    check(case.score(task, evaluator), mAP=50, APs=small)


@pytest.mark.parametrize("detections", [[], [found(LARGE)]], ids=["nothing found", "something found"])
def test_nothing_to_find(measure: Measure, detections: list[CocoDict]) -> None:
    score = measure([], detections)
    check(score, NOTHING)
    assert score.per_class == {"class 1": NOTHING, "class 2": NOTHING}
    assert (score.precision == -1).all()


def test_classes(measure: Measure) -> None:
    score = measure([there(LARGE), there(MEDIUM, label=2)], [found(LARGE)])
    check(score, mAP=50, APm=0, APl=100)
    assert list(score.per_class) == ["class 1", "class 2"]
    assert score.per_class["class 1"] == pytest.approx(NOTHING | ALL | {"APl": 100, "ARl": 100})
    assert score.per_class["class 2"] == NOTHING | NONE | {"APm": 0, "ARm": 0}


def test_images_that_count(measure: Measure) -> None:
    objects, detections = [there(LARGE), there(LARGE, image=2)], [found(LARGE), found(ELSEWHERE, 0.9, image=2)]
    check(measure(objects, detections, [1]), ALL)
    check(measure(objects, detections, [2]), NONE)
    check(measure(objects, detections, []), NOTHING)


def test_nothing_is_left_behind(measure: Measure, capsys: pytest.CaptureFixture[str]) -> None:
    detections = [found(LARGE)]
    measure([there(LARGE)], detections)
    assert detections == [found(LARGE)]
    with pytest.raises(KeyError):
        measure([there(LARGE)], [{}])
    assert gc.isenabled()
    assert capsys.readouterr() == ("", "")


# --- The same from every library

corners = st.tuples(st.integers(0, 2 * WIDTH), st.integers(0, 2 * HEIGHT))
outlines = st.lists(corners, min_size=3, max_size=6)
polygons = outlines.map(lambda outline: [half / 2 for corner in outline for half in corner])
sides = st.sampled_from([32, 96]) | st.integers(1, 100)
scores = st.sampled_from([0.25, 0.5]) | st.floats(0, 1, width=32)


@st.composite
def rectangles(draw: st.DrawFn) -> Mask:
    """Often of an area at which one size ends and the next begins."""
    width, height = draw(sides), draw(sides)
    x, y = draw(st.integers(0, WIDTH - width)), draw(st.integers(0, HEIGHT - height))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


@st.composite
def patterns(draw: st.DrawFn) -> Mask:
    """In parts and with holes; or nothing at all."""
    bits = draw(st.integers(0, 2**30 - 1))
    tiles = np.array([bits >> place & 1 for place in range(30)], np.uint8).reshape(5, 6)
    return np.kron(tiles, np.ones((22, 22), np.uint8))[:HEIGHT, :WIDTH]


def run_lengths(mask: Mask) -> CocoDict:
    """As COCO's files have a crowd: how many pixels, down the columns, are off, on, off, ..."""
    starts = np.flatnonzero(np.diff(mask.flatten(order="F"), prepend=0, append=2))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(starts, prepend=0).tolist()}


masks = rectangles() | patterns()
segmentations = st.lists(polygons, min_size=1, max_size=2) | masks.map(coded) | masks.map(run_lengths)


@st.composite
def objects(draw: st.DrawFn, image: int, classes: Sequence[int]) -> CocoDict:
    segmentation = draw(segmentations)
    code = coded(mask_of(segmentation))
    record = {
        "image_id": image,
        "category_id": draw(st.sampled_from(classes)),
        "segmentation": segmentation,
        "bbox": rle.toBbox(code).tolist(),
        "area": draw(st.sampled_from([float(rle.area(code)), 32**2, 96**2])),
        "iscrowd": draw(st.sampled_from([0, 0, 0, 1])),
    }
    return record | draw(st.fixed_dictionaries({}, optional={"ignore": st.integers(0, 1)}))


@st.composite
def detections(draw: st.DrawFn, objects: Sequence[CocoDict], image: int, classes: Sequence[int]) -> CocoDict:
    """Of one of the objects, more or less, or anywhere."""
    near = draw(st.sampled_from([*objects, None]))
    mask = mask_of(near["segmentation"]) if near else draw(masks)
    x, y, width, height = rle.toBbox(coded(mask)).tolist()
    shift = draw(st.integers(-3, 3))
    return {
        "image_id": image,
        "category_id": near["category_id"] if near else draw(st.sampled_from(classes)),
        "bbox": [x + shift / 4, y, width + draw(st.integers(0, 8)) / 4, height],
        "segmentation": coded(np.roll(mask, shift, axis=1)),
        "score": draw(scores),
    }


@st.composite
def cases(draw: st.DrawFn) -> Case:
    images = draw(st.lists(st.integers(1, 99), min_size=1, max_size=3, unique=True))
    classes = draw(st.lists(st.integers(1, 90), min_size=1, max_size=3, unique=True))
    all_there: list[CocoDict] = []
    all_found: list[CocoDict] = []
    for image in images:
        there = draw(st.lists(objects(image, classes), max_size=5))
        found = draw(st.lists(detections(there, image, classes), max_size=8))
        if draw(st.booleans()):
            found += found[:1] * 110  # more than count in an image, of one class and score
        all_there += there
        all_found += found
    counted = draw(st.none() | st.lists(st.sampled_from(images), min_size=1, unique=True))
    return Case(images, classes, all_there, draw(st.permutations(all_found)), counted)


generated = partial(settings, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_ground_truth_is_not_changed(evaluator: Evaluator) -> None:
    annotation = {"id": 1, **there(LARGE)}
    image = {"id": 1, "height": HEIGHT, "width": WIDTH}
    content = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "one"}]}
    CocoMetrics(content, evaluator=evaluator).compute()
    assert annotation == {"id": 1, **there(LARGE)}


@pytest.mark.slow
@generated(max_examples=250)
@given(case=cases())
def test_both_evaluators_agree(case: Case) -> None:
    scores = [case.scores(TASKS, evaluator) for evaluator in EVALUATORS]
    for task in TASKS:
        one, other = (each[task] for each in scores)
        assert one.metrics == pytest.approx(other.metrics, abs=1e-9)
        assert list(one.per_class) == list(other.per_class)
        for name, metrics in one.per_class.items():
            assert metrics == pytest.approx(other.per_class[name], abs=1e-9)
        np.testing.assert_allclose(one.precision, other.precision, rtol=0, atol=1e-9)


@generated(max_examples=30)
@given(case=cases())
def test_the_whole_is_the_mean_of_the_classes(case: Case) -> None:
    for task in TASKS:
        score = case.score(task)
        known = score.precision[score.precision > -1]
        assert score.metrics["mAP"] == (pytest.approx(100 * known.mean()) if known.size else None)
        for name, whole in score.metrics.items():
            parts = [each for metrics in score.per_class.values() if (each := metrics[name]) is not None]
            assert whole == (pytest.approx(np.mean(parts)) if parts else None)


@pytest.mark.slow
@generated(max_examples=30)
@given(case=cases())
def test_third_opinions(case: Case) -> None:
    """torchmetrics', which has its own way to pycocotools, and the definition's, with no library but to read masks."""
    torchmetrics = by_torchmetrics(case)
    for task in TASKS:
        metrics = case.score(task).metrics
        assert metrics == pytest.approx(torchmetrics[task], abs=1e-4)  # float32
        assert metrics == pytest.approx(by_definition(case, task), abs=1e-9)


def of_image(records: list[CocoDict], image: int) -> list[CocoDict]:
    return [record for record in records if record["image_id"] == image]


def by_torchmetrics(case: Case) -> dict[Task, Metrics]:
    """Its default thresholds are float32, so COCO's are passed; with masks alone it would skip images without any."""
    metric = MeanAveragePrecision(
        box_format="xywh",
        iou_type=TASKS,
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
    )
    metric.warn_on_many_detections = False
    for image in case.counted_images:
        there, found = (of_image(records, image) for records in (case.objects, case.found))
        more = {name: torch.tensor([each[name] for each in there]) for name in ("area", "iscrowd")}
        scores = torch.tensor([each["score"] for each in found])
        metric.update([{**as_tensors(found), "scores": scores}], [{**as_tensors(there), **more}])
    results = metric.compute()
    names = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large"]
    names += ["mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"]
    values = {task: [results[f"{task}_{name}"].item() for name in names] for task in TASKS}
    in_percent = {task: [None if each < 0 else 100 * each for each in values[task]] for task in TASKS}
    return {task: dict(zip(NAMES, in_percent[task], strict=True)) for task in TASKS}


def as_tensors(records: list[CocoDict]) -> dict[str, torch.Tensor]:
    masks = [mask_of(each["segmentation"]) for each in records]
    return {
        "boxes": torch.tensor([each["bbox"] for each in records]).reshape(-1, 4),
        "labels": torch.tensor([each["category_id"] for each in records], dtype=torch.long),
        "masks": torch.from_numpy(np.array(masks, bool).reshape(-1, HEIGHT, WIDTH)),
    }


class Scene(NamedTuple):
    """What is there and what was found of one class in one image."""

    there: list[CocoDict]
    found: list[CocoDict]  # the surest first
    sizes: list[float]  # of those
    overlaps: list[list[float]]  # of each of those with each that is there


def by_definition(case: Case, task: Task) -> Metrics:
    """COCO's twelve as its site describes them, step by step."""
    classes = [[scene_of(case, task, image, label) for image in case.counted_images] for label in case.classes]
    every, half, three_quarters = np.linspace(0.5, 0.95, 10), [0.5], [0.75]

    def mean(which: int, thresholds: Iterable[float], size: str = "all", limit: int = 100) -> float | None:
        results = [judge(scenes, threshold, size, limit) for scenes in classes for threshold in thresholds]
        values = [100 * result[which] for result in results if result]
        return float(np.mean(values)) if values else None

    precision, recall = partial(mean, 0), partial(mean, 1)
    metrics = [precision(thresholds) for thresholds in (every, half, three_quarters)]
    metrics += [precision(every, size) for size in ("small", "medium", "large")]
    metrics += [recall(every, limit=limit) for limit in (1, 10, 100)]
    metrics += [recall(every, size) for size in ("small", "medium", "large")]
    return dict(zip(NAMES, metrics, strict=True))


def judge(scenes: list[Scene], threshold: float, size: str, limit: int) -> tuple[float, float] | None:
    """The average precision and the recall of a class; None if it has no object of this size."""
    low, high = AREAS[size]
    judged: list[tuple[float, bool]] = []
    number = 0
    for scene in scenes:
        counts = [not each["iscrowd"] and low <= each["area"] <= high for each in scene.there]
        number += sum(counts)
        taken: set[int] = set()
        for detection, own_size, overlaps in list(zip(scene.found, scene.sizes, scene.overlaps, strict=True))[:limit]:
            fitting = [place for place, overlap in enumerate(overlaps) if overlap >= threshold and place not in taken]
            best = max(fitting, key=lambda place: (counts[place], overlaps[place], place), default=None)
            if best is not None and not scene.there[best]["iscrowd"]:
                taken.add(best)
            if counts[best] if best is not None else low <= own_size <= high:
                judged.append((detection["score"], best is not None))
    if not number:
        return None
    right = np.cumsum([is_right for _, is_right in sorted(judged, key=lambda each: -each[0])])
    recalls, precisions = right / number, right / np.arange(1, len(right) + 1)
    best_from = [precisions[recalls >= recall].max(initial=0) for recall in np.linspace(0, 1, 101)]
    return float(np.mean(best_from)), recalls.max(initial=0)


def scene_of(case: Case, task: Task, image: int, label: int) -> Scene:
    there, found = (
        [record for record in of_image(records, image) if record["category_id"] == label]
        for records in (case.objects, case.found)
    )
    found = sorted(found, key=lambda each: -each["score"])[:100]
    shared = intersections(found, there, task)
    sizes, sizes_there = (intersections(records, records, task).diagonal() for records in (found, there))
    crowds = np.array([each["iscrowd"] for each in there], bool)
    whole = sizes[:, None] + np.where(crowds, 0, sizes_there - shared)
    overlaps = np.divide(shared, whole, out=np.zeros_like(shared), where=shared > 0)
    return Scene(there, found, sizes.tolist(), overlaps.tolist())


def intersections(found: list[CocoDict], there: list[CocoDict], task: Task) -> NDArray[np.float64]:
    """The areas that each shares with each."""
    if task == "segm":
        pixels = [[mask_of(each["segmentation"]) for each in records] for records in (found, there)]
        one, other = (np.array(each, float).reshape(-1, HEIGHT * WIDTH) for each in pixels)
        return one @ other.T
    boxes = [np.array([each["bbox"] for each in records], float).reshape(-1, 4) for records in (found, there)]
    one, other = boxes[0][:, None], boxes[1][None]
    ends = np.minimum(one[..., :2] + one[..., 2:], other[..., :2] + other[..., 2:])
    return np.prod(np.maximum(ends - np.maximum(one[..., :2], other[..., :2]), 0), axis=-1)
