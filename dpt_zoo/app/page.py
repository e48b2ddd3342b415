"""The page: upload an image, see what a model detects in it, and filter that without running the model again."""

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

from ..errors import DPTZooError, ImageError
from ..inference.detections import Detections
from ..inference.detector import Detector
from ..manifest.model_card import card
from ..manifest.records import get_detector_info, list_models, read_manifest
from ..utils.images import decode_image

MIN_SCORE, DEFAULT_SCORE = 0.05, 0.3  # of the score slider
MAX_MODELS = 2  # in memory
MAX_PIXELS = 50_000_000  # of an image: the mask of each object has as many
MAX_SESSIONS = 128  # pages whose detections are kept; then the one that was unused for longest has to detect again
MAX_WAITING = 1000  # requests in the queue
MIN_SIDE, MAX_SIDE = 640, 1280  # pixels of the longer side of the drawn image

EXAMPLES = sorted(Path(__file__).with_name("examples").glob("*.png"))
"""Digit scenes that no demo model was trained on."""

THEME = gr.themes.Default(
    primary_hue="teal",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],  # fonts of the system: none is downloaded
    font_mono=["ui-monospace", "monospace"],
)

CSS = """
#model input { padding-right: 2rem; text-overflow: ellipsis }
@media (max-width: 640px) { #detections { height: auto !important } }
"""
"""A long title ends before the arrow, and a picture on a phone has no empty bands above and below."""

NAME_EXAMPLES = """() => document.querySelectorAll("#examples button").forEach(
    (button, index) => button.setAttribute("aria-label", `Digit scene ${index + 1}`))"""
"""Gradio gives the example buttons no names for screen readers."""

