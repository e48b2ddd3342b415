"""The page: an image goes in, what a model finds in it is shown, and filtered without asking the model again."""

import functools
import io
import json
import logging
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import FastAPI
from gradio.utils import get_upload_folder
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from ..errors import DPTZooError, ImageError
from ..inference import Detections, Detector
from ..inference.detections import RLE, encode_mask
from ..manifest.model_card import card
from ..manifest.records import get_detector_info, list_models, read_manifest
from ..utils.images import decode_image

LEAST_SCORE = 0.05
"""What scores less is never shown."""

FIRST_SCORE = 0.3
"""What the slider shows at first."""

MAX_MODELS = 2
"""Models that are kept in memory."""

MAX_PIXELS = 50_000_000
"""Of an image: the mask of each object is made as large."""

MAX_SESSIONS = 128
"""Pages whose detections are kept; when there are more, the one that was used longest ago has to detect again."""

MAX_WAITING = 1000
"""Requests that wait for their turn; more are refused."""

SMALL_SIDE, LARGE_SIDE = 640, 1280
"""Least and most pixels of the longer side of what is drawn."""

EXAMPLES = sorted(Path(__file__).with_name("examples").glob("*.png"))
"""Digit scenes that no demo model was trained on."""

THEME = gr.themes.Default(
    primary_hue="teal",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],  # the system's: none is fetched
    font_mono=["ui-monospace", "monospace"],
)

COLUMNS = ("name", "score", "x1", "y1", "x2", "y2")

CSS = """
#model input { padding-right: 2rem; text-overflow: ellipsis }
@media (max-width: 640px) { #found { height: auto !important } }
"""
"""A long title ends before the arrow, and a phone's narrow picture has no bands above and below."""

NAME_EXAMPLES = """() => document.querySelectorAll("#examples button").forEach(
    (button, index) => button.setAttribute("aria-label", `Digit scene ${index + 1}`))"""
"""Gradio leaves their buttons without names for those who do not see them."""

STREAM = Path(__file__).with_name("stream.js").read_text(encoding="utf-8")
"""Lets no answer be lost."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What is kept of a detection: all that was found, and the same on an image of the size that is drawn."""

    found: Detections
    drawable: Detections


def make_app(model: str, device: str) -> FastAPI:
    """Make the application that serves the page, its first model loaded.

    Args:
        model: the name of the one that is chosen at first.
        device: see `Detector`.

    Raises:
        DPTZooError: as `Detector` does.
    """

    @functools.lru_cache(MAX_MODELS)
    def load(name: str) -> Detector:
        return Detector(name, score_threshold=LEAST_SCORE, device=device)

    load(model)

    def detect(image: dict[str, Any] | None, model: str) -> Iterator[tuple[Result | None, gr.Dropdown]]:
        yield None, gr.Dropdown(choices=[], value=[])  # what was found before is not this image's
        if not image or not image["path"]:
            return
        try:
            pixels = _read(Path(image["path"]))
            start = time.perf_counter()
            found = load(model)(pixels)
            assert isinstance(found, Detections)
        except DPTZooError as error:
            # No gr.Error: after one, an image that was chosen meanwhile is forgotten.
            gr.Warning(str(error), duration=None, title="Error")
            return
        logger.info("%s: %d objects in %.2f s", model, len(found), time.perf_counter() - start)
        found = replace(found, image=pixels, path=image["orig_name"])
        names = [name for name in found.classes if name in set(found.names)]
        yield Result(replace(found, image=None), _to_drawable(found)), gr.Dropdown(choices=names, value=[])

    page = _make_page(model, detect)
    page.queue(max_size=MAX_WAITING)
    page.state_session_capacity = MAX_SESSIONS
    page.has_launched = True  # or Gradio lets a message name any file of this machine
    app = FastAPI(openapi_url=None)
    return gr.mount_gradio_app(
        app,
        page,
        path="",
        theme=THEME,
        css=CSS,
        head=f"<script>{STREAM}</script>",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        show_error=False,
    )


