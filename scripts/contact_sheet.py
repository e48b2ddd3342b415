"""Detect objects in small images and draw them on one sheet: `contact_sheet.py SHEET.png MODEL IMAGE...`"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.utils import make_grid

import dpt_zoo
from dpt_zoo.utils.files import open_atomic

COLUMNS = 4
ENLARGEMENT = 2
"""Factor by which images are enlarged, so that the text beside a box can be read."""


def main() -> None:
    sheet, model, *images = sys.argv[1:]
    tiles = []
    for detections in dpt_zoo.Detector(model, score_threshold=0.5).stream(images):
        height, width = detections.image_size
        picture = detections.resize((ENLARGEMENT * height, ENLARGEMENT * width)).plot()
        tiles.append(torch.from_numpy(np.array(picture)).movedim(2, 0))
    grid = make_grid(tiles, COLUMNS, padding=4, pad_value=255)
    with open_atomic(Path(sheet)) as file:
        Image.fromarray(grid.movedim(0, 2).numpy()).save(file, "PNG")


if __name__ == "__main__":
    main()
