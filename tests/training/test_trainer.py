"""`train` with configs, own data, options, interruption and error messages."""

import copy
import functools
import inspect
import json
import math
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from reference_data import ROOT
from running import Run
from small_data import coco_annotation, make_coco, make_image, make_voc, make_yolo
from torch import Tensor

import dpt_zoo
from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.data.splits import prepare_splits
from dpt_zoo.engine import config as configs
from dpt_zoo.errors import DataError, DPTZooError, InputError
from dpt_zoo.training import trainer
from dpt_zoo.training.loop import TrainingInterrupted
from dpt_zoo.training.trainer import train
from dpt_zoo.weights.reading import read_weights
from dpt_zoo.weights.store import read_metadata

CONFIG = "configs/demo/retinanet_dpt_nano_digits.py"
MASK_CONFIG = "configs/demo/mask_rcnn_dpt_nano_digits.py"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digit scenes: 6 to train on, 2 to validate with."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    make_digit_scenes(folder, num_train=6, num_test=2, size=64)
    return folder


def quick(work_dir: Path, data_root: Path, **options: Any) -> dict[str, Any]:
    """Return the arguments of a short run."""
    return {
        "data_root": data_root,
        "work_dir": work_dir,
        "epochs": 1,
        "batch_size": 2,
        "workers": 0,
        "seed": 0,
        **options,
    }


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """Return the config that `train` gives to the Runner, without training."""
    monkeypatch.setattr(trainer, "_run", lambda cfg, *_: cfg)

    def configure(model: str, **options: Any) -> Any:
        return train(model, **options)

    return configure


class TestARun:
    """A run with many options, from its beginning to a file of weights."""

    @pytest.fixture(scope="class")
    @classmethod
    def work_dir(cls, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        work_dir = tmp_path_factory.mktemp("runs") / "mask"
        options: dict[str, Any] = {"accumulate": 3, "scale_lr": True, "ema": True, "gradient_checkpointing": True}
        options |= {"loggers": ["tensorboard"], "cfg_options": {"randomness.seed": 3}}
        train(MASK_CONFIG, **quick(work_dir, digits, epochs=2, **options))
        return work_dir

    def test_leaves_the_weights_in_one_file(self, work_dir: Path) -> None:
        model: Any = dpt_zoo.create_model("mrcnn_dpt_nano_digits", weights=work_dir / "model.safetensors")
        assert model.dataset_meta["classes"] == tuple("0123456789")

    def test_the_file_says_what_it_is(self, work_dir: Path) -> None:
        model: Any = dpt_zoo.create_model(work_dir / "model.safetensors")
        assert (type(model).__name__, model.dataset_meta["classes"]) == ("MaskRCNN", tuple("0123456789"))
        metadata = read_metadata(work_dir / "model.safetensors")
        assert {name: metadata.training[name] for name in ("images", "seed")} == {"images": 6, "seed": 3}
        assert metadata.metrics.keys() == {"bbox", "segm"} and 0 <= metadata.metrics["bbox"]["mAP"] <= 100

    def test_logs_text_json_lines_and_tensorboard(self, work_dir: Path) -> None:
        (text,) = work_dir.glob("*/*.log")
        assert "Epoch(val) [2][1/1]" in text.read_text()
        assert f"torch: {version('torch')}" in text.read_text()
        (lines,) = work_dir.glob("*/vis_data/scalars.json")
        metrics = [json.loads(line) for line in lines.read_text().splitlines()]
        assert [line["step"] for line in metrics if "coco/bbox_mAP" in line] == [1, 2]
        assert list(work_dir.glob("*/vis_data/events.out.tfevents.*"))

    def test_keeps_checkpoints_to_resume_from(self, work_dir: Path) -> None:
        assert {path.name for path in work_dir.glob("epoch_*.pth")} == {"epoch_1.pth", "epoch_2.pth"}

    def test_writes_its_config(self, work_dir: Path) -> None:
        cfg = Config.fromfile(work_dir / Path(MASK_CONFIG).name)
        assert cfg.optim_wrapper.accumulative_counts == 3
        assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-3 * 6 / 8)  # 2 images, 3 batches; the rate is for 8
        assert cfg.custom_hooks[0].type == "EMAHook"
        assert cfg.model.backbone.gradient_checkpointing
        assert cfg.randomness == {"seed": 3, "deterministic": False}  # cfg_options come last


# --- Exactness

NO_VALIDATION = {"train_cfg.val_begin": 100}


