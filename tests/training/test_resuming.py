"""A resumed run continues with the same losses, however it was interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import resuming_process
import torch
from resuming_process import NUM_BATCHES, NUM_EPOCHS, Plan, Trainer

from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.training.checkpoints import find_checkpoints
from dpt_zoo.training.loop import StopSignals
from dpt_zoo.weights.reading import read_weights, verify_crc

pytestmark = pytest.mark.slow

INT, TERM, KILL = (int(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL))


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    trainer = Trainer()
    yield trainer
    trainer.close()


@pytest.fixture(scope="module")
def uninterrupted(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the folder of an uninterrupted run; runs with the same options are shared."""
    done: dict[str, Path] = {}

    def folder_of(**options: int) -> Path:
        key = str(options)
        if key not in done:
            folder = tmp_path_factory.mktemp("uninterrupted")
            assert set(trainer.run(Plan(str(folder), **options))) == {0}, said(folder)  # type: ignore[arg-type]
            done[key] = folder
        return done[key]

    return folder_of


def said(folder: Path) -> str:
    """Return the terminal output of all processes of the last run."""
    return "".join(file.read_text() for file in sorted(folder.glob("stderr_*.txt")))


def losses_of(folder: Path, rank: int = 0) -> list[tuple[int, float]]:
    """Return each iteration and its loss, in the order of the runs."""
    file = folder / f"losses_{rank}.jsonl"
    return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def assert_same(folder: Path, expected: Path) -> None:
    """Compare all losses, including those of repeated iterations, and the final weights."""
    for rank in range(len(list(expected.glob("losses_*")))):
        reference = dict(losses_of(expected, rank))
        losses = losses_of(folder, rank)
        assert {number for number, _ in losses} == set(reference)
        assert [loss for _, loss in losses] == pytest.approx([reference[number] for number, _ in losses], rel=1e-6)
    last = find_checkpoints(expected)[-1]
    for name in (last.name, *(path.name for path in expected.glob("best_*"))):
        torch.testing.assert_close(
            dict(read_weights(folder / name).tensors), dict(read_weights(expected / name).tensors), rtol=1e-6, atol=1e-7
        )


def resume(trainer: Trainer, plan: Plan) -> int:
    """Resume a run until its end; return the iteration at which it continued."""
    folder = Path(plan.work_dir)
    num_before = len(losses_of(folder))
    resumed = replace(plan, resume=True, signals={}, die_at_step=None, full_from=None, wait_at=None)
    assert set(trainer.run(resumed)) == {0}, said(folder)
    return losses_of(folder)[num_before][0] if len(losses_of(folder)) > num_before else NUM_EPOCHS * NUM_BATCHES


# --- Signals


