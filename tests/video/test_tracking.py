"""Objects are followed through a film of eight digits that cross, one of which is hidden for a while."""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trackers
from digit_film import HIDDEN, HIDDEN_FRAMES, Film, idf1, ids_of, ious, make_film, write_film
from exported_files import make_onnx
from numpy.typing import NDArray

from dpt_zoo import Detections, Detector
from dpt_zoo.batch.trails import Trails
from dpt_zoo.cli import detect
from dpt_zoo.errors import DependencyError, ImageError, InputError
from dpt_zoo.inference import detector as detector_module
from dpt_zoo.video.tracker import TRACKERS, Tracker

THRESHOLD = 0.3
LOWEST_IDF1 = {"bytetrack": 0.95, "botsort": 0.9, "cbiou": 0.95, "ocsort": 0.95, "sort": 0.7}


@pytest.fixture(scope="module")
def simple_detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    """It detects three objects at the same places in every image; the first pixel has their scores."""
    return Detector(make_onnx(tmp_path_factory.mktemp("simple") / "model.onnx"), score_threshold=THRESHOLD)


@dataclass
class Tracking:
    """What a tracker got of each frame of the film, and what `Detector.track` returned."""

    film: Film
    path: Path
    given: list[Detections]
    returned: list[Detections]


@pytest.fixture(scope="module")
def tracking(exported_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    film, given = make_film(), list[Detections]()
    path = write_film(tmp_path_factory.mktemp("film") / "film.mp4", film.frames)

    class Recorder(Tracker):
        def __call__(self, detections: Detections) -> Detections:
            given.append(detections)
            return super().__call__(detections)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector_module, "Tracker", Recorder)
        return Tracking(film, path, given, list(Detector(exported_demo, score_threshold=THRESHOLD).track(path)))


def track_ids(detections: Detections) -> list[int]:
    return ids_of(detections).tolist()


def replay(name: str, given: list[Detections]) -> list[Detections]:
    tracker = Tracker(name, 25)
    return [tracker(each).filter(THRESHOLD) for each in given]


def objects_at(boxes: Any, scores: Any) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.zeros(len(scores), np.int64),
        ("digit",),
        (100, 200),
    )


def test_the_command_offers_them() -> None:
    assert tuple(TRACKERS) == detect.TRACKERS


@pytest.mark.slow
class TestFilm:
    def test_tracks_are_those_of_the_digits(self, tracking: Tracking) -> None:
        assert len(tracking.returned) == len(tracking.film.frames)
        assert idf1(tracking.film, tracking.returned) >= 0.95

    def test_a_hidden_digit_gets_its_id_again(self, tracking: Tracking) -> None:
        ids = []
        for frame in (HIDDEN_FRAMES.start - 1, HIDDEN_FRAMES.stop + 5):
            tracked = tracking.returned[frame][ids_of(tracking.returned[frame]) > 0]
            ids.append(track_ids(tracked)[ious(tracked.boxes, tracking.film.boxes[frame, HIDDEN]).argmax()])
        assert ids[0] == ids[1]

    def test_the_tracker_gets_low_scores_and_the_caller_does_not(self, tracking: Tracking) -> None:
        assert 0.1 <= min(each.scores.min() for each in tracking.given if len(each)) < THRESHOLD
        for given, returned in zip(tracking.given, tracking.returned, strict=True):
            expected = given.filter(THRESHOLD)
            assert np.array_equal(returned.boxes, expected.boxes) and np.array_equal(returned.labels, expected.labels)

    @pytest.mark.parametrize("name", TRACKERS)
    def test_every_tracker(self, tracking: Tracking, name: str) -> None:
        first, second = replay(name, tracking.given), replay(name, tracking.given)
        assert list(map(track_ids, first)) == list(map(track_ids, second))
        assert idf1(tracking.film, first) >= LOWEST_IDF1[name]

    def test_pytorch_finds_the_same_tracks(self, tracking: Tracking) -> None:
        detector = Detector("mrcnn_dpt_nano_digits", score_threshold=THRESHOLD, device="cpu")
        results = list(itertools.islice(detector.track(tracking.path), 20))
        assert list(map(track_ids, results)) == list(map(track_ids, tracking.returned[:20]))


