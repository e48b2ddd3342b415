"""Compare detections with those of the authors' code for the same image and weights.

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
    """The number of recorded objects that were detected again, and the largest differences of these."""

    num_recorded: int
    num_matched: int
    box_error: float
    score_error: float
    mask_iou: float | None

    @property
    def holds(self) -> bool:
        """Whether all recorded objects were detected again, within the tolerances."""
        return self.num_matched == self.num_recorded and (self.mask_iou is None or self.mask_iou > MASK_IOU)

    def __str__(self) -> str:
        masks = "" if self.mask_iou is None else f", least mask IoU {self.mask_iou:.4f}"
        return (
            f"{self.num_matched} of the authors' {self.num_recorded} detections were detected again: "
            f"largest difference {self.box_error:.1e} px, {self.score_error:.1e} in score{masks}"
        )


def compare(results: list[dict[str, Any]], recorded: dict[str, Any]) -> Comparison:
    """Match each recorded object with the nearest detection of its class.

    Args:
        results: detections in COCO's results format.
        recorded: `detections`, rows of class index, xyxy and score, and optionally `masks_top20`, RLEs of the first.
    """
    detected = np.array([[COCO_CATEGORY_IDS.index(r["category_id"]), *_xyxy(r["bbox"]), r["score"]] for r in results])
    matches, box_errors, score_errors = [], [], []
    free = np.ones(len(detected), dtype=bool)
    for row in np.array(recorded["detections"]):
        errors = np.abs(detected[:, 1:] - row[1:])
        candidate = free & (detected[:, 0] == row[0]) & (errors[:, 4] <= SCORE_TOLERANCE)
        distance = np.where(candidate, errors[:, :4].max(axis=1), np.inf)
        best = int(distance.argmin())
        matches.append(best if distance[best] <= BOX_TOLERANCE else None)
        if distance[best] <= BOX_TOLERANCE:
            free[best] = False
            box_errors.append(distance[best])
            score_errors.append(errors[best, 4])
    ious = [
        _iou(results[match]["segmentation"], mask)
        for match, mask in zip(matches, recorded.get("masks_top20") or [], strict=False)
        if match is not None
    ]
    return Comparison(
        num_recorded=len(matches),
        num_matched=len(box_errors),
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
    parser.add_argument("results", type=Path, help="COCO results of one image")
    parser.add_argument("recorded", type=Path, help="a reference file: detections_*.json")
    args = parser.parse_args()
    (recorded,) = json.loads(args.recorded.read_text()).values()
    comparison = compare(json.loads(args.results.read_text()), recorded)
    print(comparison)
    return 0 if comparison.holds else 1


if __name__ == "__main__":
    sys.exit(main())
