"""What a fine-tuning run chooses by itself."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.engine import config as configs
from dpt_zoo.errors import InputError
from dpt_zoo.models.metadata import find_scale
from dpt_zoo.training import probing, trainer
from dpt_zoo.training.defaults import (
    MAX_EPOCHS,
    MAX_GROWTH,
    MEMORY_SHARE,
    MIN_EPOCHS,
    MIN_OBJECT,
    Choices,
    Facts,
    Memory,
    choose,
    read_choices,
)
from dpt_zoo.training.probing import MemoryHook, find_divergence, pick_lr
from dpt_zoo.training.trainer import train
from dpt_zoo.utils.devices import free_memory
from dpt_zoo.weights.store import read_metadata

SIDES = st.integers(16, 8000)

facts = st.builds(
    Facts,
    num_images=st.integers(1, 200_000),
    image_size=st.tuples(SIDES, SIDES),
    object_size=st.floats(1, 500),
    lr=st.floats(1e-6, 1e-2),
    base_batch_size=st.sampled_from([8, 16]),
    scale=st.sampled_from([(1333, 800), (192, 192), None]),
    num_processes=st.sampled_from([1, 2, 8]),
    accumulate=st.sampled_from([1, 4]),
    memory=st.none() | st.builds(Memory, needed=st.integers(1, 2**36), free=st.integers(0, 2**38)),
)


@given(facts)
def test_choices_are_within_their_bounds(facts: Facts) -> None:
    chosen, reasons = choose(facts, Choices())
    assert chosen.batch_size and chosen.lr and chosen.epochs
    images = chosen.batch_size * facts.num_processes * facts.accumulate
    if chosen.batch_size > 1:
        assert images <= min(facts.base_batch_size, facts.num_images)
        assert facts.memory is None or chosen.batch_size * facts.memory.needed <= MEMORY_SHARE * facts.memory.free
    assert 0 < chosen.lr <= facts.lr / 2
    assert MIN_EPOCHS <= chosen.epochs <= MAX_EPOCHS
    assert reasons.keys() == {name for name, value in vars(chosen).items() if value is not None}
    if facts.scale is None:
        assert chosen.scale is None
    else:
        assert chosen.scale and 1 <= min(chosen.scale) <= MAX_GROWTH * min(facts.scale)
    assert all("\n" not in line and "nan" not in line for line in reasons.values())


@given(facts)
def test_a_choice_of_ones_own_is_kept_and_the_others_follow_it(facts: Facts) -> None:
    everything = Choices(batch_size=3, lr=0.1, epochs=5, scale=(320, 240))
    assert choose(facts, everything) == (everything, {})
    chosen, reasons = choose(facts, Choices(batch_size=1))
    assert chosen.batch_size == 1 and "batch_size" not in reasons
    assert chosen.lr is not None and chosen.lr <= choose(facts, Choices())[0].lr  # type: ignore[operator]


@given(facts, st.integers(2, 100))
def test_more_memory_and_more_images_make_no_smaller_batches(facts: Facts, times: int) -> None:
    def batch_size(**others: Any) -> int:
        return choose(Facts(**{**vars(facts), **others}), Choices())[0].batch_size or 0

    assert batch_size(num_images=times * facts.num_images) >= batch_size()
    if facts.memory is not None:
        more = Memory(needed=facts.memory.needed, free=times * facts.memory.free)
        assert batch_size() <= batch_size(memory=more) <= batch_size(memory=None)


@pytest.mark.parametrize(
    ("image_size", "object_size", "scale"),
    [
        ((480, 640), 20.0, (1333, 800)),  # as COCO
        ((200, 200), 40.0, (667, 400)),  # to 400 pixels, not to 800
        ((200, 200), 4.0, (1333, 800)),  # small objects in small images
        ((3000, 4000), 40.0, (2000, 1200)),  # they would have 10.7 pixels
        ((3000, 4000), 4.0, (2666, 1600)),  # at most
    ],
)
def test_the_scale_suits_images_and_objects(
    image_size: tuple[int, int], object_size: float, scale: tuple[int, int]
) -> None:
    authors = {"lr": 1e-4, "base_batch_size": 16, "scale": (1333, 800)}
    facts = Facts(num_images=100, image_size=image_size, object_size=object_size, **authors)  # type: ignore[arg-type]
    chosen, _ = choose(facts, Choices())
    assert chosen.scale and chosen.scale == pytest.approx(scale, abs=2)
    factor = min(chosen.scale) / min(image_size)
    assert object_size * factor >= MIN_OBJECT - 0.1 or chosen.scale == (2666, 1600)


def test_all_steps_that_resize_follow_the_scale() -> None:
    cfg = configs.load_config("mrcnn_dpt_t_ms3x")
    configs.set_scale(cfg, (667, 400))
    (train,) = (each.scales for each in cfg.train_dataloader.dataset.pipeline if each.type == "RandomChoiceResize")
    assert train == [(667, side) for side in (320, 336, 352, 368, 384, 400)]
    assert find_scale(cfg) == (667, 400)
    cfg = configs.load_config("retinanet_dpt_nano_digits")  # whose training does not resize
    configs.set_scale(cfg, (192, 192))
    types = [each["type"] for each in cfg.train_dataloader.dataset.pipeline]
    assert types == ["LoadImageFromFile", "LoadAnnotations", "Resize", "PackDetInputs"]


@pytest.mark.parametrize("limit", ["max", "4000", ""])
def test_free_memory_is_that_of_the_container(limit: str, tmp_path: Path) -> None:
    for name, text in (("max", limit), ("current", "1000")):
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    free = free_memory(torch.device("cpu"), tmp_path)
    assert free == 3000 if limit == "4000" else free > 2**20


def test_memory_is_what_backward_gradients_and_adam_need() -> None:
    model = torch.nn.Linear(8, 4)
    hook, runner = MemoryHook(), SimpleNamespace(model=model)
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    model(torch.ones(2, 8)).square().sum().backward()
    hook.after_train_iter(runner, 0)
    inputs, outputs, parameters = 2 * 8, 2 * 4, 8 * 4 + 4
    assert hook.needed == 4 * (inputs + outputs + 3 * parameters)
    assert hook.free > 2**20


class TestTheRangeOfLearningRates:
    RATES = np.geomspace(1e-7, 1e-2, 100).tolist()

    @given(st.floats(1e-6, 1e-3), st.floats(0.1, 10), st.integers(0, 2**32 - 1))
    def test_the_pick_is_below_the_divergence(self, center: float, height: float, seed: int) -> None:
        """The loss falls around `center`, and explodes at thirty times this rate."""
        noise = np.random.default_rng(seed).normal(0, 0.02 * height, 100)
        rates = np.array(self.RATES)
        losses = height * (1.5 - np.tanh(np.log10(rates / center)) / 2) + noise
        losses = np.where(rates > 30 * center, 1e4 * height, losses).tolist()
        lr, divergence = pick_lr(self.RATES, losses)
        assert lr <= 10 * center
        if 30 * center < rates[-1]:
            assert divergence is not None and divergence > 30 * center and lr <= divergence / 10 * (1 + 1e-9)

    @pytest.mark.parametrize("seed", range(20))
    def test_a_trained_detector_whose_loss_only_varies(self, seed: int) -> None:
        losses = np.random.default_rng(seed).gamma(9, 1 / 9, 100)  # as that of single images
        losses[80:] *= np.geomspace(1, 1e4, 20)
        lr, divergence = pick_lr(self.RATES, losses.tolist())
        assert divergence is not None and self.RATES[70] < divergence < self.RATES[95]
        assert lr == divergence / 10

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_loss_that_is_not_finite_is_a_divergence(self, bad: float) -> None:
        losses = [*np.linspace(2, 1, 50), bad, *[1.0] * 49]
        assert find_divergence(losses) == 50
        lr, divergence = pick_lr(self.RATES, losses)
        assert lr <= divergence / 10 and divergence == self.RATES[50]  # type: ignore[operator]

    def test_no_finite_loss(self) -> None:
        with pytest.raises(InputError, match="the loss diverges at once"):
            pick_lr(self.RATES, [math.nan] * 100)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """34 digit scenes of 128 pixels to train on, 2 to validate with."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    make_digit_scenes(folder, num_train=34, num_test=2, size=128)
    return folder


