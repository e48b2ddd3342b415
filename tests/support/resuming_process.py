"""Train a small model in its own process, which a test interrupts, and record the loss of each iteration."""

import importlib
import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import connection
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

from dpt_zoo import mmlab  # noqa: F401  (before mmdet)
from dpt_zoo.errors import DPTZooError
from dpt_zoo.manifest.records import data_path
from dpt_zoo.training import checkpoints, loop  # noqa: F401  (registered by importing them)

NUM_EPOCHS, NUM_SAMPLES, BATCH_SIZE = 3, 20, 4
NUM_BATCHES = NUM_SAMPLES // BATCH_SIZE


@dataclass(frozen=True)
class Plan:
    """A run, and what interrupts it.

    Attributes:
        work_dir: holds `losses_<rank>.jsonl` and `stderr_<rank>.txt` too; with `resume`, that of an earlier plan.
        minutes: between checkpoints; 0 for one after each iteration.
        digits: a folder of digit scenes, to train Mask R-CNN DPT-Nano on instead of the small model.
        signals: what the process sends itself, by the hook's name and the iteration (from 0): `after_train_iter:7`.
        signalled_rank: the one process of several that sends them.
        die_at_step: the process is killed before it does the n-th thing with checkpoints: open, rename, remove, ...
        full_from: the iteration from which on no file can get larger than 20,000 bytes.
        wait_at: the iteration that waits for a signal.
    """

    work_dir: str
    resume: bool = False
    processes: int = 1
    num_workers: int = 0
    persistent_workers: bool = False
    batch_size: int = BATCH_SIZE
    num_epochs: int = NUM_EPOCHS
    accumulate: int = 1
    patience: int | None = None
    seed: int | None = 3
    minutes: float = 10.0
    digits: str | None = None
    signals: dict[str, list[int]] = field(default_factory=dict)
    signalled_rank: int = 0
    die_at_step: int | None = None
    full_from: int | None = None
    wait_at: int | None = None


class Trainer:
    """Carries plans out, each in new processes; these are forked from one that has everything imported."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._server = Popen(command, stdin=PIPE, stdout=PIPE, text=True, env=environment)

    def run(self, plan: Plan) -> list[int]:
        """Return the exit status of each process, negative for the signal that it died of."""
        assert self._server.stdin and self._server.stdout
        print(json.dumps(asdict(plan)), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        """End the server."""
        self._server.communicate()
        assert self._server.returncode == 0


def serve() -> None:
    """Carry out the plans on standard input."""
    for module in ("matplotlib.figure", "mmdet.models", "mmdet.datasets"):  # what runs import
        importlib.import_module(module)
    context = multiprocessing.get_context("fork")
    for line in sys.stdin:
        plan = Plan(**json.loads(line))
        port = _free_port()
        processes = [context.Process(target=_run_rank, args=(plan, rank, port)) for rank in range(plan.processes)]
        for process in processes:
            process.start()
        while running := [process.sentinel for process in processes if process.is_alive()]:
            ended = connection.wait(running, timeout=120)
            if not ended or any(
                process.exitcode == -signal.SIGKILL for process in processes
            ):  # as torchrun, end the others
                for process in processes:
                    process.kill()
        print(json.dumps([process.exitcode for process in processes]), flush=True)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _run_rank(plan: Plan, rank: int, port: int) -> None:
    Path(plan.work_dir).mkdir(exist_ok=True)
    descriptor = os.open(Path(plan.work_dir, f"stderr_{rank}.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    if plan.processes > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(plan.processes))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    np.random.seed()  # otherwise all that are forked draw the same seed for a run
    train(plan)


# --- What is trained


@DATASETS.register_module()
class Vectors(Dataset[Any]):
    """Vectors; to train on, with noise from each of the generators that a pipeline may use."""

    def __init__(self, noisy: bool) -> None:
        self.noisy = noisy

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        vector = torch.full((4,), index / NUM_SAMPLES)
        if self.noisy:
            vector += torch.rand(4) + float(np.random.rand()) + random.random()
        return {"inputs": vector}


@MODELS.register_module()
class SmallModel(BaseModel):  # type: ignore[misc]
    """A model whose losses depend on each of the main process's generators."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 256), nn.GELU(), nn.Dropout(0.5), nn.Linear(256, 4))

    def forward(self, inputs: Tensor, mode: str) -> Any:
        error = (self.layers(inputs) - inputs.flip(-1)).square().mean()
        return {"loss": error * (1 + random.random() + float(np.random.rand()))} if mode == "loss" else [error]


@METRICS.register_module()
class NegativeError(BaseMetric):  # type: ignore[misc]
    """A score; it draws from the main process's generators too."""

    def process(self, data_batch: Any, data_samples: list[Tensor]) -> None:
        self.results += [-float(error) - 0.001 * random.random() for error in data_samples]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return {"score": float(np.mean(results))}


