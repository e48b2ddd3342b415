"""`create_model` and its errors."""

import contextlib
import copy
import io
import logging
import operator
import os
import pickle
import pickletools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector
from mmdet.models import MaskRCNN, RetinaNet
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from reference_data import PHOTO, ROOT, rule_model
from rule_weights import rule_state_dict
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dpt_zoo
from dpt_zoo import Detector
from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.errors import DPTZooError, FetchError, InputError, UnknownModelError, WeightsError
from dpt_zoo.manifest.records import get_detector_info, read_manifest
from dpt_zoo.models.factory import build_detector
from dpt_zoo.weights.converting import convert, write_safetensors
from dpt_zoo.weights.reading import Weights, read_weights
from dpt_zoo.weights.store import adopt

NANO = "retinanet_dpt_nano_digits"
"""The smallest model, for tests that apply to all models."""
NUMBERED = ("class 0", "class 1", "class 2")

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def three_classes() -> State:
    """The smallest model, as if trained on three classes."""
    return dpt_zoo.create_model(NANO, pretrained=False, num_classes=3).state_dict()


class TestNames:
    def test_patterns(self) -> None:
        assert len(dpt_zoo.list_models()) == 12
        assert dpt_zoo.list_models("*nano*") == []
        assert dpt_zoo.list_models("mrcnn*_1x") == ["mrcnn_dpt_t_1x", "mrcnn_dpt_s_1x", "mrcnn_dpt_m_1x"]
        assert dpt_zoo.list_models("yolo*") == []

    @pytest.mark.parametrize("call", [dpt_zoo.get_model_info, dpt_zoo.create_model])
    def test_a_wrong_name_suggests_the_nearest(self, call: Any) -> None:
        with pytest.raises(UnknownModelError, match=r"did you mean mrcnn_dpt_t_1x\?"):
            call("mask_rcnn_dpt_t_1x")
        with pytest.raises(UnknownModelError, match="choose one of retinanet_dpt_t_1x, "):
            call("?")

    @pytest.mark.parametrize("name", [torch.nn.Identity(), None])
    def test_a_name_is_a_text(self, name: Any) -> None:
        message = f"name must be a model's name or a weights file, not {type(name).__name__}"
        with pytest.raises(InputError) as raised:
            dpt_zoo.create_model(name)
        assert str(raised.value) == message

    def test_a_classifier_is_created_by_timm(self) -> None:
        with pytest.raises(InputError, match=r"import dpt_zoo.models, then call timm.create_model\('dpt_tiny'\)$"):
            dpt_zoo.create_model("dpt_tiny")


