"""The page: upload an image, see the detected objects, and filter them without running the model again."""

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
from ..inference.detector import Detector, is_exported
from ..manifest.model_card import card
from ..manifest.records import get_detector_info, list_models, read_manifest
from ..utils.images import decode_image

MIN_SCORE, DEFAULT_SCORE = 0.05, 0.3  # of the score slider
MAX_MODELS = 2  # in memory
MAX_PIXELS = 50_000_000  # in an image: the mask of each object has the same number
MAX_SESSIONS = 128  # open pages with detections in memory; the least recently used ones have to detect again
MAX_WAITING = 1000  # requests in the queue
MIN_SIDE, MAX_SIDE = 640, 1280  # pixels of the longer side of the drawn image

EXAMPLES = sorted(Path(__file__).with_name("examples").glob("*.png"))
"""Digit scenes that are not in the training data of the demo models."""

THEME = gr.themes.Default(
    primary_hue="teal",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],  # no font is downloaded
    font_mono=["ui-monospace", "monospace"],
)

CSS = """
#model input { padding-right: 2rem; text-overflow: ellipsis }
@media (max-width: 640px) { #detections { height: auto !important } }
"""
"""Long titles are cut off before the arrow, and on a phone, pictures have no empty bands above and below."""

NAME_EXAMPLES = """() => document.querySelectorAll("#examples button").forEach(
    (button, index) => button.setAttribute("aria-label", `Digit scene ${index + 1}`))"""
"""Names for screen readers, which Gradio does not give the example buttons."""

STREAM = Path(__file__).with_name("stream.js").read_text(encoding="utf-8")
"""A fix for Gradio's client, which can lose responses."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """All detections of an image, without the image, and the same ones in an image of the size for drawing."""

    detections: Detections
    drawable: Detections


@dataclass(frozen=True)
class Models:
    """The models of the page: all detectors of the zoo and, if `first` is one, an exported file.

    Attributes:
        first: the name or the file of the model that is selected first.
        device: see `Detector`.
    """

    first: str
    device: str

    @property
    def first_name(self) -> str:
        """The name of the first model on the page, which does not show the folder of a file."""
        return Path(self.first).name if is_exported(self.first) else self.first

    def choices(self) -> list[tuple[str, str]]:
        """Return titles and names of all models: an exported file, then those that need no download."""
        exported = [(self.first_name, self.first_name)] if is_exported(self.first) else []
        names = (*sorted(read_manifest().demos), *list_models())
        return [*exported, *((get_detector_info(name).title, name) for name in names)]

    @functools.lru_cache(MAX_MODELS)  # noqa: B019  (there is one `Models` in a process)
    def load(self, name: str) -> Detector:
        """Return a detector, or raise `DPTZooError`. A request may have any name: no other file is read."""
        if name != self.first_name:
            get_detector_info(name)
        detector = Detector(self.first if name == self.first_name else name, device=self.device)
        detector.score_threshold = max(MIN_SCORE, detector.metadata.lowest_score if detector.metadata else 0)
        return detector

    def describe(self, name: str) -> tuple[str, str]:
        """Return a model's summary and its card."""
        if name != self.first_name or not is_exported(self.first):
            record = get_detector_info(name)
            return record.summary, card(record).partition("\n\n")[2]  # the page shows its title elsewhere
        metadata = self.load(name).metadata
        assert metadata is not None
        summary = f"An exported model: {metadata.name}, {metadata.precision}, {len(metadata.classes)} classes"
        versions = ", ".join(f"{package} {version}" for package, version in metadata.versions.items())
        facts = {"Licence": metadata.license, "SHA-256 of the weights": metadata.weights_sha256, "Made with": versions}
        return summary, "\n".join(f"- {name}: `{value}`" for name, value in facts.items())


