"""Digit scenes: equal for equal seeds, correct masks and labels, readable as COCO data, complete or absent."""

import hashlib
import itertools
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from reference_data import ROOT

from dpt_zoo.data.digits import (
    CLASSES,
    MAX_DIGITS,
    MAX_TURN,
    MIN_CONTRAST,
    MIN_DIGITS,
    Digits,
    Scene,
    digit_scene,
    make_digit_scenes,
    read_digits,
)
from dpt_zoo.errors import DPTZooError, InputError, OutputError

FEW: dict[str, Any] = {"num_train": 4, "num_test": 3, "seed": 5, "size": 96}
COUNTS = {"train2017": 4, "val2017": 3}
TWO = {**FEW, "num_train": 1, "num_test": 1, "size": 64}
TRAIN = read_digits("train")

Box = tuple[int, int, int, int]
Mask = NDArray[np.bool_]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a few scenes; tests only read it."""
    folder = tmp_path_factory.mktemp("digits") / "few"
    make_digit_scenes(folder, **FEW)
    return folder


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return [draw(number) for number in range(200)]


class TestDigits:
    """The digits that are drawn."""

    def test_shapes_and_values(self) -> None:
        for digits, count in ((TRAIN, 1347), (read_digits("test"), 450)):
            assert digits.images.shape == (count, 8, 8)
            assert digits.images.dtype == np.uint8
            assert (digits.images.min(), digits.images.max()) == (0, 16)
            assert digits.labels.shape == (count,)
            assert min(np.bincount(digits.labels, minlength=10)) > count // 12

    def test_none_is_in_both_splits(self) -> None:
        train, test = ({image.tobytes() for image in digits.images} for digits in (TRAIN, read_digits("test")))
        assert len(train | test) == 1797
        assert not train & test

    def test_without_scikit_learn(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        with pytest.raises(DPTZooError, match="pip install scikit-learn"):
            make_digit_scenes(tmp_path / "new", **FEW)
        assert not (tmp_path / "new").exists()


class TestScene:
    """One scene: its image, masks and labels."""

    def test_pixels_are_unchanged(self) -> None:
        digest = hashlib.sha256()
        for number in range(5):
            for array in draw(number):
                digest.update(np.ascontiguousarray(array).astype("<i8").tobytes())
        assert digest.hexdigest() == "48cdf9d4104c3789660237a412c53f3b88bc379d557a283c04a1d56a03c143ce"

    @settings(max_examples=40, deadline=None)
    @given(number=st.integers(0, 2**63), size=st.integers(64, 256))
    def test_any(self, number: int, size: int) -> None:
        image, masks, labels = draw(number, size=size)
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        assert masks.shape == (len(labels), size, size)
        assert masks.dtype == np.bool_
        assert masks.any(axis=(1, 2)).all()
        assert masks.sum(axis=0).max() == 1
        assert labels.dtype == np.int64
        assert set(labels) <= set(range(10))
        assert MIN_DIGITS <= len(labels) <= MAX_DIGITS

    def test_masks_are_what_is_seen(self, many: list[Scene]) -> None:
        """Pixels in a mask have the digit's brightness, and those around it the background's."""
        for image, masks, _ in many:
            grey = np.asarray(Image.fromarray(image).convert("L"), int)
            digits = masks.any(axis=0)
            for mask in masks:
                around = grow(mask, 5) & ~grow(digits & ~mask, 2) & ~mask
                level, ground = np.median(grey[mask]), np.median(grey[around & ~grow(mask, 1)])
                is_digit = abs(grey - level) < abs(grey - ground)
                assert abs(level - ground) >= MIN_CONTRAST
                assert np.mean(is_digit[mask]) > 0.85  # some ink is faint
                assert np.mean(is_digit[around]) < 0.05

    def test_labels_are_what_is_seen(self) -> None:
        """Of ten digits, one of each class, a mask is most similar to the one of its label."""
        first = [int(np.flatnonzero(TRAIN.labels == label)[0]) for label in range(10)]
        digits = Digits(TRAIN.images[first], TRAIN.labels[first])
        turns = range(-MAX_TURN, MAX_TURN + 1, 5)
        shapes = np.array([[shape_of(enlarged(image, turn)) for turn in turns] for image in digits.images])
        is_right = []
        for number in range(20):
            _, masks, labels = draw(number, digits)
            for mask, label in zip(masks, labels, strict=True):
                likeness = (shapes @ shape_of(mask)).max(axis=1)  # (10,)
                is_right.append(likeness.argmax() == label)
        assert np.mean(is_right) > 0.95

    def test_they_vary(self, many: list[Scene]) -> None:
        assert {len(scene.labels) for scene in many} == set(range(MIN_DIGITS, MAX_DIGITS + 1))
        assert min(np.bincount(np.concatenate([scene.labels for scene in many]))) > 80
        boxes = [[box_of(mask) for mask in scene.masks] for scene in many]
        heights = [bottom - top for scene in boxes for _, top, _, bottom in scene]
        assert 20 <= min(heights) < 24
        assert 76 < max(heights) <= 84
        is_crowded = [any(overlap(*pair) for pair in itertools.combinations(scene, 2)) for scene in boxes]
        assert 0.5 < np.mean(is_crowded) < 0.9
        is_light = []
        for image, masks, _ in many:
            ground = image[~masks.any(axis=0)].mean()
            is_light += [image[mask].mean() > ground for mask in masks]
        assert 0.4 < np.mean(is_light) < 0.6


class TestFolder:
    """Many scenes in COCO's layout."""

    def test_layout(self, few: Path) -> None:
        pictures = [f"{split}/{number:06d}.png" for split, count in COUNTS.items() for number in range(1, count + 1)]
        annotations = [f"annotations/instances_{split}.json" for split in COUNTS]
        assert sorted(contents(few)) == sorted([*pictures, *annotations, "digit_scenes.json"])

    def test_holds_what_is_drawn(self, few: Path) -> None:
        for stream, (split, count) in enumerate(COUNTS.items()):
            digits = read_digits("train" if split == "train2017" else "test")
            coco = COCO(few / "annotations" / f"instances_{split}.json")
            assert coco.getImgIds() == list(range(1, count + 1))
            assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)
            for record in coco.loadImgs(coco.getImgIds()):
                generator = np.random.Generator(np.random.PCG64([FEW["seed"], stream, record["id"]]))
                image, masks, labels = digit_scene(generator, digits, FEW["size"])
                assert np.array_equal(read_image(few / split / record["file_name"]), image)
                assert (record["height"], record["width"]) == image.shape[:2]
                found = coco.loadAnns(coco.getAnnIds(record["id"]))
                assert [each["category_id"] - 1 for each in found] == list(labels)
                for each, mask in zip(found, masks, strict=True):
                    assert np.array_equal(coco.annToMask(each), mask)
                    x, y, width, height = each["bbox"]
                    assert (x, y, x + width, y + height) == box_of(mask)
                    assert each["area"] == mask.sum()
                    assert each["iscrowd"] == 0

    @pytest.mark.parametrize("task", ["bbox", "segm"])
    def test_truth_scores_one(self, few: Path, task: str) -> None:
        truth = COCO(few / "annotations" / "instances_val2017.json")
        found = [{**each, "score": 1.0} for each in truth.dataset["annotations"]]
        evaluation = COCOeval(truth, truth.loadRes(found), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1)

    def test_mmdetection_reads_it(self, few: Path) -> None:
        dataset = CocoDataset(
            data_root=str(few),
            ann_file="annotations/instances_train2017.json",
            data_prefix={"img": "train2017/"},
            metainfo={"classes": CLASSES},
            pipeline=[LoadImageFromFile(), LoadAnnotations(with_bbox=True, with_mask=True)],
        )
        coco = COCO(few / "annotations" / "instances_train2017.json")
        assert len(dataset) == FEW["num_train"]
        for sample in dataset:
            assert np.array_equal(sample["img"][..., ::-1], read_image(sample["img_path"]))
            truth = coco.loadAnns(coco.getAnnIds(sample["img_id"]))
            assert list(sample["gt_bboxes_labels"]) == [each["category_id"] - 1 for each in truth]
            masks = [coco.annToMask(each) for each in truth]
            assert np.array_equal(sample["gt_masks"].masks, masks)
            assert np.array_equal(sample["gt_bboxes"].numpy(), [box_of(mask) for mask in masks])

    @pytest.mark.slow
    def test_is_the_same_in_any_process(self, few: Path, tmp_path: Path) -> None:
        """Two processes that make one folder at once do not disturb each other."""
        runs = [start(MAKE, tmp_path / "both", json.dumps(FEW)) for _ in range(2)]
        assert [run.wait() for run in runs] == [0, 0]
        assert contents(tmp_path / "both") == contents(few)

    def test_many_begin_as_few(self, few: Path, tmp_path: Path) -> None:
        make_digit_scenes(tmp_path / "more", **{**FEW, "num_train": 6})
        make_digit_scenes(tmp_path / "other", **{**FEW, "seed": 6})
        more, other = contents(tmp_path / "more"), contents(tmp_path / "other")
        for name, content in contents(few).items():
            if name.endswith(".png"):
                assert more[name] == content
                assert other[name] != content

    def test_progress(self, tmp_path: Path) -> None:
        reports: list[tuple[int, int | None]] = []
        make_digit_scenes(tmp_path / "new", **FEW, progress=lambda done, total: reports.append((done, total)))
        assert reports == [(done, 7) for done in range(1, 8)]