@HOOKS.register_module()
class Recorder(Hook):  # type: ignore[misc]
    """Records the initial model of a run, and the learning rate and batch of each step."""

    model: Any
    steps: ClassVar[list[tuple[float, Any]]] = []

    def before_train(self, runner: Runner) -> None:
        Recorder.model = copy.deepcopy(runner.model)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        (rate,) = runner.optim_wrapper.get_lr()["lr"]
        Recorder.steps.append((rate, copy.deepcopy(data_batch)))


@HOOKS.register_module()
class CtrlC(Hook):  # type: ignore[misc]
    """Sends SIGINT in one of the steps, as a terminal does."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == 4:
            signal.raise_signal(signal.SIGINT)


WARM_UP = {"param_scheduler.0.end": 5, **NO_VALIDATION}


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Return the weights that `Recorder` recorded in a run of three epochs."""
    changes = {"custom_hooks": [{"type": "Recorder"}], **WARM_UP}
    options = quick(tmp_path_factory.mktemp("runs"), digits, epochs=3, cfg_options=changes)
    return read_weights(train(CONFIG, **options)).tensors


def test_the_steps_of_a_run_are_those_of_a_plain_loop(trained: dict[str, Tensor]) -> None:
    model = Recorder.model
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    assert len(Recorder.steps) == 9
    for rate, batch in Recorder.steps:
        optimizer.param_groups[0]["lr"] = rate
        losses = model(**model.data_preprocessor(batch, training=True), mode="loss")
        total: Any = sum(sum(loss) if isinstance(loss, list) else loss for loss in losses.values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=0, atol=1e-6)


