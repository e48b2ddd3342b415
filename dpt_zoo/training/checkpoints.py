"""Checkpoints that a run can be resumed from, whatever ended it."""

import contextlib
import logging
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.dist import all_reduce, broadcast_object_list, is_main_process, master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .. import mmlab  # noqa: F401  (lets torch.load read MMEngine's checkpoints)
from ..errors import InputError, OutputError, WeightsError
from ..utils.files import open_atomic
from ..weights.reading import read_weights, verify_crc
from .loop import TrainingInterrupted

POINTER = "last_checkpoint"
"""The file that tells MMEngine from which checkpoint to resume."""


class AtomicBackend(LocalBackend):  # type: ignore[misc]
    """MMEngine's writing of files, whole or not at all."""

    name = "dpt_zoo.atomic"

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file; raises OutputError."""
        with open_atomic(Path(filepath)) as file:
            file.write(obj)


register_backend(AtomicBackend.name, AtomicBackend)


@HOOKS.register_module()
class ResumableCheckpointHook(Hook):  # type: ignore[misc]
    """Saves a `ResumableTrainLoop`, and leaves it when it has been told to stop.

    It saves at the end of each epoch (`epoch_3.pth`), in the middle of one from time to time and before it leaves
    (`iter_1200.pth`), and never between two halves of an accumulated gradient: if an epoch ends there, a little
    before. All processes save and stop after the same iteration. In validation, where there is nothing new to save,
    they leave at once. A run that is resumed goes on from the newest checkpoint that is whole. MMEngine writes its
    logs (`<time of the start>/vis_data/scalars.json`) into a new folder then, each iteration once from that
    checkpoint on; where an older log tells of the same iteration, the newer one holds.

    Args:
        max_keep_ckpts: how many of these are kept; all if it is not positive.
        save_best: a metric, such as "coco/bbox_mAP"; the weights with the highest are kept besides, as
            `best_coco_bbox_mAP_epoch_3.pth`.
        minutes: between two checkpoints, at most, apart from the time of an iteration or a validation.

    Raises:
        OutputError: a checkpoint cannot be written; those before are as they were.
        TrainingInterrupted: there was a signal.
    """

    priority = "LOWEST"

    def __init__(self, max_keep_ckpts: int = 2, save_best: str | None = None, minutes: float = 10.0) -> None:
        self.max_keep_ckpts = max_keep_ckpts
        self.save_best = save_best
        self.seconds = 60 * minutes
        self._kept: list[Path] = []
        self._loop_state: dict[str, Any] | None = None

    def before_run(self, runner: Runner) -> None:
        """Point MMEngine, which resumes next, to the newest whole checkpoint."""
        if runner._resume and runner._load_from is None:
            kept = [_prepare_resuming(Path(runner.work_dir)) if is_main_process() else []]
            broadcast_object_list(kept)  # the others wait here
            self._kept = kept[0]

    def before_train(self, runner: Runner) -> None:
        """Start the clock."""
        self._last_time = time.monotonic()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the loop's state."""
        if self._loop_state is not None:
            checkpoint["train_loop"] = self._loop_state

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Give the loop its state."""
        if runner._resume:
            if "train_loop" not in checkpoint:
                path = runner._load_from or self._kept[-1]
                raise InputError(f"{path} does not tell where its run stood: begin a new run from its weights")
            runner.train_loop.load_state_dict(checkpoint["train_loop"])

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Save if it is time, and leave if there was a signal."""
        num_left = len(runner.train_dataloader) - 1 - batch_idx
        if num_left:  # otherwise the end of the epoch is next
            self._pause(runner, num_left, runner.epoch, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Save, and leave if there was a signal."""
        self._pause(runner, 0, runner.epoch + 1, runner.iter)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: list[Any] | None = None
    ) -> None:
        """Leave if there was a signal."""
        if runner.train_loop.stop.received:
            self._leave(runner, runner.train_loop.stop.received)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep the weights if they are the best so far."""
        if self.save_best is None or not metrics:
            return
        if self.save_best not in metrics:
            raise InputError(f"save_best={self.save_best!r}: validation gives {', '.join(metrics)}")
        score, found = metrics[self.save_best], runner.message_hub.runtime_info
        if score > found.get("best_score", float("-inf")):
            name = f"best_{self.save_best}_epoch_{runner.epoch}.pth".replace("/", "_")
            best = self._write(runner, name, runner.epoch, runner.iter, resumable=False)
            previous = Path(found.get("best_ckpt", best))
            runner.message_hub.update_info_dict({"best_score": score, "best_ckpt": str(best)})
            if previous != best:
                _remove([previous])

    def _pause(self, runner: Runner, num_left: int, epoch: int, iteration: int) -> None:
        clock_is_up = is_main_process() and time.monotonic() - self._last_time > self.seconds
        request = torch.tensor(runner.train_loop.stop.received or int(clock_is_up))  # a signal's number is above 1
        all_reduce(request, op="max")
        if not runner.optim_wrapper.should_update():  # the next iteration adds to the gradients
            return
        if request or num_left < runner.optim_wrapper._accumulative_counts:
            self._save(runner, f"iter_{iteration}.pth" if num_left else f"epoch_{epoch}.pth", epoch, iteration)
        if request > 1:
            self._leave(runner, int(request))

    def _save(self, runner: Runner, name: str, epoch: int, iteration: int) -> None:
        path = self._write(runner, name, epoch, iteration, resumable=True)
        self._kept = [*(other for other in self._kept if other != path), path]
        if self.max_keep_ckpts > 0:
            _remove(self._kept[: -self.max_keep_ckpts])
            self._kept = self._kept[-self.max_keep_ckpts :]
        self._last_time = time.monotonic()
        runner.logger.info(f"Saved {path}")

    def _leave(self, runner: Runner, number: int) -> NoReturn:
        last = self._kept[-1] if self._kept else None
        runner.logger.info(f"Stopped by {signal.Signals(number).name}; to be resumed from {last or 'the start'}")
        raise TrainingInterrupted(number, last)

    def _write(self, runner: Runner, name: str, epoch: int, iteration: int, resumable: bool) -> Path:
        """Have the main process write a checkpoint; all wait for it, and fail if it fails."""
        path = Path(runner.work_dir, name)
        self._loop_state = runner.train_loop.state_dict() if resumable else None
        failure = [""]
        try:
            runner.save_checkpoint(
                runner.work_dir,
                name,
                save_optimizer=resumable,
                save_param_scheduler=resumable and runner.param_schedulers is not None,
                meta={"epoch": epoch, "iter": iteration},
                backend_args={"backend": AtomicBackend.name},
            )
            if resumable and is_main_process():
                _point_to(path)
        except OutputError as error:
            failure = [str(error)]
        broadcast_object_list(failure)
        if failure[0]:
            last = f"make room, then resume from {self._kept[-1]}" if self._kept else "there is none before it"
            raise OutputError(f"{failure[0]}\n  Training has ended; the last good checkpoint: {last}")
        return path


def find_checkpoints(work_dir: Path) -> list[Path]:
    """Find the checkpoints that a run may be resumed from, oldest first; the last of them is whole.

    Those after it are not, and are named in a warning.
    """
    found = [*work_dir.glob("epoch_*.pth"), *work_dir.glob("iter_*.pth")]
    found.sort(key=lambda path: path.stat().st_mtime_ns)
    while found:
        try:
            verify_crc(found[-1])
            read_weights(found[-1])
        except WeightsError as error:
            reason = error.__cause__ or error
            print_log(f"{found[-1]} cannot be resumed from: {reason}", logger="current", level=logging.WARNING)
            found.pop()
        else:
            break
    return found


def _prepare_resuming(work_dir: Path) -> list[Path]:
    _remove(work_dir.glob(".*.pth.*.partial"))  # of a process that was killed
    found = find_checkpoints(work_dir)
    if found:
        _point_to(found[-1])
    else:
        _remove([work_dir / POINTER])
    return found


def _point_to(path: Path) -> None:
    with open_atomic(path.with_name(POINTER)) as file:
        file.write(str(path).encode())


@master_only
def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # training goes on beside a file that cannot be removed
            path.unlink()