class TestWholeOrNotThere:
    """The folder is complete or does not exist, whatever happens."""

    def test_is_made_once(self, few: Path) -> None:
        made = few.stat()
        make_digit_scenes(few, **FEW, progress=lambda done, total: pytest.fail("it is made again"))
        assert few.stat().st_ino == made.st_ino

    def test_in_a_home_folder(self, few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(few.parent))
        make_digit_scenes(f"~/{few.name}", **FEW, progress=lambda done, total: pytest.fail("it is made again"))

    def test_an_empty_folder_is_filled(self, few: Path, tmp_path: Path) -> None:
        make_digit_scenes(tmp_path, **FEW)
        assert contents(tmp_path) == contents(few)

    def test_interrupted(self, tmp_path: Path) -> None:
        def interrupt(done: int, total: int | None) -> None:
            if done == 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make_digit_scenes(tmp_path / "new", **FEW, progress=interrupt)
        assert {path.name for path in tmp_path.iterdir()} <= {".new.lock"}

    @pytest.mark.slow
    def test_killed_at_any_step(self, tmp_path: Path) -> None:
        make_digit_scenes(tmp_path / "whole", **TWO)
        whole = contents(tmp_path / "whole")
        run = start(MAKE_AND_DIE, tmp_path, json.dumps(TWO))
        outcomes = json.loads(run.communicate()[0])
        assert len(outcomes) > 10
        assert outcomes == [signal.SIGKILL] * (len(outcomes) - 1) + [0]
        for step in range(1, len(outcomes) + 1):
            folder = tmp_path / f"at-{step}"
            assert not folder.exists() or contents(folder) == whole
            make_digit_scenes(folder, **TWO)
            assert contents(folder) == whole
        assert not list(tmp_path.glob(".*.partial"))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("num_train", 0),
            ("num_test", -1),
            ("num_train", 2.0),
            ("seed", -1),
            ("seed", None),
            ("size", 63),
            ("size", "a"),
        ],
    )
    def test_bad_arguments(self, tmp_path: Path, name: str, value: Any) -> None:
        with pytest.raises(InputError, match=f"{name} must be a whole number from .*, not {value!r}"):
            make_digit_scenes(tmp_path / "new", **{**FEW, name: value})
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("changes", [{"num_train": 5}, {"seed": 1, "size": 64}])
    def test_other_scenes_are_there(self, few: Path, changes: dict[str, int]) -> None:
        asked = ", ".join(f"{name} {value}" for name, value in changes.items())
        with pytest.raises(InputError, match=f"few holds digit scenes, but not with {asked}: remove it, or choose"):
            make_digit_scenes(few, **{**FEW, **changes})

    @pytest.mark.parametrize("content", ["", "[1]", "not JSON"])
    def test_something_else_is_there(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "digit_scenes.json").write_text(content)
        for path in (tmp_path, tmp_path / "digit_scenes.json"):
            with pytest.raises(InputError, match="is not a folder of digit scenes: choose another"):
                make_digit_scenes(path, **FEW)
        assert contents(tmp_path) == {"digit_scenes.json": content.encode()}

    def test_no_folder_can_be_there(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match=r"file/new cannot be written: .*: choose another folder"):
            make_digit_scenes(tmp_path / "file" / "new", **FEW)

    def test_no_room(self, tmp_path: Path) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        try:
            with pytest.raises(OutputError, match="new cannot be written: File too large: choose another folder"):
                make_digit_scenes(tmp_path / "new", **FEW)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert {path.name for path in tmp_path.iterdir()} <= {".new.lock"}