def test_ctrl_c_saves_and_resume_continues_to_the_same_weights(
    trained: dict[str, Tensor], digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`test_resuming.py` tests all other ways to end a run."""
    changes = {"custom_hooks": [{"type": "CtrlC"}], **WARM_UP}
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(TrainingInterrupted) as stopped:
            train(CONFIG, **quick(tmp_path, digits, epochs=3, cfg_options=changes))
    finally:
        signal.signal(signal.SIGINT, previous)
    assert stopped.value.code == 128 + signal.SIGINT
    assert stopped.value.checkpoint == tmp_path / "iter_5.pth"
    message = f"stopped by SIGINT; resume the run to continue from {tmp_path}/iter_5.pth\n"
    assert capfd.readouterr().err.endswith(message)
    assert not (tmp_path / "model.safetensors").exists()

    resumed = read_weights(train(CONFIG, **quick(tmp_path, digits, epochs=3, resume=True, cfg_options=WARM_UP))).tensors
    for name, tensor in resumed.items():
        torch.testing.assert_close(tensor, trained[name], rtol=0, atol=1e-6)


def test_a_compiled_backbone_trains_to_the_same_weights(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_compile = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")  # without a C++ compiler
    monkeypatch.setattr(torch.nn.Module, "compile", quick_compile)
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters["stats"]
    weights = {}
    for compiled in (True, False):
        before = counters["unique_graphs"]
        options = quick(tmp_path / str(compiled), digits, compile=compiled, cfg_options=NO_VALIDATION)
        path = train(CONFIG, **options)
        assert (counters["unique_graphs"] > before) == compiled
        weights[compiled] = read_weights(path).tensors
    for name, tensor in weights[False].items():
        torch.testing.assert_close(weights[True][name], tensor, rtol=0, atol=1e-4, msg=name)


class TestOnesOwnData:
    """A detector of the zoo, fine-tuned."""

    def test_classes_are_the_datas_and_only_their_layers_are_new(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        make_coco(tmp_path / "data", with_masks_only)
        make_coco(tmp_path / "data", with_masks_only, split="val2017")
        result = train("mrcnn_dpt_nano_digits", **quick(tmp_path / "run", tmp_path / "data"))
        reported = capfd.readouterr().err
        layers = ("roi_head.bbox_head.fc_cls", "roi_head.mask_head.conv_logits")
        names = ", ".join(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))
        assert f"tensors of mrcnn_dpt_nano_digits, left out for other classes: {names}\n" in reported
        assert "4 images with 5 objects of 2 classes to train on (1 without objects), 4 to validate with" in reported
        model: Any = dpt_zoo.create_model("mrcnn_dpt_nano_digits", weights=result)
        assert model.dataset_meta["classes"] == ("cat", "dog")
        assert model.roi_head.bbox_head.num_classes == 2

    @pytest.mark.parametrize("make", [make_yolo, make_voc])
    def test_other_formats(
        self, make: Callable[[Path], object], configured: Callable[..., Config], tmp_path: Path
    ) -> None:
        make(tmp_path / "data")
        cfg = configured("retinanet_dpt_nano_digits", **quick(tmp_path / "run", tmp_path / "data"))
        assert Path(cfg.train_dataloader.dataset.ann_file).parent == tmp_path / "run" / "annotations"

    def test_without_a_split_to_validate_with_the_last_weights_are_the_result(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        make_coco(tmp_path / "data")
        result = train("retinanet_dpt_nano_digits", **quick(tmp_path / "run", tmp_path / "data"))
        assert "0 to validate with" in capfd.readouterr().err
        last = read_weights(tmp_path / "run" / "epoch_1.pth").tensors
        assert all(torch.equal(tensor, last[name]) for name, tensor in read_weights(result).tensors.items())

    def test_all_issues_of_the_data_are_reported_before_the_first_step(self, tmp_path: Path, run: Run) -> None:
        make_coco(tmp_path / "data", break_two_things)
        (tmp_path / "data/train2017/3.png").write_bytes(b"no image")
        status, out, err = run(
            "train", "retinanet_dpt_nano_digits", "--data-root", tmp_path / "data", "--work-dir", tmp_path / "run"
        )
        assert (status, out) == (2, "")
        assert "annotation 11" in err and "annotation 12" in err and "3.png" in err
        assert not list((tmp_path / "run").iterdir())

    def test_masks_are_needed_for_mask_rcnn(self, tmp_path: Path) -> None:
        make_coco(tmp_path / "data")
        with pytest.raises(DataError, match=r"(?s)missing mask.*annotation 15"):
            train("mrcnn_dpt_nano_digits", **quick(tmp_path / "run", tmp_path / "data"))

    def test_rle_masks_are_learned_by_configs_that_read_polygons_alone(self, tmp_path: Path) -> None:
        cfg = configs.load_config("configs/mask_rcnn_dpt_t_fpn_mstrain-poly_3x_coco.py")
        make_coco(tmp_path, with_masks_only)
        configs.set_data(cfg, prepare_splits(cfg, tmp_path, tmp_path))
        (load,) = [each for each in cfg.train_dataloader.dataset.pipeline if each.type == "LoadAnnotations"]
        assert load == {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True}

    def test_an_annotation_file_and_its_images(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trainer, "_run", lambda cfg, *_: cfg)
        path = make_coco(tmp_path / "data")
        pair = {"data_root": None, "annotations": path, "images": str(tmp_path / "data" / "train2017")}
        cfg: Any = train(CONFIG, **{**quick(tmp_path / "run", tmp_path), **pair})
        assert cfg.train_dataloader.dataset.ann_file == str(path) and not cfg.train_dataloader.dataset.data_root
        assert cfg.train_dataloader.dataset.metainfo.classes == ("cat", "dog")
        assert cfg.val_dataloader is cfg.val_cfg is cfg.test_dataloader is None


def with_masks_only(content: dict[str, Any]) -> None:
    for annotation in content["annotations"]:
        annotation["segmentation"] = annotation["segmentation"] or [[12, 10, 30, 10, 30, 20]]


def break_two_things(content: dict[str, Any]) -> None:
    content["annotations"][0]["category_id"] = 7
    content["annotations"][1]["bbox"] = [1, 2, float("nan"), 4]


def test_the_folder_of_another_run_is_left_alone(digits: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "epoch_1.pth").write_bytes(b"another run's")
    status, _, err = run("train", CONFIG, "--data-root", digits, "--work-dir", tmp_path)
    assert (status, err) == (2, f"dpt-zoo: {tmp_path} holds another run: resume it, or choose another work_dir\n")
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["epoch_1.pth"]


@HOOKS.register_module()
class SecondRun(Hook):  # type: ignore[misc]
    """Starts another process in the same folder before the first step."""

    done: subprocess.CompletedProcess[str]

    def __init__(self, command: list[str]) -> None:
        self.command = command

    def before_train(self, runner: Runner) -> None:
        SecondRun.done = subprocess.run(self.command, capture_output=True, text=True)


def test_a_second_run_in_the_folder_is_refused(digits: Path, tmp_path: Path, quick_python: Path) -> None:
    command = [
        quick_python,
        "-m",
        "dpt_zoo",
        "train",
        CONFIG,
        "--data-root",
        digits,
        "--work-dir",
        tmp_path,
        "--resume",
    ]
    changes = {"custom_hooks": [{"type": "SecondRun", "command": list(map(str, command))}], **NO_VALIDATION}
    weights = train(CONFIG, **quick(tmp_path, digits, cfg_options=changes))
    message = f"dpt-zoo: {tmp_path} is in use by another run: wait for its end, or use another folder\n"
    assert (SecondRun.done.returncode, SecondRun.done.stderr) == (2, message)
    assert weights.exists()


def test_two_processes(digits: Path, tmp_path: Path, quick_python: Path) -> None:
    command = ["bash", "scripts/dist_train.sh", CONFIG, "2", "--data-root", str(digits)]
    command += ["--work-dir", str(tmp_path / "run")]
    command += ["--epochs", "1", "--batch-size", "1", "--workers", "0", "--seed", "0"]
    environment = {**os.environ, "PYTHON_EXEC": str(quick_python)}  # what torchrun starts
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("data: 6 images with") == 1
    # Gloo of PyTorch 2.10 also prints to standard output.
    lines = [line for line in done.stdout.splitlines() if not line.startswith("[Gloo] ")]
    assert lines == [f"{tmp_path}/run/model.safetensors"]
    assert "Epoch(val) [1][1/1]" in next((tmp_path / "run").glob("*/*.log")).read_text()  # 2 images, 2 processes


class TestOptions:
    @pytest.mark.parametrize(("epochs", "milestones"), [(12, [8, 11]), (24, [16, 22]), (3, [2, 3]), (1, [1, 1])])
    def test_the_schedule_is_scaled_with_the_epochs(self, epochs: int, milestones: list[int]) -> None:
        cfg = configs.load_config("configs/retinanet_dpt_t_fpn_1x_coco.py")
        configs.set_num_epochs(cfg, epochs)
        assert cfg.train_cfg.max_epochs == epochs
        assert cfg.param_scheduler[1].milestones == milestones

    def test_fine_tuning_warms_up_for_a_tenth_of_the_run(self) -> None:
        cfg = configs.load_config("mrcnn_dpt_t_1x")
        configs.set_fine_tuning_schedule(cfg, epochs=12, num_steps=600)
        assert cfg.param_scheduler[0].end == 60

    def test_settings_are_read_as_mmengine_reads_them(self) -> None:
        pairs = ["model.backbone.size=small", "a.b=[1,2]", "c=(3,4)", "d=None", "e=0.1", "f=x=y"]
        values = {"model.backbone.size": "small", "a.b": [1, 2], "c": (3, 4), "d": None, "e": 0.1, "f": "x=y"}
        assert configs.parse_cfg_options(pairs) == values

    def test_numpy_numbers(self, configured: Callable[..., Config], digits: Path, tmp_path: Path) -> None:
        options = quick(tmp_path, digits, epochs=np.int64(3), batch_size=np.int32(1), seed=np.uint8(5))
        cfg = configured(CONFIG, **options)
        assert [type(value) for value in (cfg.train_cfg.max_epochs, cfg.randomness.seed)] == [int, int]

    def test_the_command_has_every_option(self, monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path) -> None:
        taken = {}
        monkeypatch.setattr(trainer, "train", lambda **options: taken.update(options) or "model.safetensors")
        answer = run("train", "mrcnn_dpt_t_1x", "--device", "cpu", "--cfg-options", "a.b=1")
        assert answer == (0, "model.safetensors\n", "")
        assert taken.keys() == inspect.signature(train).parameters.keys()
        assert taken["device"] == "cpu" and taken["cfg_options"] == {"a.b": 1}


class TestSettingsOfAUser:
    """`cfg_options` and the user's own config are merged with the options, and nothing is lost without a word."""

    def test_usual_settings_of_mmdetection(
        self, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        settings = {
            "custom_hooks": [{"type": "EarlyStoppingHook", "monitor": "coco/bbox_mAP"}, {"type": "Recorder"}],
            "default_hooks.checkpoint.interval": 2,
            "default_hooks.checkpoint.save_best": "auto",
            "model.backbone.frozen_stages": 2,
            "optim_wrapper.optimizer.lr": 0.0,
            "randomness.diff_rank_seed": True,
        }
        result = train("retinanet_dpt_nano_digits", **quick(tmp_path, digits, cfg_options=settings))
        zoo = dpt_zoo.create_model("retinanet_dpt_nano_digits").state_dict()
        assert all(torch.equal(tensor, zoo[name]) for name, tensor in read_weights(result).tensors.items())
        assert "starting from " in capfd.readouterr().err
        assert (tmp_path / "best_coco_bbox_mAP_epoch_1.pth").exists()
        backbone = Recorder.model.backbone.train()
        assert not backbone.pos_embed2.requires_grad and backbone.pos_embed3.requires_grad
        assert not backbone.block2.training and backbone.block3.training

    REFUSED: ClassVar[dict[str, tuple[Any, str]]] = {
        "default_hooks.checkpoint.save_best": ("bbox_mAP", "save_best='bbox_mAP' is not a metric of the validation"),
        "default_hooks.checkpoint.published_keys": (["meta"], "TypeError: .*published_keys"),
        "default_hooks.checkpoint.rule": ("greater", "TypeError: .*rule"),
        "train_cfg": ({"_delete_": True, "type": "EpochBasedTrainLoop", "max_epochs": 1}, "CheckpointHook"),
        "train_cfg.max_epoch": (3, "TypeError: .*max_epoch"),
        "model.backbone.sizes": ("small", "TypeError: .*sizes"),
        "model.backbone.frozen_stages": (5, "frozen_stages must be a whole number from -1 to 4, not 5"),
        "model.neck.out_channel": (8, "TypeError: .*out_channel"),
        "optim_wrapper.lr": (1, "TypeError: .*lr"),
        "optim_wrapper.type": ("AmpOptimWrapper", "AssertionError: "),
        "custom_hooks": ([{"type": "NoHook"}], "KeyError: .*NoHook"),
        "param_scheduler": ([{"type": "CosineLR"}], "KeyError: .*CosineLR"),
        "train_dataloader.prefetch_factor": (2, "ValueError: .*prefetch_factor"),
    }

    @pytest.mark.parametrize(("setting", "value", "complaint"), [(k, *v) for k, v in REFUSED.items()], ids=REFUSED)
    def test_others_are_refused_before_the_first_step(
        self, setting: str, value: Any, complaint: str, digits: Path, tmp_path: Path
    ) -> None:
        if setting == "optim_wrapper.type" and torch.cuda.is_available():
            pytest.skip("a GPU has mixed precision")
        with pytest.raises(InputError, match=complaint) as raised:
            train(CONFIG, **quick(tmp_path, digits, cfg_options={setting: value}, device="cpu"))
        assert "\n" not in str(raised.value)
        assert not [*tmp_path.glob("*.pth"), *tmp_path.glob("*/vis_data/scalars.json")]

    def test_weights_that_fit_nothing(self, digits: Path, tmp_path: Path) -> None:
        torch.save({"state_dict": {"conv1.weight": torch.zeros(3)}}, tmp_path / "other.pt")
        settings = {"load_from": str(tmp_path / "other.pt")}
        with pytest.raises(InputError, match=r"^load_from: .*other\.pt has no weights of this model"):
            train(CONFIG, **quick(tmp_path / "run", digits, cfg_options=settings))

    @pytest.mark.parametrize("model", ["retinanet_dpt_nano_digits", CONFIG])
    def test_load_from(self, model: str, configured: Callable[..., Config], digits: Path, tmp_path: Path) -> None:
        settings = {"load_from": "configs/demo/retinanet_dpt_nano_digits.safetensors"}
        cfg = configured(model, **quick(tmp_path, digits, cfg_options=settings))
        if model == CONFIG:
            assert cfg.load_from == settings["load_from"]  # MMEngine's way
        else:
            assert cfg.load_from is None
            assert cfg.custom_hooks[0].weights == str(Path(settings["load_from"]).absolute())
        with pytest.raises(InputError, match=r"^weights is 'a\.pth', and load_from in cfg_options is 'configs"):
            configured(model, **quick(tmp_path, digits, weights="a.pth", cfg_options=settings))

    def test_the_folder(self, configured: Callable[..., Config], digits: Path, tmp_path: Path) -> None:
        options = {**quick(tmp_path, digits), "work_dir": None}
        cfg = configured(CONFIG, **options, cfg_options={"work_dir": str(tmp_path / "run")})
        assert cfg.work_dir == str(tmp_path / "run") and (tmp_path / "run").is_dir()
        (tmp_path / "run" / "epoch_1.pth").touch()
        with pytest.raises(InputError, match="holds another run"):
            configured(CONFIG, **options, cfg_options={"work_dir": str(tmp_path / "run")})
        assert configured(CONFIG, **options, cfg_options={"work_dir": tmp_path / "run", "resume": True}).resume
        with pytest.raises(InputError, match=r"^work_dir is 'a', and work_dir in cfg_options is 'b'"):
            configured(CONFIG, **{**options, "work_dir": "a"}, cfg_options={"work_dir": "b"})

    def test_data_by_settings_is_checked(self, configured: Callable[..., Config], digits: Path, tmp_path: Path) -> None:
        settings: dict[str, Any] = {f"{part}_dataloader.dataset.data_root": str(digits) for part in ("train", "val")}
        options = {**quick(tmp_path / "run", digits), "data_root": None}
        dataset = configured(CONFIG, **options, cfg_options=settings).train_dataloader.dataset
        assert dataset.ann_file == str(digits / "annotations/instances_train2017.json") and dataset.data_root == ""
        settings["train_dataloader.dataset.ann_file"] = "annotations/none.json"
        with pytest.raises(DataError, match=r"none\.json"):
            configured(CONFIG, **options, cfg_options=settings)

    def test_without_validation(self, configured: Callable[..., Config], digits: Path, tmp_path: Path) -> None:
        settings = {"val_dataloader": None, "val_evaluator": None, "val_cfg": None}
        cfg = configured(CONFIG, **quick(tmp_path, digits, cfg_options=settings))
        assert cfg.val_dataloader is cfg.test_dataloader is cfg.default_hooks.checkpoint.save_best is None

    def test_options_follow_settings(self, configured: Callable[..., Config], digits: Path, tmp_path: Path) -> None:
        options = {**quick(tmp_path, digits, epochs=40, scale_lr=True, loggers=["tensorboard"]), "batch_size": None}
        settings = {
            "train_dataloader.batch_size": 1,
            "auto_scale_lr.enable": True,
            "visualizer.vis_backends": [{"type": "LocalVisBackend"}],
            "train_dataloader.num_workers": 0,
        }
        cfg = configured("retinanet_dpt_nano_digits", **options, cfg_options=settings)
        assert cfg.param_scheduler[0].end == 24  # a tenth of 240 steps with one image
        assert cfg.optim_wrapper.optimizer.lr == pytest.approx(2e-3 / 2 / math.sqrt(8))
        assert not cfg.auto_scale_lr.enable
        assert [backend.type for backend in cfg.visualizer.vis_backends] == ["LocalVisBackend", "OptionalBackend"]
        assert not cfg.train_dataloader.persistent_workers

    @pytest.mark.parametrize("setting", ["find_unused_parameters", "model_wrapper_cfg.find_unused_parameters"])
    def test_several_processes(
        self,
        setting: str,
        configured: Callable[..., Config],
        digits: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        wrapper = {"type": "MMDistributedDataParallel", "find_unused_parameters": False}
        given = {"launcher": "pytorch", "model_wrapper_cfg": wrapper}
        monkeypatch.setattr(trainer, "runner_settings", lambda: given)
        cfg = configured(CONFIG, **quick(tmp_path, digits, cfg_options={setting: True, "launcher": "none"}))
        assert cfg.launcher == "pytorch"
        assert cfg.model_wrapper_cfg == {"type": "MMDistributedDataParallel", "find_unused_parameters": True}

    def test_settings_of_a_config(self, configured: Callable[..., Config], digits: Path, tmp_path: Path) -> None:
        lines = [
            f"_base_ = {str(ROOT / CONFIG)!r}",
            "optim_wrapper = dict(accumulative_counts=4)",
            "randomness = dict(seed=7, deterministic=True)",
            "custom_hooks = [dict(type='Recorder')]",
            f"work_dir = {str(tmp_path / 'own')!r}",
        ]
        (tmp_path / "mine.py").write_text("\n".join(lines))
        options = {**quick(tmp_path, digits, ema=True), "seed": None, "work_dir": None}
        cfg = configured(str(tmp_path / "mine.py"), **options)
        assert cfg.optim_wrapper.accumulative_counts == 4
        assert cfg.randomness == {"seed": 7, "deterministic": True}
        assert [hook.type for hook in cfg.custom_hooks] == ["Recorder", "EMAHook", "ProgressHook"]
        assert cfg.work_dir == str(tmp_path / "own")

    def test_a_short_config_of_mmengine(self, digits: Path, tmp_path: Path) -> None:
        """Parts that MMEngine does not require may be missing, and the evaluators may be a list."""
        lines = [
            f"_base_ = {str(ROOT / CONFIG)!r}",
            "visualizer = None",
            "param_scheduler = None",
            "default_hooks = dict(_delete_=True, checkpoint=dict(type='ResumableCheckpointHook'))",
            "val_evaluator = [dict(type='CocoMetric', metric='bbox')]",
        ]
        (tmp_path / "mine.py").write_text("\n".join(lines))
        assert train(str(tmp_path / "mine.py"), **quick(tmp_path / "run", digits)).exists()

    def test_data_of_a_resumed_run(self, digits: Path, tmp_path: Path) -> None:
        data = Path(shutil.copytree(digits, tmp_path / "data"))
        options = quick(tmp_path / "run", data, cfg_options=NO_VALIDATION, device=None)
        train(CONFIG, **options)
        options |= {"resume": True, "data_root": data.rename(tmp_path / "moved")}
        train(CONFIG, **options)
        annotations = tmp_path / "moved/annotations/instances_train2017.json"
        content = json.loads(annotations.read_text())
        content["annotations"][0]["bbox"][2] -= 1
        annotations.write_text(json.dumps(content))
        with pytest.raises(
            InputError, match=r"^the run to resume has other settings \(train annotations: [0-9a-f]{12}, now "
        ):
            train(CONFIG, **options)

    def test_weights_of_a_resumed_run(self, digits: Path, tmp_path: Path) -> None:
        options = quick(tmp_path / "run", digits, cfg_options=NO_VALIDATION)
        shipped = Path("configs/demo/retinanet_dpt_nano_digits.safetensors")
        train("retinanet_dpt_nano_digits", **options, weights=shipped)
        options["resume"] = True
        train("retinanet_dpt_nano_digits", **options)
        train("retinanet_dpt_nano_digits", **options, weights=shipped.absolute())
        other = Path(shutil.copy(shipped, tmp_path / "other.safetensors"))
        with pytest.raises(InputError, match=r"started from .*digits\.safetensors, not from .*other\.safetensors"):
            train("retinanet_dpt_nano_digits", **options, weights=other)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"model": "mrcnn_dpt_t_2x"}, "there is no model 'mrcnn_dpt_t_2x': did you mean mrcnn_dpt_t_1x?"),
        ({"model": torch.nn.Identity()}, "model must be a config file or a model's name, not Identity"),
        ({"model": "configs/none.py"}, "configs/none.py: there is no such config"),
        ({"epochs": 0}, "epochs must be a whole number from 1, not 0"),
        ({"batch_size": 1.5}, "batch_size must be a whole number from 1, not 1.5"),
        ({"workers": -1}, "workers must be a whole number from 0, not -1"),
        ({"accumulate": None}, "accumulate must be a whole number from 1, not None"),
        ({"annotations": "a.json"}, "choose the data by data_root, or by annotations and images together"),
        ({"seed": 2**32}, "seed must be a whole number from 0 to 4294967295, not 4294967296"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"cfg_options": ["a=1"]}, "cfg_options must be a dict of settings by path, not ['a=1']"),
        ({"cfg_options": {1: 2}}, "cfg_options must be a dict of settings by path, not {1: 2}"),
        ({"cfg_options": {"model.backbone.size.x": 1}}, "cfg_options: "),
        ({"weights": "none.pth"}, "none.pth: there is no such file"),
        ({"work_dir": "/proc/run"}, "/proc/run cannot be made: "),
        ({"data_root": "none"}, "none: there is no such folder"),
        ({"data_root": ""}, "data_root is empty: give a path, or leave it out"),
        ({"work_dir": ""}, "work_dir is empty: give a path, or leave it out"),
        ({"weights": ""}, "weights is empty: give a path, or leave it out"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], complaint: str, digits: Path, tmp_path: Path) -> None:
    with pytest.raises(DPTZooError) as raised:
        train(**{"model": CONFIG, **quick(tmp_path / "run", digits), **arguments})
    assert str(raised.value).startswith(complaint)


