"""Answers: detections as JSON, as COCO's results, or drawn on the image, by the request's Accept header."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from ..errors import FetchError, ImageError
from ..inference.detections import Detections
from ..utils.images import encode_png
from .problems import Refusal

JSON, COCO, PNG = "application/json", "application/vnd.coco+json", "image/png"
MAX_DRAWN_SIDE = 2048
"""Longest side of a drawn image, in pixels."""

Result = Detections | ImageError | FetchError
"""The detections in an image, or the reason why it could not be read. The latter begins with its name."""


def choose_media_type(accept: str) -> str:
    """Return the media type of the answer that an Accept header prefers.

    Raises:
        Refusal: It accepts none of the three.
    """
    best, best_quality = None, 0.0
    for part in (accept or "*/*").split(","):
        pattern, *parameters = (each.strip().lower() for each in part.split(";"))
        qualities = [each[2:] for each in parameters if each.startswith("q=")]
        try:
            quality = float(qualities[0]) if qualities else 1.0
        except ValueError:
            quality = 0.0
        offered = {"*/*": JSON, "application/*": JSON, "image/*": PNG}.get(pattern, pattern)
        if offered in (JSON, COCO, PNG) and quality > best_quality:
            best, best_quality = offered, quality
    if best is None:
        raise Refusal(406, f"the answer can be {JSON}, {COCO} or {PNG}")
    return best


async def make_answer(media_type: str, model: str, results: Sequence[Result]) -> Response:
    """Return the response with the `results` of a `model` as a `media_type`.

    Raises:
        Refusal: No image could be read, or the answer is not JSON, which has a place for errors, and one could not.
    """
    detections = [result for result in results if isinstance(result, Detections)]
    errors = [str(result) for result in results if not isinstance(result, Detections)]
    if not detections or (errors and media_type != JSON):
        raise Refusal(400, "; ".join(errors), "unreadable_image")
    if media_type == PNG:
        return Response(await asyncio.to_thread(draw_png, *detections), media_type=PNG)
    content: Any
    if media_type == COCO:
        content = [item for number, each in enumerate(detections, 1) for item in each.to_coco(number)]
    else:
        images = [each.to_json() if isinstance(each, Detections) else {"error": str(each)} for each in results]
        content = {"model": model, "images": images}
    return Response(json.dumps(content), media_type=media_type)


def draw_png(detections: Detections) -> bytes:
    """Return the image with the `detections` drawn on it, as a PNG file of at most MAX_DRAWN_SIDE pixels a side."""
    scale = MAX_DRAWN_SIDE / max(detections.image_size)
    if scale < 1:
        height, width = (max(1, round(scale * side)) for side in detections.image_size)
        detections = detections.resize((height, width))
    return encode_png(detections.plot())
