"""Detector: all forms of images, one image and streams of images, and images that cannot be read."""

import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.transforms import Compose
from mmdet.apis import inference_detector
from mmdet.models.utils import filter_scores_and_topk
from mmengine.config import ConfigDict
from numpy.typing import NDArray
from PIL import Image
from reference_data import PHOTO, rule_model
from torch import Tensor
from web_server import Fault, WebServer, cut, endless, hang_up, page, redirect, status

from dpt_zoo import Detections, Detector
from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.errors import DPTZooError, ImageError, InputError, UnknownModelError
from dpt_zoo.inference import inputs
from dpt_zoo.inference.inputs import find_inputs
from dpt_zoo.inference.pytorch_backend import _bfloat16_is_faster, _drop_all_but_the_highest
from dpt_zoo.utils.images import load_image

NUM_SCENES = 6


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector("mrcnn_dpt_nano_digits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of digit scenes: 000001.png, ..."""
    root = tmp_path_factory.mktemp("digits")
    make_digit_scenes(root, num_train=1, num_test=NUM_SCENES)
    return root / "val2017"


@pytest.fixture(scope="module")
def scene(folder: Path) -> NDArray[np.uint8]:
    return load_image(folder / "000001.png")


def assert_same(ours: Detections, theirs: Detections, tolerance: float = 0) -> None:
    assert len(theirs) > 0 and ours.names == theirs.names
    assert np.abs(ours.boxes - theirs.boxes).max() <= tolerance
    assert np.abs(ours.scores - theirs.scores).max() <= tolerance


class TestFidelity:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["retinanet_dpt_t_1x", "mrcnn_dpt_t_1x"])
    def test_detections_are_those_of_mmdetections_own_inference(self, name: str) -> None:
        model = rule_model(name)
        self.compare(Detector(model, score_threshold=0.05)(PHOTO), inference_detector(model, str(PHOTO)))

    def test_a_threshold_only_selects(self, detector: Detector, scene: NDArray[np.uint8]) -> None:
        ours = Detector(detector.model, score_threshold=0.7)(scene)
        self.compare(ours, inference_detector(detector.model, scene[..., ::-1]), 0.7)

    def compare(self, ours: Detections, sample: Any, threshold: float = 0) -> None:
        theirs = sample.pred_instances.numpy()
        theirs = theirs[theirs.scores >= threshold]
        assert len(ours) == len(theirs) > 0
        assert np.abs(ours.boxes - theirs.bboxes).max() < 1e-3 and np.abs(ours.scores - theirs.scores).max() < 5e-5
        assert ours.labels.tolist() == theirs.labels.tolist()
        if ours.masks is not None:
            assert (ours.masks != theirs.masks).mean() < 1e-6

    @pytest.mark.slow
    def test_images_of_all_sizes_at_once_or_one_by_one(self, detector: Detector, folder: Path) -> None:
        """Padding an image to the size of another one would change its detections."""
        scenes = [Image.open(path) for path in sorted(folder.iterdir())]
        sizes = [(192, 192), (300, 200), (200, 300), (192, 192), (64, 64), (191, 190), (500, 100), (300, 201)]
        mixed = [scene.resize(size) for scene, size in zip(itertools.cycle(scenes), 4 * sizes, strict=False)]
        assert len(mixed) == 32
        one_by_one = [detector(image) for image in mixed]
        assert sum(map(len, one_by_one)) > 32
        together = Detector(detector.model, batch_size=8).stream(mixed)
        for alone, batched, image in zip(one_by_one, together, mixed, strict=True):
            assert batched.image_size == image.size[::-1]
            assert batched.names == alone.names
            np.testing.assert_allclose(batched.boxes, alone.boxes, atol=1e-3)
            assert batched.masks is not None and alone.masks is not None
            assert (batched.masks != alone.masks).sum() <= 2  # a pixel on the threshold

    def test_scale(self, scene: NDArray[np.uint8], detector: Detector) -> None:
        smaller = Detector(detector.model, scale=(96, 96), score_threshold=0.05)
        pipeline = [{"type": "LoadImageFromNDArray"}, {"type": "Resize", "scale": (96, 96), "keep_ratio": True}]
        theirs = inference_detector(
            detector.model, scene[..., ::-1], Compose([*pipeline, {"type": "PackDetInputs"}])
        ).pred_instances
        np.testing.assert_allclose(smaller(scene).boxes, theirs.bboxes, atol=1e-3)


