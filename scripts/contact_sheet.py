"""Detect objects in small images and draw them on one sheet: `contact_sheet.py SHEET.png MODEL IMAGE...`"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.utils import make_grid

import dpt_zoo
from dpt_zoo.files import open_atomic
from dpt_zoo.images import load_image
from dpt_zoo.inference.detections import Detections
from dpt_zoo.inference.drawing import draw

COLUMNS = 4
ENLARGED = 2
"""Times that an image is enlarged, so that what is written beside a box can be read."""


def main() -> None:
    sheet, model, *images = sys.argv[1:]
    detector = dpt_zoo.Detector(model, score_threshold=0.5)
    pictures = [draw(*enlarge(image, detector(image))) for image in map(load_image, map(Path, images))]
    tiles = torch.stack([torch.from_numpy(np.array(picture)).movedim(2, 0) for picture in pictures])
    grid = make_grid(tiles, COLUMNS, padding=4, pad_value=255)
    with open_atomic(Path(sheet)) as file:
        Image.fromarray(grid.movedim(0, 2).numpy()).save(file, "PNG")


def enlarge(image: NDArray[np.uint8], found: Detections) -> tuple[NDArray[np.uint8], Detections]:
    height, width = image.shape[:2]
    large = np.array(Image.fromarray(image).resize((ENLARGED * width, ENLARGED * height), Image.Resampling.BICUBIC))
    masks = None if found.masks is None else found.masks.repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2)
    return large, dataclasses.replace(found, boxes=ENLARGED * found.boxes, masks=masks)


if __name__ == "__main__":
    main()
