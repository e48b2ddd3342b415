"""Training and fine-tuning, in one call."""

import contextlib
import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process

from ..data.checks import CheckedSplit
from ..data.splits import Split, prepare_splits
from ..engine import config as configs
from ..engine.distributed import process_group, runner_settings
from ..engine.runner import from_main_process, quiet_runner, unwrapped
from ..errors import InputError, WeightsError
from ..manifest.metadata import WeightsMetadata
from ..models.metadata import describe, find_scale
from ..utils.files import expand_user, lock_folder, make_folder
from ..utils.progress import progress_bar
from ..utils.streams import show
from ..utils.validation import check_integer, check_not_empty, check_one_data_set
from ..weights.converting import with_metadata, write_safetensors
from ..weights.reading import read_weights
from .checkpoints import find_checkpoints, find_facts, find_metrics
from .defaults import Choices, Facts, choose, measure_data, read_choices
from .loggers import add_loggers
from .probing import measure_memory, tune_lr


def train(
    model: str | Path,
    *,
    data_root: str | Path | None = None,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    work_dir: str | Path | None = None,
    weights: str | Path | None = None,
    resume: bool = False,
    epochs: int | None = None,
    batch_size: int | None = None,
    accumulate: int = 1,
    scale_lr: bool = False,
    tune_lr: bool = False,
    workers: int | None = None,
    amp: bool = False,
    compile: bool = False,
    gradient_checkpointing: bool = False,
    ema: bool = False,
    patience: int | None = None,
    freeze: Sequence[str] = (),
    keep_empty: bool | None = None,
    balance: bool = False,
    loggers: Sequence[str] = (),
    seed: int | None = None,
    deterministic: bool = False,
    cfg_options: Mapping[str, Any] | None = None,
    device: str | torch.device | None = "auto",
) -> Path:
    """Train a detector with MMEngine's Runner, in this process or in all processes that torchrun started.

    A config file is trained as it is, from ImageNet weights of the backbone. A detector of the zoo is fine-tuned: it
    starts from its weights, and batch size, learning rate, epochs and the scale of the images are chosen from the data
    and the memory, unless they are given. The choices are reported, and kept in `work_dir` for `resume`. The classes
    are always those of the data.

    Args:
        model: a config file, the name of a detector, or weights that say which model they are for (see
            `create_model`).
        data_root: a folder or zip archive of COCO, YOLO, Pascal VOC, ... (see docs/data.md); by default the data in
            the config.
        annotations: a COCO annotation file to train on, instead of `data_root`; then nothing is validated.
        images: the folder of the images of `annotations`.
        work_dir: the folder for checkpoints, logs and `model.safetensors`; by default `runs/NAME` for a model NAME.
        weights: detector weights to start from: a model's name, a path, `https://...` or `hf://org/repo/file`.
        resume: continue from the newest intact checkpoint in `work_dir`, or start if there is none. Data and options
            that change the result must be those of the run.
        epochs: number of passes over the data, at least 1; the learning rate schedule is scaled to it.
        batch_size: number of images in a batch of one process, at least 1.
        accumulate: number of batches to accumulate gradients over for one step; at 1, the number is the config's.
        scale_lr: multiply the learning rate of a config by the images in a step, divided by those that it assumes.
        tune_lr: choose the learning rate by a range test of 100 steps, from the weights with which the run starts.
        workers: number of data loading processes for each training process; 0 loads in the training process.
        amp: train in mixed precision; needs a GPU.
        compile: compile the backbone with `torch.compile`.
        gradient_checkpointing: recompute the backbone's activations in the backward pass, which saves memory.
        ema: validate and save an exponential moving average of the weights.
        patience: number of validations without a better box AP after which training stops; by default it does not.
        freeze: parts of the model that are not trained: "backbone", "neck", ...
        keep_empty: whether to train on images without objects; by default, if a detector is fine-tuned.
        balance: draw images of rare classes more often.
        loggers: trackers of experiments to log with: "tensorboard", "wandb", "mlflow", "clearml". One that fails is
            reported, and the run continues.
        seed: the seed of all random choices, 0 to 2**32 - 1; random by default.
        deterministic: raise an error for operations that are not reproducible.
        cfg_options: config settings to change by path, after all other options: `{"model.backbone.size": "small"}`.
            Hooks are added to those of this function.
        device: "auto" for a GPU if there is one, "cpu", "cuda", "cuda:1", ...; several processes use one GPU each.

    Returns:
        The file of the trained weights: the best by box AP or, without validation data, the last.

    Raises:
        UnknownModelError: No model has this name.
        DependencyError: A tracker is not installed.
        InputError: An argument is invalid, or another run uses `work_dir`.
        DataError: The data cannot be used. The text lists every issue.
        FetchError: The weights to start from cannot be fetched.
        WeightsError: The weights to start from cannot be loaded.
        OutputError: `work_dir` cannot be written. Existing checkpoints are unchanged.
        TrainingInterrupted: The process received SIGINT or SIGTERM.
    """
    options = TrainingOptions(**locals())  # each argument is the field of the same name
    cfg = configs.load_config(model)
    # Merged now, because the data and the schedule depend on settings, and again after all options, to override them.
    configs.merge_cfg_options(cfg, {k: v for k, v in options.cfg_options.items() if not _extends_list(k)})
    folder = options.work_dir or cfg.get("work_dir") or Path("runs", Path(model).stem)
    cfg.work_dir = str(expand_user(folder).absolute())
    cfg.resume = bool(options.resume or cfg.get("resume"))
    with process_group(device) as place, contextlib.ExitStack() as stack:
        if amp:
            configs.use_amp(cfg, place)
        from_main_process(lambda: stack.enter_context(_hold_folder(Path(cfg.work_dir), cfg.resume)))
        data = from_main_process(lambda: _prepare_data(cfg, options))
        choices = _choose(cfg, options, data)
        metadata = _describe(cfg, data["train"], choices)
        _configure(cfg, options, data, choices)
        return _run(cfg, options, data["train"], metadata)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The arguments of `train`, validated."""

    model: str | Path
    data_root: str | Path | None
    annotations: str | Path | None
    images: str | Path | None
    work_dir: str | Path | None
    weights: str | Path | None
    resume: bool
    epochs: int | None
    batch_size: int | None
    accumulate: int
    scale_lr: bool
    tune_lr: bool
    workers: int | None
    amp: bool
    compile: bool
    gradient_checkpointing: bool
    ema: bool
    patience: int | None
    freeze: Sequence[str]
    keep_empty: bool | None
    balance: bool
    loggers: Sequence[str]
    seed: int | None
    deterministic: bool
    cfg_options: Mapping[str, Any]
    device: str | torch.device | None

    def __post_init__(self) -> None:
        minimums = {"epochs": 1, "batch_size": 1, "accumulate": 1, "patience": 1, "workers": 0, "seed": 0}
        for name, minimum in minimums.items():
            value = getattr(self, name)
            if value is not None or name == "accumulate":
                check_integer(name, value, minimum, 2**32 - 1 if name == "seed" else None)
                object.__setattr__(self, name, int(value))  # a NumPy integer could not be written into a config
        for name in ("data_root", "work_dir", "weights"):
            check_not_empty(name, getattr(self, name))
        is_mapping = isinstance(self.cfg_options, Mapping | None)
        if not is_mapping or not all(isinstance(key, str) for key in self.cfg_options or ()):
            raise InputError(f"cfg_options must be a dict of settings by path, not {self.cfg_options!r}")
        object.__setattr__(self, "cfg_options", dict(self.cfg_options or {}))
        self._take("work_dir", "work_dir")
        if not (self.resume or self.cfg_options.get("resume")):  # then it is a checkpoint to resume from
            self._take("load_from", "weights", only_compare=not self.fine_tunes)
        check_one_data_set(self.data_root, self.annotations, self.images)
        if self.tune_lr and (self.scale_lr or self.given.lr is not None):
            raise InputError("tune_lr chooses the learning rate: leave it out, or scale_lr and the lr in cfg_options")

    @property
    def fine_tunes(self) -> bool:
        """Whether the model is a detector with weights, not a config file."""
        return not str(self.model).endswith(".py")

    @property
    def given(self) -> Choices:
        """The settings that need not be chosen."""
        lr, batch_size, epochs = (
            _find_number(self.cfg_options, path)
            for path in ("optim_wrapper.optimizer.lr", "train_dataloader.batch_size", "train_cfg.max_epochs")
        )
        return Choices(
            lr=lr,
            batch_size=self.batch_size or (int(batch_size) if batch_size else None),
            epochs=self.epochs or (int(epochs) if epochs else None),
        )

    @property
    def sets_pipelines(self) -> bool:
        """Whether the steps that prepare images are given, so that their scale is not chosen."""
        return any("pipeline" in key for key in self.cfg_options)

    def _take(self, setting: str, name: str, *, only_compare: bool = False) -> None:
        """Use a setting in `cfg_options` as the argument of the same meaning. Refuse two different values."""
        given, value = self.cfg_options.get(setting), getattr(self, name)
        if given and value is not None and str(given) != str(value):
            raise InputError(
                f"{name} is {str(value)!r}, and {setting} in cfg_options is {str(given)!r}: give one of them"
            )
        if not only_compare:
            object.__setattr__(self, name, given or value)
            object.__setattr__(self, "cfg_options", {k: v for k, v in self.cfg_options.items() if k != setting})


def _extends_list(key: str) -> bool:
    """Return whether a setting may belong to an item of a list that `train` has not added yet."""
    return key.partition(".")[0] in ("custom_hooks", "visualizer")


@contextlib.contextmanager
def _hold_folder(folder: Path, is_resumed: bool) -> Iterator[None]:
    """Make the folder of a run, and lock it within the block."""
    make_folder(folder, "work_dir")
    with lock_folder(folder):
        if not is_resumed and any(folder.glob("*.pth")):
            raise InputError(f"{folder} holds another run: resume it, or choose another work_dir")
        yield


def _find_number(settings: Any, path: str) -> float | None:
    """Return a positive number in `cfg_options` by its path, parts of which may be dicts."""
    for key, value in settings.items() if isinstance(settings, Mapping) else ():
        if path.startswith(f"{key}."):
            return _find_number(value, path.removeprefix(f"{key}."))
        if path == key and isinstance(value, int | float | np.number) and value > 0:
            return float(value)
    return None


def _prepare_data(cfg: Config, options: TrainingOptions) -> dict[Split, CheckedSplit]:
    """Find and check the data; in the main process only."""
    if options.annotations is not None:
        configs.set_files(cfg.train_dataloader.dataset, options.annotations, options.images)
        cfg.val_dataloader = None
    folder = Path(cfg.work_dir)
    root = expand_user(options.data_root) if options.data_root is not None else None
    splits: Sequence[Split] = ("train", "val") if cfg.get("val_dataloader") else ("train",)
    with progress_bar("checking images") as progress:
        data = prepare_splits(cfg, root, folder / "annotations", splits, read_images=not cfg.resume, progress=progress)
    train, val = data["train"], data.get("val")
    show(
        f"data: {train.num_images:,} images with {train.num_objects:,} objects of {len(train.classes):,} classes to "
        f"train on ({train.num_empty_images:,} without objects), {val.num_images if val else 0:,} to validate with"
        + ("" if val else ": `dpt-zoo split-data` makes such a split"),
        to=sys.stderr,
    )
    return data


def _choose(cfg: Config, options: TrainingOptions, data: Mapping[Split, CheckedSplit]) -> Choices:
    """Choose the settings that are not given, and report them. A resumed run has the choices of its start."""
    folder = Path(cfg.work_dir)
    earlier = from_main_process(lambda: read_choices(folder)) if cfg.resume else Choices()
    given = options.given.or_else(earlier)
    choices = Choices(lr=given.lr)  # a config has the others
    reasons: dict[str, str] = {}
    if options.fine_tunes:
        facts = Facts(
            **measure_data(data["train"], keep_empty=options.keep_empty is not False),
            lr=cfg.optim_wrapper.optimizer.lr,
            base_batch_size=cfg.auto_scale_lr.base_batch_size,
            scale=None if options.sets_pipelines else find_scale(cfg),
            num_processes=get_world_size(),
            accumulate=options.accumulate,
        )
        choices, reasons = choose(facts, given)
        if given.batch_size is None:
            memory = measure_memory(_configured(cfg, options, data, choices), options.device)
            choices, reasons = choose(replace(facts, memory=memory), given)
    if options.tune_lr and given.lr is None:
        lr, reasons["lr"] = tune_lr(_configured(cfg, options, data, choices), options.device)
        choices = replace(choices, lr=lr)
    if is_main_process() and choices != Choices():
        choices.save(folder)
        for reason in reasons.values():
            show(reason, to=sys.stderr)
    return choices


def _configured(cfg: Config, options: TrainingOptions, data: Mapping[Split, CheckedSplit], choices: Choices) -> Config:
    """Return the complete config of a run, and leave `cfg` as it is."""
    cfg = copy.deepcopy(cfg)
    _configure(cfg, options, data, choices)
    return cfg


def _configure(cfg: Config, options: TrainingOptions, data: Mapping[Split, CheckedSplit], choices: Choices) -> None:
    """Write the data, the options and the choices into the config."""
    if choices.scale is not None:
        configs.set_scale(cfg, choices.scale)
    configs.set_data(cfg, data)
    if batch_size := choices.batch_size or options.batch_size:
        cfg.train_dataloader.batch_size = batch_size
    if choices.lr is not None:
        cfg.optim_wrapper.optimizer.lr = choices.lr
    images_per_batch = cfg.train_dataloader.batch_size * get_world_size()
    if choices.epochs is not None:
        steps = choices.epochs * (data["train"].num_images // images_per_batch)
        configs.set_fine_tuning_schedule(cfg, choices.epochs, steps)
    elif options.epochs is not None:
        configs.set_num_epochs(cfg, options.epochs)
    if options.weights is not None or options.fine_tunes:
        configs.set_starting_weights(cfg, options.weights or options.model, is_default=options.weights is None)
    if options.accumulate > 1:
        cfg.optim_wrapper.accumulative_counts = options.accumulate
    if options.scale_lr and choices.lr is None:  # what was chosen is scaled
        images_per_step = images_per_batch * cfg.optim_wrapper.get("accumulative_counts", 1)
        cfg.optim_wrapper.optimizer.lr *= images_per_step / cfg.auto_scale_lr.base_batch_size  # arXiv 1706.02677
    if options.workers is not None:
        configs.set_workers(cfg, options.workers)
    if options.ema:
        configs.add_hook(cfg, type="EMAHook", ema_type="ExpMomentumEMA", momentum=0.0005, gamma=500)
    keep_empty = options.fine_tunes if options.keep_empty is None else options.keep_empty
    if keep_empty or options.keep_empty is False:
        configs.merge_cfg_options(cfg, {"train_dataloader.dataset.filter_cfg": {"filter_empty_gt": not keep_empty}})
    configs.freeze(cfg, options.freeze)
    if options.gradient_checkpointing:
        cfg.model.backbone.gradient_checkpointing = True
    configs.add_hook(cfg, type="ProgressHook")
    cfg.randomness = {"seed": None, "deterministic": False, **(cfg.get("randomness") or {})}
    if options.seed is not None:
        cfg.randomness.seed = options.seed
    cfg.randomness.deterministic |= options.deterministic
    distributed = runner_settings()
    if distributed:
        chosen = {"find_unused_parameters": cfg.get("find_unused_parameters", False)}
        cfg.model_wrapper_cfg = {**distributed["model_wrapper_cfg"], **chosen, **(cfg.get("model_wrapper_cfg") or {})}
    configs.merge_cfg_options(cfg, {k: v for k, v in options.cfg_options.items() if k != "resume"})
    if options.data_root is None:
        configs.set_paths(cfg, data)  # those of the settings, checked and made absolute
    if distributed:
        cfg.launcher = distributed["launcher"]
    add_loggers(cfg, options.loggers)
    if options.patience is not None:
        configs.set_patience(cfg, options.patience)
    if options.scale_lr:
        cfg.auto_scale_lr.enable = False  # MMEngine would scale it again
    configs.check_training_config(cfg)
    if options.balance:
        configs.balance_classes(cfg, data["train"])


def _describe(cfg: Config, data: CheckedSplit, choices: Choices) -> WeightsMetadata | None:
    """Return what the trained weights will say about their model, or None if metadata cannot describe it."""
    try:
        metadata = replace(describe(cfg), classes=tuple(data.classes))
        if choices.scale is not None:
            metadata = replace(metadata, scale=choices.scale)
        return WeightsMetadata.from_json(metadata.to_json(), "the model")
    except (InputError, WeightsError) as error:
        if is_main_process():
            show(f"model.safetensors can be used only with this config: {error}", to=sys.stderr)
        return None


def _run(cfg: Config, options: TrainingOptions, data: CheckedSplit, metadata: WeightsMetadata | None) -> Path:
    with quiet_runner(cfg, options.device) as runner:
        if options.compile:
            unwrapped(runner.model).get_submodule("backbone").compile()
        runner.train()
    result = Path(cfg.work_dir, "model.safetensors")
    if is_main_process():
        best = runner.message_hub.runtime_info.get("best_ckpt")
        weights = read_weights(Path(best) if best else find_checkpoints(result.parent)[-1])
        if metadata:
            facts = {**find_facts(weights.meta), "images": data.num_images, "objects": data.num_objects}
            metadata = replace(metadata, metrics=find_metrics(weights.meta), training=facts)
            weights = with_metadata(weights, metadata)
        write_safetensors(weights, result)
    return result