@pytest.mark.parametrize("content", ["model = 1 +", "x = 1", "raise RuntimeError('no')", "_base_ = 'none.py'"])
def test_bad_configs(content: str, tmp_path: Path) -> None:
    config = tmp_path / "mine.py"
    config.write_text(content)
    with pytest.raises(InputError, match="^" + re.escape(f"{config}: this config ")):
        configs.load_config(config)


def test_amp_needs_a_gpu(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="amp needs a GPU"):
        train(CONFIG, **quick(tmp_path / "run", digits, amp=True, device="cpu"))


@pytest.mark.parametrize("model", ["retinanet_dpt_nano_digits", "mrcnn_dpt_nano_digits"])
def test_a_diverging_run_ends_in_one_line_and_writes_no_weights(
    model: str, digits: Path, tmp_path: Path, run: Run
) -> None:
    options = ["--work-dir", tmp_path / "run", "--batch-size", 2, "--epochs", 3, "--workers", 0, "--seed", 0]
    settings = ["--cfg-options", "optim_wrapper.optimizer.lr=1e6", "default_hooks.logger.interval=1"]
    status, out, err = run("train", model, "--data-root", digits, *options, *settings)
    assert (status, out) == (2, "")
    assert re.search(
        r"^dpt-zoo: the loss is (nan|inf) in epoch [12]; .*: start a new run with a lower lear.*$", err, re.M
    )
    (log,) = (tmp_path / "run").glob("*/vis_data/scalars.json")
    losses = [json.loads(line).get("loss", 0.0) for line in log.read_text().splitlines()]
    assert all(map(math.isfinite, losses[:-1])) and not math.isfinite(losses[-1])  # it ended at the first
    assert not (tmp_path / "run" / "model.safetensors").exists()
    for path in (tmp_path / "run").glob("*.pth"):
        assert all(tensor.isfinite().all() for tensor in read_weights(path).tensors.values())


