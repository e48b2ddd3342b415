"""The device to compute on, and its memory."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .environment import processor_name

if TYPE_CHECKING:
    import torch


def find_device(device: "str | int | torch.device | None" = "auto") -> "torch.device":
    """Return a PyTorch device after checking that it works.

    Args:
        device: "auto" or None for a GPU (CUDA, or MPS on a Mac) if there is one, and the CPU otherwise; or "cpu",
            "cuda", "cuda:1", "mps", a GPU's number, or a `torch.device`.

    Raises:
        InputError: The device does not exist or cannot be used.
    """
    import torch

    if device is None or device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise InputError(f"device {str(device)!r} cannot be used ({str(error).splitlines()[0]}): try 'cpu'") from error
    return found


def device_name(device: "torch.device") -> str:
    """Return the name of a CUDA device or, for another device, of the processor."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def free_memory(device: "torch.device", cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the free bytes of a CUDA device or, for others, of the system and of this container.

    Args:
        device: the device.
        cgroup: the folder with the container's limit, on Linux.
    """
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # there is no limit, which is "max"
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, max(limit - used, 0))
    return free
