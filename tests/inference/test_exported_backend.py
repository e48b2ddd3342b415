"""Detector with exported files, made by hand: the same inputs, options and results as with PyTorch."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_files import BOXES, CLASSES, MASKS, make_onnx, make_openvino
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from dpt_zoo import Detections, Detector
from dpt_zoo.errors import ImageError, InputError
from dpt_zoo.inference.exported_backend import ExportedBackend, paste_masks
from dpt_zoo.inference.limits import Limits

MAKE = {"onnx": make_onnx, "xml": make_openvino}
COLOURS = (250, 150, 50)  # of the first pixel, which are the scores of its three objects


def make_image(height: int, width: int, colours: tuple[int, int, int] = COLOURS) -> NDArray[np.uint8]:
    return np.full((height, width, 3), colours, np.uint8)


def assert_detected(found: Detections, height: int, width: int, count: int = 3) -> None:
    """Check the first objects of the graph in an image."""
    assert found.classes == CLASSES and found.labels.tolist() == list(range(count)) and found.labels.dtype == np.int64
    assert found.image_size == (height, width) and found.boxes.dtype == found.scores.dtype == np.float32
    np.testing.assert_allclose(found.scores, np.array(COLOURS[:count]) / 255, rtol=1e-6)
    np.testing.assert_allclose(found.boxes, BOXES[:count] * [width, height, width, height], rtol=1e-5)


@pytest.fixture(scope="module", params=["onnx", "xml"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def file(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MAKE[kind](tmp_path_factory.mktemp("exported") / f"model.{kind}")


class TestDetections:
    def test_one_image(self, file: Path) -> None:
        image = make_image(100, 150)
        for model in (file, str(file)):
            detector = Detector(model, score_threshold=0.1)
            found = detector(image)
            assert_detected(found, 100, 150)
            assert found.image is not None and np.array_equal(found.image, image) and found.path == "image-1"
            assert found.rles is not None and [rle["size"] for rle in found.rles] == [[100, 150]] * 3
        assert detector.has_masks and detector.model is None and detector.weights_sha256 == "0" * 64
        assert detector.metadata is not None and detector.metadata.name == "first_pixel"

    def test_threshold(self, file: Path) -> None:
        detector = Detector(file)
        assert_detected(detector(make_image(80, 60)), 80, 60, count=2)
        detector.score_threshold = 1.0
        nothing = detector(make_image(80, 60))
        assert len(nothing) == 0 and nothing.boxes.shape == (0, 4) and nothing.rles == []
        assert nothing.masks is not None and nothing.masks.shape == (0, 80, 60)

    def test_without_masks(self, kind: str, tmp_path: Path) -> None:
        detector = Detector(MAKE[kind](tmp_path / f"model.{kind}", has_masks=False), score_threshold=0.1)
        found = detector(make_image(80, 60))
        assert_detected(found, 80, 60)
        assert found.rles is None and not detector.has_masks

    @pytest.mark.parametrize("batch_size", [1, 3, 8])
    def test_streams_of_mixed_sizes(self, file: Path, batch_size: int) -> None:
        sizes = [(100, 150), (150, 100), (64, 64), (100, 150), (101, 149), (3000, 2000), (1, 1), (20, 30)]
        images: list[Any] = [make_image(*size) for size in sizes]
        images.insert(3, b"no image")
        results = list(Detector(file, score_threshold=0.1, batch_size=batch_size).stream(images, on_error="skip"))
        for found, (height, width) in zip(results, sizes, strict=True):
            assert_detected(found, height, width)

    def test_images_in_a_batch_are_not_mixed_up(self, file: Path) -> None:
        images = [make_image(90, 90, (250, level, 0)) for level in (200, 90, 0, 150)]
        found = list(Detector(file, batch_size=4).stream(images))
        assert [len(each) for each in found] == [2, 2, 1, 2]
        assert [round(float(each.scores[-1]) * 255) for each in found] == [200, 90, 250, 150]

    def test_from_several_threads(self, file: Path) -> None:
        detector = Detector(file, num_threads=1)
        sizes = [(64 + number, 80) for number in range(12)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(detector, [make_image(*size) for size in sizes]))
        for each, size in zip(found, sizes, strict=True):
            assert_detected(each, *size, count=2)

    def test_a_fixed_batch_and_size(self, kind: str, tmp_path: Path) -> None:
        """Incomplete batches are filled up, and images fit into the fixed size, whatever the scale is."""
        file = MAKE[kind](tmp_path / f"model.{kind}", batch=3, image_size=(64, 96), scale=(1333, 800))
        sizes = [(100, 150), (150, 100), (10, 20), (64, 96)]
        found = list(Detector(file, score_threshold=0.1).stream([make_image(*size) for size in sizes]))
        for each, size in zip(found, sizes, strict=True):
            assert_detected(each, *size)
        with pytest.raises(InputError, match="processes 3 images at once: batch_size cannot be 2"):
            Detector(file, batch_size=2)

    def test_a_graph_that_resizes(self, kind: str, tmp_path: Path) -> None:
        file = MAKE[kind](tmp_path / f"model.{kind}", has_preprocessing=True)
        detector = Detector(file, score_threshold=0.1)
        for size in ((100, 150), (33, 7)):
            assert_detected(detector(make_image(*size)), *size)
        with pytest.raises(InputError, match=r"resizes images itself, to \(192, 128\): leave scale out"):
            Detector(file, scale=(64, 64))
        with pytest.raises(InputError, match="batch_size cannot be 2"):
            Detector(file, batch_size=2)

    def test_images_without_pixels(self, file: Path) -> None:
        with pytest.raises(ImageError, match="5000x1 pixels cannot be resized: the shorter side would have no pixels"):
            Detector(file)(make_image(1, 5000))


class TestPreprocessing:
    """What the graph gets."""

    @pytest.mark.parametrize(
        ("size", "scale", "resized", "padded"),
        [
            ((192, 192), None, (128, 128), (128, 128)),
            ((100, 150), None, (128, 192), (128, 192)),
            ((150, 100), None, (192, 128), (192, 128)),
            ((427, 640), (1333, 800), (800, 1199), (800, 1216)),
            ((640, 427), (800, 1333), (1199, 800), (1216, 800)),
            ((10, 600), None, (3, 192), (64, 192)),  # OpenVINO returns wrong objects after 32x32 pixels
            ((40, 40), (20, 20), (20, 20), (64, 64)),
        ],
    )
    def test_sizes(
        self, file: Path, size: tuple[int, int], scale: Any, resized: tuple[int, int], padded: tuple[int, int]
    ) -> None:
        options: Any = {"device": None, "batch_size": None, "num_threads": None}
        prepared = ExportedBackend(file, scale=scale, **options).resize(make_image(*size))
        assert prepared.data.pixels.shape[:2] == resized and prepared.padded_size == padded

    def test_pixels_are_those_of_mmdetection(self, file: Path) -> None:
        from mmcv.transforms import Resize

        image = np.random.default_rng(0).integers(0, 256, (97, 141, 3), dtype=np.uint8)
        theirs = Resize(scale=(192, 128), keep_ratio=True)({"img": image[..., ::-1]})
        backend = ExportedBackend(file, device=None, scale=None, batch_size=None, num_threads=None)
        prepared = backend.resize(image)
        assert np.array_equal(prepared.data.pixels, theirs["img"][..., ::-1])
        calls: list[Any] = []
        run = backend._run

        def record(values: Any) -> Any:
            calls.append(values)
            return run(values)

        backend._run = record
        backend.predict([prepared, prepared], Limits(0.5))
        height, width = prepared.data.pixels.shape[:2]
        images, sizes = calls[0]["images"], calls[0]["image_sizes"]
        assert images.dtype == np.float32 and sizes.tolist() == [[height, width]] * 2
        assert np.array_equal(images[1, :, :height, :width], prepared.data.pixels.transpose(2, 0, 1))
        assert not images[:, :, height:].any() and not images[:, :, :, width:].any()


class TestMasks:
    @settings(deadline=None)  # the first example imports MMDetection
    @given(
        seed=st.integers(0, 1 << 30),
        size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
        corners=st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4),
    )
    def test_as_mmdetection(self, seed: int, size: tuple[int, int], corners: list[float]) -> None:
        import torch
        from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

        mask = np.random.default_rng(seed).random((28, 28), np.float32)
        box = np.sort(np.array(corners, np.float32).reshape(2, 2), axis=0) * np.array(size[::-1], np.float32)
        tensors = torch.from_numpy(mask)[None, None], torch.from_numpy(box.reshape(1, 4))
        theirs = np.zeros(size, bool)
        (pasted,), place = _do_paste_mask(*tensors, *size, skip_empty=True)
        values = np.zeros(size, np.float32)
        values[place] = pasted.numpy()
        theirs = values >= 0.5
        (rle,) = paste_masks(mask[None], box.reshape(1, 4), size, 0.5)
        differs = coco_mask.decode(rle).astype(bool) != theirs
        assert not differs.any() or np.abs(values[differs] - 0.5).max() < 1e-5  # rounding

    def test_in_the_image(self, file: Path) -> None:
        found = Detector(file, score_threshold=0.1)(make_image(200, 300))
        assert found.masks is not None
        for mask, box, values in zip(found.masks, found.boxes, MASKS, strict=True):
            x0, y0, x1, y1 = box.round().astype(int)
            area = (values >= 0.5).mean() * (x1 - x0) * (y1 - y0)
            assert abs(mask.sum() - area) < 0.05 * (x1 - x0) * (y1 - y0)
            mask[y0 : y1 + 1, x0 : x1 + 1] = False
            assert not mask.any()


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"weights": "mine.pth"}, "weights is not for an exported file: export the model with"),
            ({"amp": True}, "amp is not for an exported file"),
            ({"compile": True}, "compile is not for an exported file"),
            ({"score_threshold": 2}, "score_threshold must be a number from 0 to 1"),
            (
                {"score_threshold": 0.01},
                "too low .* no object with a score below 0.05: use 0.05, or export the model with",
            ),
            ({"max_detections": 101}, "exported with max_detections=100, .*: export the model with max_detections=101"),
            ({"max_detections": 0}, "max_detections must be a whole number from 1, not 0"),
            ({"nms_iou": 0.4}, "exported with nms_iou=0.5, which is part of its graph: export"),
            ({"class_agnostic_nms": True}, "exported with class_agnostic_nms=False, .*: export the model with"),
            ({"batch_size": 0}, "batch_size must be a whole number from 1, not 0"),
            ({"num_threads": 0}, "num_threads must be a whole number from 1, not 0"),
            ({"num_threads": 1.5}, "num_threads must be a whole number from 1, not 1.5"),
            ({"scale": (0, 800)}, "scale must be two lengths in pixels"),
            ({"device": "cuda:1"}, "device 'cuda:1' is not available in .* here, only cpu|CPU"),
            ({"device": "openvino:TPU"}, "device 'openvino:TPU' is not available in .* here, only cpu|CPU"),
            ({"device": "cpu:1"}, "device 'cpu:1' is not available"),
            ({"device": ""}, "device '' is not available"),
        ],
        ids=str,
    )
    def test_what_is_not_supported(self, file: Path, options: Any, complaint: str) -> None:
        with pytest.raises(InputError, match=complaint):
            Detector(file, **options)

    def test_limits_that_the_graph_can_follow(self, file: Path) -> None:
        for limits in (Limits(0.1, nms_iou=0.5), Limits(0.1, max_detections=100), Limits(0.05)):
            assert_detected(Detector(file, **asdict(limits))(make_image(50, 60)), 50, 60)
        found = Detector(file, score_threshold=0.1)(make_image(50, 60))
        best = Detector(file, score_threshold=0.1, max_detections=2)(make_image(50, 60))
        assert np.array_equal(best.boxes, found.boxes[:2]) and best.rles == list(found.rles or ())[:2]

    def test_a_threshold_that_is_lowered_later(self, file: Path) -> None:
        detector = Detector(file)
        detector.score_threshold = 0.01
        with pytest.raises(InputError, match=r"score_threshold 0\.01 is too low"):
            detector(make_image(50, 60))

    @pytest.mark.parametrize("device", ["auto", "cpu", "CPU", None])
    def test_devices_and_threads(self, file: Path, device: str | None) -> None:
        detector = Detector(file, device=device, num_threads=1, scale=(640, 640), score_threshold=0.1)
        assert_detected(detector(make_image(50, 60)), 50, 60)

    def test_openvino_by_name(self, file: Path, kind: str) -> None:
        if kind == "xml":
            assert_detected(Detector(file, device="openvino:CPU")(make_image(50, 60)), 50, 60, count=2)

    def test_an_upper_case_suffix(self, file: Path, tmp_path: Path) -> None:
        for path in (file, file.with_suffix(".bin")):
            if path.exists():
                (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / file.name).rename(renamed := tmp_path / f"model{file.suffix.upper()}")
        assert_detected(Detector(renamed)(make_image(50, 60)), 50, 60, count=2)


def test_light_imports(file: Path, tmp_path: Path) -> None:
    """Detection with an exported file imports only small libraries, also of the command, and also for pictures.

    ONNX Runtime keeps no telemetry in the user's folder.
    """
    Image.fromarray(make_image(50, 60)).save(tmp_path / "image.png")
    heavy = {"torch", "mmdet", "mmcv", "mmengine", "timm", "supervision", "scipy", "matplotlib", "pandas", "onnx", "av"}
    code = f"""