class TestWhatIsLearned:
    """Images without objects, rare classes and frozen parts."""

    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Six images: four with cats and dogs or none, of `make_coco`, and two without objects."""
        folder = tmp_path_factory.mktemp("data")
        make_coco(folder, with_empty_images)
        for number in (5, 6):
            make_image(folder / "train2017" / f"{number}.png")
        return folder

    @pytest.mark.parametrize(
        ("model", "keep_empty", "filters"),
        [
            ("mrcnn_dpt_t_1x", None, False),
            ("mrcnn_dpt_t_1x", False, True),
            ("configs/mask_rcnn_dpt_t_fpn_1x_coco.py", None, True),  # as the authors did
            ("configs/mask_rcnn_dpt_t_fpn_1x_coco.py", True, False),
        ],
    )
    def test_images_without_objects(
        self, model: str, keep_empty: bool, filters: bool, data: Path, configured: Callable[..., Config], tmp_path: Path
    ) -> None:
        cfg = configured(model, **quick(tmp_path, data, keep_empty=keep_empty))
        assert cfg.train_dataloader.dataset.filter_cfg == {"filter_empty_gt": filters, "min_size": 32}

    @pytest.mark.parametrize("model", ["retinanet_dpt_nano_digits", "mrcnn_dpt_nano_digits"])
    def test_batches_without_any_object(self, model: str, tmp_path: Path) -> None:
        """Each of the four images is a batch. Frozen parts stay the same to the bit."""
        make_coco(tmp_path / "data", with_masks_only)
        freeze = ["backbone", "neck"]
        weights = train(model, **quick(tmp_path / "run", tmp_path / "data", batch_size=1, freeze=freeze))
        assert read_weights(tmp_path / "run" / "epoch_1.pth").meta["iter"] == 4
        zoo, trained = dpt_zoo.create_model(model).state_dict(), read_weights(weights).tensors
        changed = {name.partition(".")[0] for name, tensor in trained.items() if not torch.equal(tensor, zoo[name])}
        assert changed == {name.partition(".")[0] for name in zoo} - {*freeze}

    def test_a_part_that_does_not_exist(self, data: Path, tmp_path: Path) -> None:
        parts = "backbone, neck, bbox_head"
        with pytest.raises(InputError, match=f"freeze: the model has no part 'head': choose among {parts}$"):
            train(CONFIG, **quick(tmp_path, data, freeze=["head"]))

    def test_images_of_rare_classes_are_repeated(self, data: Path, tmp_path: Path) -> None:
        """Six images have cats, one of them also a dog: that is drawn twice."""
        make_coco(tmp_path / "data", with_a_rare_dog)
        shutil.copytree(data / "train2017", tmp_path / "data" / "train2017", dirs_exist_ok=True)
        settings = {"train_dataloader.batch_sampler": {"type": "GroupBatchSampler"}, **NO_VALIDATION}
        options = quick(tmp_path / "run", tmp_path / "data", batch_size=1, cfg_options=settings)
        train(CONFIG, **options, balance=True)
        assert read_weights(tmp_path / "run" / "epoch_1.pth").meta["iter"] == 7
        with pytest.raises(InputError, match="the run to resume has 1 processes with 7 batches in an epoch, this one"):
            train(CONFIG, **options, resume=True)
        make_coco(tmp_path / "data", with_a_moved_dog)
        with pytest.raises(InputError, match="train annotations: "):
            train(CONFIG, **options, balance=True, resume=True)

    def test_patience_needs_validation(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="patience needs data to validate with"):
            train(CONFIG, **quick(tmp_path, data, patience=2))


def with_empty_images(content: dict[str, Any]) -> None:
    with_masks_only(content)
    content["images"] += [{**content["images"][0], "id": number, "file_name": f"{number}.png"} for number in (5, 6)]


def with_a_rare_dog(content: dict[str, Any]) -> None:
    with_empty_images(content)
    cats = [coco_annotation(number, number) for number in range(1, 7)]
    content["annotations"] = [*cats, coco_annotation(7, 1, category_id=2)]


def with_a_moved_dog(content: dict[str, Any]) -> None:
    with_a_rare_dog(content)
    content["annotations"][-1]["bbox"][0] += 1
