"""One reader of images: training and evaluation read what the checks and `Detector` read, with the same pixels."""

from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.registry import TRANSFORMS

from ..utils.images import load_image


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):  # type: ignore[misc]
    """Reads an image with `load_image`, as BGR pixels.

    Its parent leaves this to OpenCV, which has fewer formats and does not turn all of them upright.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add the `(H, W, 3)` pixels of the file "img_path", and their (height, width).

        Raises:
            ImageError: The file cannot be read.
        """
        image = np.ascontiguousarray(load_image(Path(results["img_path"]))[..., ::-1])
        return {**results, "img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}


def use_own_reader(settings: Any) -> None:
    """Replace MMCV's reader by `LoadImage` wherever `settings` have it without options, such as another backend."""
    if isinstance(settings, list | tuple):
        for each in settings:
            use_own_reader(each)
    elif isinstance(settings, dict):
        if settings.get("type") == "LoadImageFromFile" and not any(settings[key] for key in settings.keys() - {"type"}):
            settings.update(type="LoadImage")
        for each in settings.values():
            use_own_reader(each)
