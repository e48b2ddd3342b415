"""The network. Importing this package makes `dpt_tiny`, `dpt_small` and `dpt_medium` known to timm."""

from .backbone import DPT
from .classifier import DPTClassifier

__all__ = ["DPT", "DPTClassifier"]
