"""Reports of measurements: printed tables, JSON, and a plot."""

import json
import math
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dpt_zoo.utils.environment import processor_name, versions
from dpt_zoo.utils.files import open_atomic

from .measuring import Comparison

COLUMNS = 3
"""Number of columns of a plot."""


def report(comparisons: Iterable[Comparison], json_file: Path | None, plot_file: Path | None) -> None:
    """Print each comparison as soon as it is measured; at the end write all to the files that are given."""
    machine = describe_machine()
    print("\n".join(f"{name}: {value}" for name, value in machine.items()))
    measured = []
    heading = None
    for comparison in comparisons:
        measured.append(comparison)
        if (comparison.subject, comparison.setting) != heading:
            heading = (comparison.subject, comparison.setting)
            print(f"\n{': '.join(heading)}")
        print(format_table(comparison), flush=True)
    if json_file:
        contents = {"machine": machine, "comparisons": [asdict(each) for each in measured]}
        with open_atomic(json_file) as file:
            file.write(json.dumps(contents, indent=1).encode())
    if plot_file:
        plot(measured, plot_file)


def describe_machine() -> dict[str, Any]:
    """Return the processors and versions that measurements depend on."""
    import torch

    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "processor": processor_name(),
        "processors": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **gpu,
        "system": platform.system(),
        **versions(),
        **{name: version(name) for name in ("pycocotools", "onnxruntime", "openvino")},
    }


def format_table(comparison: Comparison) -> str:
    """Format a row for each way: median, spread, and for our ways the ratio of the medians to each peer's."""
    ours = [way for way in comparison.values if way.startswith("ours")]
    peers = [way for way in comparison.values if way not in ours] or ours[:1]
    rows = []
    for way, values in comparison.values.items():
        spread = f"({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else ""
        ratios = (
            f"{comparison.median(way) / comparison.median(peer):.2f} of {peer}"
            for peer in peers
            if way in ours and way != peer and comparison.median(peer)
        )
        rows.append([way, f"{comparison.median(way):.4g}", spread, ", ".join(ratios)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join((_title(comparison), *(f"  {line}" for line in lines)))


def plot(comparisons: Sequence[Comparison], path: Path) -> None:
    """Write a PNG with a bar for each way's median and a line from its smallest to its largest value."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = math.ceil(len(comparisons) / COLUMNS)
    figure = Figure(
        (7 * COLUMNS, 2.2 * height), dpi=80, layout="constrained"
    )  # not pyplot's, which all of a process shares
    FigureCanvasAgg(figure)
    for axes, comparison in zip(figure.subplots(height, COLUMNS, squeeze=False).flat, comparisons, strict=False):
        values = list(comparison.values.values())
        medians = [statistics.median(each) for each in values]
        spread = [[median - min(each), max(each) - median] for median, each in zip(medians, values, strict=True)]
        axes.barh(list(comparison.values), medians, xerr=list(zip(*spread, strict=True)), color="#56B4E9")
        axes.invert_yaxis()
        axes.set_title(f"{comparison.subject}: {comparison.setting}", fontsize=8)
        axes.set_xlabel(_title(comparison))
    for axes in figure.axes[len(comparisons) :]:
        axes.remove()
    with open_atomic(path) as file:
        figure.savefig(file, format="png")


def _title(comparison: Comparison) -> str:
    return f"{comparison.quantity}, {comparison.unit}" if comparison.unit else comparison.quantity