@pytest.mark.parametrize(
    ("place", "number", "goes_on_at"),
    [
        ("before_train_iter:0", INT, 1),
        ("after_train_iter:2", TERM, 3),
        ("after_train_iter:7", INT, 8),
        ("after_train_iter:9", TERM, 10),  # an epoch's last
        ("before_save_checkpoint:5", TERM, 5),  # the end of the first epoch
        ("before_val_iter:10", INT, 10),
        ("after_train_iter:14", TERM, 15),  # the very last: nothing is left but to validate
        ("after_train_iter:1", KILL, 0),
        ("after_train_iter:7", KILL, 5),
        ("before_val_iter:10", KILL, 10),
        ("before_save_checkpoint:10", KILL, 5),
    ],
)
def test_goes_on_with_the_same_losses(
    place: str, number: int, goes_on_at: int, trainer: Trainer, uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    plan = Plan(str(tmp_path), signals={place: [number]})
    assert trainer.run(plan) == [-KILL if number == KILL else 128 + number], said(tmp_path)
    assert resume(trainer, plan) == goes_on_at
    assert_same(tmp_path, uninterrupted())


def test_early_stopping_counts_on_after_each_of_ten_kills(
    trainer: Trainer, uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    """The best weights are those of epoch 3 of 10, and training ends after epoch 5."""
    options = {"num_epochs": 10, "patience": 2}
    plan = Plan(str(tmp_path), **options)  # type: ignore[arg-type]
    moments = ["after_train_iter:2", "before_save_checkpoint:5", "before_val_iter:5"]
    moments += ["before_save_checkpoint:5"]  # now of the best weights
    moments += ["after_train_iter:12", "before_val_iter:15", "before_save_checkpoint:15", "after_train_iter:17"]
    moments += ["before_val_iter:20", "before_val_iter:25"]
    for moment in moments:
        assert trainer.run(replace(plan, resume=True, signals={moment: [KILL]})) == [-KILL], said(tmp_path)
    resume(trainer, plan)
    assert_same(tmp_path, uninterrupted(**options))
    names = {path.name for path in uninterrupted(**options).glob("*.pth")}
    assert names == {path.name for path in tmp_path.glob("*.pth")}
    assert names == {"best_score_epoch_3.pth", "epoch_4.pth", "epoch_5.pth"}


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_change_nothing(
    persistent: bool, trainer: Trainer, uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    plan = Plan(str(tmp_path), num_workers=2, persistent_workers=persistent, signals={"after_train_iter:7": [TERM]})
    assert trainer.run(plan) == [128 + TERM]
    assert resume(trainer, replace(plan, num_workers=1)) == 8
    assert_same(tmp_path, uninterrupted())


@pytest.mark.parametrize(
    ("place", "number", "goes_on_at"),
    [
        ("after_train_iter:6", TERM, 8),  # the second of two whose gradients are added
        ("before_val_iter:5", TERM, 4),  # the first epoch ends between two: it was saved before them
        ("after_train_iter:12", KILL, 10),
    ],
)
def test_accumulated_gradients_are_not_torn(
    place: str, number: int, goes_on_at: int, trainer: Trainer, uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    plan = Plan(str(tmp_path), accumulate=2, signals={place: [number]})
    trainer.run(plan)
    assert resume(trainer, plan) == goes_on_at
    assert_same(tmp_path, uninterrupted(accumulate=2))


def test_a_second_sigint_leaves_at_once(trainer: Trainer, uninterrupted: Callable[..., Path], tmp_path: Path) -> None:
    plan = Plan(str(tmp_path), signals={"before_train_iter:7": [INT, INT]})
    assert trainer.run(plan) == [1]
    assert said(tmp_path).endswith("KeyboardInterrupt\n")
    assert resume(trainer, plan) == 5
    assert_same(tmp_path, uninterrupted())


def test_a_second_sigterm_is_one_with_the_first(trainer: Trainer, tmp_path: Path) -> None:
    plan = Plan(str(tmp_path), signals={"before_train_iter:7": [TERM, TERM]})
    assert trainer.run(plan) == [128 + TERM]
    assert resume(trainer, plan) == 8


def test_signals_are_handled_as_before_afterwards() -> None:
    def get() -> list[object]:
        return [signal.getsignal(number) for number in (INT, TERM)]

    previous = signal.signal(INT, signal.default_int_handler), signal.signal(TERM, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(TERM)  # as before, ignored
            assert stop.received is None
            signal.raise_signal(INT)
            assert stop.received == INT
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(INT)
        assert get() == [signal.default_int_handler, signal.SIG_IGN]

        thread = threading.Thread(target=StopSignals().__enter__)  # only the main thread may handle signals
        thread.start()
        thread.join()
        assert get() == [signal.default_int_handler, signal.SIG_IGN]
    finally:
        signal.signal(INT, previous[0])
        signal.signal(TERM, previous[1])


# --- Several processes


@pytest.mark.parametrize(
    ("place", "number", "goes_on_at"),
    [("before_train_iter:7", TERM, 8), ("after_train_iter:9", INT, 10), ("after_train_iter:12", KILL, 10)],
)
def test_two_processes_stop_as_one(
    place: str, number: int, goes_on_at: int, trainer: Trainer, uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    plan = Plan(str(tmp_path), processes=2, signalled_rank=1, signals={place: [number]})
    other, signalled = trainer.run(plan)
    if number == KILL:
        assert signalled == -KILL
        # Its launcher ends the other, if the lost connection has not done so before.
        assert other == -KILL or (other == 1 and "Connection" in said(tmp_path)), said(tmp_path)
    else:
        assert other == signalled == 128 + number, said(tmp_path)
    assert resume(trainer, plan) == goes_on_at
    assert_same(tmp_path, uninterrupted(processes=2))


def test_torchrun_stops_all_with_their_workers(
    trainer: Trainer, uninterrupted: Callable[..., Path], tmp_path: Path, quick_python: Path
) -> None:
    plan = Plan(str(tmp_path), processes=2, num_workers=1, persistent_workers=True, wait_at=7)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, resuming_process.__file__, json.dumps(asdict(plan))]
    environment = {**os.environ, "PYTHON_EXEC": str(quick_python)}  # what torchrun starts
    pipes: dict[str, Any] = {"env": environment, "stderr": subprocess.STDOUT}
    with (tmp_path / "log.txt").open("w") as log, subprocess.Popen(command, stdout=log, **pipes) as process:
        while len(losses_of(tmp_path)) < 7 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(TERM)
    num_done = len(losses_of(tmp_path))  # the signal may arrive just before the iteration that waits for it
    assert num_done in (7, 8), (tmp_path / "log.txt").read_text()
    assert resume(trainer, plan) == num_done
    assert_same(tmp_path, uninterrupted(processes=2))


# --- Files


@pytest.mark.parametrize("step", range(20, 32))
def test_no_checkpoint_is_ever_half_written(
    step: int, trainer: Trainer, uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    plan = Plan(str(tmp_path), minutes=0, die_at_step=step)
    assert trainer.run(plan) == [-KILL]
    for path in tmp_path.glob("*.pth"):
        verify_crc(path)
        read_weights(path)
    num_done = len(losses_of(tmp_path))
    assert num_done - 1 <= resume(trainer, plan) <= num_done
    assert_same(tmp_path, uninterrupted())
    assert not list(tmp_path.glob(".*"))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "zeros at the end": lambda content: content[:-512] + bytes(512),
    "a flipped bit": lambda content: content[:9000] + bytes([content[9000] ^ 1]) + content[9001:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(
    damage: str, trainer: Trainer, uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    plan = Plan(str(tmp_path), signals={"after_train_iter:7": [TERM]})
    trainer.run(plan)
    last = tmp_path / "iter_8.pth"
    last.write_bytes(DAMAGE[damage](last.read_bytes()))
    assert resume(trainer, plan) == 5
    assert f"{last} cannot be resumed from" in said(tmp_path)
    assert_same(tmp_path, uninterrupted())


def test_with_all_checkpoints_damaged_it_starts_anew(
    trainer: Trainer, uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    plan = Plan(str(tmp_path), signals={"after_train_iter:7": [TERM]})
    trainer.run(plan)
    for path in tmp_path.glob("*.pth"):
        path.write_bytes(b"")
    assert resume(trainer, plan) == 0
    assert_same(tmp_path, uninterrupted())


def test_a_full_disk_ends_training_in_one_error(
    trainer: Trainer, uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    plan = Plan(str(tmp_path), full_from=7)
    assert trainer.run(plan) == [2]
    error = said(tmp_path)[said(tmp_path).index("dpt-zoo:") :]
    assert error.startswith(f"dpt-zoo: {tmp_path}/epoch_2.pth cannot be written: File too large")
    assert error.endswith(f"resume from {tmp_path}/epoch_1.pth\n")
    assert sorted(path.name for path in tmp_path.glob("*epoch*")) == ["best_score_epoch_1.pth", "epoch_1.pth"]
    assert not list(tmp_path.glob(".*"))
    assert resume(trainer, plan) == 5
    assert_same(tmp_path, uninterrupted())


def test_a_full_disk_ends_all_processes(trainer: Trainer, tmp_path: Path) -> None:
    assert trainer.run(Plan(str(tmp_path), processes=2, full_from=7)) == [2, 2], said(tmp_path)


def test_the_last_two_and_the_best_are_kept(
    trainer: Trainer, uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    names = {path.name for path in uninterrupted().glob("*.pth")}
    assert {"epoch_2.pth", "epoch_3.pth"} < names
    assert len(names) == 3
    plan = Plan(str(tmp_path), minutes=0, signals={"after_train_iter:7": [TERM]})
    trainer.run(plan)
    assert [path.name for path in find_checkpoints(tmp_path)] == ["iter_7.pth", "iter_8.pth"]
    resume(trainer, plan)
    assert {path.name for path in tmp_path.glob("*.pth")} == {
        "iter_14.pth",
        "epoch_3.pth",
        *(names - {"epoch_2.pth", "epoch_3.pth"}),
    }


# --- What is resumed


def test_a_seed_that_was_drawn_is_kept(trainer: Trainer, tmp_path: Path) -> None:
    plan = Plan(str(tmp_path / "drawn"), seed=None, signals={"after_train_iter:7": [TERM]})
    trainer.run(plan)
    seed = read_weights(tmp_path / "drawn" / "iter_8.pth").meta["seed"]
    resume(trainer, plan)
    trainer.run(Plan(str(tmp_path / "given"), seed=seed))
    assert_same(tmp_path / "drawn", tmp_path / "given")


@pytest.mark.parametrize("change", [{"batch_size": 2}, {"processes": 2}])
def test_another_layout_is_refused(change: dict[str, int], trainer: Trainer, tmp_path: Path) -> None:
    plan = Plan(str(tmp_path), signals={"after_train_iter:7": [TERM]})
    trainer.run(plan)
    changed = replace(plan, resume=True, **change)  # type: ignore[arg-type]
    assert set(trainer.run(changed)) == {2}
    assert "the run to resume has 1 processes with 5 batches in an epoch, this one has " in said(tmp_path)


def test_a_checkpoint_of_another_loop_is_refused(trainer: Trainer, tmp_path: Path) -> None:
    torch.save({"state_dict": {"layers.0.bias": torch.zeros(256)}, "meta": {}}, tmp_path / "epoch_1.pth")
    assert trainer.run(Plan(str(tmp_path), resume=True)) == [2]
    assert f"dpt-zoo: {tmp_path}/epoch_1.pth has no training state to resume" in said(tmp_path)


def test_a_finished_run_is_only_validated_again(
    trainer: Trainer, uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted(), tmp_path, dirs_exist_ok=True)
    assert resume(trainer, Plan(str(tmp_path))) == NUM_EPOCHS * NUM_BATCHES
    assert_same(tmp_path, uninterrupted())


def test_the_log_has_each_iteration_once_from_where_it_goes_on(trainer: Trainer, tmp_path: Path) -> None:
    plan = Plan(str(tmp_path), signals={"after_train_iter:7": [KILL]}, minutes=0)
    trainer.run(plan)
    shutil.move(next(tmp_path.glob("*/vis_data/scalars.json")), tmp_path / "first.json")
    resume(trainer, plan)
    (second,) = tmp_path.glob("*/vis_data/scalars.json")
    iterations = [[json.loads(line).get("iter") for line in file.open()] for file in (tmp_path / "first.json", second)]
    assert [number for number in iterations[0] if number] == [*range(1, 9)]
    assert [number for number in iterations[1] if number] == [*range(8, 16)]


def test_a_config_goes_on_with_the_same_losses(trainer: Trainer, tmp_path: Path) -> None:
    make_digit_scenes(tmp_path / "digits", num_train=4, num_test=1, size=64)
    options = {"digits": str(tmp_path / "digits"), "num_epochs": 2, "batch_size": 2, "num_workers": 1}
    plan = Plan(str(tmp_path / "whole"), **options)  # type: ignore[arg-type]
    assert trainer.run(plan) == [0], said(tmp_path / "whole")
    torn = replace(plan, work_dir=str(tmp_path / "torn"), signals={"after_train_iter:2": [TERM]})
    assert trainer.run(torn) == [128 + TERM]
    assert resume(trainer, torn) == 3
    assert_same(tmp_path / "torn", tmp_path / "whole")
