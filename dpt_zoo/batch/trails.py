"""Draw tracked objects with the trails that show where they came from."""

from dataclasses import replace

import numpy as np
import supervision as sv
from PIL import Image

from ..inference.detections import Detections
from ..inference.drawing import colour_of, line_width


class Trails:
    """Draws the frames of one video: `plot` is called with the tracked objects of each frame, in order.

    `image_size` is the height and width of the frames, in pixels.
    """

    def __init__(self, image_size: tuple[int, int]) -> None:
        self._annotator = sv.TraceAnnotator(thickness=line_width(image_size), color_lookup=sv.ColorLookup.INDEX)

    def plot(self, detections: Detections) -> Image.Image:
        """Return the drawn frame, in which each track has its own colour."""
        assert detections.image is not None and detections.track_ids is not None
        is_tracked = detections.track_ids > 0
        track_ids = detections.track_ids[is_tracked]
        objects = sv.Detections(detections.boxes[is_tracked], tracker_id=track_ids)
        self._annotator.color = sv.ColorPalette([sv.Color(*colour_of(id)) for id in track_ids.tolist()])
        picture = self._annotator.annotate(Image.fromarray(detections.image), objects)
        return replace(detections, image=np.asarray(picture)).plot()
