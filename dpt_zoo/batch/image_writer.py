"""Image files of a detection run: drawn images, object crops and masks."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ..utils.files import make_folder
from ..utils.images import write_picture
from .journal import ImageResult


@dataclass(frozen=True)
class ImageWriter:
    """Writes the image files of a detection run.

    Attributes:
        folder: the run's folder.
        pictures: write `pictures/STEM.jpg`, or .png for a PNG: the image with its objects drawn.
        crops: write `crops/CLASS/STEM-N.jpg`: the Nth object, from 1, cut out.
        masks: write `masks/STEM.png`: a 16-bit image with the number of each pixel's object, from 1, or 0 for the
            background. Where objects overlap, the one with the higher score is on top.
    """

    folder: Path
    pictures: bool = True
    crops: bool = False
    masks: bool = False

    def write(self, result: ImageResult) -> None:
        """Write an image's files, or raise `OutputError`.

        A frame gets no picture: it is in the drawn video. An image that was too large to keep gets no picture or crops.
        """
        detections = result.detections
        if self.pictures and result.frame is None and detections.image is not None:
            is_png = result.name.lower().endswith(".png") or max(detections.image_size) > 65_500  # JPEG's limit
            self._write(f"pictures/{result.stem}{'.png' if is_png else '.jpg'}", detections.plot())
        if self.crops and detections.image is not None:
            for number, (name, crop) in enumerate(zip(detections.names, detections.crop(), strict=True), 1):
                folder = re.sub(r'[\x00-\x1f\\/:*?"<>|]|^\.+|[. ]+$', "_", name)[:50] or "_"  # any system accepts it
                self._write(f"crops/{folder}/{result.stem}-{number}.jpg", crop)
        if self.masks:
            numbers = np.zeros(detections.image_size, np.uint16)
            for number, rle in reversed(list(enumerate(detections.rles or (), 1))):
                numbers[coco_mask.decode(rle).astype(bool)] = number
            self._write(f"masks/{result.stem}.png", Image.fromarray(numbers))

    def _write(self, name: str, picture: Image.Image) -> None:
        path = self.folder / name
        make_folder(path.parent)
        write_picture(path, picture)
