"""DPT Zoo: the twelve COCO detectors of DPT (arXiv 2107.14467) on current PyTorch and MMDetection.

`import dpt_zoo` loads no PyTorch: everything heavy is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import errors as errors
from ._version import __version__
from .utils.dependencies import explain_imports

if TYPE_CHECKING:
    from .bulk.detect import detect_dataset
    from .bulk.ray_detector import RayDetector
    from .evaluation.evaluator import evaluate
    from .exporting.exporter import export
    from .inference.detections import Detections
    from .inference.detector import Detector
    from .manifest.records import get_model_info, list_models
    from .models.factory import create_model
    from .serving.client import Client
    from .training.trainer import train

__all__ = [
    "Detector",
    "Detections",
    "Client",
    "create_model",
    "train",
    "evaluate",
    "export",
    "detect_dataset",
    "RayDetector",
    "list_models",
    "get_model_info",
    "__version__",
]

_MODULES = {
    "Detector": "inference.detector",
    "Detections": "inference.detections",
    "Client": "serving.client",
    "create_model": "models.factory",
    "train": "training.trainer",
    "evaluate": "evaluation.evaluator",
    "export": "exporting.exporter",
    "detect_dataset": "bulk.detect",
    "RayDetector": "bulk.ray_detector",
    "list_models": "manifest.records",
    "get_model_info": "manifest.records",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with explain_imports():
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