def make_app(model: str, device: str) -> FastAPI:
    """Make the web application, and load the model that is selected first, or raise `DPTZooError`.

    `state.functions` of the application has the numbers of the page's functions.
    """
    models = Models(model, device)
    models.load(models.first_name)

    def detect(image: dict[str, Any] | None, model: str) -> Iterator[tuple[Result | None, gr.Dropdown]]:
        yield None, gr.Dropdown(choices=[], value=[])  # clear the detections of the previous image
        if not image or not image["path"]:
            return
        try:
            pixels = _read(Path(image["path"]))
            start = time.perf_counter()
            detections = models.load(model)(pixels)
        except DPTZooError as error:
            # gr.Error would discard an image that was selected in the meantime.
            gr.Warning(str(error), duration=None, title="Error")
            return
        logger.info("%s: %d objects in %.2f s", model, len(detections), time.perf_counter() - start)
        detections = replace(detections, path=image["orig_name"])
        classes = sorted(set(detections.names), key=detections.classes.index)
        yield Result(replace(detections, image=None), _to_drawable(detections)), gr.Dropdown(choices=classes, value=[])

    page = _make_page(models, detect)
    page.queue(max_size=MAX_WAITING)
    page.state_session_capacity = MAX_SESSIONS
    page.has_launched = True  # without it, Gradio lets a message name any file of this machine
    app = FastAPI(openapi_url=None)
    app.state.functions = frozenset(page.fns)
    disabled = ("run_history", "ssr_mode", "mcp_server", "pwa", "enable_monitoring", "show_error")
    style: dict[str, Any] = {"theme": THEME, "css": CSS, "head": f"<script>{STREAM}</script>", "footer_links": []}
    return gr.mount_gradio_app(app, page, path="", **style, **dict.fromkeys(disabled, False))


def _make_page(models: Models, detect: Any) -> gr.Blocks:
    """Return the page with its components and events. `detect` yields a `Result` and the dropdown of classes."""
    summary_text, card_text = models.describe(models.first_name)
    with gr.Blocks(title="DPT Zoo", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        result = gr.State()
        gr.Markdown("# DPT Zoo\nChoose an image to detect the objects in it.")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                model = gr.Dropdown(models.choices(), value=models.first_name, label="Model", elem_id="model")
                quality = gr.Markdown(summary_text)
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
            about = gr.Markdown(card_text)

        shown = ([result, score, classes], [picture, summary, details, table, download])
        always_last: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "always_last"}
        quiet: dict[str, Any] = {**always_last, "show_progress": "hidden"}
        gr.on(
            [image.change, model.change],
            detect,
            [image, model],
            [result, classes],
            preprocess=False,  # `detect` decodes the image
            concurrency_limit=1,
            show_progress_on=picture,
            **always_last,
        ).then(show, *shown, **quiet)
        gr.on([score.input, classes.input], show, *shown, **quiet)
        model.change(models.describe, model, [quality, about], **quiet)
        samples = json.dumps([sample for [sample] in examples.samples])
        examples.click(None, examples, image, js=f"(index) => {samples}[index]")  # the server may answer out of order
        page.load(None, js=NAME_EXAMPLES)
    return page


def show(result: Result | None, min_score: float, classes: list[str]) -> tuple[Any, ...]:
    """Return the picture, count, table and file for the objects of `result` with `min_score` and one of `classes`."""
    if result is None:
        return None, "", gr.Column(visible=False), [], None
    known = [name for name in classes if name in result.detections.classes]  # the model may have changed
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


def _keep(name: str, content: bytes) -> str:
    """Write a file for the page to a path that cannot be guessed. Gradio deletes it after an hour."""
    path = Path(get_upload_folder(), secrets.token_hex(16), name)
    path.parent.mkdir()
    path.write_bytes(content)
    return str(path)


def _read(upload: Path) -> NDArray[np.uint8]:
    try:
        content = upload.read_bytes()
    except OSError as error:
        raise ImageError("the image is no longer on the server: choose it again") from error
    return decode_image(content, "the image", MAX_PIXELS)


def _to_drawable(detections: Detections) -> Detections:
    """Resize detections to a size at which drawing is fast and text is readable."""
    longer = max(detections.image_size)
    scale = min(max(longer, MIN_SIDE), MAX_SIDE) / longer
    height, width = (max(1, round(scale * side)) for side in detections.image_size)
    return detections.resize((height, width))
