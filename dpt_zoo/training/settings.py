"""The settings on which the result of a training run depends."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.runner import Runner

from ..utils.files import hash_file

CONFIG_PARTS = ("model", "train_dataloader", "optim_wrapper", "auto_scale_lr")
FREE_NAMES = {
    *("num_workers", "persistent_workers", "prefetch_factor", "pin_memory", "timeout", "multiprocessing_context"),
    *("data_root", "ann_file", "data_prefix", "backend_args"),  # data may be moved: its content is compared
    *("init_cfg", "pretrained"),  # a resumed run has its own weights
    *("test_cfg", "gradient_checkpointing"),
}
"""Settings in these parts that may change when a run is resumed."""
FREE = {"optim_wrapper.type", "optim_wrapper.dtype", "optim_wrapper.loss_scale"}  # mixed precision needs a GPU
MAX_SHOWN = 4
"""Number of differing settings that an error names; it counts the others."""
PROGRESS = {"base_values", "last_step", "verbose"}  # the attributes of a scheduler that are no settings


def read_settings(runner: Runner) -> dict[str, str]:
    """Return the settings that a resumed run must share, and the number of epochs, by path and as text."""
    cfg = runner.cfg
    hooks = [hook for hook in cfg.get("custom_hooks") or [] if hook["type"] == "EMAHook"]
    parts = {name: cfg.get(name) for name in CONFIG_PARTS}
    schedulers = runner.param_schedulers if isinstance(runner.param_schedulers, list) else []
    parts |= {"hooks": hooks, "param_scheduler": list(map(_scheduler_settings, schedulers))}
    parts |= {
        f"{name} annotations": _hash_annotations(cfg.get(f"{name}_dataloader") or {}) for name in ("train", "val")
    }
    parts["train_cfg.max_epochs"] = runner.max_epochs
    return {
        path: value for path, value in _flatten(parts) if path not in FREE and FREE_NAMES.isdisjoint(path.split("."))
    }


def describe_differences(saved: Mapping[str, str], current: Mapping[str, str]) -> str:
    """Describe how the `saved` settings of a run differ from the `current` ones; return "" if it may continue.

    The number of epochs may differ, and with it the end of a scheduler, if no other setting of the schedulers does.
    Validation may be added or left out, but a model that is the best on other data is not comparable.
    """
    differing = {path for path in saved.keys() | current.keys() if saved.get(path) != current.get(path)}
    differing -= {"val annotations"} - (saved.keys() & current.keys())
    if all(path == "train_cfg.max_epochs" or re.fullmatch(r"param_scheduler\.\d+\.end", path) for path in differing):
        return ""
    paths = sorted(differing, key=lambda path: (path.startswith("param_scheduler"), path))  # it follows from others
    shown = [f"{path}: {saved.get(path, 'not set')}, now {current.get(path, 'not set')}" for path in paths[:MAX_SHOWN]]
    return "; ".join(shown) + (f" and {len(paths) - MAX_SHOWN} more" if len(paths) > MAX_SHOWN else "")


def _scheduler_settings(scheduler: Any) -> dict[str, Any]:
    state = {name: value for name, value in scheduler.state_dict().items() if not name.startswith("_")}
    return {"type": type(scheduler).__name__, **{name: state[name] for name in state.keys() - PROGRESS}}


def _hash_annotations(loader: Mapping[str, Any]) -> str | None:
    dataset = loader.get("dataset")
    while isinstance(dataset, Mapping) and "dataset" in dataset:  # that of a wrapper
        dataset = dataset["dataset"]
    if not isinstance(dataset, Mapping) or "ann_file" not in dataset:
        return None
    path = Path(dataset.get("data_root") or "", dataset["ann_file"])
    return hash_file(path).hexdigest()[:12] if path.is_file() else None


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flatten(each, f"{path}.{key}".removeprefix("."))
    elif value is not None:
        yield path, value if isinstance(value, str) else repr(value)
