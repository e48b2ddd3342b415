"""What limits the objects that are detected in an image."""

import copy
import math
from dataclasses import dataclass
from typing import Any

from ..utils.validation import check_fraction, check_integer

PROPOSALS = 10
"""The number of the RPN's proposals for each object that may be returned, as in the authors' configs."""


@dataclass(frozen=True)
class Limits:
    """What limits the objects that are detected in an image; None: as the model's config says.

    Attributes:
        score_threshold: the lowest score of an object, in [0, 1].
        max_detections: the largest number of objects, at least 1.
        nms_iou: of two objects of a class with a higher IoU, in [0, 1], only the one with the higher score is kept.
        class_agnostic_nms: compare objects of different classes, too.

    Raises:
        InputError: A value is out of its range.
    """

    score_threshold: float | None = None
    max_detections: int | None = None
    nms_iou: float | None = None
    class_agnostic_nms: bool = False

    def __post_init__(self) -> None:
        for name in ("score_threshold", "nms_iou"):
            if getattr(self, name) is not None:
                check_fraction(name, getattr(self, name))
        if self.max_detections is not None:
            check_integer("max_detections", self.max_detections, 1)

    def apply(self, test_cfg: Any) -> Any:
        """Return a copy of a model's `test_cfg` with these limits: of RetinaNet's, or of one with "rpn" and "rcnn".

        More objects need more candidates: RetinaNet's number grows in the same ratio, and the RPN makes at least
        `PROPOSALS` for each object. A score threshold is only lowered, because the caller selects by it.
        """
        limited = copy.deepcopy(test_cfg)
        selection = limited.get("rcnn", limited)
        if self.score_threshold is not None:
            selection["score_thr"] = min(selection["score_thr"], float(self.score_threshold))
        if self.max_detections is not None:
            growth = self.max_detections / selection["max_per_img"]
            selection["max_per_img"] = int(self.max_detections)
            if growth > 1 and "rpn" in limited:
                for name in ("nms_pre", "max_per_img"):
                    limited["rpn"][name] = max(limited["rpn"][name], PROPOSALS * int(self.max_detections))
            elif growth > 1:
                selection["nms_pre"] = math.ceil(growth * selection["nms_pre"])
        if self.nms_iou is not None:
            selection["nms"]["iou_threshold"] = float(self.nms_iou)
        if self.class_agnostic_nms:
            # Above 10,000 boxes, mmcv's NMS would run for each class alone.
            selection["nms"].update(class_agnostic=True, split_thr=math.inf)
        return limited
