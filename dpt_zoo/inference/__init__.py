"""From an image to detections, and from detections to a picture."""

from ..utils.images import load_image
from .detections import Detections
from .detector import Detector

__all__ = ["Detections", "Detector", "load_image"]
