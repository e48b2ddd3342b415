"""The pictures that a run writes of each image: the drawn one, the objects cut out, their masks."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ..utils.files import make_folder
from ..utils.images import write_picture
from .journal import ImageResult

_LONGEST_JPEG = 65_500
"""Pixels of a side."""


@dataclass(frozen=True)
class Saver:
    """Writes pictures of images and of what is in them, below a folder.

    Attributes:
        folder: the run's.
        pictures: write `pictures/STEM.jpg`, or .png for a PNG: the image with its objects drawn.
        crops: write `crops/CLASS/STEM-N.jpg`: the Nth object, from 1, cut out.
        masks: write `masks/STEM.png`: a 16-bit image that has at each pixel the number of the object that it belongs
            to, from 1, or 0; where objects overlap, that of the higher score.
    """

    folder: Path
    pictures: bool = True
    crops: bool = False
    masks: bool = False

    def save(self, entry: ImageResult) -> None:
        """Write what is asked for of an image. Of a video's frame no picture is written: that is the video's.

        Raises:
            OutputError: a file cannot be written.
        """
        if self.pictures and entry.frame is None:
            is_png = entry.name.lower().endswith(".png") or max(entry.found.image_size) > _LONGEST_JPEG
            self._write(f"pictures/{entry.stem}{'.png' if is_png else '.jpg'}", entry.found.plot())
        if self.crops:
            for number, (name, crop) in enumerate(zip(entry.found.names, entry.found.crop(), strict=True), 1):
                self._write(f"crops/{_folder_name(name)}/{entry.stem}-{number}.jpg", crop)
        if self.masks:
            self._write(f"masks/{entry.stem}.png", _numbered_masks(entry))

    def _write(self, name: str, picture: Image.Image) -> None:
        path = self.folder / name
        make_folder(path.parent)
        write_picture(path, picture)


def _folder_name(class_name: str) -> str:
    """A class's name as that of a folder, on any system; names come with weights, and may be anything."""
    return re.sub(r'[\x00-\x1f\\/:*?"<>|]|^\.+|[. ]+$', "_", class_name)[:50] or "_"


def _numbered_masks(entry: ImageResult) -> Image.Image:
    numbers = np.zeros(entry.found.image_size, np.uint16)
    rles = entry.found.rles or ()
    for number in range(len(rles), 0, -1):
        numbers[coco_mask.decode(rles[number - 1]).astype(bool)] = number
    return Image.fromarray(numbers)
