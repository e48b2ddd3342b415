"""From an image to detections, and from detections to a picture."""

from .detections import Detections
from .detector import Detector
from .images import load_image

__all__ = ["Detections", "Detector", "load_image"]