STREAM = Path(__file__).with_name("stream.js").read_text(encoding="utf-8")
"""A fix for Gradio's client, which can lose answers."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """All detections of an image, without the image, and the same ones in an image of the size to draw on."""

    detections: Detections
    drawable: Detections


def make_app(model: str, device: str) -> FastAPI:
    """Make the web application, with its first model loaded.

    Args:
        model: the name of the model that is selected first.
        device: see `create_model`.

    Raises:
        DPTZooError: The model cannot be loaded, see `Detector`.
    """

    @functools.lru_cache(MAX_MODELS)
    def load(name: str) -> Detector:
        return Detector(name, score_threshold=MIN_SCORE, device=device)

    load(model)

    def detect(image: dict[str, Any] | None, model: str) -> Iterator[tuple[Result | None, gr.Dropdown]]:
        yield None, gr.Dropdown(choices=[], value=[])  # the detections so far are those of another image
        if not image or not image["path"]:
            return
        try:
            pixels = _read(Path(image["path"]))
            start = time.perf_counter()
            detections = load(model)(pixels)
        except DPTZooError as error:
            # Not gr.Error: it would discard an image that was chosen in the meantime.
            gr.Warning(str(error), duration=None, title="Error")
            return
        logger.info("%s: %d objects in %.2f s", model, len(detections), time.perf_counter() - start)
        detections = replace(detections, path=image["orig_name"])
        names = set(detections.names)
        classes = [name for name in detections.classes if name in names]
        yield Result(replace(detections, image=None), _to_drawable(detections)), gr.Dropdown(choices=classes, value=[])

    page = _make_page(model, detect)
    page.queue(max_size=MAX_WAITING)
    page.state_session_capacity = MAX_SESSIONS
    page.has_launched = True  # without it, Gradio lets a message name any file of this machine
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
    """Return the components of the page and their events; `detect` yields a `Result` and the dropdown of classes."""
    with gr.Blocks(title="DPT Zoo", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        result = gr.State()
        gr.Markdown("# DPT Zoo\nChoose an image to detect the objects in it.")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                model = gr.Dropdown(_model_choices(), value=first, label="Model", elem_id="model")
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
                    label="Detections",
                    alt_text="The image with the detected objects drawn on it",
                    format="png",
                    height=440,
                    elem_id="detections",
                    buttons=["download", "fullscreen"],
                    interactive=False,
                )
                with gr.Row():
                    score = gr.Slider(
                        MIN_SCORE, 1, value=DEFAULT_SCORE, step=0.01, label="Minimum score", min_width=240
                    )
                    classes = gr.Dropdown([], multiselect=True, label="Classes (none selected: all)", min_width=240)
                summary = gr.Markdown()
        with gr.Column(visible=False) as details:
            table = gr.Dataframe(
                headers=["name", "score", "x1", "y1", "x2", "y2"],
                datatype=["str", *["number"] * 5],
                label="Objects",
                interactive=False,
                buttons=[],
                max_height=320,
            )
            download = gr.DownloadButton("Download as JSON", size="md")
        with gr.Accordion("About this model", open=False):
            about = gr.Markdown(_card(first))

        shown = ([result, score, classes], [picture, summary, details, table, download])
        always_last: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "always_last"}
        quiet: dict[str, Any] = {**always_last, "show_progress": "hidden"}
        gr.on(
            [image.change, model.change],
            detect,
            [image, model],
            [result, classes],
            preprocess=False,  # this module decodes the image, not Gradio
            concurrency_limit=1,
            show_progress_on=picture,
            **always_last,
        ).then(show, *shown, **quiet)
        gr.on([score.input, classes.input], show, *shown, **quiet)
        model.change(describe, model, [quality, about], **quiet)
        samples = json.dumps([sample for [sample] in examples.samples])
        examples.click(None, examples, image, js=f"(index) => {samples}[index]")  # in the browser: answers may overtake
        page.load(None, js=NAME_EXAMPLES)
    return page


def show(result: Result | None, min_score: float, classes: list[str]) -> tuple[Any, ...]:
    """Return the picture, the count, the table and the file of the objects with these scores and classes."""
    if result is None:
        return None, "", gr.Column(visible=False), [], None
    known = [name for name in classes if name in result.detections.classes]  # the model may just have changed
    shown, drawn = (each.filter(min_score, known if classes else None) for each in (result.detections, result.drawable))
    picture = io.BytesIO()
    drawn.plot().save(picture, "PNG", compress_level=1)  # a higher level takes longer than drawing
    rows = [
        [name, round(float(score), 2), *(round(side, 1) for side in box.tolist())]
        for name, score, box in zip(shown.names, shown.scores, shown.boxes, strict=True)
    ]
    return (
        _keep("detections.png", picture.getvalue()),
        f"**{len(shown)}** of {len(result.detections)} objects",
        gr.Column(visible=True),
        rows,
        _keep("detections.json", json.dumps(shown.to_json()).encode()),
    )


def describe(model: str) -> tuple[str, str]:
    """Return a model's summary and its card."""
    return get_detector_info(model).summary, _card(model)


def _model_choices() -> list[tuple[str, str]]:
    """Return titles and names of all models, first those that need no download."""
    names = [*sorted(read_manifest().demos), *list_models()]
    return [(get_detector_info(name).title, name) for name in names]


def _card(name: str) -> str:
    """Return a model's card without its title, which the page shows elsewhere."""
    return card(get_detector_info(name)).partition("\n\n")[2]


def _keep(name: str, content: bytes) -> str:
    """Write a file for the page, under a path that nobody can guess; Gradio deletes it after an hour."""
    path = Path(get_upload_folder(), secrets.token_hex(16), name)
    path.parent.mkdir()
    path.write_bytes(content)
    return str(path)


def _read(upload: Path) -> NDArray[np.uint8]:
    try:
        content = upload.read_bytes()
    except OSError as error:
        raise ImageError("the image is no longer on the server: choose it again") from error
    pixels = decode_image(content, "the image")
    height, width = pixels.shape[:2]
    if height * width > MAX_PIXELS:
        raise ImageError(f"the image has {width:,} x {height:,} pixels: at most {MAX_PIXELS:,} are accepted")
    return pixels


def _to_drawable(detections: Detections) -> Detections:
    """Return the same objects in an image of a size to draw on quickly and readably."""
    longer = max(detections.image_size)
    scale = min(max(longer, MIN_SIDE), MAX_SIDE) / longer
    height, width = (max(1, round(scale * side)) for side in detections.image_size)
    return detections.resize((height, width))
