"""DPT Zoo: the twelve COCO detectors of DPT (arXiv 2107.14467) on current PyTorch and MMDetection.

Nothing heavy is imported before it is used: `import dpt_zoo` loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .evaluation.evaluator import evaluate
    from .inference import Detector
    from .manifest.records import get_detector_info, list_models
    from .models.factory import create_model
    from .training.trainer import train

__all__ = ["Detector", "__version__", "create_model", "evaluate", "get_detector_info", "list_models", "train"]

_HOMES = {
    "Detector": "inference",
    "create_model": "models.factory",
    "evaluate": "evaluation.evaluator",
    "get_detector_info": "manifest.records",
    "list_models": "manifest.records",
    "train": "training.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
