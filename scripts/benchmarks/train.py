"""A detector's training step: ours, with gradient checkpointing, and explicit, each in a process of its own.

A step is a forward pass with losses, a backward pass and AdamW. Memory is the peak above the built model: it includes
gradients, AdamW's state and what the allocator keeps.
"""

from collections.abc import Iterator
from typing import Any

import torch

from .measuring import Action, Comparison, Settings, awaited, find_devices, run_in_children, time_in_turn, watch_memory

WAYS = ("ours", "ours, checkpointed", "explicit")
MODES = {"cpu": ("float32",), "cuda": ("float32", "bfloat16", "bfloat16 compiled")}


def compare(settings: Settings) -> Iterator[Comparison]:
    for device in find_devices():
        for architecture in settings.architectures:
            for mode in MODES[device]:
                yield from _compare_steps(settings, device, architecture, mode)


def _compare_steps(settings: Settings, device: str, architecture: str, mode: str) -> Iterator[Comparison]:
    name = f"{architecture}_dpt_{settings.size[0]}_1x"
    setting = f"{name}, {settings.describe(device)}, {mode}"
    results = run_in_children(
        measure_steps,
        WAYS,
        settings.runs,
        name=name,
        mode=mode,
        device=device,
        height=settings.height,
        width=settings.width,
        steps=settings.steps,
        threads=settings.threads,
    )
    times = {way: [seconds for each, _ in runs for seconds in each] for way, runs in results.items()}
    yield Comparison("train", setting, "time of a step", "s", times)
    peaks = {way: [peak for _, peak in runs] for way, runs in results.items()}
    yield Comparison("train", setting, "peak memory over what was built", "MiB", peaks)


def measure_steps(
    way: str, name: str, mode: str, device: str, height: int, width: int, steps: int, threads: int
) -> tuple[list[float], float]:
    """Return the seconds of each training step after a warm-up, and by how many MiB they raised the memory."""
    torch.set_num_threads(threads)
    step = awaited(_make_step(way, name, mode, device, height, width), device)
    growth = watch_memory(device)
    seconds = time_in_turn({way: step}, steps)[way]
    return seconds, growth()


def _make_step(way: str, name: str, mode: str, device: str, height: int, width: int) -> Action:
    import dpt_zoo.mmlab  # before mmengine and mmdet

    # isort: split
    from explicit_dpt import make_explicit
    from mmdet.testing import demo_mm_inputs
    from mmengine.optim import AmpOptimWrapper, OptimWrapper

    import dpt_zoo

    torch.manual_seed(0)
    model: Any = dpt_zoo.create_model(name, pretrained=False, device=device).train()
    if way == "explicit":
        make_explicit(model.backbone)
    model.backbone.gradient_checkpointing = way == "ours, checkpointed"
    if mode == "bfloat16 compiled":
        model.backbone.compile()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    optimizer = OptimWrapper(adamw) if mode == "float32" else AmpOptimWrapper(optimizer=adamw, dtype="bfloat16")
    images = demo_mm_inputs(1, (3, height, width), num_items=[8], num_classes=80, with_mask=True)
    return lambda: model.train_step(images, optimizer)
