"""Measure detection in large images: mosaics of digit scenes, in slices, beside the same scenes one by one.

python scripts/large_images.py mrcnn_dpt_nano_digits large --sides 2000 14000 --formats tif jpg

Each detection runs in a process of its own. Printed are its processor time, the peak of its memory, AP, duplicates, and
the exponent with which the time grows with the pixels.
"""

import argparse
import json
import multiprocessing
import resource
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from dpt_zoo import Detector
from dpt_zoo.analysis.metrics import CocoDict, CocoMetrics
from dpt_zoo.data.digits import CLASSES, digit_scene, read_digits

SCENE = 200  # pixels of a scene's side
TILE = 256
MIN_SHARED = 0.5
"""Objects of one class and digit are duplicates if each shares this part of the smaller box with the digit."""
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", help="a demo detector, or an exported file")
    add("folder", type=Path, help="the mosaics are made here, and used again")
    add("--sides", type=int, nargs="+", default=[2000, 4000, 8000, 14000], help="multiples of 200 pixels")
    add("--slice-size", type=int, default=200)
    add("--slice-overlap", type=float, default=0.5)
    add("--formats", choices=("tif", "jpg"), nargs="+", default=["tif"])
    args = parser.parse_args()
    for suffix in args.formats:
        seconds = []
        for side in args.sides:
            path = args.folder / f"{side}.{suffix}"
            truth = make_mosaic(path, side // SCENE)
            sliced = _in_process(detect_in_slices, args.model, path, args.slice_size, args.slice_overlap)
            alone = _in_process(detect_alone, args.model, path.with_suffix(".tif"))
            seconds.append(sliced["seconds"])
            print(json.dumps({"side": side, "file": suffix, **_compare(truth, sliced, alone)}), flush=True)
        if len(seconds) > 1:
            exponent = np.polyfit(2 * np.log(args.sides), np.log(seconds), 1)[0]
            print(f"{suffix}: time grows with the pixels to the power of {exponent:.3f}")


def make_mosaic(path: Path, count: int) -> list[CocoDict]:
    """Write `count` x `count` scenes as a tiled BigTIFF, and as `path` if it is a JPEG file, unless they exist.

    Returns:
        The digits, as COCO annotations of the scenes one by one.
    """
    truth_path, tiff_path = path.with_suffix(".json"), path.with_suffix(".tif")
    if not truth_path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        rng, digits = np.random.default_rng(count), read_digits("test")
        image = np.empty((count * SCENE, count * SCENE, 3), np.uint8)
        truth: list[CocoDict] = []
        for index in range(count**2):
            scene = digit_scene(rng, digits, SCENE)
            image[_place(index, count)] = scene.image
            for mask, label in zip(scene.masks, scene.labels.tolist(), strict=True):
                rle = coco_mask.encode(np.asfortranarray(mask))
                box, area = coco_mask.toBbox(rle).tolist(), int(coco_mask.area(rle))
                ids = {"id": len(truth) + 1, "image_id": index + 1, "category_id": label + 1, "iscrowd": 0}
                truth.append({**ids, "bbox": box, "area": area})
        tifffile.imwrite(tiff_path, image, bigtiff=True, tile=(TILE, TILE), photometric="rgb", compression="zlib")
        truth_path.write_text(json.dumps(truth))
    if path.suffix == ".jpg" and not path.exists():
        Image.fromarray(tifffile.imread(tiff_path)).save(path, quality=95)
    return list(json.loads(truth_path.read_text()))


def _place(index: int, count: int) -> tuple[slice, slice]:
    """Return the rows and columns of a scene in the mosaic."""
    top, left = (SCENE * each for each in divmod(index, count))
    return slice(top, top + SCENE), slice(left, left + SCENE)


def detect_in_slices(model: str, path: Path, slice_size: int, slice_overlap: float) -> dict[str, Any]:
    """Detect in a mosaic, and return boxes, scores and labels with the time and the peak of the memory."""
    side = int(path.stem)
    detector = Detector(model, scale=(slice_size, slice_size), score_threshold=0.05, max_pixels=side**2, device="cpu")
    start = time.process_time()
    found = detector(path, slice_size=slice_size, slice_overlap=slice_overlap)
    seconds = time.process_time() - start
    scene = (found.boxes[:, :2] + found.boxes[:, 2:]) // (2 * SCENE)  # column and row of the scene at the centre
    indices = (scene[:, 1] * (side // SCENE) + scene[:, 0]).astype(int)
    boxes = found.boxes - SCENE * np.tile(scene, 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak": peak, "found": _to_coco(indices, boxes, found.scores, found.labels)}


def detect_alone(model: str, path: Path) -> dict[str, Any]:
    """Detect in each scene of a mosaic by itself."""
    detector = Detector(model, scale=(SCENE, SCENE), score_threshold=0.05, device="cpu")
    image, count = tifffile.imread(path), int(path.stem) // SCENE
    start = time.process_time()
    found: list[CocoDict] = []
    for index, each in enumerate(detector.stream(image[_place(number, count)] for number in range(count**2))):
        found += _to_coco(np.full(len(each), index), each.boxes, each.scores, each.labels)
    return {"seconds": time.process_time() - start, "found": found}


def _to_coco(indices: Any, boxes: NDArray[np.float32], scores: Any, labels: Any) -> list[CocoDict]:
    sizes = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    values = zip(indices.tolist(), sizes.tolist(), scores.tolist(), labels.tolist(), strict=True)
    return [
        {"image_id": index + 1, "category_id": label + 1, "bbox": box, "score": score}
        for index, box, score, label in values
    ]


def _in_process(function: Any, *arguments: Any) -> dict[str, Any]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        result: dict[str, Any] = pool.submit(function, *arguments).result()
        return result


def _compare(truth: list[CocoDict], sliced: dict[str, Any], alone: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {"objects": len(truth), "seconds": sliced["seconds"], "MiB": sliced["peak"]}
    for name, result in (("sliced", sliced), ("alone", alone)):
        metrics = CocoMetrics(_dataset(truth), ["bbox"])
        metrics.add(result["found"])
        values[f"AP {name}"] = metrics.compute()["bbox"].metrics["mAP"]
        sure = [each for each in result["found"] if each["score"] >= 0.3]
        values[f"duplicates {name}, %"] = 100 * _count_duplicates(truth, sure) / len(truth)
        values[f"found {name}"] = len(sure)
    values["seconds alone"] = alone["seconds"]
    return {name: round(value, 3) for name, value in values.items()}


def _dataset(truth: list[CocoDict]) -> CocoDict:
    images = [{"id": each, "width": SCENE, "height": SCENE} for each in sorted({each["image_id"] for each in truth})]
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
    return {"images": images, "annotations": truth, "categories": categories}


def _count_duplicates(truth: Iterable[CocoDict], found: Iterable[CocoDict]) -> int:
    """Return how many objects are beyond the first one of their digit."""
    digits: dict[Any, list[NDArray[Any]]] = {}
    for each in truth:
        digits.setdefault((each["image_id"], each["category_id"]), []).append(_corners(each))
    counts = Counter[Any]()
    for each in found:
        key, box = (each["image_id"], each["category_id"]), _corners(each)
        shared = [_part_shared(box, digit) for digit in digits.get(key, ())]
        if shared and max(shared) >= MIN_SHARED:
            counts[key, int(np.argmax(shared))] += 1
    return sum(count - 1 for count in counts.values())


def _corners(each: CocoDict) -> NDArray[Any]:
    x, y, width, height = each["bbox"]
    return np.array([x, y, x + width, y + height])


def _part_shared(box: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the intersection over the smaller of two boxes."""
    sides = np.maximum(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0)
    smaller = min(np.prod(box[2:] - box[:2]), np.prod(other[2:] - other[:2]))
    return float(np.prod(sides) / max(smaller, 1e-9))


if __name__ == "__main__":
    main()
