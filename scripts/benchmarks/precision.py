"""The backbone in lower precision: its time, the deviation of its maps, and the AP of the demo detectors."""

import functools
import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rule_weights import load_rule_weights
from torch import Tensor, nn

from dpt_zoo import Detector
from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.evaluation.metrics import CocoMetrics
from dpt_zoo.manifest.records import read_manifest
from dpt_zoo.models import DPT
from dpt_zoo.models.cpu import Linear

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
        yield from _compare_maps(settings, device)
    with tempfile.TemporaryDirectory() as folder:
        make_digit_scenes(folder, num_train=1, num_test=settings.scenes)
        for device in find_devices():
            for name in list(read_manifest().demos):
                aps = {way: [_measure_ap(name, way, device, Path(folder))] for way in WAYS[device]}
                setting = f"{name}, {settings.scenes} digit scenes, {device}"
                yield Comparison("precision", setting, "AP of boxes, percent", "", aps)


def _compare_maps(settings: Settings, device: str) -> Iterator[Comparison]:
    """Compare the time, and the deviation with weights that amplify rounding errors."""
    setting = f"DPT-{settings.size}, {settings.describe(device)}"
    torch.manual_seed(0)
    images = torch.randn(1, 3, settings.height, settings.width).to(device)
    models = {way: Reduced(load_rule_weights(DPT(settings.size)), way).eval().to(device) for way in WAYS[device]}
    forwards = {way: torch.inference_mode()(functools.partial(model, images)) for way, model in models.items()}
    actions = {way: awaited(forward, device) for way, forward in forwards.items()}
    yield Comparison("precision", setting, "time", "s", time_in_turn(actions, settings.runs))
    maps = {way: forward() for way, forward in forwards.items()}
    expected = maps["ours, float32"]
    for stage, exact in enumerate(expected):
        deviations = {way: [_deviation(each[stage], exact)] for way, each in maps.items()}
        yield Comparison("precision", setting, f"largest deviation of map {stage + 1}, relative", "", deviations)


def _measure_ap(name: str, way: str, device: str, folder: Path) -> float:
    """Return the box AP of a demo detector, in percent, with its backbone in lower precision."""
    detector = Detector(name, score_threshold=0.05, batch_size=8, device=device)
    detector.model.backbone = Reduced(detector.model.backbone, way)
    metrics = CocoMetrics(json.loads((folder / "annotations/instances_val2017.json").read_bytes()), ["bbox"])

    def records() -> Iterator[dict[str, Any]]:
        for found in detector.stream(folder / "val2017"):
            yield from found.to_coco(int(Path(str(found.path)).stem), range(1, 11))

    metrics.add(records())
    ap = metrics.compute()["bbox"].metrics["mAP"]
    assert ap is not None  # the scenes have objects
    return ap


class Reduced(nn.Module):
    """A backbone that computes in lower precision than float32."""

    def __init__(self, backbone: nn.Module, way: str) -> None:
        super().__init__()
        if "float16 weights" in way:
            backbone = backbone.half().float()
        if "int8" in way:
            for module in backbone.modules():
                module.__class__ = nn.Linear if isinstance(module, Linear) else type(module)  # it replaces no subclass
            # Only in the blocks: DePatch reads the weights of its linear layers.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the deprecation of quantize_dynamic
                backbone = torch.ao.quantization.quantize_dynamic(backbone, {f"block{stage}" for stage in (1, 2, 3, 4)})
        if "compiled" in way:
            backbone.compile()
        self.backbone = backbone
        self.autocast = "autocast" in way
        self.dtype = torch.bfloat16 if "bfloat16" in way else torch.float16

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(images.device.type, self.dtype, enabled=self.autocast):
            maps = self.backbone(images)
        return tuple(each.float() for each in maps)


def _deviation(x: Tensor, exact: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return ((x.float() - exact).abs().max() / exact.abs().max()).item()
