"""Measuring: actions take turns after a warm-up; for memory, each action runs in a process of its own."""

import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20

Action = Callable[[], object]
"""A function to be timed."""


@dataclass(frozen=True)
class Settings:
    """The sizes and repetitions of a benchmark; a subject reads the ones that it needs."""

    runs: int = 5
    threads: int = 2
    side: int = 2048  # of square matrices
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
    exported: Path | None = None
    demos_only: bool = False

    def describe(self, device: str, batch: int = 1) -> str:
        """Describe the input and the device of a network."""
        where = device if device == "cuda" else f"{self.threads} threads"
        return f"{self.height}x{self.width}, batch {batch}, {where}"


QUICK = Settings(
    runs=1,
    threads=1,  # several threads wait for each other while other programs run
    side=256,  # bfloat16 is a hundred times slower than float32 on some processors
    size="tiny",
    height=64,
    width=96,
    megapixels=(0.05, 0.1),
    architectures=("retinanet",),
    steps=1,
    megabytes=5,
    images=10,
    detections=30,
    scenes=4,
    demos_only=True,
)
"""The smallest useful measurement."""


@dataclass(frozen=True)
class Comparison:
    """Measurements of several ways to do the same task.

    Attributes:
        subject: subject of the benchmark.
        setting: conditions that all ways share.
        quantity: name of the measured quantity.
        unit: unit of the values; "" for a plain number.
        values: the value of each run, by way; this project's ways begin with "ours".
    """

    subject: str
    setting: str
    quantity: str
    unit: str
    values: dict[str, list[float]]

    def median(self, way: str) -> float:
        """Return the median of a way's values."""
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
    """Compare the time of actions in this process, and the peak memory of their first runs, each in a new process.

    Args:
        subject, setting: see `Comparison`.
        make: a module's function that returns the action for a way, a device and the picklable `arguments`.
        ways: names of the ways.
        settings: number of runs and threads.
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
    """Return by how many MiB a first run raises the memory of this process, or of the GPU."""
    import torch

    torch.set_num_threads(threads)
    module, function = make
    action = awaited(getattr(import_module(module), function)(way, device=device, **arguments), device)
    growth = watch_memory(device)
    action()
    return growth()


def time_in_turn(actions: Mapping[str, Action], runs: int) -> dict[str, list[float]]:
    """Return the seconds of each action in each of `runs` rounds, after one round of warm-up."""
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
    """Return the results of a module's function for each way in each of `runs` rounds, each in a new process."""
    results: dict[str, list[Any]] = {way: [] for way in ways}
    for _ in range(runs):
        for way in results:
            results[way].append(run_in_child(function, way=way, **arguments))
    return results


def run_in_child(function: Callable[..., Any], **arguments: Any) -> Any:
    """Return the result of a module's function in a new process, in which only imports have been done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dpt_zoo.inference.pytorch_backend", "mmdet.apis"])  # imported once for all
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, **arguments).result()


def watch_memory(device: str = "cpu") -> Callable[[], float]:
    """Start to watch the memory; return a function for the peak since then, in MiB above the present use."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        return lambda: (torch.cuda.max_memory_allocated() - allocated) / MIB
    ctypes.CDLL(None).malloc_trim(0)  # give freed memory back to the system
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    resident = _read_memory("VmRSS")
    return lambda: _read_memory("VmHWM") - resident


def _read_memory(field: str) -> float:
    """Return this process's memory in MiB, by its name in Linux: "VmRSS" is the present, "VmHWM" the peak use."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


def find_devices() -> list[str]:
    """Return the types of device that PyTorch can use here."""
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def awaited(action: Action, device: str) -> Action:
    """Return the action, made to end only when the device has done its work."""
    if device == "cpu":
        return action

    def act() -> None:
        import torch

        action()
        torch.cuda.synchronize()

    return act


def count_arithmetic(action: Action) -> dict[str, int]:
    """Count the floating-point operations of matrix products, convolutions and attention, by operator."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def count_attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    # PyTorch before 2.15 does not count this one.
    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: count_attention}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        action()
    return {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
