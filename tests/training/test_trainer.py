"""Training as a user has it: recipes, one's own data, options, interruption, what is told when it fails."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from reference_data import ROOT
from running import Run
from small_data import make_coco, make_voc, make_yolo

import dpt_zoo
from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.data.splits import prepare_splits
from dpt_zoo.engine import config as configs
from dpt_zoo.errors import DataError, DPTZooError, InputError
from dpt_zoo.training.trainer import train
from dpt_zoo.weights.reading import read_weights

RECIPE = "configs/demo/retinanet_dpt_nano_digits.py"
MASK_RECIPE = "configs/demo/mask_rcnn_dpt_nano_digits.py"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digit scenes: 6 to train on, 2 to validate with."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    make_digit_scenes(folder, num_train=6, num_test=2)
    return folder


def quick(work_dir: Path, data_root: Path, **options: Any) -> dict[str, Any]:
    """The arguments of a run of seconds."""
    return {
        "data_root": data_root,
        "work_dir": work_dir,
        "epochs": 1,
        "batch_size": 2,
        "workers": 0,
        "seed": 0,
        **options,
    }


class TestARun:
    """A recipe, from its beginning to a file of weights."""

    @pytest.fixture(scope="class")
    @classmethod
    def work_dir(cls, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        work_dir = tmp_path_factory.mktemp("runs") / "mask"
        train(MASK_RECIPE, **quick(work_dir, digits, epochs=2, tensorboard=True))
        return work_dir

    def test_leaves_the_weights_in_one_file(self, work_dir: Path) -> None:
        model: Any = dpt_zoo.create_model("mrcnn_dpt_nano_digits", weights=work_dir / "model.safetensors")
        assert model.dataset_meta["classes"] == tuple("0123456789")

    def test_logs_text_json_lines_and_tensorboard(self, work_dir: Path) -> None:
        (text,) = work_dir.glob("*/*.log")
        assert "Epoch(val) [2][1/1]" in text.read_text()
        (lines,) = work_dir.glob("*/vis_data/scalars.json")
        figures = [json.loads(line) for line in lines.read_text().splitlines()]
        assert [line["step"] for line in figures if "coco/bbox_mAP" in line] == [1, 2]
        assert list(work_dir.glob("*/vis_data/events.out.tfevents.*"))

    def test_keeps_checkpoints_to_resume_from(self, work_dir: Path) -> None:
        assert {path.name for path in work_dir.glob("epoch_*.pth")} == {"epoch_1.pth", "epoch_2.pth"}


@HOOKS.register_module()
class Recorder(Hook):  # type: ignore[misc]
    """Keeps what a run started from, what it was given in each step, and what it came to."""

    model: Any
    steps: ClassVar[list[tuple[float, Any]]] = []
    trained: ClassVar[dict[str, torch.Tensor]] = {}

    def before_train(self, runner: Runner) -> None:
        Recorder.model = copy.deepcopy(runner.model)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        (rate,) = runner.optim_wrapper.get_lr()["lr"]
        Recorder.steps.append((rate, copy.deepcopy(data_batch)))

    def after_train(self, runner: Runner) -> None:
        Recorder.trained.update(copy.deepcopy(runner.model.state_dict()))


def test_the_steps_of_a_run_are_those_of_a_plain_loop(digits: Path, tmp_path: Path) -> None:
    changes = {"custom_hooks": [{"type": "Recorder"}], "param_scheduler.0.end": 5}
    train(RECIPE, **quick(tmp_path / "run", digits, epochs=7, cfg_options=changes))
    model = Recorder.model
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    assert len(Recorder.steps) == 21
    for rate, batch in Recorder.steps:
        optimizer.param_groups[0]["lr"] = rate
        losses = model(**model.data_preprocessor(batch, training=True), mode="loss")
        total: Any = sum(sum(loss) if isinstance(loss, list) else loss for loss in losses.values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(Recorder.trained[name], tensor, rtol=0, atol=1e-6)


def test_a_compiled_backbone_trains_to_the_same_weights(digits: Path, tmp_path: Path) -> None:
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters["stats"]
    trained = {}
    for compiled in (True, False):
        before = counters["unique_graphs"]
        path = train(RECIPE, **quick(tmp_path / str(compiled), digits, compile=compiled))
        assert (counters["unique_graphs"] > before) == compiled
        trained[compiled] = read_weights(path).tensors
    for name, tensor in trained[False].items():
        torch.testing.assert_close(trained[True][name], tensor, rtol=0, atol=1e-4, msg=name)


class TestOnesOwnData:
    """A detector of the zoo, fine-tuned."""

    def test_classes_are_the_datas_and_only_their_layers_are_new(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        make_coco(tmp_path / "data", with_masks_only)
        make_coco(tmp_path / "data", with_masks_only, split="val2017")
        result = train("mrcnn_dpt_nano_digits", **quick(tmp_path / "run", tmp_path / "data"))
        told = capfd.readouterr().err
        layers = ("roi_head.bbox_head.fc_cls", "roi_head.mask_head.conv_logits")
        names = ", ".join(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))
        assert f"tensors from mrcnn_dpt_nano_digits, left out, for other classes: {names}\n" in told
        assert "4 images with 5 objects of 2 classes to train on, 4 to validate with" in told
        model: Any = dpt_zoo.create_model("mrcnn_dpt_nano_digits", weights=result)
        assert model.dataset_meta["classes"] == ("cat", "dog")
        assert model.roi_head.bbox_head.num_classes == 2

    @pytest.mark.parametrize("make", [make_yolo, make_voc])
    def test_other_formats(self, make: Callable[[Path], object], tmp_path: Path) -> None:
        make(tmp_path / "data")
        train("retinanet_dpt_nano_digits", **quick(tmp_path / "run", tmp_path / "data"))
        cfg = Config.fromfile(tmp_path / "run" / "retinanet_dpt_nano_digits.py")
        assert Path(cfg.train_dataloader.dataset.ann_file).parent == tmp_path / "run" / "annotations"

    def test_without_a_part_to_validate_with_the_last_weights_are_the_result(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        make_coco(tmp_path / "data")
        result = train("retinanet_dpt_nano_digits", **quick(tmp_path / "run", tmp_path / "data"))
        assert "0 to validate with" in capfd.readouterr().err
        last = read_weights(tmp_path / "run" / "epoch_1.pth").tensors
        assert all(torch.equal(tensor, last[name]) for name, tensor in read_weights(result).tensors.items())

    def test_all_that_is_wrong_with_the_data_is_told_before_the_first_step(self, tmp_path: Path, run: Run) -> None:
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

    def test_rle_masks_are_learned_by_recipes_that_read_polygons_alone(self, tmp_path: Path) -> None:
        cfg = configs.load_config("configs/mask_rcnn_dpt_t_fpn_mstrain-poly_3x_coco.py")
        make_coco(tmp_path, with_masks_only)
        configs.set_data(cfg, prepare_splits(cfg, tmp_path, tmp_path))
        (load,) = [each for each in cfg.train_dataloader.dataset.pipeline if each.type == "LoadAnnotations"]
        assert load == {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True}


def with_masks_only(content: dict[str, Any]) -> None:
    for annotation in content["annotations"]:
        annotation["segmentation"] = annotation["segmentation"] or [[12, 10, 30, 10, 30, 20]]


def break_two_things(content: dict[str, Any]) -> None:
    content["annotations"][0]["category_id"] = 7
    content["annotations"][1]["bbox"] = [1, 2, float("nan"), 4]


class TestStopping:
    """Interrupted as a user does it; `test_resuming.py` shows all the ways."""

    def test_ctrl_c_saves_and_resume_goes_on_to_the_same_weights(self, digits: Path, tmp_path: Path) -> None:
        whole = train(RECIPE, **quick(tmp_path / "whole", digits, epochs=4))
        work_dir = tmp_path / "stopped"
        command = [sys.executable, "-m", "dpt_zoo", "train", RECIPE, "--data-root", str(digits), "--epochs", "4"]
        command += ["--workers", "0", "--seed", "0", "--batch-size", "2", "--work-dir", str(work_dir)]
        # Sums depend on how many threads share them.
        options: dict[str, Any] = {"cwd": ROOT, "env": {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=allow_ctrl_c, **options)
        wait_for(work_dir, "epoch_1.pth")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
        assert process.returncode == 128 + signal.SIGINT
        assert re.search(r"stopped; to go on from .*/(epoch|iter)_\d+\.pth, resume the run\n$", told)
        assert not (work_dir / "model.safetensors").exists()

        subprocess.run([*command, "--resume"], check=True, **options)
        ours, theirs = read_weights(work_dir / "model.safetensors").tensors, read_weights(whole).tensors
        assert all(torch.allclose(tensor, theirs[name], atol=1e-6) for name, tensor in ours.items())

    def test_another_runs_folder_is_left_alone(self, digits: Path, tmp_path: Path, run: Run) -> None:
        (tmp_path / "epoch_1.pth").write_bytes(b"another run's")
        status, _, err = run("train", RECIPE, "--data-root", digits, "--work-dir", tmp_path)
        assert (status, err) == (2, f"dpt-zoo: {tmp_path} holds another run: resume it, or choose another work_dir\n")
        assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["epoch_1.pth"]

    def test_two_processes(self, digits: Path, tmp_path: Path) -> None:
        command = ["bash", "scripts/dist_train.sh", RECIPE, "2", "--data-root", str(digits)]
        command += ["--work-dir", str(tmp_path / "run")]
        command += ["--epochs", "2", "--batch-size", "1", "--workers", "0", "--seed", "0"]
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("data: 6 images with") == 1
        assert done.stdout == f"{tmp_path}/run/model.safetensors\n"
        assert "Epoch(val) [2][1/1]" in next((tmp_path / "run").glob("*/*.log")).read_text()  # 2 images, 2 processes


def allow_ctrl_c() -> None:
    """As from a terminal; a shell's background jobs ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(work_dir: Path, name: str) -> None:
    for _ in range(1200):
        if (work_dir / name).exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{name} was not written")


