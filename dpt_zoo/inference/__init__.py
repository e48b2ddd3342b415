"""Detectors that are called with images, and their results. `Detections` alone does not import PyTorch."""

from typing import TYPE_CHECKING, Any

from .detections import Detections

if TYPE_CHECKING:
    from .detector import Detector

__all__ = ["Detections", "Detector"]


def __getattr__(name: str) -> Any:
    if name == "Detector":
        from .detector import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
