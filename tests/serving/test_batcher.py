"""The queue: batches of like images, places, and images that cannot harm others."""

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import BAD, HeldDetector, png

from dpt_zoo.errors import ImageError
from dpt_zoo.inference.detections import Detections
from dpt_zoo.inference.detector import Detector
from dpt_zoo.inference.limits import Limits
from dpt_zoo.serving import batcher as module
from dpt_zoo.serving.batcher import Batcher, ClosedError, EncodedImage, Options, QueueFullError

OPTIONS = Options("model", Limits(0.3))


@pytest.fixture
def held(model_file: Path) -> HeldDetector:
    return HeldDetector(model_file, num_threads=1, batch_size=4)


@pytest.fixture
def make_batcher(held: HeldDetector) -> Iterator[Callable[..., Batcher]]:
    batchers = []

    def make(**options: Any) -> Batcher:
        limits = {"batch_size": 4, "max_images": 100, "max_pixels": 10_000_000, "max_views": 9}
        batchers.append(Batcher(**{"replicas": [{"model": held}], **limits, **options}))
        return batchers[-1]

    yield make
    held.go.set()
    for batcher in batchers:
        batcher.close()


def occupy(batcher: Batcher, held: HeldDetector) -> "Future[Detections]":
    """Let the detector work on one image, and return its future, so that what follows gathers in the queue."""
    (future,) = batcher.submit([EncodedImage("first", png())], OPTIONS)
    wait_until(lambda: held.batches == [["first"]])
    return future


def wait_until(is_true: Callable[[], bool]) -> None:
    for _ in range(6000):
        if is_true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it has not become true")


def submit(batcher: Batcher, images: dict[str, bytes], options: Options = OPTIONS) -> "list[Future[Detections]]":
    return batcher.submit([EncodedImage(*item) for item in images.items()], options)


def test_images_of_one_size_share_batches(make_batcher: Callable[..., Batcher], held: HeldDetector) -> None:
    batcher = make_batcher()
    first = occupy(batcher, held)
    wide = {f"wide {number}": png(size=(64, 32)) for number in range(5)}
    tall = {f"tall {number}": png(size=(32, 64)) for number in range(2)}
    futures = submit(batcher, dict(zip([*wide, *tall], [*wide.values(), *tall.values()], strict=True)))
    wait_until(lambda: all(job.is_ready for job in list(batcher._jobs.values())[1:]))
    held.go.set()
    wait([first, *futures], 60)
    assert held.batches == [["first"], [f"wide {number}" for number in range(4)], ["wide 4"], ["tall 0", "tall 1"]]


def test_replicas_detect_at_the_same_time(
    make_batcher: Callable[..., Batcher], held: HeldDetector, model_file: Path
) -> None:
    other = HeldDetector(model_file, num_threads=1)
    batcher = make_batcher(replicas=[{"model": held}, {"model": other}], batch_size=1)
    futures = submit(batcher, {str(number): png() for number in range(5)})
    wait_until(lambda: len(held.batches) == len(other.batches) == 1)
    held.go.set()
    wait([each for number, each in enumerate(futures) if other.batches != [[str(number)]]], 60)
    assert [len(held.batches), len(other.batches)] == [4, 1]
    other.go.set()
    wait(futures, 60)


def test_options_do_not_mix(make_batcher: Callable[..., Batcher], held: HeldDetector) -> None:
    batcher = make_batcher()
    first = occupy(batcher, held)
    options = [Options("model", Limits(score)) for score in (0.1, 0.5, 0.1, 0.9)]
    futures = [submit(batcher, {f"image {index}": png(200, 100, 40)}, each)[0] for index, each in enumerate(options)]
    wait_until(lambda: all(job.is_ready for job in list(batcher._jobs.values())[1:]))
    held.go.set()
    wait([first, *futures], 60)
    assert held.batches[1:] == [["image 0", "image 2"], ["image 1"], ["image 3"]]
    assert [len(future.result()) for future in futures] == [3, 1, 3, 0]


