"""The page: upload an image, see the detected objects, and filter them without running the model again."""

import functools
import json
import logging
import secrets
import shutil
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import FastAPI
from gradio.utils import get_upload_folder
from numpy.typing import NDArray
from PIL import Image

from ..errors import DPTZooError, ImageError, InputError
from ..inference.detections import Detections
from ..inference.detector import Detector, is_exported
from ..inference.limits import Limits
from ..manifest.model_card import card
from ..manifest.records import get_detector_info, list_models, read_manifest
from ..utils.images import decode_image, encode_png
from ..views.layout import Views

MIN_SCORE, DEFAULT_SCORE = 0.05, 0.3  # of the score slider
MAX_MODELS = 2  # in memory
MAX_PIXELS = 50_000_000  # in an image: the mask of each object has the same number
MAX_SESSIONS = 128  # open pages with detections in memory; the least recently used ones have to detect again
MAX_WAITING = 1000  # requests in the queue
MIN_SIDE, MAX_SIDE = 640, 1280  # pixels of the longer side of the drawn image
MAX_SLICES = 64  # of an image: each takes the time of a whole image
MAX_DETECTIONS, NMS_IOU, SLICE_SIZES = (0, 100, 300, 1000), (0, 0.3, 0.5, 0.7, 0.9), (0, 320, 640, 1280)
"""The choices of the options; 0 is the model's own limit, or the image as a whole."""
ALL_PATCHES = -1
"""The choice beside the numbers of objects."""

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
    """All detections of an image, and the same ones in an image of the size for drawing, both without the image.

    The image to draw on is in a file, so that an open page needs little memory. It is removed with the result.
    """

    detections: Detections
    drawable: Detections
    image: Path

    def __post_init__(self) -> None:
        weakref.finalize(self, shutil.rmtree, self.image.parent, ignore_errors=True)


@dataclass(frozen=True)
class Options:
    """What a visitor chose: one of the `MAX_DETECTIONS`, `NMS_IOU` and `SLICE_SIZES`, or raise `InputError`."""

    max_detections: int
    nms_iou: float
    slice_size: int

    def __post_init__(self) -> None:
        choices = (MAX_DETECTIONS, NMS_IOU, SLICE_SIZES)
        for value, known in zip((self.max_detections, self.nms_iou, self.slice_size), choices, strict=True):
            if value not in known:
                raise InputError(f"{value!r} is not an option: choose one of {', '.join(map(str, known))}")

    def apply(self, detector: Detector, image_size: tuple[int, int]) -> Views:
        """Set the limits of a `detector`, and return the views of an image of `image_size`, (height, width)."""
        limits = Limits(detector.score_threshold, self.max_detections or None, self.nms_iou or None)
        views = Views(self.slice_size or None)
        detector.check(limits, views)
        if (count := views.count(image_size)) > MAX_SLICES:
            raise InputError(f"the image would have {count} slices, at most {MAX_SLICES} are accepted: use larger ones")
        detector.limits = limits
        return views


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

    def detect(image: dict[str, Any] | None, model: str, *options: Any) -> Iterator[tuple[Result | None, gr.Dropdown]]:
        yield None, gr.Dropdown(choices=[], value=[])  # clear the detections of the previous image
        if not image or not image["path"]:
            return
        try:
            pixels = _read(Path(image["path"]))
            start = time.perf_counter()
            detector = models.load(model)
            views = Options(*options).apply(detector, pixels.shape[:2])
            detections = detector(pixels, slice_size=views.slice_size)
        except DPTZooError as error:
            _warn(error)
            return
        logger.info("%s: %d objects in %.2f s", model, len(detections), time.perf_counter() - start)
        detections = replace(detections, path=image["orig_name"])
        classes = sorted(set(detections.names), key=detections.classes.index)
        yield _to_result(detections), gr.Dropdown(choices=classes, value=[])

    def explain(image: dict[str, Any] | None, model: str, object: int, *options: Any) -> str | None:
        if not image or not image["path"]:
            return None
        try:
            pixels, detector = _read(Path(image["path"])), models.load(model)
            if Options(*options).apply(detector, pixels.shape[:2]).slice_size and object != ALL_PATCHES:
                raise InputError("an object of a slice cannot be explained: choose the image as a whole")
            explanation = detector.explain(pixels, None if object == ALL_PATCHES else object)
            path = _new_path("patches.png")
            explanation.save(path)
        except DPTZooError as error:
            _warn(error)
            return None
        return str(path)

    page = _make_page(models, detect, explain)
    page.queue(max_size=MAX_WAITING)
    page.state_session_capacity = MAX_SESSIONS
    page.has_launched = True  # without it, Gradio lets a message name any file of this machine
    app = FastAPI(openapi_url=None)
    app.state.functions = frozenset(page.fns)
    disabled = ("run_history", "ssr_mode", "mcp_server", "pwa", "enable_monitoring", "show_error")
    style: dict[str, Any] = {"theme": THEME, "css": CSS, "head": f"<script>{STREAM}</script>", "footer_links": []}
    return gr.mount_gradio_app(app, page, path="", **style, **dict.fromkeys(disabled, False))


