"""What measurements were made on and with."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "timm", "mmdet", "mmengine", "mmcv", "mmcv-lite", "numpy", "faster-coco-eval")


def versions() -> dict[str, str]:
    """The versions of this project, of Python, and of those installed packages that figures depend on."""
    from .._version import __version__

    found = {"dpt-zoo": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_name() -> str:
    """The name of the GPU that PyTorch computes on or, without one, of the processor."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return processor_name()


def processor_name() -> str:
    """The name of the processor."""
    try:  # only there is the processor's name, where there is Linux
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
