"""Compare detections with those that the authors' own code recorded for the same image and weights.

python scripts/compare_detections.py photo.detections.json tests/reference/detections_mask_rcnn_dpt_t.json
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from dpt_zoo.inference.detections import COCO_CATEGORY_IDS

BOX_TOLERANCE = 0.05  # pixels
SCORE_TOLERANCE = 1e-3
MASK_IOU = 0.99


@dataclass(frozen=True)
class Comparison:
    """How many of the recorded objects came back, and how far the worst of these is off."""

    num_recorded: int
    num_found: int
    box_error: float
    score_error: float
    mask_iou: float | None

    @property
    def holds(self) -> bool:
        """Whether all came back within the tolerances."""
        return self.num_found == self.num_recorded and (self.mask_iou is None or self.mask_iou > MASK_IOU)

    def __str__(self) -> str:
        masks = "" if self.mask_iou is None else f", least mask IoU {self.mask_iou:.4f}"
        return (
            f"{self.num_found} of the authors' {self.num_recorded} detections came back: "
            f"largest difference {self.box_error:.1e} px, {self.score_error:.1e} in score{masks}"
        )


def compare(records: list[dict[str, Any]], recorded: dict[str, Any]) -> Comparison:
    """Match COCO results with a reference recording, each recorded object with the nearest found one of its class.

    Args:
        records: what was found, in COCO's results format.
        recorded: `detections`, rows of class index, xyxy and score, and perhaps `masks_top20`, RLEs of the first.
    """
    found = np.array([[COCO_CATEGORY_IDS.index(r["category_id"]), *_xyxy(r["bbox"]), r["score"]] for r in records])
    matches, box_errors, score_errors = [], [], []
    free = np.ones(len(found), dtype=bool)
    for row in np.array(recorded["detections"]):
        errors = np.abs(found[:, 1:] - row[1:])
        candidate = free & (found[:, 0] == row[0]) & (errors[:, 4] <= SCORE_TOLERANCE)
        distance = np.where(candidate, errors[:, :4].max(axis=1), np.inf)
        best = int(distance.argmin())
        matches.append(best if distance[best] <= BOX_TOLERANCE else None)
        if distance[best] <= BOX_TOLERANCE:
            free[best] = False
            box_errors.append(distance[best])
            score_errors.append(errors[best, 4])
    ious = [
        _iou(records[match]["segmentation"], mask)
        for match, mask in zip(matches, recorded.get("masks_top20") or [], strict=False)
        if match is not None
    ]
    return Comparison(
        num_recorded=len(matches),
        num_found=len(box_errors),
        box_error=max(box_errors, default=0.0),
        score_error=max(score_errors, default=0.0),
        mask_iou=min(ious) if ious else None,
    )


def _xyxy(bbox: list[float]) -> NDArray[np.float64]:
    x, y, width, height = bbox
    return np.array([x, y, x + width, y + height])


def _iou(first: dict[str, Any], second: dict[str, Any]) -> float:
    if not coco_mask.area(first) and not coco_mask.area(second):
        return 1.0  # two empty masks are equal
    return float(coco_mask.iou([first], [{"size": second["size"], "counts": second["counts"]}], [0])[0, 0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", type=Path, help="COCO results of one image")
    parser.add_argument("recorded", type=Path, help="a reference file, detections_*.json")
    args = parser.parse_args()
    (recorded,) = json.loads(args.recorded.read_text()).values()
    comparison = compare(json.loads(args.found.read_text()), recorded)
    print(comparison)
    return 0 if comparison.holds else 1


if __name__ == "__main__":
    sys.exit(main())