def _make_page(first: str, detect: Any) -> gr.Blocks:
    """The page's parts and what each of them does; `detect` gives a `Result` and the classes to choose from."""
    with gr.Blocks(title="DPT Zoo", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        result = gr.State()
        gr.Markdown("# DPT Zoo\nChoose an image to see what a detector finds in it.")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                model = gr.Dropdown(_models(), value=first, label="Model", elem_id="model")
                quality = gr.Markdown(get_detector_info(first).summary)
                image = gr.Image(label="Image", type="filepath", height=300, buttons=[])
                examples = gr.Dataset(
                    components=[image],
                    samples=[[str(path)] for path in EXAMPLES],
                    type="index",
                    label="Digit scenes, for the demo models",
                    elem_id="examples",
                )
            with gr.Column(scale=3, min_width=300):
                picture = gr.Image(
                    label="What was found",
                    alt_text="The image with what was found drawn on it",
                    format="png",
                    height=440,
                    elem_id="found",
                    buttons=["download", "fullscreen"],
                    interactive=False,
                )
                with gr.Row():
                    threshold = gr.Slider(
                        LEAST_SCORE, 1, value=FIRST_SCORE, step=0.01, label="Least score", min_width=240
                    )
                    classes = gr.Dropdown([], multiselect=True, label="Classes (none chosen: all)", min_width=240)
                summary = gr.Markdown()
        with gr.Column(visible=False) as details:
            kinds = ["str", *["number"] * 5]
            table = gr.Dataframe(
                headers=[*COLUMNS], datatype=kinds, label="Objects", interactive=False, buttons=[], max_height=320
            )
            download = gr.DownloadButton("Download as JSON", size="md")
        with gr.Accordion("About this model", open=False):
            about = gr.Markdown(_card(first))

        shown = ([result, threshold, classes], [picture, summary, details, table, download])
        always_last: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "always_last"}
        quiet: dict[str, Any] = {**always_last, "show_progress": "hidden"}
        gr.on(
            [image.change, model.change],
            detect,
            [image, model],
            [result, classes],
            preprocess=False,  # the image is decoded here, not by Gradio
            concurrency_limit=1,
            show_progress_on=picture,
            **always_last,
        ).then(show, *shown, **quiet)
        gr.on([threshold.input, classes.input], show, *shown, **quiet)
        model.change(describe, model, [quality, about], **quiet)
        samples = json.dumps([sample for [sample] in examples.samples])
        examples.click(None, examples, image, js=f"(index) => {samples}[index]")  # at once: answers may overtake others
        page.load(None, js=NAME_EXAMPLES)
    return page


def show(result: Result | None, threshold: float, classes: list[str]) -> tuple[Any, ...]:
    """Draw, list and write down the objects that score so much and are of these classes."""
    if result is None:
        return None, "", gr.Column(visible=False), [], None
    found = result.found
    chosen = found.scores >= threshold
    if classes:
        chosen &= np.isin(found.names, classes)
    shown = found[chosen]
    picture, content = io.BytesIO(), json.dumps(shown.to_json()).encode()
    result.drawable[chosen].plot().save(picture, "PNG", compress_level=1)  # a stronger one takes longer than drawing
    rows = [
        [name, round(float(score), 2), *(round(side, 1) for side in box.tolist())]
        for name, score, box in zip(shown.names, shown.scores, shown.boxes, strict=True)
    ]
    return (
        _keep("detections.png", picture.getvalue()),
        f"**{len(shown)}** of {len(found)} objects",
        gr.Column(visible=True),
        rows,
        _keep("detections.json", content),
    )


def describe(model: str) -> tuple[str, str]:
    """A model's figures and its card."""
    return get_detector_info(model).summary, _card(model)


def _models() -> list[tuple[str, str]]:
    """Titles and names, those first that need no download."""
    names = [*sorted(read_manifest().demos), *list_models()]
    return [(get_detector_info(name).title, name) for name in names]


def _card(name: str) -> str:
    """A model's card without its title, which the page shows elsewhere."""
    return card(get_detector_info(name)).partition("\n\n")[2]


def _keep(name: str, content: bytes) -> str:
    """Write a file where the page may read it, under a path that nobody can guess; it goes after an hour."""
    path = Path(get_upload_folder(), secrets.token_hex(16), name)
    path.parent.mkdir()
    path.write_bytes(content)
    return str(path)


def _read(upload: Path) -> NDArray[np.uint8]:
    try:
        content = upload.read_bytes()
    except OSError as error:
        raise ImageError("the image is no longer here: choose it again") from error
    pixels = decode_image(content, "the image")
    height, width = pixels.shape[:2]
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"the image has {width:,} x {height:,} pixels: {MAX_PIXELS:,} are the most that are taken here"
        )
    return pixels


def _to_drawable(found: Detections) -> Detections:
    """The same objects on an image whose longer side is from 640 to 1280 pixels, to draw on quickly and readably."""
    assert found.image is not None
    height, width = found.image_size
    side = max(height, width)
    scale = min(max(side, SMALL_SIDE), LARGE_SIDE) / side
    size = (max(1, round(scale * width)), max(1, round(scale * height)))

    def resize_mask(rle: RLE) -> RLE:
        return encode_mask(np.asarray(Image.fromarray(coco_mask.decode(rle)).resize(size, Image.Resampling.NEAREST)))

    return replace(
        found,
        boxes=found.boxes * np.float32(scale),
        image_size=size[::-1],
        rles=None if found.rles is None else [resize_mask(rle) for rle in found.rles],
        image=np.asarray(Image.fromarray(found.image).resize(size, Image.Resampling.BICUBIC)),
    )