class TestOptions:
    """What each changes in the config that is trained, which the run writes into its folder."""

    @pytest.fixture(scope="class")
    @classmethod
    def resolved(cls, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
        def resolve(recipe: str = RECIPE, **options: Any) -> Config:
            work_dir = tmp_path_factory.mktemp("runs") / "run"
            train(recipe, **quick(work_dir, digits, **options))
            return Config.fromfile(work_dir / f"{Path(recipe).stem}.py")

        return resolve

    def test_of_the_optimizer(self, resolved: Callable[..., Config]) -> None:
        cfg = resolved(accumulate=3, scale_lr=True, ema=True, gradient_checkpointing=True)
        assert cfg.optim_wrapper.accumulative_counts == 3
        assert cfg.optim_wrapper.optimizer.lr == pytest.approx(2e-3 * 6 / 8)  # 2 images, 3 batches; the rate is for 8
        assert cfg.custom_hooks[0].type == "EMAHook"
        assert cfg.model.backbone.gradient_checkpointing

    def test_cfg_options_come_last(self, resolved: Callable[..., Config]) -> None:
        cfg = resolved(seed=3, cfg_options={"train_dataloader.batch_size": 3, "optim_wrapper.optimizer.lr": 0.5e-3})
        assert cfg.train_dataloader.batch_size == 3
        assert cfg.optim_wrapper.optimizer.lr == 0.5e-3
        assert cfg.randomness == {"seed": 3, "deterministic": False}

    @pytest.mark.parametrize(("epochs", "milestones"), [(12, [8, 11]), (24, [16, 22]), (3, [2, 3]), (1, [1, 1])])
    def test_the_schedule_is_stretched_to_the_epochs(self, epochs: int, milestones: list[int]) -> None:
        cfg = configs.load_config("configs/retinanet_dpt_t_fpn_1x_coco.py")
        configs.set_epochs(cfg, epochs)
        assert cfg.train_cfg.max_epochs == epochs
        assert cfg.param_scheduler[1].milestones == milestones

    def test_fine_tuning_warms_up_for_a_tenth_of_the_run(self) -> None:
        cfg = configs.load_config("mrcnn_dpt_t_1x")
        configs.fine_tune(cfg, epochs=12, num_batches=50)
        assert cfg.param_scheduler[0].end == 60
        assert cfg.optim_wrapper.optimizer.lr == 0.5e-4

    def test_settings_are_read_as_mmengine_reads_them(self) -> None:
        read = configs.parse_changes(["model.backbone.size=small", "a.b=[1,2]", "c=(3,4)", "d=None", "e=0.1", "f=x=y"])
        assert read == {"model.backbone.size": "small", "a.b": [1, 2], "c": (3, 4), "d": None, "e": 0.1, "f": "x=y"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"recipe": "mrcnn_dpt_t_2x"}, "there is no model 'mrcnn_dpt_t_2x': did you mean mrcnn_dpt_t_1x?"),
        ({"recipe": "configs/none.py"}, "configs/none.py: there is no such config"),
        ({"epochs": 0}, "epochs must be a whole number from 1, not 0"),
        ({"batch_size": 1.5}, "batch_size must be a whole number from 1, not 1.5"),
        ({"workers": -1}, "workers must be a whole number from 0, not -1"),
        ({"cfg_options": {"model.backbone.size.x": 1}}, "cfg_options: "),
        ({"weights": "none.pth"}, "none.pth: there is no such file"),
        ({"work_dir": "/proc/run"}, "/proc/run cannot be made: "),
        ({"data_root": "none"}, "none: there is no such folder"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], complaint: str, digits: Path, tmp_path: Path) -> None:
    with pytest.raises(DPTZooError) as raised:
        train(**{"recipe": RECIPE, **quick(tmp_path / "run", digits), **arguments})
    assert str(raised.value).startswith(complaint)


@pytest.mark.parametrize("content", ["model = 1 +", "x = 1", "raise RuntimeError('no')", "_base_ = 'none.py'"])
def test_bad_configs(content: str, tmp_path: Path) -> None:
    config = tmp_path / "mine.py"
    config.write_text(content)
    with pytest.raises(InputError, match="^" + re.escape(f"{config}: this config ")):
        configs.load_config(config)


def test_amp_needs_a_gpu(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="amp needs a GPU"):
        train(RECIPE, **quick(tmp_path / "run", digits, amp=True))


def test_a_loss_that_is_not_finite_ends_training(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpt_zoo.engine.runner.SECONDS", 0.0)
    with pytest.raises(DPTZooError, match=r"the loss is (nan|inf) in epoch 1: "):
        train(RECIPE, **quick(tmp_path / "run", digits, cfg_options={"model.bbox_head.loss_bbox.loss_weight": 1e300}))
