"""The backbone: inference and training step, their arithmetic, and their share of the machine's rate."""

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from explicit_dpt import make_explicit
from torch import nn

from dpt_zoo.models import DPT

from .limits import measure_square_product
from .measuring import Action, Comparison, Settings, compare_ways, count_arithmetic, find_devices

INFERENCE = {
    "cpu": ("ours", "explicit", "PVT-small", "ResNet-50"),
    "cuda": ("ours", "ours, bfloat16 compiled", "explicit", "PVT-small", "ResNet-50"),
}
TRAINING = ("ours", "ours, checkpointed", "explicit")
BATCHES = {"cpu": (1,), "cuda": (1, 8)}


def compare(settings: Settings) -> Iterator[Comparison]:
    for device in find_devices():
        for batch in BATCHES[device]:
            yield from _compare_inference(settings, device, batch)
        setting = f"DPT-{settings.size}, {settings.describe(device)}, float32: training step"
        shape = (1, 3, settings.height, settings.width)
        yield from compare_ways(
            "backbone", setting, make_training_step, TRAINING, settings, device, size=settings.size, shape=shape
        )


def _compare_inference(settings: Settings, device: str, batch: int) -> Iterator[Comparison]:
    setting = f"DPT-{settings.size}, {settings.describe(device, batch)}, float32: inference"
    network: dict[str, Any] = {"size": settings.size, "shape": (batch, 3, settings.height, settings.width)}
    times, peaks = compare_ways("backbone", setting, make_forward, INFERENCE[device], settings, device, **network)
    yield times
    yield peaks
    counts = {
        way: sum(count_arithmetic(make_forward(way, device=device, **network)).values()) / 1e9
        for way in ("ours", "explicit")
    }
    yield Comparison("backbone", setting, "arithmetic", "GFLOP", {way: [count] for way, count in counts.items()})
    speeds = {
        way: [counts["explicit" if way == "explicit" else "ours"] / seconds for seconds in times.values[way]]
        for way in times.values
        if way.startswith(("ours", "explicit"))
    }
    yield Comparison("backbone", setting, "speed", "GFLOP/s", speeds)
    precisions = {way: "bfloat16" if "bfloat16" in way else "float32" for way in speeds}
    limits = {each: _limit(each, device, settings) for each in dict.fromkeys(precisions.values())}
    shares = {way: [speed / limits[precisions[way]] for speed in speeds[way]] for way in speeds}
    yield Comparison("backbone", setting, "share of the rate of a matrix product", "", shares)


def make_forward(way: str, device: str, size: str, shape: tuple[int, ...]) -> Action:
    """Return a forward pass on random images."""
    model = _build(way, size).to(device)
    model.eval()  # not every model returns itself
    images = torch.randn(*shape).to(device)

    def forward() -> object:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled="bfloat16" in way):
            return model(images)

    return forward


def make_training_step(way: str, device: str, size: str, shape: tuple[int, ...]) -> Action:
    """Return a training step: forward pass, sum of squares as the loss, backward pass."""
    model = _build(way, size).to(device).train()
    images = torch.randn(*shape).to(device)

    def step() -> None:
        model.zero_grad()
        torch.stack([each.square().sum() for each in model(images)]).sum().backward()

    return step


def _build(way: str, size: str) -> nn.Module:
    torch.manual_seed(0)
    if way in ("PVT-small", "ResNet-50"):
        import dpt_zoo.mmlab  # noqa: F401  (before mmdet)

        # isort: split
        from mmdet.models.backbones import PyramidVisionTransformer, ResNet

        return PyramidVisionTransformer(num_layers=[3, 4, 6, 3]) if way == "PVT-small" else ResNet(50)
    model = DPT(size, gradient_checkpointing=way == "ours, checkpointed")
    if way == "explicit":
        make_explicit(model)
    if way == "ours, bfloat16 compiled":
        model.compile()
    return model


def _limit(dtype: str, device: str, settings: Settings) -> float:
    """Return the median rate of a matrix product in GFLOP/s."""
    (rates,) = measure_square_product(dtype, device, settings).values()
    return statistics.median(rates)
