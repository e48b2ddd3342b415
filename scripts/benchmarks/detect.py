"""A photograph from pixels to objects: ours, with the explicit backbone, and peers of the same size.

The scores decide how long post-processing takes. "sparse" scores are like a trained head's: the weights are random, and
the last classification layer of every network is adjusted so that its logits have the same spread, and the same number
of scores passes the threshold. "many" scores are those of the rule weights.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rule_weights import load_rule_weights
from torch import Tensor, nn

from .detectors import TITLES, build_detector
from .measuring import (
    ROOT,
    Action,
    Comparison,
    Settings,
    awaited,
    compare_ways,
    find_devices,
    run_in_child,
    time_in_turn,
    watch_memory,
)

# isort: split
from mmdet.apis import inference_detector

from dpt_zoo import Detector

PHOTOGRAPH = ROOT / "tests/reference/img_coffee_320x240.png"
WAYS = {
    "sparse": ("ours", "explicit", "torchvision ResNet-50", "MMDetection ResNet-50", "MMDetection PVT-small"),
    "many": ("ours", "explicit"),
}
THRESHOLD = 0.05
PASSING_SCORES = 1000
LOGIT_SPREAD = 2.0
"""Standard deviation over the classes of sparse scores' logits, at the median place or region."""
BATCHES = (1, 8, 32)


def compare(settings: Settings) -> Iterator[Comparison]:
    for device in find_devices():
        for architecture in settings.architectures:
            for scores, ways in WAYS.items():
                network = f"{TITLES[architecture]}, DPT-{settings.size}"
                setting = f"{network}, {settings.describe(device)}, float32, {scores} scores"
                detector: dict[str, Any] = {"architecture": architecture, "scores": scores}
                detector |= {"size": settings.size, "height": settings.height, "width": settings.width}
                yield from compare_ways("detect", setting, make_detection, ways, settings, device, **detector)
                parts = time_parts(build_with_scores("ours", device, **detector), device, settings)
                yield Comparison("detect", setting, "share of our time", "", parts)
    if "cuda" in find_devices():
        yield from _measure_throughput(settings)


def make_detection(way: str, device: str, **detector: Any) -> Action:
    """Return the detection of the photograph's objects, called as a user of each library calls it."""
    return prepare_detection(way, build_with_scores(way, device, **detector), detector["height"], detector["width"])


def build_with_scores(way: str, device: str, architecture: str, scores: str, size: str, height: int, width: int) -> Any:
    """Build the detector of a way; its scores for the photograph are "sparse" or "many"."""
    model = build_detector(way, architecture, size, height, width).to(device)
    if scores == "many":
        load_rule_weights(model)
    else:
        stock = "explicit" if way == "ours" else way
        _make_scores_sparse(model, prepare_detection(stock, model, height, width))
    return model


def prepare_detection(way: str, model: Any, height: int, width: int) -> Action:
    """Return the detection by `Detector`, by torchvision or by MMDetection's `inference_detector`."""
    picture = _read_photograph(height, width)
    if way == "ours":
        detect = Detector(model, score_threshold=THRESHOLD)
        return lambda: detect(picture)
    if way.startswith("torchvision"):
        device = next(model.parameters()).device

        def run() -> object:
            with torch.inference_mode():
                return model([torch.from_numpy(picture).to(device).permute(2, 0, 1) / 255])

        return run
    bgr = np.ascontiguousarray(picture[..., ::-1])
    return lambda: inference_detector(model, bgr)


def _read_photograph(height: int, width: int) -> NDArray[np.uint8]:
    """Read the photograph, resized: `(height, width, 3)` RGB."""
    with Image.open(PHOTOGRAPH) as image:
        return np.array(image.convert("RGB").resize((width, height)))


def _make_scores_sparse(model: Any, detect: Action) -> None:
    """Centre, scale and shift the last classification layer: about `PASSING_SCORES` scores pass the threshold."""
    layer, background = find_classifier(model)
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    detect()
    hook.remove()
    logits = torch.cat([each.movedim(1, -1).flatten(0, -2) for each in seen])  # a row for each place or region
    centre = logits.mean(dim=0)
    scale = LOGIT_SPREAD / (logits - centre).std(dim=1).median()
    logits = (logits - centre) * scale
    with torch.no_grad():
        layer.weight *= scale
        layer.bias.sub_(centre).mul_(scale)
        if background is None:
            layer.bias += _shift_of_logits(logits.flatten())
        else:
            layer.bias[background] += _shift_of_background(logits, background)


def find_classifier(model: Any) -> tuple[Any, int | None]:
    """Return the last classification layer, and the index of its background class, or None without one."""
    if hasattr(model, "roi_heads"):
        return model.roi_heads.box_predictor.cls_score, 0
    if hasattr(model, "roi_head"):
        return model.roi_head.bbox_head.fc_cls, -1
    if hasattr(model, "head"):
        return model.head.classification_head.cls_logits, None
    return model.bbox_head.retina_cls, None


