"""Choose the device to compute on."""

from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    import torch


def find_device(device: "str | int | torch.device | None" = "auto") -> "torch.device":
    """Return a PyTorch device after checking that it works.

    Args:
        device: "auto" or None for a GPU (CUDA, or MPS on a Mac) if there is one and the CPU otherwise; or "cpu",
            "cuda", "cuda:1", "mps", a GPU's number, or a `torch.device`.

    Raises:
        InputError: The device does not exist or cannot be used.
    """
    import torch

    if device is None or device == "auto":
        mps = getattr(torch.backends, "mps", None)
        device = "cuda" if torch.cuda.is_available() else "mps" if mps is not None and mps.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used ({reason}): try 'cpu'") from error
    return found
