"""Detect objects with an exported model, with ONNX Runtime, NumPy and Pillow only: detect_onnx.py MODEL IMAGE."""

import json
import sys
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image

BILINEAR = Image.Resampling.BILINEAR


def detect(session: Any, picture: Image.Image, min_score: float = 0.3) -> list[tuple[str, float, Any, Any]]:
    """Return the class, the score, the box (x1, y1, x2, y2 in pixels) and the mask of each object."""
    info = json.loads(session.get_modelmeta().custom_metadata_map["dpt_zoo"])
    long, short = max(info["scale"]), min(info["scale"])
    ratio = min(long / max(picture.size), short / min(picture.size))
    width, height = (int(side * ratio + 0.5) for side in picture.size)
    # Interpolate as OpenCV does: without the smoothing that Pillow's `resize` adds.
    matrix = (picture.width / width, 0, 0, 0, picture.height / height, 0)
    resized = picture.convert("RGB").transform((width, height), Image.Transform.AFFINE, matrix, BILINEAR)
    padding = [(0, -side % info["pad_divisor"]) for side in (height, width)]
    pixels = np.pad(np.asarray(resized, np.float32).transpose(2, 0, 1), [(0, 0), *padding])
    inputs = {"images": pixels[None], "image_sizes": np.array([[height, width]], np.float32)}
    inputs["score_threshold"] = np.array(min_score, np.float32)
    found = dict(zip((output.name for output in session.get_outputs()), session.run(None, inputs), strict=True))
    boxes = found["boxes"] * np.array([*picture.size] * 2) / np.array([width, height] * 2)
    masks = [None] * len(boxes)
    if info["has_masks"]:
        pasted = (paste(mask, box, picture.size) for mask, box in zip(found["masks"], boxes, strict=True))
        masks = [mask >= info["mask_threshold"] for mask in pasted]
    names = [info["classes"][label] for label in found["labels"]]
    return list(zip(names, found["scores"].tolist(), boxes, masks, strict=True))


def paste(mask: Any, box: Any, size: tuple[int, int]) -> Any:
    """Stretch a mask `(28, 28)` over its box, in an image of `size` (width, height)."""
    x1, y1, x2, y2 = box
    across, down = mask.shape[1] / (x2 - x1), mask.shape[0] / (y2 - y1)
    matrix = (across, 0, -x1 * across, 0, down, -y1 * down)
    return np.asarray(Image.fromarray(mask).transform(size, Image.Transform.AFFINE, matrix, BILINEAR))


if __name__ == "__main__":
    for name, score, box, mask in detect(ort.InferenceSession(sys.argv[1]), Image.open(sys.argv[2])):
        print(name, f"{score:.3f}", box.round(1).tolist(), "" if mask is None else f"{mask.sum()} pixels")