class TestModel:
    @pytest.mark.slow
    def test_it_is_a_plain_mmdetection_model_in_eval_mode(self, rule_file: Path) -> None:
        model: Any = dpt_zoo.create_model("mrcnn_dpt_t_1x", weights=rule_file)
        assert type(model) is MaskRCNN and not model.training
        assert isinstance(model.cfg, Config)
        assert model.dataset_meta["classes"][:2] == ("person", "bicycle")
        rule = rule_state_dict(model.state_dict())
        assert all(torch.equal(tensor, rule[name]) for name, tensor in model.state_dict().items())

    def test_without_weights_it_is_initialised_for_training(self) -> None:
        model: Any = dpt_zoo.create_model("retinanet_dpt_t_1x", pretrained=False)
        assert type(model) is RetinaNet
        prior = torch.sigmoid(model.bbox_head.retina_cls.bias)
        assert torch.allclose(prior, torch.tensor(0.01))  # the focal loss's prior, which init_weights sets

    @pytest.mark.slow
    def test_the_cached_weights_are_taken(self, rule_file: Path, empty_cache: Path) -> None:
        empty_cache.mkdir()
        (empty_cache / "mrcnn_dpt_t_1x.safetensors").symlink_to(rule_file)
        model: Any = dpt_zoo.create_model("mrcnn_dpt_t_1x")
        assert torch.equal(model.neck.fpn_convs[0].conv.bias, rule_model("mrcnn_dpt_t_1x").neck.fpn_convs[0].conv.bias)

    @pytest.mark.slow
    def test_the_cached_weights_are_all_that_fills_it(self, rule_file: Path, empty_cache: Path) -> None:
        """No tensor is initialised at random first."""
        adopt(get_detector_info("mrcnn_dpt_t_1x"), rule_file)
        with RandomNumbers() as random_numbers:
            dpt_zoo.create_model("mrcnn_dpt_t_1x")
        assert random_numbers.drawn == 0
        with random_numbers:
            build_detector(Config.fromfile(get_detector_info("mrcnn_dpt_t_1x").config_path), 80)
        assert random_numbers.drawn > 30_000_000

    def test_it_does_not_live_on_the_file(self, rule_file: Path, tmp_path: Path) -> None:
        path = Path(shutil.copy(rule_file, tmp_path / "weights.safetensors"))
        model: Any = dpt_zoo.create_model("mrcnn_dpt_t_1x", weights=path)
        with path.open("r+b") as file:
            file.truncate(1000)
        assert torch.equal(model.neck.fpn_convs[0].conv.bias, rule_model("mrcnn_dpt_t_1x").neck.fpn_convs[0].conv.bias)

    @pytest.mark.slow
    def test_half_precision_weights_are_widened(self, rule_file: Path, tmp_path: Path) -> None:
        convert(rule_file, tmp_path / "half.safetensors", half=True)
        model: Any = dpt_zoo.create_model("mrcnn_dpt_t_1x", weights=tmp_path / "half.safetensors")
        bias = rule_model("mrcnn_dpt_t_1x").neck.fpn_convs[0].conv.bias
        assert model.neck.fpn_convs[0].conv.bias.dtype == torch.float32
        assert torch.equal(model.neck.fpn_convs[0].conv.bias, bias.half().float())

    def test_weights_that_are_not_here_say_where_they_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DPT_ZOO_OFFLINE", "1")
        drive = "https://drive.google.com/file/d/1jCp5mYqHnNs1Uzrh8uopOyRSw0aVLDQp/view"
        with pytest.raises(FetchError) as raised:
            dpt_zoo.create_model("mrcnn_dpt_t_1x")
        assert str(raised.value).splitlines() == [
            "mrcnn_dpt_t_1x: its weights could not be fetched",
            f"  {drive}: not asked, DPT_ZOO_OFFLINE is set",
            f"  By hand: open {drive} or "
            "https://pan.baidu.com/s/19nJXoOAK_mljV4BPx1sUSQ (password DPTs) in a browser, then run",
            "  dpt-zoo import mrcnn_dpt_t_1x FILE",
        ]

    @pytest.mark.parametrize("location", ["http://example.com/w.pth", "ftp://example.com/w.pth", "hf://repo"])
    def test_a_location_of_no_known_form(self, location: str) -> None:
        with pytest.raises(InputError, match=r"give a path, https://\.\.\. or hf://org/repo/file"):
            dpt_zoo.create_model("mrcnn_dpt_t_1x", weights=location)


class RandomNumbers(TorchDispatchMode):
    """Counts the random numbers that are written to memory."""

    drawn = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags and not result.is_meta:
            self.drawn += result.numel()
        return result