class TestHalfPrecision:
    def test_on_a_processor_that_gains_by_it(
        self, detector: Detector, scene: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dpt_zoo.inference.pytorch_backend._bfloat16_is_faster", lambda: True)
        exact = detector(scene)
        found = Detector(detector.model, amp=True)(scene)
        assert found.boxes.dtype == found.scores.dtype == np.float32
        sure = exact.scores > 0.5
        matches = [np.abs(found.boxes - box).max(axis=1).argmin() for box in exact.boxes[sure]]
        assert found.labels[matches].tolist() == exact.labels[sure].tolist() != []
        moved = np.abs(found.boxes[matches] - exact.boxes[sure])
        assert 0 < np.median(moved) < 0.1 and moved.max() < 3  # of two boxes nearly alike NMS may keep the other
        assert 0 < np.abs(found.scores[matches] - exact.scores[sure]).max() < 0.01

    def test_not_elsewhere(self, detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dpt_zoo.inference.pytorch_backend._bfloat16_is_faster", lambda: False)
        with pytest.raises(InputError, match="amp needs a GPU, or a CPU on which bfloat16 is faster"):
            Detector(detector.model, amp=True)

    @pytest.mark.parametrize("faster", [True, False])
    def test_whether_a_processor_gains_is_measured(self, faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        def repeat(action: Callable[[], Tensor], **_: int) -> list[float]:
            size = action().dtype.itemsize
            return [size if faster else 1 / size, 9]

        monkeypatch.setattr("timeit.repeat", repeat)
        assert _bfloat16_is_faster.__wrapped__() is faster


class TestForms:
    """One image, in many forms."""

    FORMS: dict[str, Callable[[Path], Any]] = {  # noqa: RUF012
        "path": lambda path: path,
        "string": str,
        "bytes": Path.read_bytes,
        "bytearray": lambda path: bytearray(path.read_bytes()),
        "PIL": Image.open,
        "PIL with alpha": lambda path: Image.open(path).convert("RGBA"),
        "array": load_image,
        "array, not contiguous": lambda path: np.repeat(load_image(path), 2, axis=1)[:, ::2],
        "array with alpha": lambda path: np.dstack([load_image(path), np.zeros((192, 192), np.uint8)]),
        "16-bit array": lambda path: load_image(path).astype(np.uint16) << 8 | 77,
        "float array": lambda path: load_image(path) / 255,
        "tensor": lambda path: torch.from_numpy(load_image(path).transpose(2, 0, 1).copy()),
        "float tensor": lambda path: torch.from_numpy(load_image(path).transpose(2, 0, 1) / 255).float(),
        "tensor with gradient": lambda path: torch.from_numpy(
            load_image(path).transpose(2, 0, 1) / 255
        ).requires_grad_(),
    }

    @pytest.mark.parametrize("form", FORMS)
    def test_gives_the_same(self, detector: Detector, folder: Path, form: str) -> None:
        path = folder / "000001.png"
        image = self.FORMS[form](path)
        found = detector(image)
        assert_same(found, detector(path))
        assert found.path == (str(path) if isinstance(image, str | Path) else "image-1")
        assert found.image is not None and np.array_equal(found.image, load_image(path))

    def test_grey(self, detector: Detector, scene: NDArray[np.uint8]) -> None:
        grey = Image.fromarray(scene).convert("L")
        expected = detector(grey.convert("RGB"))
        pixels = np.asarray(grey)
        for image in (grey, pixels, pixels[..., None], torch.from_numpy(pixels.copy()), torch.tensor(pixels)[None]):
            assert_same(detector(image), expected)

    def test_half_precision_tensor(self, detector: Detector) -> None:
        tensor = torch.full((3, 64, 64), 0.5, dtype=torch.bfloat16)
        image = detector(tensor).image
        assert image is not None and (image == 128).all()


@dataclass
class Bad:
    """An image that cannot be read, and a part of the error's text."""

    image: Any
    complaint: str


class TestBadImages:
    BAD: dict[str, Bad] = {  # noqa: RUF012
        "nothing": Bad(None, "NoneType is not an image"),
        "a number": Bad(7, "int is not an image"),
        "no bytes": Bad(b"", "there is nothing in it"),
        "text": Bad(b"this is text", "not an image of a known format"),
        "PostScript": Bad(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not an image of a known format"),
        "SVG": Bad(b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image of a known format"),
        "cut PNG": Bad(PHOTO.read_bytes()[:50_000], "damaged"),
        "one number": Bad(np.uint8(3), "uint8 is not an image"),
        "a row": Bad(np.zeros(8, np.uint8), r"an image is \(H, W, 3\), not \(8,\)"),
        "channels first": Bad(np.zeros((3, 8, 9), np.uint8), r"an image is \(H, W, 3\), not \(3, 8, 9\)"),
        "channels last": Bad(torch.zeros(8, 9, 3), r"an image is \(3, H, W\), not \(8, 9, 3\)"),
        "two channels": Bad(np.zeros((8, 8, 2), np.uint8), r"not \(8, 8, 2\)"),
        "no pixels": Bad(np.zeros((0, 8, 3), np.uint8), r"not \(0, 8, 3\)"),
        "a batch": Bad(torch.zeros(2, 3, 8, 8), "several images, .*: give them as a list"),
        "integers": Bad(np.zeros((8, 8, 3), np.int64), "pixels are uint8, .* not int64"),
        "booleans": Bad(np.zeros((8, 8, 3), bool), "not bool"),
        "complex": Bad(np.zeros((8, 8, 3), complex), "not complex128"),
        "text array": Bad(np.full((8, 8, 3), "a"), "not <U1"),
        "NaN": Bad(torch.full((3, 8, 8), torch.nan), "NaN is among them"),
        "infinity": Bad(torch.full((3, 8, 8), torch.inf), "from inf to inf"),
        "normalised": Bad(torch.linspace(-2, 2, 192).reshape(3, 8, 8), "these go from -2 to 2: undo the normalisation"),
        "0 to 255 as float": Bad(np.full((8, 8, 3), 255.0), "from 255 to 255"),
        "PIL of floats": Bad(Image.new("F", (8, 8)), "floating-point pixels have no fixed range"),
        "thin": Bad(np.zeros((1, 5000, 3), np.uint8), "5000x1 pixels cannot be resized: the shorter side"),
        "missing": Bad("no/such/file.png", "there is no such file"),
        "null character": Bad("a\0b.png", "cannot be read"),
        "a long name": Bad("a" * 5000, "cannot be read"),
    }

    @pytest.mark.parametrize("kind", BAD)
    def test_one_clear_line(self, detector: Detector, kind: str) -> None:
        bad = self.BAD[kind]
        with pytest.raises(ImageError, match=bad.complaint) as raised:
            detector(bad.image)
        assert "\n" not in str(raised.value)

    def test_the_images_before_it_are_yielded(self, detector: Detector, scene: NDArray[np.uint8]) -> None:
        found = detector.stream([scene, scene, b"bad", scene])
        assert_same(next(found), next(found))
        with pytest.raises(ImageError, match="image-3: this is not an image"):
            next(found)

    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_they_can_be_skipped(
        self, detector: Detector, scene: NDArray[np.uint8], batch_size: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        images: list[Any] = [b"", scene, "missing.png", scene]
        stream = Detector(detector.model, batch_size=batch_size).stream(images, on_error="skip")
        assert [each.path for each in stream] == ["image-2", "image-3"]
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert warnings == [
            "skipped: image-1: there is nothing in it",
            "skipped: missing.png: there is no such file",
        ]

    def test_on_error_has_two_values(self, detector: Detector) -> None:
        with pytest.raises(InputError, match="on_error must be 'raise' or 'skip', not 'ignore'"):
            detector.stream([], on_error="ignore")  # type: ignore[arg-type]

    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_each_input_has_its_detections_or_its_error(
        self, detector: Detector, scene: NDArray[np.uint8], batch_size: int
    ) -> None:
        images = [b"", scene, "missing.png", None, scene]
        stream = list(Detector(detector.model, batch_size=batch_size).detect_each(find_inputs(images)))
        assert [input.name for input, _ in stream] == ["image-1", "image-2", "missing.png", "image-3", "image-4"]
        kinds = [type(found) for _, found in stream]
        assert kinds == [ImageError, Detections, ImageError, ImageError, Detections]

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ({"score_threshold": -0.1}, "score_threshold must be a number from 0 to 1"),
            ({"score_threshold": 1.5}, "score_threshold must be a number from 0 to 1"),
            ({"score_threshold": float("nan")}, "score_threshold must be a number from 0 to 1"),
            ({"batch_size": 0}, "batch_size must be a whole number from 1, not 0"),
            ({"batch_size": 1.5}, "batch_size must be a whole number from 1, not 1.5"),
            ({"scale": (0, 800)}, "scale must be two lengths in pixels"),
            ({"scale": (800,)}, "scale must be two lengths in pixels"),
            ({"scale": 800}, "scale must be two lengths in pixels"),
            ({"scale": (1333.5, 800)}, "scale must be two lengths in pixels"),
            ({"weights": "mine.pth"}, "weights can be given only with a model's name"),
            ({"device": "cpu"}, "device can be given only with a model's name"),
            ({"device": "auto"}, "device can be given only with a model's name"),
        ],
    )
    def test_arguments(self, detector: Detector, arguments: Any, complaint: str) -> None:
        with pytest.raises(InputError, match=complaint):
            Detector(detector.model, **arguments)

    @pytest.mark.parametrize("model", [None, 7, torch.nn.Linear(1, 1), Detector, {"name": "x"}], ids=repr)
    def test_models(self, model: Any) -> None:
        with pytest.raises(InputError, match=r"model must be a name or a detector from dpt_zoo\.create_model"):
            Detector(model)

    def test_a_path_is_a_name(self) -> None:
        with pytest.raises(UnknownModelError, match="no model 'x'"):
            Detector(Path("x"))


class TestOneImage:
    @pytest.mark.parametrize("kind", ["folder", "path of a folder", "pattern", "list", "tuple", "iterator", "empty"])
    def test_several_images_are_for_a_stream(self, detector: Detector, folder: Path, kind: str) -> None:
        several = {
            "folder": str(folder),
            "path of a folder": folder,
            "pattern": f"{folder}/*.png",
            "list": [folder / "000001.png"],
            "tuple": (folder / "000001.png",),
            "iterator": iter([folder / "000001.png"]),
            "empty": [],
        }
        with pytest.raises(InputError, match=r"is not one image: use detector\.stream\(\.\.\.\)"):
            detector(several[kind])  # type: ignore[arg-type]

    def test_an_empty_path(self, detector: Detector) -> None:
        with pytest.raises(InputError, match="the path of an image is empty"):
            detector("")
        with pytest.raises(InputError, match="the path of an image is empty"):
            detector.stream("")

    def test_a_stream_of_one_image(self, detector: Detector, folder: Path) -> None:
        (found,) = detector.stream(folder / "000001.png")
        assert_same(found, detector(folder / "000001.png"))


class TestModelOfTheCaller:
    def test_it_is_in_eval_mode_only_during_a_call(self, detector: Detector, scene: NDArray[np.uint8]) -> None:
        expected, model = detector(scene), detector.model
        model.train()
        model.neck.eval()  # as frozen layers are
        modes = [module.training for module in model.modules()]
        assert True in modes and False in modes
        try:
            assert_same(Detector(model)(scene), expected)
            assert [module.training for module in model.modules()] == modes
            with pytest.raises(RuntimeError, match="out of memory"), pytest.MonkeyPatch.context() as patch:
                patch.setattr(type(model.neck), "forward", fail)
                Detector(model)(scene)
            assert [module.training for module in model.modules()] == modes
        finally:
            model.eval()

    def test_its_backbone_is_not_compiled(
        self, detector: Detector, scene: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []

        def compile(module: torch.nn.Module) -> Callable[[Tensor], Any]:
            def run(images: Tensor) -> Any:
                calls.append(images.shape)
                return module(images)

            return run

        monkeypatch.setattr(torch, "compile", compile)
        backbone = detector.model.backbone
        assert_same(Detector(detector.model, compile=True)(scene), detector(scene))
        assert len(calls) == 1
        assert detector.model.backbone is backbone and backbone._compiled_call_impl is None


def fail(*_: Any) -> None:
    raise RuntimeError("out of memory")


class TestManyImages:
    def test_a_folder_by_name_and_below(self, detector: Detector, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "b/c").mkdir(parents=True)
        for name in ("z.png", "b/c/ä ö.PNG", "b/1.png", "b/.hidden.png", "b/note.txt"):
            (tmp_path / name).write_bytes((folder / "000001.png").read_bytes())
        (tmp_path / "b/loop").symlink_to(tmp_path)
        (tmp_path / "link.png").symlink_to(folder / "000002.png")
        found = list(find_inputs(tmp_path))
        assert [input.name for input in found] == ["b/1.png", "b/c/ä ö.PNG", "link.png", "z.png"]
        assert [each.path for each in detector.stream(tmp_path)] == [input.origin for input in found]

    @pytest.mark.parametrize(
        ("pattern", "names"),
        [
            ("*.png", ["a.png", "x[1].png"]),
            ("**/*.png", ["a.png", "b/1.png", "b/c/2.png", "x[1].png"]),
            ("b*/?.png", ["b/1.png"]),
            ("x[1].png", ["x[1].png"]),
        ],
    )
    def test_patterns(self, tmp_path: Path, pattern: str, names: list[str]) -> None:
        (tmp_path / "b/c").mkdir(parents=True)
        for name in ("a.png", "x[1].png", "b/1.png", "b/c/2.png"):
            (tmp_path / name).touch()
        assert [input.name for input in find_inputs(f"{tmp_path}/{pattern}")] == names

    def test_names_are_unique(self, tmp_path: Path) -> None:
        for name in ("a/1.png", "b/1.png", "b/1-2.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        images = [tmp_path / "a/1.png", tmp_path / "b", tmp_path / "a", b"", Image.new("L", (1, 1)), "http://x/1.png"]
        names = [input.name for input in find_inputs(images)]
        assert names == ["1.png", "1-2.png", "1-3.png", "1-4.png", "image-1", "image-2", "1-5.png"]

    @pytest.mark.parametrize(
        ("url", "name"),
        [
            ("http://x/photo.jpg?size=1#top", "photo.jpg"),
            ("HTTPS://x/a%20b.png", "a b.png"),
            ("https://x", "image"),
            ("https://x/..", "image"),
            ("https://x/%2e%2e%2fetc%2fpasswd", "passwd"),
            ("https://x/a%00b%5Cc.png", "a_b_c.png"),
        ],
    )
    def test_names_of_urls_stay_inside_the_folder(self, url: str, name: str) -> None:
        assert [input.name for input in find_inputs(url)] == [name]

    def test_nothing_in_it(self, detector: Detector, tmp_path: Path) -> None:
        assert list(detector.stream([])) == [] and list(detector.stream(iter(()))) == []
        with pytest.raises(InputError, match="there are no images in this folder"):
            detector.stream(tmp_path)
        with pytest.raises(InputError, match="nothing matches this pattern"):
            detector.stream(f"{tmp_path}/*.png")

    def test_an_endless_iterator_is_read_as_far_as_needed(self, detector: Detector, scene: NDArray[np.uint8]) -> None:
        read = []

        def images() -> Iterator[NDArray[np.uint8]]:
            for number in itertools.count():
                read.append(number)
                yield scene

        found = detector.stream(images())
        assert_same(next(found), next(found))
        assert len(read) <= 2 + images_ahead()

    def test_the_images_own_errors_come_through(self, detector: Detector, scene: NDArray[np.uint8]) -> None:
        def images() -> Iterator[NDArray[np.uint8]]:
            yield scene
            raise RuntimeError("the camera fell down")

        with pytest.raises(RuntimeError, match="fell down"):
            list(detector.stream(images()))


def images_ahead() -> int:
    """Return the number of images that are read ahead."""
    from dpt_zoo.inference.detector import READERS

    return READERS + 1


@pytest.mark.network
class TestURLs:
    def test_an_image(self, detector: Detector, folder: Path) -> None:
        path = folder / "000001.png"
        with WebServer({"/a/1.png": path.read_bytes()}) as server:
            found = detector(f"{server.url}/a/1.png")
        assert_same(found, detector(path))
        assert found.path == f"{server.url}/a/1.png"

    @pytest.mark.parametrize("fault", [status(503), hang_up], ids=["busy", "hung up"])
    def test_a_second_attempt(self, detector: Detector, folder: Path, fault: Fault) -> None:
        with WebServer({"/1.png": (folder / "000001.png").read_bytes()}) as server:
            server.faults["/1.png"] = [fault]
            assert len(detector(f"{server.url}/1.png")) > 0
            assert len(server.log) == 2

    @pytest.mark.parametrize(
        ("faults", "complaint"),
        [
            ([status(404)], "the server answers 404"),
            ([status(403)], "the server answers 403"),
            ([status(500), ...], "cannot be downloaded: .*500"),
            ([hang_up, ...], "cannot be downloaded"),
            ([cut(100), ...], "cannot be downloaded"),
            ([page("<html>log in</html>")], "not an image of a known format"),
            ([redirect("/1.png"), ...], "cannot be downloaded: more than 10 redirects"),
            ([endless], "refused, it is larger than 1 MB"),
        ],
    )
    def test_failures(
        self,
        detector: Detector,
        folder: Path,
        faults: Any,
        complaint: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(inputs, "MAX_DOWNLOAD", 1 << 20)
        with WebServer({"/1.png": (folder / "000001.png").read_bytes()}) as server:
            server.faults["/1.png"] = faults
            with pytest.raises(DPTZooError, match=complaint) as raised:
                detector(f"{server.url}/1.png")
        assert str(raised.value).startswith(f"{server.url}/1.png: ") and "\n" not in str(raised.value)

    @pytest.mark.parametrize("url", ["http://127.0.0.1:9/1.png", "http://no.such.host.invalid/1.png", "http://"])
    def test_no_server(self, detector: Detector, url: str) -> None:
        with pytest.raises(ImageError, match="cannot be downloaded") as raised:
            detector(url)
        assert "\n" not in str(raised.value)


def test_files_of_every_orientation_are_upright(detector: Detector, folder: Path) -> None:
    upright = Image.open(folder / "000001.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the left: to be shown turned to the right
    file = io.BytesIO()
    upright.rotate(90).save(file, "PNG", exif=exif)
    assert_same(detector(file.getvalue()), detector(upright))


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 1), st.integers(1, 60), st.booleans())
def test_dropping_scores_leaves_those_that_mmdetection_takes(
    seed: int, threshold: float, nms_pre: int, some_equal: bool
) -> None:
    logits = torch.randperm(2 * 12 * 3 * 4, generator=torch.Generator().manual_seed(seed)).view(2, 12, 3, 4) / 20 - 7
    if some_equal:
        logits = logits.round()
    kept = logits.clone()
    _drop_all_but_the_highest([kept], ConfigDict(score_thr=threshold, nms_pre=nms_pre))
    for image, left in zip(logits, kept, strict=True):
        scores, *places, _ = filter_scores_and_topk(image.flatten(1).T.sigmoid(), threshold, nms_pre)
        ours, *our_places, _ = filter_scores_and_topk(left.flatten(1).T.sigmoid(), threshold, nms_pre)
        assert ours.tolist() == scores.tolist()
        if not some_equal:  # of which MMDetection's sort takes any
            assert [each.tolist() for each in our_places] == [each.tolist() for each in places]
