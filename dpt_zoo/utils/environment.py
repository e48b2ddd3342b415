"""The software and hardware of this process."""

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .._version import __version__

PACKAGES = ("torch", "torchvision", "timm", "mmdet", "mmengine", "mmcv", "mmcv-lite", "numpy", "faster-coco-eval")


def versions() -> dict[str, str]:
    """Return the versions of DPT Zoo, Python, and the installed packages that affect results."""
    found = {"dpt-zoo": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def usable_cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]


def child_variables() -> dict[str, str]:
    """Return the environment variables for a process that imports this package from where this process found it."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def processor_name() -> str:
    """Return the name of the processor."""
    try:  # on Linux; `platform` does not have the name there
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