class TestSettingsOfTheProcess:
    """What a user set for the whole process stays, and does not change the model."""

    @pytest.fixture(params=["float64", "inference mode", "no gradients", "meta device", "scope", "deterministic"])
    def setting(self, request: pytest.FixtureRequest) -> Iterator[str]:
        try:
            with contextlib.ExitStack() as stack:
                match request.param:
                    case "float64":
                        torch.set_default_dtype(torch.float64)
                    case "inference mode":
                        stack.enter_context(torch.inference_mode())
                    case "no gradients":
                        stack.enter_context(torch.no_grad())
                    case "meta device":
                        torch.set_default_device("meta")
                    case "scope":
                        stack.enter_context(DefaultScope.overwrite_default_scope("mmcv"))
                    case "deterministic":
                        torch.use_deterministic_algorithms(True)
                yield request.param
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
            torch.use_deterministic_algorithms(False)

    @pytest.mark.parametrize("options", [{}, {"pretrained": False}, {"num_classes": 3}])
    def test_a_model_is_the_same(self, setting: str, options: dict[str, Any]) -> None:
        scope = DefaultScope.get_current_instance()
        model: Any = dpt_zoo.create_model(NANO, **options)
        assert DefaultScope.get_current_instance().scope_name == (scope.scope_name if scope else "mmdet")
        for tensor in (*model.parameters(), *model.buffers()):
            assert not tensor.is_inference() and tensor.device.type == "cpu"
            assert tensor.dtype in (torch.float32, torch.int64)
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_the_default_scope_is_set_if_there_is_none(self) -> None:
        with DefaultScope.overwrite_default_scope("mmdet"):
            DefaultScope._instance_dict.clear()
            pickled = pickle.dumps(dpt_zoo.create_model(NANO))
            assert DefaultScope.get_current_instance().scope_name == "mmdet"  # for MMDetection's functions
            DefaultScope._instance_dict.clear()
            pickle.loads(pickled)
            assert DefaultScope.get_current_instance().scope_name == "mmdet"


class TestPickles:
    """A pickle names a module first that makes `mmdet` importable in a process that has imported nothing."""

    @pytest.mark.parametrize("part", ["", "bbox_head", "neck", "data_preprocessor", "backbone"])
    def test_a_model_and_its_parts(self, part: str) -> None:
        whole: Any = dpt_zoo.create_model(NANO)
        model = operator.attrgetter(part)(whole) if part else whole
        self.check(model)
        if isinstance(model, torch.nn.Module):
            buffer = io.BytesIO()
            torch.save(model, buffer)
            buffer.seek(0)
            for again in (torch.load(buffer, weights_only=False), copy.deepcopy(model)):
                assert type(again) is type(model) and again.training == model.training
                assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())

    def test_what_mmdetection_detects(self) -> None:
        self.check(inference_detector(dpt_zoo.create_model(NANO), np.zeros((32, 32, 3), np.uint8)))

    def test_a_training_wrapper(self) -> None:
        self.check(torch.nn.DataParallel(dpt_zoo.create_model(NANO)))

    def test_torch_multiprocessing(self) -> None:
        self.check(dpt_zoo.create_model(NANO), ForkingPickler)

    def check(self, value: Any, pickler: Any = pickle.Pickler) -> None:
        pickler(buffer := io.BytesIO(), 2).dump(value)
        operations = pickletools.genops(buffer.getvalue())
        names = [str(argument).split() for operation, argument, _ in operations if operation.name == "GLOBAL"]
        modules = [module for module, _ in names if module.startswith(("dpt_zoo.", "mmdet."))]
        assert modules[0].startswith("dpt_zoo.")

    @pytest.mark.slow
    def test_in_a_fresh_process(self, tmp_path: Path) -> None:
        model: Any = dpt_zoo.create_model("mrcnn_dpt_nano_digits")
        parts = [model, inference_detector(model, str(PHOTO))]
        for index, part in enumerate(parts):
            torch.save(part, tmp_path / f"{index}.pt")
        program = (
            "import os, sys, torch\n"
            "for path in sys.argv[1:]:\n"
            "    if not os.fork():\n"  # each in a process that has imported nothing else
            "        print(type(torch.load(path, weights_only=False)).__name__, flush=True)\n"
            "        os._exit(0)\n"
            "    assert os.wait()[1] == 0\n"
        )
        command = [sys.executable, "-W", "ignore", "-c", program, *map(str, sorted(tmp_path.glob("*.pt")))]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.split() == [type(part).__name__ for part in parts]


