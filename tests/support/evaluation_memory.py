"""The memory of an evaluation, measured in a process of its own."""

from pathlib import Path

from benchmarks.measuring import watch_memory

import dpt_zoo


def measure_peak(model: str, data_root: Path) -> float:
    """Return the peak memory of an evaluation, in MiB above that of its process before."""
    peak = watch_memory()
    dpt_zoo.evaluate(model, data_root=data_root, workers=0, batch_size=1)
    return peak()
