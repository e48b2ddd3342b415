"""The network. Importing this package registers `dpt_tiny`, `dpt_small` and `dpt_medium` with timm."""

from .backbone import DPT
from .classifier import DPTClassifier

__all__ = ["DPT", "DPTClassifier"]
