"""The program that tests let the scripts start instead of `dpt-zoo`: `train PART [options]`, in a test's folder."""

import atexit
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, distributed

from dpt_zoo.engine.distributed import process_group, runner_settings
from dpt_zoo.errors import InputError

DETECTORS = ("retinanet_dpt_nano_digits", "mask_rcnn_dpt_nano_digits")
NUM_BATCHES, BATCH_SIZE = 3, 2
LAYOUTS = ("01", "00", "02")
"""Which batch each of two processes has; the last batch is of images without objects."""


def save_gradients() -> None:
    """Save each detector's on digit scenes: of a process alone, with each batch, and of both, in each layout."""
    rank = int(os.environ["RANK"])
    for detector in DETECTORS:
        with mock.patch.dict(os.environ, WORLD_SIZE="1"):
            _save_gradients(detector, {f"alone_{batch}": batch for batch in range(rank, NUM_BATCHES, 2)})
        _save_gradients(detector, {f"{layout}_{rank}": int(layout[rank]) for layout in LAYOUTS})


def _save_gradients(detector: str, batches: dict[str, int]) -> None:
    import dpt_zoo.mmlab  # before mmdet; it takes seconds, and the other parts do without

    # isort: split
    from mmengine.config import Config
    from mmengine.dataset import pseudo_collate
    from mmengine.runner import Runner
    from safetensors.torch import save_file

    import dpt_zoo.training.checkpoints
    import dpt_zoo.training.loop  # noqa: F401  (registered by importing them)
    from dpt_zoo.engine.runner import quiet_runner
    from dpt_zoo.manifest.records import data_path

    with process_group(), contextlib.ExitStack() as stack:
        cfg = Config.fromfile(data_path(f"configs/demo/{detector}.py"), format_python_code=False)
        cfg.merge_from_dict({"work_dir": "run", "log_level": "ERROR", "randomness": {"seed": 0}, **runner_settings()})
        cfg.merge_from_dict({"train_dataloader": {"num_workers": 0, "persistent_workers": False}})
        cfg.merge_from_dict({"train_dataloader.dataset.data_root": "digits"})
        model = stack.enter_context(quiet_runner(cfg)).model
        with torch.no_grad():
            for parameter in model.parameters():  # those that begin with zeros would stop some gradients
                parameter += 0.01 * torch.randn_like(parameter)
        scenes = Runner.build_dataloader(cfg.train_dataloader).dataset
        for name, batch in batches.items():
            numbers = range(batch * BATCH_SIZE, (batch + 1) * BATCH_SIZE)
            gradients = _compute_gradients(model, pseudo_collate([scenes[number] for number in numbers]))
            save_file(gradients, f"{detector}_{name}.safetensors")


def _compute_gradients(model: Any, batch: Any) -> dict[str, Tensor]:
    from mmengine.optim import OptimWrapper

    model.train().zero_grad()
    torch.manual_seed(1)  # of the choice of proposals
    with mock.patch.object(OptimWrapper, "zero_grad"):
        model.train_step(batch, OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0)))
    return {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}


def join_twice() -> None:
    """Join twice, the second time until an error, and write the results to a file."""
    sums = []
    try:
        for number in range(2):
            with process_group(), process_group():
                value = torch.tensor(distributed.get_rank() + 1)
                distributed.all_reduce(value)
                sums.append(int(value))
                if number:
                    raise InputError("the second time")
    except InputError:
        seen = {"sums": sums, "joined": distributed.is_initialized()}
        Path(f"{os.environ['RANK']}.json").write_text(json.dumps(seen))


def leave_a_cycle() -> None:
    """Leave a model of the group to the garbage collector, and write the names of the last threads to a file."""

    def write_threads() -> None:
        threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
        Path(f"{os.environ['RANK']}.json").write_text(json.dumps(threads))

    atexit.register(write_threads)  # before the group's own, and so after it
    with process_group():
        model: Any = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
        model.itself = [model]


def kill_the_second() -> None:
    """Let the first process wait for one that was killed."""
    _leave_the_first(lambda: os.kill(os.getpid(), signal.SIGKILL))


def fail_in_the_second() -> None:
    """Let the first process wait for one that failed."""
    _leave_the_first(lambda: Path("missing").read_text())


def _leave_the_first(leave: Callable[[], object]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)  # training only notes it
    with process_group():
        Path(f"{distributed.get_rank()}.pid").write_text(str(os.getpid()))
        distributed.barrier()
        if distributed.get_rank():
            leave()
        distributed.barrier()


if __name__ == "__main__":
    globals()[sys.argv[2]]()
