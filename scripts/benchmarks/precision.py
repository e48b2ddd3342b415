"""The backbone in less than float32: its time, and how far its maps are from float32's."""

import functools
import warnings
from collections.abc import Iterator

import torch
from rule_weights import load_rule_weights
from torch import Tensor, nn

from dpt_zoo.models import DPT

from .measuring import Comparison, Settings, awaited, find_devices, time_in_turn

WAYS = {
    "cpu": (
        "ours, float32",
        "ours, float16 weights",
        "ours, bfloat16 autocast",
        "ours, int8 linear layers",
    ),
    "cuda": (
        "ours, float32",
        "ours, bfloat16 autocast",
        "ours, float16 autocast",
        "ours, compiled",
        "ours, bfloat16 autocast, compiled",
        "ours, float16 autocast, compiled",
    ),
}


def compare(settings: Settings) -> Iterator[Comparison]:
    torch.set_num_threads(settings.threads)
    for device in find_devices():
        setting = f"DPT-{settings.size}, {settings.describe(device)}"
        torch.manual_seed(0)
        images = torch.randn(1, 3, settings.height, settings.width).to(device)
        models = {way: _build(way, settings.size).to(device) for way in WAYS[device]}
        forwards = {way: functools.partial(_forward, way, model, images) for way, model in models.items()}
        actions = {way: awaited(forward, device) for way, forward in forwards.items()}
        yield Comparison("precision", setting, "time", "s", time_in_turn(actions, settings.runs))
        maps = {way: forward() for way, forward in forwards.items()}
        expected = maps["ours, float32"]
        for stage, exact in enumerate(expected):
            deviations = {way: [_deviation(found[stage], exact)] for way, found in maps.items()}
            yield Comparison("precision", setting, f"largest deviation of map {stage + 1}, relative", "", deviations)


def _build(way: str, size: str) -> nn.Module:
    model: nn.Module = load_rule_weights(DPT(size)).eval()
    if "float16 weights" in way:
        model = model.half().float()
    if "int8" in way:
        # DePatch reads the weights of its linear layers, so that only the blocks' are replaced.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecation, in favour of a package of its own
            model = torch.ao.quantization.quantize_dynamic(model, {f"block{stage}" for stage in (1, 2, 3, 4)})
    if "compiled" in way:
        model.compile()
    return model


def _forward(way: str, model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    dtype = torch.bfloat16 if "bfloat16" in way else torch.float16
    with torch.inference_mode(), torch.autocast(images.device.type, dtype, enabled="autocast" in way):
        return model(images)


def _deviation(found: Tensor, exact: Tensor) -> float:
    """The largest difference, of the largest value."""
    return ((found.float() - exact).abs().max() / exact.abs().max()).item()