@pytest.mark.slow
class TestARun:
    def test_prints_its_choices_and_resumes_with_them(
        self, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options: dict[str, Any] = {"data_root": digits, "work_dir": tmp_path, "workers": 0, "seed": 0, "device": "cpu"}
        result = train("retinanet_dpt_nano_digits", **options, epochs=1)
        reported = capfd.readouterr().err
        assert "\nimages of up to 192x192 pixels: as the detector was trained, with small objects of " in reported
        assert re.search(r"\nbatch size 2: 34 images in .* an image needs 0\.\d\d GiB, [\d.]+ GiB are free\n", reported)
        assert "\nlearning rate 0.0005: the config's 0.002 for 8 images in a step, scaled to 2, and h" in reported
        assert "epochs:" not in reported  # they are given
        assert read_choices(tmp_path) == Choices(batch_size=2, lr=0.0005, epochs=1, scale=(192, 192))
        assert read_metadata(result).scale == (192, 192)

        monkeypatch.setattr(trainer, "measure_memory", None)
        train("retinanet_dpt_nano_digits", **options, resume=True)
        assert "batch size" not in capfd.readouterr().err
        with pytest.raises(InputError, match=r"optim_wrapper.optimizer.lr: 0\.0005, now 0\.001"):
            train("retinanet_dpt_nano_digits", **options, resume=True, cfg_options={"optim_wrapper.optimizer.lr": 1e-3})
        (tmp_path / "choices.json").write_text(json.dumps({"lr": 1}))
        with pytest.raises(InputError, match=r"choices\.json is damaged"):
            train("retinanet_dpt_nano_digits", **options, resume=True)

    def test_tests_a_range_of_learning_rates(
        self, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The run starts from the weights of the zoo, not from those of the test, which diverged."""
        monkeypatch.setattr(probing, "RANGE_STEPS", 8)
        monkeypatch.setattr(probing, "RANGE", (1e-2, 1e4))
        options: dict[str, Any] = {"data_root": digits, "work_dir": tmp_path, "workers": 0, "seed": 0, "epochs": 1}
        options |= {"batch_size": 17, "tune_lr": True}
        train("configs/demo/retinanet_dpt_nano_digits.py", **options)
        line = re.search(r"learning rate (\S+): in a range test of \d steps, the loss d", capfd.readouterr().err)
        assert line
        lr = read_choices(tmp_path).lr
        assert lr == pytest.approx(float(line[1]), rel=0.05)
        logged = next(tmp_path.glob("retinanet*.py")).read_text()
        assert f"lr={lr}" in logged

    @pytest.mark.parametrize(
        "others", [{"scale_lr": True}, {"cfg_options": {"optim_wrapper": {"optimizer": {"lr": 0.1}}}}]
    )
    def test_a_learning_rate_is_either_given_or_tuned(self, others: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="tune_lr chooses the learning rate: leave it out"):
            train("retinanet_dpt_nano_digits", tune_lr=True, **others)