def _make_page(models: Models, detect: Any, explain: Any) -> gr.Blocks:
    """Return the page with its components and events.

    `detect` yields a `Result` and the dropdown of classes, and `explain` returns the path of a picture.
    """
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
                with gr.Accordion("Options", open=False):
                    max_detections = _dropdown("Most objects", MAX_DETECTIONS, "as the model says")
                    nms_iou = _dropdown("IoU above which one of two objects is kept", NMS_IOU, "as the model says")
                    slice_size = _dropdown("Slices, in pixels", SLICE_SIZES, "the image as a whole")
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
        with gr.Accordion("Where the network looks", open=False):
            with gr.Row(equal_height=True):
                object = gr.Dropdown([], label="Object", min_width=240)
                draw = gr.Button("Draw the patches", min_width=240)
            patches = gr.Image(
                label="Patches",
                alt_text="The patches that each stage of the network predicts, drawn on the image",
                format="png",
                buttons=["download", "fullscreen"],
                interactive=False,
            )
        with gr.Accordion("About this model", open=False):
            about = gr.Markdown(card_text)

        options = [max_detections, nms_iou, slice_size]
        shown = ([result, score, classes], [picture, summary, details, table, download, object, patches])
        always_last: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "always_last"}
        quiet: dict[str, Any] = {**always_last, "show_progress": "hidden"}
        on_detector: dict[str, Any] = {
            **always_last,
            "preprocess": False,  # the functions decode the image
            "concurrency_limit": 1,
            "concurrency_id": "detector",
        }
        gr.on(
            [image.change, model.change, *(each.input for each in options)],
            detect,
            [image, model, *options],
            [result, classes],
            show_progress_on=picture,
            **on_detector,
        ).then(show, *shown, **quiet)
        draw.click(explain, [image, model, object, *options], patches, **on_detector)
        gr.on([score.input, classes.input], show, *shown, **quiet)
        model.change(models.describe, model, [quality, about], **quiet)
        samples = json.dumps([sample for [sample] in examples.samples])
        examples.click(None, examples, image, js=f"(index) => {samples}[index]")  # the server may answer out of order
        page.load(None, js=NAME_EXAMPLES)
    return page


def show(result: Result | None, min_score: float, classes: list[str]) -> tuple[Any, ...]:
    """Return what the page shows of the objects of `result` with `min_score` and one of `classes`.

    Returns:
        The picture, the count, the column below it, the rows of the table, the file, the objects to choose from, and no
        patches.
    """
    nothing: tuple[Any, ...] = (None, "", gr.Column(visible=False), [], None, gr.Dropdown([], value=None), None)
    if result is None:
        return nothing
    try:
        image = _read(result.image)
    except ImageError as error:
        _warn(error)
        return nothing
    names, scores = result.detections.names, result.detections.scores
    kept = [index for index in np.flatnonzero(scores >= min_score).tolist() if not classes or names[index] in classes]
    shown, drawn = result.detections[kept], result.drawable[kept]
    objects = [(f"{names[index]} {scores[index]:.2f}", index) for index in kept]
    picture = replace(drawn, image=image).plot()
    rows = [
        [name, round(float(score), 2), *(round(side, 1) for side in box.tolist())]
        for name, score, box in zip(shown.names, shown.scores, shown.boxes, strict=True)
    ]
    return (
        str(_keep("detections.png", encode_png(picture))),
        f"**{len(shown)}** of {len(result.detections)} objects",
        gr.Column(visible=True),
        rows,
        str(_keep("detections.json", json.dumps(shown.to_json()).encode())),
        gr.Dropdown([("all patches", ALL_PATCHES), *objects], value=ALL_PATCHES),
        None,
    )


def _keep(name: str, content: bytes) -> Path:
    """Write a file for the page, and return its path."""
    path = _new_path(name)
    path.write_bytes(content)
    return path


def _new_path(name: str) -> Path:
    """Return a path that cannot be guessed, in a new folder. Gradio deletes its file after an hour."""
    path = Path(get_upload_folder(), secrets.token_hex(16), name)
    path.parent.mkdir()
    return path


def _dropdown(label: str, values: Sequence[float], default: str) -> gr.Dropdown:
    """Return a choice of `values`, of which the first is called by the words of `default`."""
    return gr.Dropdown(
        [(default, values[0]), *((str(each), each) for each in values[1:])], value=values[0], label=label
    )


def _warn(error: DPTZooError) -> None:
    """Show an error. `gr.Error` would discard an image that was selected in the meantime."""
    gr.Warning(str(error), duration=None, title="Error")


def _read(upload: Path) -> NDArray[np.uint8]:
    try:
        content = upload.read_bytes()
    except OSError as error:
        raise ImageError("the image is no longer on the server: choose it again") from error
    return decode_image(content, "the image", MAX_PIXELS)


def _to_result(detections: Detections) -> Result:
    """Resize detections to a size at which drawing is fast and text is readable, and put the image aside."""
    longer = max(detections.image_size)
    scale = min(max(longer, MIN_SIDE), MAX_SIDE) / longer
    height, width = (max(1, round(scale * side)) for side in detections.image_size)
    drawable = detections.resize((height, width))
    assert drawable.image is not None
    image = _keep("canvas.png", encode_png(Image.fromarray(drawable.image)))
    return Result(replace(detections, image=None), replace(drawable, image=None), image)
