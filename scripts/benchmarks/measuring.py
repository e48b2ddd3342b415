"""How things are measured: in turn, after a warm-up, and each in a process of its own where memory counts."""

import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20

Action = Callable[[], object]
"""What is timed."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often; a subject reads what concerns it."""

    runs: int = 5
    threads: int = 2
    size: str = "small"
    height: int = 800
    width: int = 1216
    megapixels: tuple[float, ...] = (0.25, 0.5, 1, 2, 4)
    architectures: tuple[str, ...] = ("retinanet", "mrcnn")
    steps: int = 2
    megabytes: int = 400
    images: int = 5000
    detections: int = 100
    scenes: int = 500

    def describe(self, device: str, batch: int = 1) -> str:
        """What a network is run on."""
        where = device if device == "cuda" else f"{self.threads} threads"
        return f"{self.height}x{self.width}, batch {batch}, {where}"


QUICK = Settings(
    runs=1,
    threads=1,  # several of them wait for each other where other programs run
    size="tiny",
    height=128,
    width=192,
    megapixels=(0.05, 0.1),
    architectures=("retinanet",),
    steps=1,
    megabytes=20,
    images=20,
    detections=30,
    scenes=20,
)
"""The least that still measures something."""


@dataclass(frozen=True)
class Comparison:
    """Ways of doing the same thing, measured in turn.

    Attributes:
        subject: one of the benchmark's.
        setting: what all the ways had in common.
        quantity: what was measured of each.
        unit: of the values; "" for a plain number.
        values: by way, each run's; a way of this project begins with "ours".
    """

    subject: str
    setting: str
    quantity: str
    unit: str
    values: dict[str, list[float]]

    def median(self, way: str) -> float:
        """The middle one of a way's values."""
        return statistics.median(self.values[way])


def compare_ways(
    subject: str,
    setting: str,
    make: Callable[..., Action],
    ways: Iterable[str],
    settings: Settings,
    device: str,
    **arguments: Any,
) -> Iterator[Comparison]:
    """Compare the time of actions, in turn in this process, and the peak memory of a first run, each in its own.

    Args:
        subject, setting: see `Comparison`.
        make: a module's function that makes the action from a way, a device and the `arguments`, which JSON can hold.
        ways: of doing the same thing.
        settings: how often, and with how many threads.
        device: "cpu" or "cuda".
    """
    import torch

    torch.set_num_threads(settings.threads)
    actions = {way: awaited(make(way, device=device, **arguments), device) for way in ways}
    yield Comparison(subject, setting, "time", "s", time_in_turn(actions, settings.runs))
    arguments |= {"make": [make.__module__, make.__name__], "threads": settings.threads, "device": device}
    peaks = run_in_children(measure_peak, ways, settings.runs, **arguments)
    yield Comparison(subject, setting, "peak memory over what was built", "MiB", peaks)


def measure_peak(way: str, make: tuple[str, str], threads: int, device: str, **arguments: Any) -> float:
    """How far a first run raises this process's memory, or the device's: MiB."""
    import torch

    torch.set_num_threads(threads)
    module, function = make
    action = awaited(getattr(import_module(module), function)(way, device=device, **arguments), device)
    growth = watch_memory(device)
    action()
    return growth()


def time_in_turn(actions: Mapping[str, Action], runs: int) -> dict[str, list[float]]:
    """Seconds of each action over so many runs, in turn, after a warm-up of each."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for run in range(runs + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if run:
                times[name].append(time.perf_counter() - start)
    return times


def run_in_children(
    function: Callable[..., Any], ways: Iterable[str], runs: int, **arguments: Any
) -> dict[str, list[Any]]:
    """What a module's function gives for each way over so many runs, in turn, each in a process of its own."""
    found: dict[str, list[Any]] = {way: [] for way in ways}
    for _ in range(runs):
        for way in found:
            found[way].append(run_in_child(function, way=way, **arguments))
    return found


def run_in_child(function: Callable[..., Any], **arguments: Any) -> Any:
    """What a module's function gives in a process of its own; arguments and result are what JSON can hold."""
    command = ["child", function.__module__, function.__name__, json.dumps(arguments)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/benchmark.py"), *command], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])  # libraries may have printed before


def serve_parent(module: str, function: str, arguments: str) -> None:
    """Be the child: call the function and print its result."""
    print(json.dumps(getattr(import_module(module), function)(**json.loads(arguments))))


def watch_memory(device: str = "cpu") -> Callable[[], float]:
    """Begin to watch; the result tells by how many MiB the peak since then is above what is in use now."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        return lambda: (torch.cuda.max_memory_allocated() - allocated) / MIB
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not in use
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    resident = _read_memory("VmRSS")
    return lambda: _read_memory("VmHWM") - resident


def _read_memory(field: str) -> float:
    """This process's memory in MiB, by Linux's name: "VmRSS" now, "VmHWM" at its peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


def find_devices() -> list[str]:
    """Where PyTorch computes here."""
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def awaited(action: Action, device: str) -> Action:
    """The action, which ends when the device has done its work."""
    if device == "cpu":
        return action

    def act() -> None:
        import torch

        action()
        torch.cuda.synchronize()

    return act


def count_arithmetic(action: Action) -> dict[str, int]:
    """Floating-point operations of matrix products, convolutions and attention, by operator."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def count_attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    # PyTorch before 2.15 does not count this one.
    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: count_attention}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        action()
    return {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
