"""A resumed run has the settings of the run that it continues, or is refused in one line."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from resuming_process import Plan, config_of

from dpt_zoo.engine.runner import quiet_runner
from dpt_zoo.errors import InputError
from dpt_zoo.training.settings import describe_differences
from dpt_zoo.weights.reading import read_weights


def run(work_dir: Path, *, resume: bool = False, **settings: Any) -> None:
    """Train the small model for one epoch of five iterations."""
    cfg = config_of(Plan(str(work_dir), num_epochs=1, resume=resume))
    cfg.merge_from_dict({name.replace("__", "."): value for name, value in settings.items()})
    with quiet_runner(cfg, "cpu") as runner:
        runner.train()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("runs") / "first"
    run(work_dir)
    return work_dir


@pytest.fixture
def work_dir(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


CHANGES: dict[str, tuple[str, Any]] = {
    "learning rate": ("optim_wrapper.optimizer.lr", 0.02),
    "optimizer": ("optim_wrapper.optimizer.type", "SGD"),
    "weight decay": ("optim_wrapper.optimizer.weight_decay", 0.5),
    "clipping": ("optim_wrapper.clip_grad", {"max_norm": 1.0}),
    "accumulation": ("optim_wrapper.accumulative_counts", 2),
    "warm-up": ("param_scheduler.0.end", 4),
    "milestones": ("param_scheduler.1.milestones", [3]),
    "order": ("train_dataloader.sampler.shuffle", False),
    "data": ("train_dataloader.dataset.noisy", False),
}


@pytest.mark.parametrize(("path", "value"), CHANGES.values(), ids=CHANGES)
def test_a_changed_setting_is_refused(path: str, value: Any, work_dir: Path) -> None:
    with pytest.raises(InputError, match=r"^the run to resume has other settings \(") as raised:
        run(work_dir, resume=True, **{path: value})
    assert path.rpartition(".")[0] in str(raised.value)
    assert str(raised.value).count("\n") == 0


def test_another_seed_is_refused(work_dir: Path) -> None:
    with pytest.raises(InputError, match=r"^the run to resume has seed 3, this one has 4: leave the seed out"):
        run(work_dir, resume=True, randomness__seed=4)
    run(work_dir, resume=True, randomness__seed=None)


def test_a_moving_average_is_neither_added_nor_lost(work_dir: Path) -> None:
    cfg = config_of(Plan(str(work_dir), num_epochs=1, resume=True))
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != "EMAHook"]
    with pytest.raises(InputError, match=r"hooks\.0\.momentum: 0\.1, now not set"), quiet_runner(cfg, "cpu") as runner:
        runner.train()


def test_more_epochs_are_refused_if_the_schedule_depends_on_them(tmp_path: Path) -> None:
    cosine = [{"type": "CosineAnnealingLR", "by_epoch": True, "convert_to_iter_based": True}]
    run(tmp_path, param_scheduler=cosine)
    with pytest.raises(InputError, match=r"train_cfg\.max_epochs: 1, now 2; param_scheduler\.0\.T_max: 5, now 10"):
        run(tmp_path, resume=True, param_scheduler=cosine, train_cfg__max_epochs=2)


def test_more_epochs_have_the_learning_rate_of_an_uninterrupted_run(tmp_path: Path) -> None:
    steps = [{"type": "MultiStepLR", "milestones": [2], "gamma": 0.5, "by_epoch": True}]
    run(tmp_path / "run", param_scheduler=steps)
    run(tmp_path / "run", resume=True, param_scheduler=steps, train_cfg__max_epochs=3)
    run(tmp_path / "whole", param_scheduler=steps, train_cfg__max_epochs=3)
    last, whole = (read_weights(tmp_path / name / "epoch_3.pth").tensors for name in ("run", "whole"))
    torch.testing.assert_close(dict(last), dict(whole), rtol=1e-6, atol=1e-7)


ALLOWED: dict[str, tuple[str, Any]] = {
    "more epochs, with the same milestones": ("train_cfg.max_epochs", 2),
    "processes that load": ("train_dataloader.num_workers", 1),
    "checkpoints": ("default_hooks.checkpoint.interval", 2),
    "logging": ("default_hooks.logger.interval", 3),
    "the best": ("default_hooks.checkpoint.save_best", None),
    "early stopping": ("custom_hooks.2", {"type": "EarlyStoppingHook", "monitor": "score", "rule": "greater"}),
}


@pytest.mark.parametrize(("path", "value"), ALLOWED.values(), ids=ALLOWED)
def test_other_settings_may_change(path: str, value: Any, work_dir: Path) -> None:
    if path == "custom_hooks.2":
        path, value = "custom_hooks", [*config_of(Plan(str(work_dir))).custom_hooks, value]
    run(work_dir, resume=True, **{path: value})
    epochs = value if path == "train_cfg.max_epochs" else 1
    assert (work_dir / f"epoch_{epochs}.pth").exists()


def test_many_differences_are_counted() -> None:
    saved = {f"model.{index}": "1" for index in range(9)}
    text = describe_differences(saved, {})
    assert text.startswith("model.0: 1, now not set; model.1: ") and text.endswith(" and 5 more")
    assert describe_differences(saved, saved) == ""


def test_validation_may_be_added_but_not_changed() -> None:
    assert (
        describe_differences({}, {"val annotations": "a"}) == describe_differences({"val annotations": "a"}, {}) == ""
    )
    assert describe_differences({"val annotations": "a"}, {"val annotations": "b"}) == "val annotations: a, now b"
