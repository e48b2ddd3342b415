"""Measure the zoo against its peers, side by side in one run.

python scripts/benchmark.py import
python scripts/benchmark.py backbone
"""

import argparse
import functools
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20


def benchmark_import(args: argparse.Namespace) -> None:
    """Whole processes: how long the light parts take to start."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import dpt_zoo": [sys.executable, "-c", "import dpt_zoo"],
        "dpt-zoo list": [sys.executable, "-m", "dpt_zoo", "list"],
    }
    run = functools.partial(subprocess.run, cwd=ROOT, check=True, capture_output=True)
    times = _alternate({name: functools.partial(run, command) for name, command in commands.items()}, args.runs)
    base = statistics.median(times["python -c pass"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:16}{_spread(values, 1e3)} ms, {(median - base) * 1e3:6.1f} ms above bare Python")


def benchmark_backbone(args: argparse.Namespace) -> None:
    """One forward pass of the backbone, ours and the explicit way: time in turn, peak memory each in its process."""
    import torch

    torch.set_num_threads(args.threads)
    print(f"DPT-{args.size}, {args.height}x{args.width}, float32, batch 1, {args.threads} threads, {args.runs} runs")
    times = _alternate({kind: _backbone_pass(kind, args) for kind in ("ours", "explicit")}, args.runs)
    peaks = {kind: [_peak_in_child(kind, args) for _ in range(args.runs)] for kind in times}
    for kind in times:
        print(f"{kind:10}{_spread(times[kind], 1)} s, peak memory over the weights {_spread(peaks[kind], 1 / MIB)} MiB")
    print(f"ours / explicit: time {_ratio(times):.2f}, memory {_ratio(peaks):.2f}")


def benchmark_backbone_peak(args: argparse.Namespace) -> None:
    """Print, in bytes, how far one forward pass raises this process's memory."""
    import torch

    torch.set_num_threads(args.threads)
    forward = _backbone_pass(args.kind, args)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _memory("VmRSS")
    forward()
    print(_memory("VmHWM") - before)


def _backbone_pass(kind: str, args: argparse.Namespace) -> Callable[[], object]:
    import torch
    from explicit_dpt import make_explicit

    from dpt_zoo.models import DPT

    torch.manual_seed(0)
    model = DPT(args.size).eval()
    if kind == "explicit":
        make_explicit(model)
    image = torch.randn(1, 3, args.height, args.width)

    def forward() -> object:
        with torch.inference_mode():
            return model(image)

    return forward


def _peak_in_child(kind: str, args: argparse.Namespace) -> int:
    shape = [f"--{name}={getattr(args, name)}" for name in ("size", "height", "width", "threads")]
    command = [sys.executable, __file__, "backbone-peak", kind, *shape]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _memory(field: str) -> int:
    """This process's memory in bytes, by Linux's name: "VmRSS" now, "VmHWM" at its peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def _alternate(actions: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of each action over so many runs, in turn, after a warm-up of each."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for run in range(runs + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if run:
                times[name].append(time.perf_counter() - start)
    return times


def _ratio(values: Mapping[str, Sequence[float]]) -> float:
    return statistics.median(values["ours"]) / statistics.median(values["explicit"])


def _spread(values: Sequence[float], factor: float) -> str:
    low, median, high = (factor * value for value in (min(values), statistics.median(values), max(values)))
    return f"{median:8.2f} ({low:.2f} to {high:.2f})"


def _print_machine() -> None:
    from importlib.metadata import version

    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "mmdet"))
    print(f"{cpu.group(1) if cpu else platform.processor()}, {os.cpu_count()} processors, {platform.system()}")
    print(f"Python {platform.python_version()}, {versions}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="SUBJECT")

    importing = commands.add_parser("import", help=benchmark_import.__doc__)
    importing.add_argument("--runs", type=int, default=9)
    importing.set_defaults(run=benchmark_import)

    shape = argparse.ArgumentParser(add_help=False)
    shape.add_argument("--size", default="small", choices=("tiny", "small", "medium"))
    shape.add_argument("--height", type=int, default=800)
    shape.add_argument("--width", type=int, default=1216)
    shape.add_argument("--threads", type=int, default=2)
    backbone = commands.add_parser("backbone", help=benchmark_backbone.__doc__, parents=[shape])
    backbone.add_argument("--runs", type=int, default=5)
    backbone.set_defaults(run=benchmark_backbone)
    peak = commands.add_parser("backbone-peak", parents=[shape])
    peak.add_argument("kind", choices=("ours", "explicit"))
    peak.set_defaults(run=benchmark_backbone_peak)

    args = parser.parse_args()
    if args.run is not benchmark_backbone_peak:
        _print_machine()
    args.run(args)


if __name__ == "__main__":
    main()