import sys, dpt_zoo, dpt_zoo.cli
print(len(dpt_zoo.Detector(sys.argv[1])(sys.argv[2])))
print(dpt_zoo.cli.main(["detect", sys.argv[2], "--model", sys.argv[1], "--work-dir", sys.argv[3], "--save-crops"]))
print({heavy | {"huggingface_hub"}!r} & sys.modules.keys())
"""
    arguments = [file, tmp_path / "image.png", tmp_path / "out"]
    home = tmp_path / "home"
    home.mkdir()
    variables = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**variables, "HOME": str(home)},
    )
    assert not any(home.iterdir())  # no cache, and no client ID of OpenVINO's telemetry
    assert done.stderr == "" and done.stdout.startswith("2\n") and done.stdout.endswith("\n0\nset()\n")
    assert sorted(path.name for path in (tmp_path / "out").iterdir())[:2] == ["crops", "detections.json"]


def test_ctrl_c_after_several_models(file: Path) -> None:
    """With a core for each model, OpenVINO 2026.4 leaves a stack for signal handlers that is not there any more."""
    code = """
import gc, signal, sys
from dpt_zoo import Detector
first, second = Detector(sys.argv[1]), Detector(sys.argv[1])
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGINT, lambda *_: print("handled"))
signal.raise_signal(signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n")
