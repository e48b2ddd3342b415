"""When checkpoints are written, and which weights are the best."""

from pathlib import Path
from typing import Any

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from resuming_process import NegativeError, Plan, config_of

from dpt_zoo.engine.runner import quiet_runner
from dpt_zoo.errors import DPTZooError, InputError
from dpt_zoo.training.checkpoints import ResumableCheckpointHook


def run(work_dir: Path, hook: dict[str, Any], *, epochs: int = 3, resume: bool = False, **settings: Any) -> set[str]:
    """Train the small model, five iterations in an epoch, and return the names of the checkpoints."""
    cfg = config_of(Plan(str(work_dir), num_epochs=epochs, resume=resume))
    cfg.default_hooks.checkpoint = {"type": "ResumableCheckpointHook", "max_keep_ckpts": -1, **hook}
    cfg.custom_hooks = [*cfg.custom_hooks, *settings.get("hooks", ())]
    with quiet_runner(cfg, "cpu") as runner:
        runner.train()
    return {path.name for path in work_dir.glob("*.pth")}


@pytest.mark.parametrize(
    ("hook", "names"),
    [
        ({"interval": 2}, {"epoch_2.pth", "epoch_3.pth"}),
        ({"interval": -1}, {"epoch_3.pth"}),
        ({"interval": 4, "by_epoch": False}, {"iter_4.pth", "iter_8.pth", "iter_12.pth", "epoch_3.pth"}),
        ({"max_keep_ckpts": 1}, {"epoch_3.pth"}),
    ],
)
def test_the_interval(hook: dict[str, Any], names: set[str], tmp_path: Path) -> None:
    assert run(tmp_path, hook) == names


@HOOKS.register_module()
class StopAfterOneEpoch(Hook):  # type: ignore[misc]
    """Stops training as MMEngine's early stopping does."""

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        runner.train_loop.stop_training = True


def test_the_last_weights_are_saved_if_training_ends_early(tmp_path: Path) -> None:
    assert run(tmp_path, {"interval": 2}, hooks=[{"type": "StopAfterOneEpoch"}]) == {"epoch_1.pth"}


def test_validations_without_detections_use_up_the_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(NegativeError, "compute_metrics", lambda self, results: {})
    assert run(tmp_path, {"save_best": "score", "patience": 2}) == {"epoch_1.pth", "epoch_2.pth"}
    assert capfd.readouterr().err.endswith("stopped early: no better weights in 2 validations\n")


def test_patience_needs_a_metric() -> None:
    with pytest.raises(InputError, match="patience needs save_best"):
        ResumableCheckpointHook(patience=3)


@HOOKS.register_module()
class BreakModel(Hook):  # type: ignore[misc]
    """Makes the weights NaN after some iterations, as a step that is much too large does."""

    def __init__(self, after: int) -> None:
        self.after = after

    def after_train_iter(self, runner: Runner, **others: Any) -> None:
        if runner.iter + 1 == self.after:
            for parameter in runner.model.parameters():
                parameter.data.fill_(float("nan"))


@pytest.mark.parametrize(("after", "reason"), [(7, "the loss is nan"), (10, "weights are not finite")])
def test_training_ends_when_it_diverges(after: int, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DPTZooError, match=f"^{reason} in epoch 2; the last good checkpoint is {tmp_path}/epoch_1.pth:"):
        run(tmp_path, {}, hooks=[{"type": "BreakModel", "after": after}])
    assert {path.name for path in tmp_path.glob("*.pth")} == {"epoch_1.pth"}


def test_the_best_by_the_first_metric(tmp_path: Path) -> None:
    assert run(tmp_path, {"save_best": "auto"}, epochs=1) == {"epoch_1.pth", "best_score_epoch_1.pth"}


def test_a_metric_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="save_best='loss' is not a metric of the validation: score"):
        run(tmp_path, {"save_best": "loss"}, epochs=1)


@pytest.mark.parametrize("save_best", [["a", "b"], 1, True])
def test_one_metric_is_the_best(save_best: Any) -> None:
    with pytest.raises(InputError, match="save_best must be the name of one metric or 'auto'"):
        ResumableCheckpointHook(save_best=save_best)


def test_a_finished_run_is_not_saved_again(tmp_path: Path) -> None:
    run(tmp_path, {}, epochs=1)
    before = (tmp_path / "epoch_1.pth").stat().st_mtime_ns
    run(tmp_path, {"interval": 2}, epochs=1, resume=True)
    assert (tmp_path / "epoch_1.pth").stat().st_mtime_ns == before