class TestPrecision:
    """A model that a user converted detects the same objects."""

    @pytest.fixture(scope="class")
    @classmethod
    def image(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("digits")
        make_digit_scenes(folder, num_train=1, num_test=1, seed=11)
        return folder / "val2017/000001.png"

    @pytest.mark.parametrize("convert_to", ["half", "bfloat16", "double"])
    @pytest.mark.parametrize("name", [NANO, "mrcnn_dpt_nano_digits"])
    def test_a_detector(self, name: str, convert_to: str, image: Path) -> None:
        expected = Detector(dpt_zoo.create_model(name))(image)
        found = Detector(getattr(dpt_zoo.create_model(name), convert_to)())(image)
        assert len(found) == len(expected) > 5
        nearest = abs(found.boxes[None] - expected.boxes[:, None]).max(axis=2).argmin(axis=1)
        assert sorted(nearest) == [*range(len(expected))]
        np.testing.assert_allclose(found.boxes[nearest], expected.boxes, rtol=0, atol=2)
        np.testing.assert_allclose(found.scores[nearest], expected.scores, rtol=0, atol=0.05)
        assert np.array_equal(found.labels[nearest], expected.labels)


class TestOtherClasses:
    def test_the_heads_are_rebuilt_and_the_rest_is_kept(
        self, rule_file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, "dpt_zoo"):
            model: Any = dpt_zoo.create_model("mrcnn_dpt_t_1x", weights=rule_file, num_classes=3)
        assert model.roi_head.bbox_head.fc_cls.out_features == 4
        assert model.roi_head.bbox_head.fc_reg.out_features == 12
        assert model.roi_head.mask_head.conv_logits.out_channels == 3
        assert model.dataset_meta["classes"] == ("class 0", "class 1", "class 2")
        assert torch.equal(model.neck.fpn_convs[0].conv.bias, rule_model("mrcnn_dpt_t_1x").neck.fpn_convs[0].conv.bias)
        (record,) = caplog.records
        assert record.message == (
            "mrcnn_dpt_t_1x: newly initialised for 3 classes: roi_head.bbox_head.fc_cls.weight, "
            "roi_head.bbox_head.fc_cls.bias, roi_head.bbox_head.fc_reg.weight, roi_head.bbox_head.fc_reg.bias, "
            "roi_head.mask_head.conv_logits.weight, roi_head.mask_head.conv_logits.bias"
        )

    def test_those_of_a_file_as_well(self, three_classes: State, tmp_path: Path) -> None:
        path = write_pth(tmp_path, three_classes, {"CLASSES": ("cat", "dog", "emu")})
        model: Any = dpt_zoo.create_model(NANO, weights=path, num_classes=10)
        assert model.bbox_head.retina_cls.out_channels == 10 * 9
        assert model.dataset_meta["classes"] == tuple("0123456789")
        assert torch.equal(model.backbone.pos_embed1, three_classes["backbone.pos_embed1"])


class TestOwnClasses:
    """Weights that a user trained work like the zoo's."""

    @pytest.mark.parametrize("name", ["retinanet_dpt_nano_digits", "mrcnn_dpt_nano_digits"])
    @pytest.mark.parametrize("num_classes", [None, 3])
    def test_a_file_is_taken_whole(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, num_classes: int | None
    ) -> None:
        trained = dpt_zoo.create_model(name, pretrained=False, num_classes=3).state_dict()
        path = write_pth(tmp_path, trained, {"dataset_meta": {"classes": ("cat", "dog", "emu")}})
        convert(path, tmp_path / "model.safetensors")
        model: Any = dpt_zoo.create_model(name, weights=tmp_path / "model.safetensors", num_classes=num_classes)
        assert all(torch.equal(tensor, trained[key]) for key, tensor in model.state_dict().items())
        assert model.dataset_meta["classes"] == ("cat", "dog", "emu")
        assert Detector(model)(PHOTO).classes == ("cat", "dog", "emu")
        assert not caplog.records

    NAMES: ClassVar[dict[str, tuple[Any, tuple[str, ...]]]] = {
        "MMEngine": ({"dataset_meta": {"classes": ("cat", "dog", "café"), "palette": []}}, ("cat", "dog", "café")),
        "MMCV": ({"CLASSES": ("cat", "dog", "emu")}, ("cat", "dog", "emu")),
        "plain": ({"classes": ["cat", "dog", "emu"]}, ("cat", "dog", "emu")),
        "some are none": ({"classes": ["cat", 7, None]}, ("cat", "class 1", "class 2")),
        "none can be shown": ({"classes": ["\x1b[2J", "x" * 101, ""]}, NUMBERED),
        "too few": ({"classes": ["cat"]}, NUMBERED),
        "too many": ({"CLASSES": ["cat"] * 80}, NUMBERED),
        "a text": ({"CLASSES": "cat"}, NUMBERED),
        "elsewhere": ({"dataset_meta": ["classes"], "epoch": 3}, NUMBERED),
        "nothing": ({}, NUMBERED),
    }

    @pytest.mark.parametrize(("meta", "names"), NAMES.values(), ids=NAMES)
    def test_names(self, three_classes: State, tmp_path: Path, meta: Any, names: tuple[str, ...]) -> None:
        model: Any = dpt_zoo.create_model(NANO, weights=write_pth(tmp_path, three_classes, meta))
        assert model.dataset_meta == {"classes": names}

    @pytest.mark.slow
    def test_names_of_as_many_as_coco_has(self, rule_file: Path, empty_cache: Path, tmp_path: Path) -> None:
        """A user's file may name the classes; the authors' files never do: their classes are COCO's."""
        path = tmp_path / "named.safetensors"
        write_safetensors(Weights(read_weights(rule_file).tensors, {"CLASSES": ["thing"] * 80}, "pth"), path)
        mine: Any = dpt_zoo.create_model("mrcnn_dpt_t_1x", weights=path)
        assert mine.dataset_meta["classes"] == ("thing",) * 80
        adopt(read_manifest().published_detectors["mrcnn_dpt_t_1x"], path)
        theirs: Any = dpt_zoo.create_model("mrcnn_dpt_t_1x")
        assert theirs.dataset_meta["classes"][:2] == ("person", "bicycle")

    @pytest.mark.parametrize("shape", [(0,), (8,), (28,), (10**7,), (), (3, 9)])
    @pytest.mark.parametrize("layer", ["retina_cls", "retina_reg"])
    def test_layers_that_fit_no_number_of_classes(
        self, three_classes: State, tmp_path: Path, layer: str, shape: tuple[int, ...]
    ) -> None:
        bias = f"bbox_head.{layer}.bias"
        path = write_pth(tmp_path, {**three_classes, bias: torch.zeros(shape, dtype=torch.float16)}, {})
        with pytest.raises(WeightsError, match=rf"these are not {NANO}'s weights, .* tensors differ: .*{bias}"):
            dpt_zoo.create_model(NANO, weights=path)


def write_pth(folder: Path, state: State, meta: Any) -> Path:
    """Write a checkpoint like those of training."""
    torch.save({"state_dict": state, "meta": meta, "optimizer": {}}, folder / "epoch_3.pth")
    return folder / "epoch_3.pth"


class TestShipped:
    """The demos are available by name, without cache or network."""

    @pytest.mark.parametrize("name", list(read_manifest().demos))
    def test_they_need_no_download(self, name: str, monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
        monkeypatch.setenv("DPT_ZOO_MIRROR", "https://mirror.invalid")
        monkeypatch.setattr("socket.socket.connect", None)  # nobody may call it
        demo = read_manifest().demos[name]
        detector = Detector(name)
        assert type(detector.model) is {"retinanet": RetinaNet, "mask_rcnn": MaskRCNN}[demo.architecture]
        assert Path(detector.model.cfg.filename) == demo.config_path
        shipped = read_weights(Path(demo.locations[0].url)).tensors
        assert all(torch.equal(tensor, shipped[key].to(tensor)) for key, tensor in detector.model.state_dict().items())
        assert detector.model.dataset_meta == {"classes": tuple("0123456789")}
        assert detector(PHOTO).classes == tuple("0123456789")

    def test_they_are_models_as_the_others(self) -> None:
        model: Any = dpt_zoo.create_model("mrcnn_dpt_nano_digits", num_classes=np.int64(3))
        assert model.roi_head.mask_head.conv_logits.out_channels == 3
        assert model.dataset_meta["classes"] == NUMBERED
        fresh: Any = dpt_zoo.create_model("mrcnn_dpt_nano_digits", pretrained=False)
        assert fresh.dataset_meta["classes"] == tuple("0123456789")


class TestRefusals:
    def test_a_file_of_another_size(self, rule_file: Path) -> None:
        with pytest.raises(WeightsError) as raised:
            dpt_zoo.create_model("mrcnn_dpt_s_1x", weights=rule_file)
        assert f"{rule_file}: these are not mrcnn_dpt_s_1x's weights, 140 tensors differ" in str(raised.value)
        assert "backbone.block1.2.norm1.weight (not in the file), " in str(raised.value)
        assert str(raised.value).endswith(" and 136 more")

    def test_a_file_of_another_architecture(self, rule_file: Path) -> None:
        with pytest.raises(
            WeightsError, match=r"neck.lateral_convs.0.conv.weight \(float32\[256, 64, 1, 1\] in the file"
        ):
            dpt_zoo.create_model("retinanet_dpt_t_1x", weights=rule_file)

    @pytest.mark.slow
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_numbers_that_are_not_finite(self, tmp_path: Path, value: float) -> None:
        state = {name: tensor.clone() for name, tensor in rule_model("retinanet_dpt_t_1x").state_dict().items()}
        state["neck.fpn_convs.0.conv.bias"][7] = value
        save_file(state, tmp_path / "weights.safetensors")
        with pytest.raises(WeightsError, match=r"neck.fpn_convs.0.conv.bias holds numbers that are not finite"):
            dpt_zoo.create_model("retinanet_dpt_t_1x", weights=tmp_path / "weights.safetensors")

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ({"num_classes": 0}, "num_classes must be a whole number from 1, not 0"),
            ({"num_classes": True}, "num_classes must be a whole number from 1, not True"),
            ({"num_classes": "80"}, "num_classes must be a whole number from 1, not '80'"),
            ({"pretrained": False, "weights": "a.pth"}, "exclude each other"),
            ({"weights": ""}, "weights is empty: give a path, or leave it out"),
            ({"pretrained": False, "device": "gpu"}, "device 'gpu' cannot be used"),
            ({"pretrained": False, "device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ],
    )
    def test_arguments(self, arguments: dict[str, Any], complaint: str) -> None:
        with pytest.raises(InputError, match=complaint) as raised:
            dpt_zoo.create_model("retinanet_dpt_t_1x", **arguments)
        assert isinstance(raised.value, DPTZooError)

    @pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
    def test_score_threshold(self, threshold: float) -> None:
        with pytest.raises(InputError, match="score_threshold must be a number from 0 to 1"):
            Detector(rule_model("retinanet_dpt_t_1x"), score_threshold=threshold)


class TestImageNetStart:
    """`init_cfg` of the backbone, which training starts from."""

    @pytest.mark.parametrize("wrapped", [True, False])
    def test_both_forms_of_a_classifiers_file(self, tmp_path: Path, wrapped: bool) -> None:
        from dpt_zoo.models import DPTClassifier
        from dpt_zoo.models.detection import DPT

        state = rule_state_dict(DPTClassifier("tiny").state_dict())
        torch.save({"model": state, "epoch": 299} if wrapped else state, tmp_path / "dpt_tiny.pth")
        init_default_scope("mmdet")
        backbone = DPT("tiny", init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "dpt_tiny.pth")})
        backbone.init_weights()
        assert all(torch.equal(tensor, state[name]) for name, tensor in backbone.state_dict().items())

    @pytest.mark.slow
    def test_what_cannot_be_used(self, tmp_path: Path) -> None:
        from dpt_zoo.models.detection import DPT

        with pytest.raises(InputError, match="init_cfg must be None or dict"):
            DPT("tiny", init_cfg={"type": "Normal"})
        with pytest.raises(WeightsError, match="no such file"):
            DPT("tiny", init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "none.pth")}).init_weights()
        torch.save(rule_state_dict(DPT("small").state_dict()), tmp_path / "small.pth")
        with pytest.raises(WeightsError, match="not DPT-Tiny's weights"):
            DPT("tiny", init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "small.pth")}).init_weights()
