"""Detect objects in small images and draw them on one sheet: `contact_sheet.py SHEET.png MODEL IMAGE...`"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.utils import make_grid

import dpt_zoo
from dpt_zoo.inference.detections import Detections, encode_mask
from dpt_zoo.utils.files import open_atomic

COLUMNS = 4
ENLARGED = 2
"""Times that an image is enlarged, so that what is written beside a box can be read."""


def main() -> None:
    sheet, model, *images = sys.argv[1:]
    detector = dpt_zoo.Detector(model, score_threshold=0.5)
    pictures = [enlarge(found).plot() for found in detector(images)]
    tiles = torch.stack([torch.from_numpy(np.array(picture)).movedim(2, 0) for picture in pictures])
    grid = make_grid(tiles, COLUMNS, padding=4, pad_value=255)
    with open_atomic(Path(sheet)) as file:
        Image.fromarray(grid.movedim(0, 2).numpy()).save(file, "PNG")


def enlarge(found: Detections) -> Detections:
    """The same objects in the image enlarged."""
    assert found.image is not None  # a detector keeps it
    height, width = (ENLARGED * side for side in found.image_size)
    image = np.array(Image.fromarray(found.image).resize((width, height), Image.Resampling.BICUBIC))
    masks = None if found.masks is None else found.masks.repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2)
    rles = None if masks is None else [encode_mask(mask) for mask in masks]
    return dataclasses.replace(found, boxes=ENLARGED * found.boxes, image_size=(height, width), rles=rles, image=image)


if __name__ == "__main__":
    main()