def draw(number: int, digits: Digits = TRAIN, size: int = 192) -> Scene:
    return digit_scene(np.random.Generator(np.random.PCG64(number)), digits, size)


def grow(mask: Mask, pixels: int) -> Mask:
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * pixels + 1,) * 2)) > 0


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read a picture, `(H, W, 3)` RGB."""
    return np.asarray(Image.open(path))


def enlarged(digit: NDArray[np.uint8], degrees: int) -> Mask:
    """Return the mask of an enlarged and rotated digit."""
    return np.asarray(Image.fromarray(15 * digit).resize((64, 64)).rotate(degrees, expand=True)) > 100


def shape_of(mask: Mask) -> NDArray[np.float64]:
    """Return the content of a mask's box at a fixed size, as a vector with mean 0 and length 1."""
    picture = Image.fromarray(255 * mask.astype(np.uint8))
    shape = np.asarray(picture.resize((16, 16), box=picture.getbbox()), np.float64).ravel()
    shape -= shape.mean()
    return shape / np.linalg.norm(shape)


def box_of(mask: Mask) -> Box:
    """Return a mask's box, xyxy."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def overlap(one: Box, other: Box) -> bool:
    return all(max(one[side], other[side]) < min(one[side + 2], other[side + 2]) for side in (0, 1))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """Run Python code in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


MAKE = """
import json, sys
from pathlib import Path
from dpt_zoo.data.digits import make_digit_scenes

make_digit_scenes(Path(sys.argv[1]), **json.loads(sys.argv[2]))
"""

MAKE_AND_DIE = """
# Make folders, each in a process that is killed before its n-th file operation there, until one process survives.
import itertools, json, os, signal, sys
from pathlib import Path
from dpt_zoo.data.digits import make_digit_scenes, read_digits

def make(step):
    def watch(event, arguments):
        if any(isinstance(each, (str, os.PathLike)) and os.fspath(each).startswith(sys.argv[1]) for each in arguments):
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)

    steps = itertools.count(1)
    sys.addaudithook(watch)
    make_digit_scenes(Path(sys.argv[1]) / f"at-{step}", **json.loads(sys.argv[2]))

read_digits("train")  # so that each process need not load scikit-learn
outcomes = []
while 0 not in outcomes:
    process = os.fork()
    if process == 0:
        make(len(outcomes) + 1)
        os._exit(0)
    outcomes.append(os.waitpid(process, 0)[1])
print(json.dumps(outcomes))
"""
