"""Training, in one call."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process

from ..data.checks import CheckedSplit
from ..data.splits import Split, prepare_splits
from ..engine import config as configs
from ..engine.distributed import process_group, runner_settings
from ..engine.runner import from_main_process, quiet_runner, unwrapped
from ..errors import InputError
from ..utils.files import make_folder
from ..utils.progress import progress_bar
from ..weights.converting import convert
from .checkpoints import find_checkpoints
from .loop import TrainingInterrupted

FINE_TUNING_EPOCHS = 12

RESULT = "model.safetensors"
"""In a work_dir, when a run is done: its best weights, or without validation its last."""


def train(
    recipe: str | Path,
    *,
    data_root: str | Path | None = None,
    work_dir: str | Path | None = None,
    weights: str | Path | None = None,
    resume: bool = False,
    epochs: int | None = None,
    batch_size: int | None = None,
    accumulate: int = 1,
    scale_lr: bool = False,
    workers: int | None = None,
    amp: bool = False,
    compile: bool = False,
    gradient_checkpointing: bool = False,
    ema: bool = False,
    tensorboard: bool = False,
    seed: int | None = None,
    deterministic: bool = False,
    cfg_options: Mapping[str, Any] | None = None,
) -> Path:
    """Train a detector on MMEngine's Runner: in this process, or in all that torchrun started.

    A config is trained as it says, from the backbone's ImageNet weights. A detector of the zoo is fine-tuned: from its
    weights, with a smaller learning rate, for 12 epochs. In both, the classes are those of the data.

    Args:
        recipe: a config file, or the name of a zoo's detector.
        data_root: a folder of COCO, YOLO or Pascal VOC data, see `dpt_zoo.data.layouts.find_splits`; by default, what
            the recipe names.
        work_dir: where checkpoints and logs are written; by default `runs/` and the recipe's name.
        weights: a detector's weights to start from: a zoo's name, a path, `https://...` or `hf://org/repo/file`.
        resume: go on from the newest whole checkpoint in `work_dir`, or begin if there is none.
        epochs: passes over the data, at least 1; the learning rate's schedule is stretched to them.
        batch_size: images in a step and process, at least 1.
        accumulate: batches whose gradients make one step, at least 1.
        scale_lr: multiply the learning rate by the images in a step over those that the recipe's rate is for.
        workers: processes that load data, beside each that trains.
        amp: compute in half precision where that is safe, on a GPU.
        compile: compile the backbone with `torch.compile`.
        gradient_checkpointing: compute the backbone's inner values again for the gradients instead of keeping them.
        ema: validate and keep an average of the weights over time.
        tensorboard: write TensorBoard's files, besides text and JSON lines.
        seed: of all random choices, from 0.
        deterministic: have PyTorch refuse what may give other numbers in another run.
        cfg_options: settings of the config to change at the end, by their path: `{"model.backbone.size": "small"}`.

    Returns:
        The file of the trained weights: the best by box AP or, without data to validate with, the last.

    Raises:
        UnknownModelError, InputError: an argument cannot be used.
        DataError: the data cannot be used; the text lists what is wrong with them.
        FetchError, WeightsError: the weights to start from cannot be had.
        OutputError: `work_dir` cannot be written; what was there is as it was.
        TrainingInterrupted: there was SIGINT or SIGTERM.
    """
    for name, value, least in (
        ("epochs", epochs, 1),
        ("batch_size", batch_size, 1),
        ("accumulate", accumulate, 1),
        ("workers", workers, 0),
        ("seed", seed, 0),
    ):
        if value is not None and (not isinstance(value, int) or value < least):
            raise InputError(f"{name} must be a whole number from {least}, not {value!r}")
    cfg = configs.load_config(recipe)
    is_config = str(recipe).endswith(".py")
    folder = Path(work_dir or Path("runs", Path(recipe).stem)).absolute()
    with process_group():
        data = from_main_process(lambda: _prepare(cfg, Path(data_root) if data_root else None, folder, resume))
        configs.set_data(cfg, data)
        if batch_size is not None:
            cfg.train_dataloader.batch_size = batch_size
        images_per_step = cfg.train_dataloader.batch_size * get_world_size() * accumulate
        if not is_config:
            num_batches = data["train"].num_images // (cfg.train_dataloader.batch_size * get_world_size())
            configs.fine_tune(cfg, epochs or FINE_TUNING_EPOCHS, num_batches)
        elif epochs is not None:
            configs.set_epochs(cfg, epochs)
        if weights is not None or not is_config:
            configs.start_from(cfg, weights or str(recipe))
        if scale_lr:
            configs.scale_learning_rate(cfg, images_per_step)
        if workers is not None:
            configs.set_workers(cfg, workers)
        if amp:
            configs.use_amp(cfg)
        if ema:
            configs.keep_average(cfg)
        if tensorboard:
            configs.write_tensorboard(cfg)
        cfg.optim_wrapper.accumulative_counts = accumulate
        if gradient_checkpointing:
            cfg.model.backbone.gradient_checkpointing = True
        configs.report_progress(cfg)
        cfg.randomness = {"seed": seed, "deterministic": deterministic}
        cfg.resume, cfg.work_dir = resume, str(folder)
        configs.merge(cfg, cfg_options or {})
        cfg.merge_from_dict(runner_settings())
        return _run(cfg, compile)


def _prepare(cfg: Config, data_root: Path | None, work_dir: Path, resume: bool) -> dict[Split, CheckedSplit]:
    """Make the folder, and find and check the data; the main process alone does."""
    make_folder(work_dir, "work_dir")
    if not resume and any(work_dir.glob("*.pth")):
        raise InputError(f"{work_dir} holds another run: resume it, or choose another work_dir")
    with progress_bar("checking images") as progress:
        data = prepare_splits(cfg, data_root, work_dir / "annotations", read_images=not resume, progress=progress)
    train, val = data["train"], data.get("val")
    print(
        f"data: {train.num_images:,} images with {train.num_objects:,} objects of {len(train.classes):,} classes to "
        f"train on, {val.num_images if val else 0:,} to validate with",
        file=sys.stderr,
    )
    return data


def _run(cfg: Config, compile_backbone: bool) -> Path:
    """Train by a resolved config."""
    work_dir = Path(cfg.work_dir)
    try:
        with quiet_runner(cfg) as runner:
            if compile_backbone:
                unwrapped(runner.model).get_submodule("backbone").compile()
            runner.train()
    except TrainingInterrupted as stop:
        if is_main_process():
            print(f"stopped; to go on from {stop.checkpoint or 'the start'}, resume the run", file=sys.stderr)
        raise
    if is_main_process():
        best = runner.message_hub.runtime_info.get("best_ckpt")
        convert(Path(best) if best else find_checkpoints(work_dir)[-1], work_dir / RESULT)
    return work_dir / RESULT