@HOOKS.register_module()
class Witness(Hook):  # type: ignore[misc]
    """Records each loss, and interrupts the run as the plan says."""

    priority = "VERY_LOW"

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = Plan(**plan)

    def before_train_iter(self, runner: Runner, **others: Any) -> None:
        while runner.iter == self.plan.wait_at and not runner.train_loop.stop.received:
            time.sleep(0.01)
        self._send("before_train_iter", runner.iter)
        if runner.iter == self.plan.full_from:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    def after_train_iter(self, runner: Runner, outputs: dict[str, Tensor], **others: Any) -> None:
        with Path(runner.work_dir, f"losses_{get_rank()}.jsonl").open("a") as file:
            file.write(json.dumps([runner.iter, outputs["loss"].item()]) + "\n")
        self._send("after_train_iter", runner.iter)

    def before_val_iter(self, runner: Runner, **others: Any) -> None:
        self._send("before_val_iter", runner.iter)

    def before_save_checkpoint(self, runner: Runner, **others: Any) -> None:
        self._send("before_save_checkpoint", runner.iter)

    def _send(self, place: str, iteration: int) -> None:
        if self.plan.signalled_rank == get_rank():
            for number in self.plan.signals.get(f"{place}:{iteration}", ()):
                os.kill(os.getpid(), number)


def config_of(plan: Plan) -> Config:
    """MMEngine's config of a run."""
    config = _digits_config(plan.digits) if plan.digits else _vectors_config()
    several = plan.processes > 1
    workers = {"num_workers": plan.num_workers, "persistent_workers": plan.persistent_workers}
    config.merge_from_dict(
        {
            "work_dir": plan.work_dir,
            "resume": plan.resume,
            "randomness": {"seed": plan.seed},
            "launcher": "pytorch" if several else "none",
            "model_wrapper_cfg": {"type": "MMDistributedDataParallel", "device_ids": None} if several else None,
            "log_level": "WARNING",
            "train_cfg": {"type": "ResumableTrainLoop", "max_epochs": plan.num_epochs},
            "train_dataloader": {"batch_size": plan.batch_size // plan.processes, **workers},
            "optim_wrapper": {"accumulative_counts": plan.accumulate},
            "custom_hooks": [{"type": "Witness", "plan": asdict(plan)}, *config.get("custom_hooks", ())],
        }
    )
    config.default_hooks.checkpoint = {"type": "ResumableCheckpointHook", "minutes": plan.minutes}
    if config.get("val_dataloader"):
        config.val_dataloader.update(workers)
        config.default_hooks.checkpoint.update(save_best="score", patience=plan.patience)
    return config


def _vectors_config() -> Config:
    def loader(noisy: bool) -> dict[str, Any]:
        return {
            "dataset": {"type": "Vectors", "noisy": noisy},
            "collate_fn": {"type": "default_collate"},
            "sampler": {"type": "DefaultSampler", "shuffle": noisy},
        }

    return Config(
        {
            "model": {"type": "SmallModel"},
            "train_dataloader": loader(noisy=True),
            "optim_wrapper": {"optimizer": {"type": "AdamW", "lr": 0.01}},
            "param_scheduler": [
                {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 8},
                {"type": "MultiStepLR", "milestones": [1, 2], "gamma": 0.5, "by_epoch": True},
            ],
            "val_cfg": {"type": "ValLoop"},
            "val_dataloader": {**loader(noisy=False), "batch_size": 5},
            "val_evaluator": {"type": "NegativeError"},
            "default_hooks": {"logger": {"type": "LoggerHook", "interval": 1}},
            "custom_hooks": [{"type": "EMAHook", "momentum": 0.1}],
        },
        format_python_code=False,  # it takes longer than the training
    )


def _digits_config(folder: str) -> Config:
    config = Config.fromfile(data_path("configs/demo/mask_rcnn_dpt_nano_digits.py"), format_python_code=False)
    config.train_dataloader.dataset.data_root = folder
    config.train_dataloader.dataset.pipeline.insert(2, {"type": "RandomFlip", "prob": 0.5})
    config.model.backbone.update(init_cfg=None, drop_path_rate=0.1)
    for key in ("val_cfg", "val_dataloader", "val_evaluator", "test_cfg", "test_dataloader", "test_evaluator"):
        config[key] = None
    return config


def train(plan: Plan) -> None:
    """Train as the plan says; an error of this project is printed in one line, with exit status 2."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, as tests may be, ignores it
    torch.set_num_threads(1)
    if plan.processes > 1:
        torch.distributed.init_process_group("gloo")  # MMEngine's own way sets a CUDA device
    if plan.die_at_step:
        sys.addaudithook(partial(_die_at_step, [plan.die_at_step]))
    try:
        Runner.from_cfg(config_of(plan)).train()
    except DPTZooError as error:
        print(f"dpt-zoo: {error}", file=sys.stderr)
        sys.exit(2)


def _die_at_step(steps_left: list[int], event: str, args: tuple[Any, ...]) -> None:
    if any(isinstance(arg, str | os.PathLike) and ".pth" in os.fspath(arg) for arg in args):
        steps_left[0] -= 1
        if not steps_left[0]:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    train(Plan(**json.loads(sys.argv[1]))) if sys.argv[1:] else serve()
