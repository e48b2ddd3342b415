"""The network. Importing this package registers `dpt_tiny`, `dpt_small` and `dpt_medium` with timm."""

from .. import mmlab  # noqa: F401  # before timm, whose progress bars would warn in a notebook

# isort: split
from .backbone import DPT
from .classifier import DPTClassifier
from .depatch import DePatch
from .fpn import torchvision_backbone
from .timm_depatch import with_depatch

__all__ = ["DPT", "DPTClassifier", "DePatch", "torchvision_backbone", "with_depatch"]