def test_a_lone_image_does_not_wait(
    make_batcher: Callable[..., Batcher], held: HeldDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_DELAY", 3600)
    held.go.set()
    (future,) = submit(make_batcher(), {"image": png()})
    assert len(future.result(60)) == 2


def test_places(make_batcher: Callable[..., Batcher], held: HeldDetector) -> None:
    sizes: list[int] = []
    batcher = make_batcher(max_images=3, on_queue=sizes.append)
    first = occupy(batcher, held)
    second, third = submit(batcher, {"second": png(), "third": png()})
    with pytest.raises(QueueFullError, match="at most 3 images"):
        submit(batcher, {"fourth": png()})
    assert second.cancel()
    with pytest.raises(QueueFullError):  # all or none
        submit(batcher, {"fourth": png(), "fifth": png()})
    (fourth,) = submit(batcher, {"fourth": png()})
    held.go.set()
    wait([first, third, fourth], 60)
    wait_until(lambda: not batcher._jobs)
    assert (max(sizes), sizes[-1]) == (3, 0)
    assert sorted(itertools.chain(*held.batches)) == ["first", "fourth", "third"]


def test_what_waits_at_the_end_is_refused(make_batcher: Callable[..., Batcher], held: HeldDetector) -> None:
    batcher = make_batcher()
    first = occupy(batcher, held)
    (second,) = submit(batcher, {"second": png()})
    batcher.close()
    with pytest.raises(ClosedError):
        second.result(60)
    with pytest.raises(ClosedError):
        submit(batcher, {"third": png()})
    held.go.set()
    assert len(first.result(60)) == 2
    wait_until(lambda: not batcher.is_alive)


def test_an_image_that_crashes_the_detector_is_alone(make_batcher: Callable[..., Batcher], held: HeldDetector) -> None:
    batcher = make_batcher()
    occupy(batcher, held)
    held.poison = "b"
    futures = submit(batcher, {"a": png(90), "b": png(), "c": png(80)})
    held.go.set()
    with pytest.raises(RuntimeError, match="out of memory"):
        futures[1].result(60)
    assert [futures[index].result(60).scores[0] for index in (0, 2)] == pytest.approx([90 / 255, 80 / 255])


def test_few_decoded_images_are_in_memory(
    make_batcher: Callable[..., Batcher], held: HeldDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_DECODED", 10_000)
    batcher = make_batcher()
    occupy(batcher, held)
    futures = submit(batcher, {f"image {number}": png(size=(100, 50)) for number in range(20)})
    pixels = lambda: sum(job.pixels.size // 3 for job in list(batcher._jobs.values()) if job.pixels is not None)  # noqa: E731
    wait_until(lambda: pixels() > 10_000)
    threading.Event().wait(0.2)  # for readers that do not stop
    assert pixels() <= 10_000 + (1 + module.READERS) * 5000
    held.go.set()
    wait(futures, 60)
    assert all(len(future.result()) == 2 for future in futures)


def test_a_client_that_leaves_frees_its_image(make_batcher: Callable[..., Batcher], held: HeldDetector) -> None:
    batcher = make_batcher()
    occupy(batcher, held)
    (future,) = submit(batcher, {"image": png()})
    assert future.cancel()
    assert len(batcher._jobs) == 1
    with pytest.raises(CancelledError):
        future.result(60)


IMAGES = st.one_of(
    st.just(BAD),
    st.builds(png, st.integers(0, 255), st.integers(0, 255), size=st.sampled_from([(64, 48), (48, 64), (64, 47)])),
    st.builds(lambda image, end: image[:end], st.just(png()), st.integers(0, 150)),
)


@pytest.fixture(scope="module")
def replicas(model_file: Path) -> list[dict[str, Detector]]:
    return [{"model": Detector(model_file, num_threads=1)} for _ in range(2)]


@settings(max_examples=30, deadline=None)
@given(images=st.lists(IMAGES, min_size=1, max_size=12), batch_size=st.integers(1, 5), count=st.integers(1, 2))
def test_no_image_changes_another(
    images: list[bytes], batch_size: int, count: int, replicas: list[dict[str, Detector]], detector: Detector
) -> None:
    """Whatever arrives together, each image has the detections that it has alone, or its own error."""
    batcher = Batcher(replicas[:count], batch_size=batch_size, max_images=12, max_pixels=10**6, max_views=1)
    futures = submit(batcher, {f"image {index}": image for index, image in enumerate(images)})
    results = [future.exception(60) or future.result() for future in futures]
    batcher.close()
    for index, (image, result) in enumerate(zip(images, results, strict=True)):
        try:
            expected = detector(image)
        except ImageError as error:
            assert str(result) == str(error).replace("image-1", f"image {index}")
        else:
            assert isinstance(result, Detections)
            assert result.image is None
            assert {**result.to_json(), "path": None} == {**expected.to_json(), "path": None}
            np.testing.assert_array_equal(result.scores, expected.scores)
