"""DPT Zoo: the twelve COCO detectors of DPT (arXiv 2107.14467) on current PyTorch and MMDetection.

Nothing heavy is imported before it is used: `import dpt_zoo` loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .evaluation.run import evaluate
    from .factory import create_model
    from .inference import Detector
    from .manifest import get_checkpoint, list_models
    from .training.run import train

__all__ = ["Detector", "create_model", "evaluate", "get_checkpoint", "list_models", "train"]

_HOMES = {
    "Detector": "inference",
    "create_model": "factory",
    "evaluate": "evaluation.run",
    "get_checkpoint": "manifest",
    "list_models": "manifest",
    "train": "training.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
