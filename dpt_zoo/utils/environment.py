"""The software and hardware that measurements were made with."""

import contextlib
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


def processor_name() -> str:
    """Return the name of the processor."""
    try:  # on Linux; `platform` does not have the name there
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
