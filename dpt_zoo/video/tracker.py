"""Follow the objects of a video from frame to frame, with the trackers of the package `trackers`."""

from dataclasses import replace
from typing import TYPE_CHECKING, Union

import numpy as np

from ..errors import InputError
from ..utils.dependencies import explain_imports

if TYPE_CHECKING:
    from trackers.core.base import BaseTracker

    from ..inference.detections import Detections

TRACKERS = {
    "bytetrack": "ByteTrackTracker",
    "botsort": "BoTSORTTracker",
    "cbiou": "CBIoUTracker",
    "ocsort": "OCSORTTracker",
    "sort": "SORTTracker",
}
"""The trackers that need no network of their own, and their classes in the package `trackers`."""
LOWEST_SCORE = 0.1
"""The lowest score of an object that a tracker gets, as in the paper of ByteTrack."""

SAME_OBJECT = 0.7
"""Of two objects with a higher IoU, of any classes, only the one with the higher score can be in a track."""

TrackerLike = Union[str, "BaseTracker"]
"""A name of `TRACKERS`, or a tracker of the package `trackers`."""


class Tracker:
    """Follows the objects of one video: it is called with the detections of each frame, in order.

    Args:
        tracker: a name of `TRACKERS`, which has its default settings, or a tracker of the package `trackers`, which is
            reset.
        frame_rate: frames per second. By default, a track ends if its object is not detected for a second.

    Raises:
        InputError: There is no tracker of this name.
        DependencyError: The package trackers is not installed.
    """

    def __init__(self, tracker: TrackerLike, frame_rate: float = 30.0) -> None:
        if isinstance(tracker, str) and tracker not in TRACKERS:
            raise InputError(f"tracker {tracker!r} is unknown: choose from {', '.join(TRACKERS)}")
        with explain_imports():
            import trackers
        if isinstance(tracker, str):
            self._tracker: BaseTracker = getattr(trackers, TRACKERS[tracker])(frame_rate=frame_rate)
        else:
            self._tracker = tracker
            tracker.reset()

    def __call__(self, detections: "Detections") -> "Detections":
        """Return the detections of the next frame with their `track_ids`."""
        import supervision as sv

        indices = np.arange(len(detections))
        objects = sv.Detections(
            detections.boxes, confidence=detections.scores, class_id=detections.labels, data={"index": indices}
        ).with_nms(SAME_OBJECT, class_agnostic=True)
        # BoT-SORT looks at the frames, to learn how the camera moves; the other trackers warn of a frame.
        image = detections.image if getattr(self._tracker, "enable_cmc", False) else None
        tracked = self._tracker.update(objects, None if image is None else image[..., ::-1])
        track_ids = np.full(len(detections), -1, np.int64)
        if tracked.tracker_id is not None and len(tracked):
            track_ids[tracked.data["index"]] = np.where(tracked.tracker_id < 0, -1, tracked.tracker_id + 1)
        return replace(detections, track_ids=track_ids)