def test_a_video_is_read_as_it_is_needed_and_leaves_no_state(simple_detector: Detector) -> None:
    read = []

    def frames() -> Iterator[NDArray[np.uint8]]:
        for index in range(100):
            read.append(index)
            yield np.full((64, 96, 3), 250, np.uint8)

    tracker = trackers.ByteTrackTracker()
    for kind in ("bytetrack", tracker, tracker):
        results = list(itertools.islice(simple_detector.track(frames(), kind), 3))
        assert list(map(track_ids, results)) == [[-1, -1, -1], [1, 2, 3], [1, 2, 3]]
    assert len(read) < 3 * 10


def test_frames_before_damage_are_yielded(simple_detector: Detector, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (60, 64, 96, 3), np.uint8)
    results = simple_detector.track([frames[0], frames[1], "missing.png"])
    assert len(list(itertools.islice(results, 2))) == 2
    with pytest.raises(ImageError, match=r"missing\.png"):
        next(results)
    damaged, done = write_film(tmp_path / "damaged.mkv", frames), list[Detections]()
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    with pytest.raises(ImageError, match="damaged or cut off after") as raised:
        done.extend(simple_detector.track(damaged))
    assert f"after {len(done)} frames" in str(raised.value) and len(done) > 10


def test_low_scores_continue_a_track_but_begin_none() -> None:
    """An object turns back while its score is low for 20 frames; another one always has a low score."""
    frames = []
    for index, score in enumerate([0.9] * 5 + [0.15] * 20 + [0.9] * 5):
        left = 4 * min(index, 30 - index)
        frames.append(objects_at([(left, 0, left + 20, 20), (0, 60, 20, 80)], (score, 0.2)))
    followed = list(map(track_ids, map(Tracker("bytetrack"), frames)))
    assert followed == [[-1, -1]] + [[1, -1]] * 29
    without = list(map(track_ids, map(Tracker("bytetrack"), (each.filter(THRESHOLD) for each in frames))))
    assert without[4] == [1] and without[-1] == [2]


def test_frames_without_objects() -> None:
    tracker, nothing, one = Tracker("bytetrack"), objects_at([], []), objects_at([(0, 0, 9, 9)], [0.9])
    assert [track_ids(tracker(each)) for each in (nothing, one, one, nothing, one)] == [[], [-1], [1], [], [1]]


def test_what_is_no_video_or_tracker(simple_detector: Detector, tmp_path: Path) -> None:
    for video, complaint in (
        ("https://example.org/film.mp4", "a video at a URL cannot be read"),
        (tmp_path, "there are no images in this folder"),
    ):
        with pytest.raises(InputError, match=complaint):
            next(simple_detector.track(video))
    with pytest.raises(InputError, match="tracker 'deepsort' is unknown: choose from bytetrack, "):
        next(simple_detector.track([np.zeros((64, 64, 3), np.uint8)], "deepsort"))
    with pytest.raises(ImageError, match="no such file"):
        next(simple_detector.track(tmp_path / "film.mp4"))


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(DependencyError, match=r'pip install "dpt-zoo\[track\]"'):
        Tracker("bytetrack")


def test_trails_lead_to_where_an_object_was() -> None:
    trails, image = Trails((100, 200)), np.full((100, 200, 3), 128, np.uint8)
    for left in (10, 40, 70):
        one = replace(objects_at([(left, 40, left + 20, 60)], [0.9]), image=image, track_ids=np.array([5]))
        drawn = np.asarray(trails.plot(one))
    colour = drawn[40, 80]
    assert (drawn[50, 20:50] == colour).all() and (colour != 128).any()
    assert (drawn[50, 10:18] == 128).all() and (image == 128).all()
