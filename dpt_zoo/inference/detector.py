"""A model, ready to be called with images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import ImageError, InputError
from ..factory import create_model
from ..images import load_image
from .detections import Detections


class Detector:
    """A detector to be called with images.

    Args:
        model: one of `list_models()`, or a model made by `create_model`.
        weights: see `create_model`; for a name only.
        score_threshold: the least score of an object to be reported, in [0, 1].
        device: see `create_model`; for a name only.

    Raises:
        InputError: the threshold is outside [0, 1], or as `create_model` does.
        WeightsError: as `create_model` does.
    """

    def __init__(
        self,
        model: str | nn.Module,
        *,
        weights: str | Path | None = None,
        score_threshold: float = 0.3,
        device: str | torch.device = "auto",
    ) -> None:
        from mmcv.transforms import Compose
        from mmdet.utils import get_test_pipeline_cfg

        if not 0 <= score_threshold <= 1:
            raise InputError(f"score_threshold must be from 0 to 1, not {score_threshold}")
        self.model: Any = create_model(model, weights=weights, device=device) if isinstance(model, str) else model
        self.score_threshold = score_threshold
        _load, *transforms = get_test_pipeline_cfg(self.model.cfg)
        self._pipeline = Compose([{"type": "LoadImageFromNDArray"}, *transforms])

    def __call__(self, image: str | Path | NDArray[np.uint8]) -> Detections:
        """Detect objects in one image: a file's path, or an array `(H, W, 3)` RGB in 0..255.

        Raises:
            ImageError: the file cannot be read as an image, or the array has another shape or type.
        """
        from mmdet.apis import inference_detector

        pixels = load_image(Path(image)) if isinstance(image, str | Path) else image
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise ImageError(f"an image array is (H, W, 3) uint8, not {pixels.shape} {pixels.dtype}")
        found = inference_detector(self.model, pixels[..., ::-1], test_pipeline=self._pipeline).pred_instances
        return Detections(
            boxes=found.bboxes.cpu().numpy(),
            scores=found.scores.cpu().numpy(),
            labels=found.labels.cpu().numpy(),
            masks=found.masks.cpu().numpy() if "masks" in found else None,
            classes=tuple(self.model.dataset_meta["classes"]),
        ).above(self.score_threshold)