def _shift_of_logits(logits: Tensor) -> float:
    """Return what to add to the logits: then the sigmoids of `PASSING_SCORES` logits pass the threshold."""
    last = logits.topk(min(PASSING_SCORES, len(logits))).values[-1].item()
    return math.log(THRESHOLD / (1 - THRESHOLD)) - last


def _shift_of_background(logits: Tensor, background: int) -> float:
    """Return what to add to the background's logit: then `PASSING_SCORES` softmax scores pass the threshold."""
    objects = torch.cat([logits[:, :background], logits[:, background:][:, 1:]], dim=1)
    # A score is share / (1 + exp(background) / total): the class's share of the objects' total.
    total = objects.logsumexp(dim=1, keepdim=True)
    room = ((objects - total).exp() / THRESHOLD - 1).clamp(min=0)
    shifts = (room.log() + total - logits[:, background, None]).flatten()
    shifts = shifts[shifts.isfinite()]
    return shifts.topk(min(PASSING_SCORES, len(shifts))).values[-1].item()


def time_parts(model: Any, device: str, settings: Settings) -> dict[str, list[float]]:
    """Return the share of each part of a detection in its time, for each run."""
    rest = [getattr(model, name) for name in ("neck", "bbox_head", "rpn_head") if hasattr(model, name)]
    if hasattr(model, "roi_head"):
        head = model.roi_head
        rest += [head.bbox_roi_extractor, head.bbox_head, head.mask_roi_extractor]
        rest += [*head.mask_head.convs, head.mask_head.upsample]  # `Detector` calls its layers one by one
    stopwatch = _Stopwatch({"backbone": [model.backbone], "rest of the network": rest}, device)
    detect = awaited(prepare_detection("ours", model, settings.height, settings.width), device)
    shares: dict[str, list[float]] = {}
    for run in range(settings.runs + 1):
        parts = stopwatch.time(detect)
        for part, seconds in parts.items() if run else ():  # after a warm-up
            shares.setdefault(part, []).append(seconds / sum(parts.values()))
    return shares


class _Stopwatch:
    """Measures the time that an action spends in modules of a network, and before and between them."""

    def __init__(self, parts: dict[str, list[nn.Module]], device: str) -> None:
        self._device = device
        self._spans: list[tuple[str, float, float]] = []
        self._started = 0.0
        for part, modules in parts.items():
            for module in modules:
                module.register_forward_pre_hook(self._start)
                module.register_forward_hook(self._stop_for(part))

    def time(self, action: Action) -> dict[str, float]:
        """Return the seconds of each part, of "preparation" before the first, and of "post-processing"."""
        self._spans.clear()
        start = self._now()
        action()
        total = self._now() - start
        spent = {"preparation": self._spans[0][1] - start}
        for part, begin, end in self._spans:
            spent[part] = spent.get(part, 0) + end - begin
        return {**spent, "post-processing": total - sum(spent.values())}

    def _now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _start(self, module: nn.Module, inputs: Any) -> None:
        self._started = self._now()

    def _stop_for(self, part: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, output: self._spans.append((part, self._started, self._now()))


def _measure_throughput(settings: Settings) -> Iterator[Comparison]:
    """Measure images per second on a GPU, in bfloat16 and compiled, for each size and batch size."""
    for architecture in settings.architectures:
        for size in ("tiny", "small", "medium"):
            detector = {"architecture": architecture, "size": size, "height": settings.height, "width": settings.width}
            for batch in BATCHES:
                times, peak = run_in_child(measure_batches, batch=batch, runs=settings.runs, **detector)
                network = f"{TITLES[architecture]}, DPT-{size}"
                setting = f"{network}, {settings.describe('cuda', batch)}, bfloat16 compiled, sparse scores"
                speeds = {"ours": [batch / seconds for seconds in times]}
                yield Comparison("detect", setting, "speed", "images/s", speeds)
                yield Comparison("detect", setting, "peak memory over what was built", "MiB", {"ours": [peak]})


def measure_batches(batch: int, runs: int, height: int, width: int, **detector: Any) -> tuple[list[float], float]:
    """Return the seconds of each batch, and by how many MiB they raised the GPU's memory."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    model = build_with_scores("ours", "cuda", scores="sparse", height=height, width=width, **detector)
    detect = Detector(model, score_threshold=THRESHOLD, amp=True, compile=True, batch_size=batch)
    pictures = [_read_photograph(height, width)] * batch
    growth = watch_memory("cuda")
    times = time_in_turn({"ours": awaited(lambda: list(detect.stream(pictures)), "cuda")}, runs)
    return times["ours"], growth()
