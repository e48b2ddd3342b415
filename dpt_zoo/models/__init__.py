"""The network. Importing this package registers `dpt_tiny`, `dpt_small` and `dpt_medium` with timm."""

from .. import mmlab  # noqa: F401  # before timm, whose progress bars would warn in a notebook

# isort: split
from .backbone import DPT
from .classifier import DPTClassifier

__all__ = ["DPT", "DPTClassifier"]
