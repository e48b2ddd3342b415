"""Draw tracked objects with the trails that show where they came from."""

from dataclasses import replace

import numpy as np
import supervision as sv
from PIL import Image

from ..inference.detections import Detections
from ..inference.drawing import colour_of, line_width

NUM_COLOURS = 64  # of trails; then they repeat


class Trails:
    """Draws the frames of one video: it is called with the tracked objects of each frame, in order."""

    def __init__(self, image_size: tuple[int, int]) -> None:
        palette = sv.ColorPalette([sv.Color(*colour_of(number)) for number in range(NUM_COLOURS)])
        lookup = sv.ColorLookup.TRACK
        self._annotator = sv.TraceAnnotator(palette, thickness=line_width(image_size), color_lookup=lookup)

    def plot(self, detections: Detections) -> Image.Image:
        """Return the drawn frame, in which each track has its own colour."""
        assert detections.image is not None and detections.track_ids is not None
        tracked = detections[detections.track_ids > 0]
        objects = sv.Detections(tracked.boxes, tracker_id=tracked.track_ids)
        picture = self._annotator.annotate(Image.fromarray(detections.image), objects)
        return replace(detections, image=np.asarray(picture)).plot()
