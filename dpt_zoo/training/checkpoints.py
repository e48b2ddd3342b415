"""Checkpoints to resume a run from, even after a crash."""

import contextlib
import logging
import math
import signal
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.dist import all_reduce, is_main_process, master_only
from mmengine.evaluator import Evaluator
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner

from .. import mmlab  # noqa: F401  (before mmdet)

# isort: split
from mmdet.evaluation import CocoMetric

from ..engine.runner import from_main_process, report, unwrapped
from ..errors import DPTZooError, InputError, OutputError, WeightsError
from ..manifest.records import TASK_TITLES, Metrics
from ..utils.files import open_atomic
from ..utils.text import plural
from ..utils.validation import check_integer
from ..weights.reading import read_weights, verify_crc
from .loop import ResumableTrainLoop, TrainingInterrupted

NOT_FINITE = 1000
"""What processes send each other instead of a signal's number if their loss is not finite."""


@register_backend("dpt_zoo.atomic")
class AtomicBackend(LocalBackend):  # type: ignore[misc]
    """MMEngine's local files, each written completely or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file, or raise `OutputError` and leave it unchanged."""
        with open_atomic(Path(filepath)) as file:
            file.write(obj)


@HOOKS.register_module()
class ResumableCheckpointHook(Hook):  # type: ignore[misc]
    """Saves the state of a `ResumableTrainLoop`, and stops the loop after a signal by `TrainingInterrupted`.

    It saves at the end of each epoch (`epoch_3.pth`), every few minutes within an epoch, before it stops
    (`iter_1200.pth`), and at the end. It never saves while gradients are being accumulated: an epoch that ends then is
    saved a few iterations earlier. All processes save and stop after the same iteration; validation stops at once.

    A run is resumed from the newest intact checkpoint. MMEngine then starts a new log
    (`<start time>/vis_data/scalars.json`). If two logs contain the same iteration, the newer one is valid.

    A loss that is not finite ends the run at that iteration, and weights that are not finite are never written.

    Args:
        interval: number of epochs from one checkpoint to the next; 0 or less saves none of them but the last.
        by_epoch: False counts iterations instead of epochs.
        max_keep_ckpts: number of checkpoints to keep; 0 or less keeps all.
        save_best: metric, such as "coco/bbox_mAP", by which the best weights are kept as
            `best_coco_bbox_mAP_epoch_3.pth`; "auto" for the first metric of the validation. Higher values are better.
        patience: number of validations in a row without better weights after which training stops. It is counted here,
            because MMEngine's `EarlyStoppingHook` starts again at 0 if the run is resumed.
        minutes: maximum time between two checkpoints, apart from the duration of an iteration or a validation.

    Raises:
        InputError: `save_best` is not the name of one metric, or `patience` is given without it.
    """

    priority = "LOWEST"

    def __init__(
        self,
        interval: int = 1,
        by_epoch: bool = True,
        max_keep_ckpts: int = 2,
        save_best: str | None = None,
        patience: int | None = None,
        minutes: float = 10.0,
    ) -> None:
        if not isinstance(save_best, str | None):
            raise InputError(f"save_best must be the name of one metric or 'auto', not {save_best!r}")
        if patience is not None:
            check_integer("patience", patience, 1)
            if save_best is None:
                raise InputError("patience needs save_best, the metric that is to improve")
        self.interval = interval
        self.by_epoch = by_epoch
        self.max_keep_ckpts = max_keep_ckpts
        self.save_best = save_best
        self.patience = patience
        self.seconds = 60 * minutes
        self._kept: list[Path] = []
        self._loop_state: dict[str, Any] | None = None
        self._last_time = time.monotonic()
        self._last_iteration = -1
        self._skipped: list[int] = []

    def before_run(self, runner: Runner) -> None:
        """Check the settings, and choose the newest intact checkpoint, from which MMEngine then resumes.

        Raises:
            InputError: The training loop is another one, or `save_best` is not a metric of the validation.
        """
        if isinstance(runner._train_loop, BaseLoop):  # in a test, it is only a config
            self._check_loops(runner.train_loop, runner.val_loop)
        if runner._resume and runner._load_from is None:
            _remove(Path(runner.work_dir).glob(".*.pth.*.partial"))  # left by a killed process
            self._kept = from_main_process(lambda: find_checkpoints(Path(runner.work_dir)))
            runner._resume = bool(self._kept)
            runner._load_from = str(self._kept[-1]) if self._kept else None

    def _check_loops(self, train_loop: BaseLoop, val_loop: BaseLoop | None) -> None:
        if not isinstance(train_loop, ResumableTrainLoop):
            raise InputError(
                f"train_cfg.type is {type(train_loop).__name__}, which needs another checkpoint hook: "
                "default_hooks.checkpoint.type=CheckpointHook"
            )
        if self.save_best is None:
            return
        if val_loop is None:
            report(train_loop.runner, "save_best has no effect without validation: the last weights are the result")
        elif self.save_best != "auto" and (names := _find_metrics(val_loop.evaluator)):
            self._check_save_best(names)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the state of the loop."""
        if self._loop_state is not None:
            checkpoint["train_loop"] = self._loop_state

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the loop.

        Raises:
            InputError: The file has no training state or, if the run is not resumed, no weights of the model.
        """
        if not runner._resume:
            model, state = unwrapped(runner.model).state_dict(), checkpoint.get("state_dict", checkpoint)
            known = {name.removeprefix("module."): getattr(tensor, "shape", None) for name, tensor in state.items()}
            if not any(known.get(name) == tensor.shape for name, tensor in model.items()):
                raise InputError(f"load_from: {runner._load_from} has no weights of this model")
            return
        if "train_loop" not in checkpoint:
            raise InputError(f"{runner._load_from} has no training state to resume: start a new run from its weights")
        runner.train_loop.load_state_dict(checkpoint["train_loop"])
        self._last_iteration = checkpoint["meta"]["iter"]
        if isinstance(runner.param_schedulers, list):
            states = zip(checkpoint.get("param_schedulers", ()), runner.param_schedulers, strict=False)
            self._skipped = [index for index, state in enumerate(states) if _extend(*state)]

    def before_train(self, runner: Runner) -> None:
        """Make the steps of the schedule that a finished run left out, if it has more epochs now."""
        for index in self._skipped:
            runner.param_schedulers[index].step()

    def after_train_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Save if a checkpoint is due, and stop after a signal."""
        if num_left := len(runner.train_dataloader) - 1 - batch_idx:  # at 0, after_train_epoch follows
            self._save_or_stop(runner, num_left, runner.epoch, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Save, and stop after a signal."""
        self._save_or_stop(runner, 0, runner.epoch + 1, runner.iter)

    def after_train(self, runner: Runner) -> None:
        """Save if training ended earlier than planned, and the last epoch was not due."""
        if self._last_iteration != runner.iter and runner.optim_wrapper.should_update():
            self._save(runner, f"epoch_{runner.epoch}.pth", runner.epoch, runner.iter)

    def after_val_iter(self, runner: Runner, **_: Any) -> None:
        """Stop after a signal."""
        if runner.train_loop.stop.received:
            self._stop(runner, runner.train_loop.stop.received)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Save the weights if they are the best so far, or stop training if none were for long enough.

        Raises:
            InputError: `save_best` is not a metric of the validation.
        """
        if self.save_best is None:
            return
        info = runner.message_hub.runtime_info  # in checkpoints too
        num_worse = 0 if metrics and self._save_if_best(runner, metrics) else info.get("num_worse", 0) + 1
        runner.message_hub.update_info("num_worse", num_worse)
        if self.patience and num_worse >= self.patience:
            runner.train_loop.stop_training = True
            report(runner, f"stopped early: no better weights in {plural(num_worse, 'validation')}")

    def _save_if_best(self, runner: Runner, metrics: dict[str, float]) -> bool:
        metric = next(iter(metrics)) if self.save_best == "auto" else str(self.save_best)
        if metric not in metrics:
            self._check_save_best(metrics)
        score, info = metrics[metric], runner.message_hub.runtime_info
        is_comparable = info.get("best_metric", metric) == metric  # a resumed run may have another save_best
        is_best = not is_comparable or score > info.get("best_score", float("-inf"))
        if is_best:
            name = f"best_{metric}_epoch_{runner.epoch}.pth".replace("/", "_")
            best = self._write(runner, name, runner.epoch, runner.iter, resumable=False, metrics=metrics)
            previous = Path(info.get("best_ckpt", best))
            runner.message_hub.update_info_dict({"best_score": score, "best_ckpt": str(best), "best_metric": metric})
            if previous != best and is_comparable:
                _remove([previous])
        return is_best

    def _check_save_best(self, metrics: Collection[str]) -> None:
        if self.save_best not in metrics:
            raise InputError(f"save_best={self.save_best!r} is not a metric of the validation: {', '.join(metrics)}")

    def _save_or_stop(self, runner: Runner, num_left: int, epoch: int, iteration: int) -> None:
        is_due = is_main_process() and time.monotonic() - self._last_time > self.seconds
        request = torch.tensor(runner.train_loop.stop.received or int(is_due))  # a signal's number is above 1
        loss = runner.message_hub.get_scalar("train/loss").current()
        if not math.isfinite(loss):
            request.fill_(NOT_FINITE)
        all_reduce(request, op="max")
        if request == NOT_FINITE:
            raise self._diverged(runner, f"the loss is {loss}" if not math.isfinite(loss) else "a loss is not finite")
        if not runner.optim_wrapper.should_update():  # gradients are being accumulated
            return
        ends_epoch = num_left < runner.optim_wrapper._accumulative_counts
        if request or self._is_due(iteration) or (ends_epoch and self._ends_interval(runner)):
            self._save(runner, f"iter_{iteration}.pth" if num_left else f"epoch_{epoch}.pth", epoch, iteration)
        if request > 1:
            self._stop(runner, int(request))

    def _is_due(self, iteration: int) -> bool:
        return not self.by_epoch and self.interval > 0 and iteration % self.interval == 0

    def _ends_interval(self, runner: Runner) -> bool:
        """Return whether to save at the end of the current epoch."""
        epoch = runner.epoch + 1
        return epoch == runner.max_epochs or (self.by_epoch and self.interval > 0 and epoch % self.interval == 0)

    def _save(self, runner: Runner, name: str, epoch: int, iteration: int) -> None:
        """Save a checkpoint to resume from, and remove the oldest."""
        path = self._write(runner, name, epoch, iteration, resumable=True)
        self._kept = [*(other for other in self._kept if other != path), path]
        if self.max_keep_ckpts > 0:
            _remove(self._kept[: -self.max_keep_ckpts])
            self._kept = self._kept[-self.max_keep_ckpts :]
        self._last_time = time.monotonic()
        self._last_iteration = iteration
        runner.logger.info(f"Saved {path}")

    def _stop(self, runner: Runner, number: int) -> NoReturn:
        last = self._kept[-1] if self._kept else None
        name = signal.Signals(number).name
        report(runner, f"stopped by {name}; resume the run to continue from {last or 'the start'}")
        raise TrainingInterrupted(number, last)

    def _write(
        self,
        runner: Runner,
        name: str,
        epoch: int,
        iteration: int,
        resumable: bool,
        metrics: Mapping[str, float] | None = None,
    ) -> Path:
        """Write a checkpoint in the main process; the others wait for it, and fail if it fails."""
        if not all(torch.isfinite(parameter).all() for parameter in runner.model.parameters()):
            raise self._diverged(runner, "weights are not finite")
        path = Path(runner.work_dir, name)
        self._loop_state = runner.train_loop.state_dict() if resumable else None
        failure = ""
        try:
            runner.save_checkpoint(
                runner.work_dir,
                name,
                save_optimizer=resumable,
                save_param_scheduler=resumable and runner.param_schedulers is not None,
                meta={"epoch": epoch, "iter": iteration, "metrics": dict(metrics or {})},
                backend_args={"backend": "dpt_zoo.atomic"},
            )
        except OutputError as error:
            failure = str(error)
        if failure := from_main_process(lambda: failure):
            remedy = f"fix this, then resume from {self._kept[-1]}" if self._kept else "there is no checkpoint yet"
            raise OutputError(f"{failure}\n  Training stopped: {remedy}")
        return path

    def _diverged(self, runner: Runner, reason: str) -> DPTZooError:
        last = f"the last good checkpoint is {self._kept[-1]}" if self._kept else "there is no checkpoint yet"
        return DPTZooError(
            f"{reason} in epoch {runner.epoch + 1}; {last}: start a new run with a lower learning rate "
            "(optim_wrapper.optimizer.lr in cfg_options), or check the data"
        )


def find_facts(meta: Mapping[str, Any]) -> dict[str, float]:
    """Return facts about the training from the meta of a checkpoint."""
    names = {"epoch": "epoch", "iteration": "iter", "seed": "seed"}
    return {name: meta[key] for name, key in names.items() if isinstance(meta.get(key), int)}


def find_metrics(meta: Mapping[str, Any]) -> Metrics:
    """Return the COCO metrics, in percent, from the meta of a checkpoint; none if it was not validated."""
    names = {"mAP": "mAP", "mAP_50": "AP50", "mAP_75": "AP75", "mAP_s": "APs", "mAP_m": "APm", "mAP_l": "APl"}
    metrics: Metrics = {}
    for key, value in meta.get("metrics", {}).items():
        task, _, item = key.rpartition("/")[2].partition("_")
        if task in TASK_TITLES and item in names and isinstance(value, float) and 0 <= value <= 1:  # -1: undefined
            metrics.setdefault(task, {})[names[item]] = round(100 * value, 1)
    return metrics


def _find_metrics(evaluator: Evaluator) -> list[str]:
    """Return the names of all metrics of a validation; none if they are not known before it."""
    names = []
    for metric in evaluator.metrics:
        if type(metric) is not CocoMetric or metric.classwise or not set(metric.metrics) <= {"bbox", "segm"}:
            return []
        items = metric.metric_items or ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
        names += [f"{metric.prefix}/{task}_{item}" for task in metric.metrics for item in items]
    return names


def _extend(state: dict[str, Any], scheduler: Any) -> bool:
    """Give the state of a scheduler a new end. Return whether its last step is missing, because it was at its end."""
    is_missing: bool = state["end"] <= state["_global_step"] < scheduler.end
    state["_global_step"] -= is_missing
    state["end"] = scheduler.end
    return is_missing


def find_checkpoints(work_dir: Path) -> list[Path]:
    """Return the checkpoints to resume from, oldest first, without damaged ones at the end, which cause warnings."""
    paths = [*work_dir.glob("epoch_*.pth"), *work_dir.glob("iter_*.pth")]
    paths.sort(key=lambda path: path.stat().st_mtime_ns)
    while paths:
        try:
            verify_crc(paths[-1])
            read_weights(paths[-1])
            break
        except WeightsError as error:
            reason = error.__cause__ or error
            print_log(f"{paths.pop()} cannot be resumed from: {reason}", logger="current", level=logging.WARNING)
    return paths


@master_only
def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # not worth stopping training for
            path.unlink()
