"""The web page: what it shows, what its server refuses, how it starts and stops."""

import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_browser import running_browser
from app_client import OPTIONS, App, AppError, Client, ask, file_data, running_app
from digit_canvas import make_mosaic
from exported_files import make_onnx
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Download, Locator, Page
from pycocotools import mask as coco_mask
from running import Run
from web_server import WebServer

from dpt_zoo.data.digits import digit_scene, read_digits
from dpt_zoo.errors import UnknownModelError
from dpt_zoo.inference.detections import Detections
from dpt_zoo.inference.detector import Detector
from dpt_zoo.manifest.records import list_models, read_manifest

pytestmark = [pytest.mark.xdist_group("app"), pytest.mark.network, pytest.mark.slow]  # one server

EXAMPLES = sorted((Path(__file__).parents[2] / "dpt_zoo" / "app" / "examples").glob("*.png"))
SCENE = EXAMPLES[0].read_bytes()
MODEL = "mrcnn_dpt_nano_digits"
DEFAULT_SCORE, MIN_SCORE = 0.3, 0.05

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

SLOW_ANSWERS = """{
    const fetch = window.fetch;
    const wait = () => new Promise((resolve) => setTimeout(resolve, 400));
    const late = () => new TransformStream({
        transform: (part, controller) => wait().then(() => controller.enqueue(part)),
    });
    window.fetch = async (input, options) => {
        const response = await fetch(input, options);
        const is_stream = String(input.url ?? input).includes("/queue/data");
        return is_stream ? new Response(response.body.pipeThrough(late()), response) : response;
    };
}"""
"""A script for a page: the server's messages arrive late."""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """One server for all tests: visitors do not affect one another."""
    with running_app(temporary=tmp_path_factory.mktemp("tmp")) as app:
        yield app


@pytest.fixture
def client(app: App) -> Client:
    return Client(app.url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def open_page(app: App, browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open the page; at the end, check that it sent no request to another machine."""
    asked: list[str] = []

    def open_it(*, slow_answers: bool = False, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": WIDE, **options})
        if slow_answers:
            context.add_init_script(SLOW_ANSWERS)
        context.set_default_timeout(120_000)
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.goto(app.url)
        page.get_by_role("button", name="Upload file").wait_for()
        return page

    yield open_it
    for context in browser.contexts:
        context.close()
    assert asked
    assert [url for url in asked if not url.startswith((f"{app.url}/", "data:", "blob:"))] == []


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(MODEL, score_threshold=MIN_SCORE, device="cpu")


@pytest.fixture(scope="module")
def found(detector: Detector) -> Detections:
    """The detector's own detections in the first example."""
    return detector(EXAMPLES[0])


# --- What the page shows.


@pytest.mark.browser
def test_objects_of_an_upload_are_drawn_and_listed(open_page: Callable[..., Page], found: Detections) -> None:
    page = open_page()
    upload(page, EXAMPLES[0])
    expect_counts(page, len(found.filter(DEFAULT_SCORE)), len(found))
    assert [row[0] for row in table(page)] == found.filter(DEFAULT_SCORE).names
    check_drawn(shown_picture(page), found.filter(DEFAULT_SCORE))


@pytest.mark.browser
def test_score_and_classes_filter_without_the_network(
    app: App, open_page: Callable[..., Page], found: Detections
) -> None:
    page = open_page()
    upload(page, EXAMPLES[0])
    expect_counts(page, len(found.filter(DEFAULT_SCORE)), len(found))
    before, runs = shown_picture(page), app.detections()

    set_score(page, 0.9)
    sure = found.filter(0.9)
    assert 0 < len(sure) < len(found.filter(DEFAULT_SCORE))
    expect_counts(page, len(sure), len(found))
    check_drawn(shown_picture(page), sure)
    assert not np.array_equal(shown_picture(page), before)

    name = sure.names[0]
    page.get_by_label("Classes").click()
    page.get_by_role("option", name=name, exact=True).click()
    expect_counts(page, len(sure.filter(classes=name)), len(found))
    assert {row[0] for row in table(page)} == {name}
    check_drawn(shown_picture(page), sure.filter(classes=name))
    assert app.detections() == runs


@pytest.mark.browser
def test_the_downloaded_json_has_the_detections(open_page: Callable[..., Page], found: Detections) -> None:
    page = open_page()
    upload(page, EXAMPLES[0])
    expect_counts(page, len(found.filter(DEFAULT_SCORE)), len(found))
    set_score(page, 0.5)
    expect_counts(page, len(found.filter(0.5)), len(found))
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as JSON").click()
    check_json(read_json(download.value), found.filter(0.5), EXAMPLES[0].name)


@pytest.mark.browser
def test_an_example_a_pasted_image_and_a_picture_of_the_camera(
    open_page: Callable[..., Page], detector: Detector
) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write", "camera"])
    page.get_by_role("button", name="Digit scene 2").click()
    example = detector(EXAMPLES[1])
    expect_counts(page, len(example.filter(DEFAULT_SCORE)), len(example))

    copy_to_clipboard(page, EXAMPLES[2])
    page.get_by_role("button", name="Remove Image").click()
    page.get_by_role("button", name="Paste from clipboard").click()
    pasted = detector(EXAMPLES[2])
    expect_counts(page, len(pasted.filter(DEFAULT_SCORE)), len(pasted))

    page.get_by_role("button", name="Remove Image").click()
    expect_nothing(page)
    page.get_by_role("button", name="Capture from camera").click()
    page.get_by_role("button", name="Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('video')?.readyState >= 2")
    page.get_by_role("button", name="capture photo").click()
    counts(page).wait_for()


@pytest.mark.browser
def test_the_last_of_images_chosen_in_quick_succession_is_shown(
    open_page: Callable[..., Page], detector: Detector
) -> None:
    page = open_page()
    buttons = [page.get_by_role("button", name=f"Digit scene {number}").element_handle() for number in (1, 2, 3)]
    for last in (2, 0, 1):
        page.evaluate("buttons => buttons.forEach((each) => each.click())", [*buttons, buttons[last]])
        found = detector(EXAMPLES[last])
        expect_counts(page, len(found.filter(DEFAULT_SCORE)), len(found))


@pytest.mark.browser
def test_requests_during_an_answer_are_answered(open_page: Callable[..., Page], found: Detections) -> None:
    page = open_page(slow_answers=True)
    upload(page, EXAMPLES[0])
    for score in (0.2, 0.25, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9):
        set_score(page, score)
        page.wait_for_timeout(100)
    expect_counts(page, len(found.filter(0.9)), len(found))


@pytest.mark.browser
def test_another_model_detects_and_is_described(open_page: Callable[..., Page], found: Detections) -> None:
    page = open_page()
    upload(page, EXAMPLES[0])
    expect_counts(page, len(found.filter(DEFAULT_SCORE)), len(found))
    page.get_by_label("Model").click()
    assert len(page.get_by_role("option").all()) == len([*list(read_manifest().demos), *list_models()])
    page.get_by_role("option", name="RetinaNet DPT-Nano for digit scenes").click()
    other = Detector("retinanet_dpt_nano_digits", score_threshold=MIN_SCORE, device="cpu")(EXAMPLES[0])
    expect_counts(page, len(other.filter(DEFAULT_SCORE)), len(other))
    page.get_by_text("RetinaNet DPT-Nano for digit scenes, trained by this project").wait_for()
    page.get_by_role("button", name="About this model").click()
    page.get_by_text("configs/demo/retinanet_dpt_nano_digits.py", exact=True).wait_for()


@pytest.mark.browser
def test_slices_and_patches(open_page: Callable[..., Page], detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "mosaic.png"
    Image.fromarray(make_mosaic(2, 2).image).save(path)
    whole, sliced = detector(path), detector(path, slice_size=320)
    assert len(whole.filter(DEFAULT_SCORE)) != len(sliced.filter(DEFAULT_SCORE))
    page = open_page()
    upload(page, path)
    expect_counts(page, len(whole.filter(DEFAULT_SCORE)), len(whole))
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Slices, in pixels").click()
    page.get_by_role("option", name="320", exact=True).click()
    expect_counts(page, len(sliced.filter(DEFAULT_SCORE)), len(sliced))

    page.get_by_role("button", name="Where the network looks").click()
    page.get_by_role("button", name="Draw the patches").click()
    patches = page.get_by_alt_text("The patches that each stage")
    patches.wait_for()
    assert patches.evaluate("image => image.naturalWidth > 1000")


@pytest.mark.browser
def test_an_error_is_one_line_and_the_page_goes_on(
    open_page: Callable[..., Page], found: Detections, tmp_path: Path
) -> None:
    page = open_page()
    upload(page, EXAMPLES[0])
    expect_counts(page, len(found.filter(DEFAULT_SCORE)), len(found))
    page.get_by_role("button", name="Remove Image").click()
    text = tmp_path / "<img src=x onerror=alert(1)>.png"
    text.write_text("no image")
    upload(page, text)
    toast = page.get_by_test_id("toast-body")
    toast.wait_for()
    assert "the image: this is not an image of a known format" in toast.inner_text()
    expect_nothing(page)
    page.get_by_role("button", name="Remove Image").click()
    upload(page, EXAMPLES[0])
    expect_counts(page, len(found.filter(DEFAULT_SCORE)), len(found))


@pytest.mark.browser
@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_window_has_room_and_contrast(
    open_page: Callable[..., Page], viewport: dict[str, int], scheme: str
) -> None:
    page = open_page(viewport=viewport, color_scheme=scheme)
    upload(page, EXAMPLES[0])
    page.get_by_role("button", name="Download as JSON").wait_for()
    page.get_by_role("button", name="About this model").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    brightness = {"light": (200, 256, 0, 100), "dark": (0, 60, 180, 256)}[scheme]
    ground, text = (brightness_of(page, each) for each in ("background-color", "color"))
    assert brightness[0] <= ground < brightness[1]
    assert brightness[2] <= text < brightness[3]


@pytest.mark.browser
def test_everything_has_a_name_and_is_reached_by_the_keyboard(open_page: Callable[..., Page]) -> None:
    page = open_page()
    upload(page, EXAMPLES[0])
    page.get_by_role("button", name="Download as JSON").wait_for()
    nameless = re.findall(r"^ *- (?:button|link|combobox|slider|spinbutton|textbox)\b(?! \").*$", snapshot(page), re.M)
    assert nameless == []
    reached = set()
    page.locator("body").click(position={"x": 1, "y": 1})
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText"))
    wanted = ["Model", "Upload file", "Digit scene 1", "range slider for Minimum score", "Classes (none selected: all)"]
    assert set(wanted) - reached == set()
    assert any("Download as JSON" in each for each in reached)
    assert any("About this model" in each for each in reached)


def upload(page: Page, path: Path) -> None:
    page.locator("input[type=file][accept='image/*']").set_input_files(path)


def expect_counts(page: Page, shown: int, of: int) -> None:
    page.get_by_text(f"{shown} of {of} objects", exact=True).wait_for()


def counts(page: Page) -> Locator:
    return page.get_by_text(re.compile(r"^\d+ of \d+ objects$"))


def expect_nothing(page: Page) -> None:
    counts(page).wait_for(state="hidden")


def set_score(page: Page, score: float) -> None:
    field = page.get_by_role("spinbutton")
    field.fill(str(score))
    field.press("Enter")


def table(page: Page) -> list[list[str]]:
    """The cells of the rows that are in view, which are all where there are few."""
    rows = page.get_by_role("grid").get_by_role("row").filter(has=page.get_by_role("gridcell")).all()
    return [row.get_by_role("gridcell").all_inner_texts() for row in rows]


def shown_picture(page: Page) -> NDArray[np.int_]:
    """The pixels that the page shows."""
    address = page.locator("#detections img").get_attribute("src")
    assert address
    return np.asarray(Image.open(io.BytesIO(page.request.get(address).body())), int)


def check_drawn(picture: NDArray[np.int_], found: Detections) -> None:
    """Check that the first example is drawn on at the objects' boxes, and elsewhere only at their labels."""
    side = picture.shape[0]
    scale = side / 192
    plain = Image.open(EXAMPLES[0]).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    changed = np.abs(picture - np.asarray(plain, int)).max(axis=2) > 8
    allowed = np.zeros_like(changed)
    for x1, y1, x2, y2 in (found.boxes * scale).astype(int).clip(1, side - 2).tolist():
        edges = [changed[y1 - 1 : y1 + 2, x1:x2], changed[y2 - 1 : y2 + 2, x1:x2]]
        edges += [changed[y1:y2, x1 - 1 : x1 + 2].T, changed[y1:y2, x2 - 1 : x2 + 2].T]
        assert all(edge.any(axis=0).mean() > 0.9 for edge in edges)
        allowed[max(0, y1 - 40) : y2 + 40, max(0, x1 - 80) : x2 + 80] = True
    assert not (changed & ~allowed).any()


def copy_to_clipboard(page: Page, path: Path) -> None:
    write = """async (content) => {
        const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
        const image = new Blob([bytes], {type: "image/png"});
        await navigator.clipboard.write([new ClipboardItem({"image/png": image})]);
    }"""
    page.evaluate(write, b64encode(path.read_bytes()).decode())


def brightness_of(page: Page, style: str) -> float:
    color = page.evaluate(f"getComputedStyle(document.body)['{style}']")
    red, green, blue, *_ = map(float, re.findall(r"[\d.]+", color))
    return 0.3 * red + 0.6 * green + 0.1 * blue


def snapshot(page: Page) -> str:
    return page.locator("body").aria_snapshot()


def read_json(download: Download) -> Any:
    return json.loads(Path(download.path()).read_text())


def check_json(content: Any, found: Detections, path: str) -> None:
    """Check that a file has the objects that a detector in another process found."""
    expected = found.to_json()
    assert content["path"] == path
    assert (content["width"], content["height"]) == (expected["width"], expected["height"])
    assert [each["name"] for each in content["objects"]] == found.names
    for each, other in zip(content["objects"], expected["objects"], strict=True):
        assert each["score"] == pytest.approx(other["score"], abs=1e-4)
        assert each["box"] == pytest.approx(other["box"], abs=1e-2)
        masks = [coco_mask.decode(mask) for mask in (each["mask"], other["mask"])]
        assert np.count_nonzero(masks[0] != masks[1]) <= 3


def test_no_model_was_trained_on_the_examples() -> None:
    digits = read_digits("test")
    for number, path in enumerate(EXAMPLES, 1):
        rng = np.random.Generator(np.random.PCG64([0, 1, number]))  # of scene `number` of the test split of seed 0
        assert np.array_equal(np.asarray(Image.open(path)), digit_scene(rng, digits).image)


# --- Many at once.


def test_a_hundred_visitors_at_once_get_their_own_answers(app: App, detector: Detector) -> None:
    images = [scene(number) for number in range(5)]
    expected = [detector(image) for image in images]
    contents = [png(image) for image in images]

    def visit(number: int) -> Any:
        client = Client(app.url)
        client.detect(contents[number % 5], f"{number}.png")
        return client.show(0.4, [])

    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(visit, range(100)))
    for number, answer in enumerate(answers):
        check_json(answer, expected[number % 5].filter(0.4), f"{number}.png")


def scene(number: int) -> NDArray[np.uint8]:
    return digit_scene(np.random.Generator(np.random.PCG64([7, number])), read_digits("test")).image


def png(image: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


# --- What it refuses.


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 60,000 x 60,000 pixels."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(b""),
        b"IEND": b"",
    }
    packed = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


NO_IMAGES = {
    "text": (b"no image", "not an image of a known format"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "not an image of a known"),
    "HTML": (b"<html><script>alert(1)</script></html>", "not an image of a known format"),
    "PDF": (b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\ntrailer\n<<>>\n%%EOF", "not an image of a known format"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n", "not an image of a known"),
    "nothing": (b"", "there is nothing in it"),
    "half an image": (SCENE[: len(SCENE) // 2], "damaged"),
    "a bomb": (bomb(), "enormous"),
    "too many pixels": (png(np.zeros((8000, 8000), bool)), "8,000 x 8,000 pixels"),
}


@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize("kind", NO_IMAGES)
def test_files_that_are_no_images_are_refused(client: Client, kind: str, suffix: str) -> None:
    content, reason = NO_IMAGES[kind]
    with pytest.raises(AppError, match=reason) as refusal:
        client.detect(content, f"image.{suffix}")
    assert "\n" not in str(refusal.value)
    assert client.call("show", [None, 0.3, []])[0] is None


SECRET = b"a secret of this machine"


@dataclass
class Secret:
    """A file beside those of the page, which holds links to it, and a server that nobody else may ask."""

    path: Path
    folder: Path
    server: WebServer


@pytest.fixture(scope="module")
def secret(app: App) -> Iterator[Secret]:
    path = app.folder.with_name("secret.png")
    path.write_bytes(SECRET)
    (app.folder / "link.png").symlink_to(path)
    (app.folder / "link").symlink_to(path.parent)
    with WebServer({"/secret.png": SCENE}) as server:
        yield Secret(path, app.folder, server)


READS = [
    "/gradio_api/file={secret}",
    "/gradio_api/file=/{secret}",
    "/gradio_api/file=%2F{secret}",
    "/gradio_api/file=file://{secret}",
    "/gradio_api/file={folder}/../secret.png",
    "/gradio_api/file={folder}/%2e%2e/secret.png",
    "/gradio_api/file={folder}/..%2fsecret.png",
    "/gradio_api/file={folder}/link.png",
    "/gradio_api/file={folder}/link/secret.png",
    "/gradio_api/file={folder}",
    "/gradio_api/file={folder}/missing.png",
    "/gradio_api/file={folder}/%00",
    "/gradio_api/file={server}/secret.png",
    "/gradio_api/file=%68ttp:%2f%2flocalhost/secret.png",
    "/gradio_api/file=//localhost/secret.png",
    "/gradio_api/file/{secret}",
    "/file={secret}",
    "/file/{secret}",
    "/gradio_api/proxy={server}/secret.png",
    "/gradio_api/custom_component/x/client/component/../../secret.png",
    "/gradio_api/stream/x/1/7/playlist-file",
    "/gradio_api/stream/x/1/7/..%2f..%2fsecret.png",
    "/static/{secret}",
    "/static/..%2f..%2f..%2fgradio%2froutes.py",
    "/static/%2e%2e/%2e%2e/%2e%2e/routes.py",
    "/static//etc/passwd",
    "/assets/../../../../../../../../../../etc/passwd",
    "/assets/..%2f..%2f..%2froutes.py",
    "/assets/%5c..%5c..%5croutes.py",
    "/svelte/..%2f..%2froutes.py",
    "/../../../../../../../../etc/passwd",
    "//etc/passwd",
    "/pyproject.toml",
    "/gradio_api/deep_link?session_hash=x",
    "/gradio_api/dev/reload",
    "/gradio_api/openapi.json",
    "/gradio_api/runs",
    "/gradio_api/run-history/buckets",
    "/gradio_api/call/detect/x",
    "/gradio_api/vibe-code",
    "/gradio_api/token",
    "/gradio_api/mcp/sse",
    "/monitoring",
    "/monitoring/summary",
    "/pwa_icon",
    "/openapi.json",
    "/docs",
    "/gradio_api/info/",
]


@pytest.mark.parametrize("path", READS)
def test_no_other_file_or_url_is_read(app: App, secret: Secret, path: str) -> None:
    address = path.format(secret=secret.path, folder=secret.folder, server=secret.server.url)
    for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE"):
        status, body = ask(app.url, method, address)
        assert status in (400, 403, 404, 405), (method, address)
        assert SECRET not in body
        assert b"root:" not in body
        assert b"import" not in body
    assert secret.server.log == []


ADDRESSES = [*READS, "/gradio_api/run/predict", "/gradio_api/api/detect", "/gradio_api/call/detect", "/login"]
ADDRESSES += ["/gradio_api/component_server", "/gradio_api/vibe-edit", "/gradio_api/process_recording", "/gradio_api/x"]


@pytest.mark.parametrize("path", ADDRESSES)
def test_nothing_else_is_posted_to(app: App, path: str) -> None:
    address = path.format(secret="/etc/passwd", folder="/tmp", server="http://localhost")
    status, _ = ask(app.url, "POST", address, {"Content-Length": "2", "Content-Type": "application/json"}, b"{}")
    assert status == 404


PATHS = [
    "{secret}",
    "/etc/passwd",
    "{folder}/../secret.png",
    "{folder}/link.png",
    "{folder}/link/secret.png",
    "file://{secret}",
    "{server}/secret.png",
    "//localhost/secret.png",
    "pyproject.toml",
    "",
    "\0",
    "x" * 100_000,
    7,
    ["{secret}"],
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path)[:30])
def test_no_message_names_another_file(client: Client, secret: Secret, path: Any) -> None:
    if isinstance(path, str):
        path = path.format(secret=secret.path, folder=secret.folder, server=secret.server.url)
    for file in (file_data(path), {"path": path}, [[{"x": file_data(path)}]]):
        for message in (
            {"data": [file, MODEL], "fn_index": 0, "session_hash": "x"},
            {"data": [None, file, []], "fn_index": 1, "session_hash": "x"},
            {"data": [], "event_data": file, "fn_index": 1, "session_hash": "x"},
        ):
            answer = client.join(message)
            assert (answer.status_code, answer.text) == (403, "only uploaded files may be named")
    assert secret.server.log == []


@pytest.mark.parametrize("url", ["{server}/secret.png", "file:///etc/passwd", "data:image/png;base64,AAAA"])
def test_only_the_uploaded_file_of_an_image_counts(client: Client, secret: Secret, found: Detections, url: str) -> None:
    url = url.format(server=secret.server.url)
    client.call("detect", [file_data(client.upload(SCENE), url=url, orig_name="image.png"), MODEL, *OPTIONS])
    check_json(client.show(0.5, []), found.filter(0.5), "image.png")
    client.call("detect", [file_data(None, url=url), MODEL, *OPTIONS])
    assert client.call("show", [None, 0.5, []])[0] is None
    assert secret.server.log == []


JSON = {"Content-Type": "application/json"}

BODIES = {
    "an upload over the limit": ("upload", {"Content-Length": str(60 << 20)}, b"", 413),
    "a message over the limit": ("queue/join", {**JSON, "Content-Length": str(2 << 20)}, b"", 413),
    "a length of a thousand digits": ("queue/join", {**JSON, "Content-Length": "9" * 1000}, b"", 400),
    "no length": ("queue/join", JSON, b"", 411),
    "chunks without a length": ("upload", {"Transfer-Encoding": "chunked"}, b"5\r\nhello\r\n0\r\n\r\n", 411),
    "chunks beside a length": (
        "upload",
        {"Content-Length": "15", "Transfer-Encoding": "chunked"},
        b"5\r\nhello\r\n0\r\n\r\n",
        411,
    ),
    "a message in chunks beside a length": (
        "queue/join",
        {**JSON, "Content-Length": "12", "Transfer-Encoding": "chunked"},
        b"2\r\n{}\r\n0\r\n\r\n",
        411,
    ),
    "a function that does not exist": ("queue/join", {**JSON, "Content-Length": "14"}, b'{"fn_index":9}', 400),
    "no JSON": ("queue/join", {**JSON, "Content-Length": "5"}, b"hello", 400),
    "deep JSON": ("queue/join", {**JSON, "Content-Length": "200000"}, b"[" * 200_000, 400),
    "no text": ("queue/join", {**JSON, "Content-Length": "2"}, b"\xff\xfe", 400),
}


@pytest.mark.parametrize("kind", BODIES)
def test_bodies_over_a_limit_or_out_of_form_are_refused(app: App, kind: str) -> None:
    path, headers, body, status = BODIES[kind]
    assert ask(app.url, "POST", f"/gradio_api/{path}", headers, body)[0] == status


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:7860"},
        {"Host": ""},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "127.0.0.1", "Origin": "https://evil.example"},
        {"Host": "127.0.0.1", "Origin": "http://127.0.0.1:1"},
        {"Host": "127.0.0.1", "Origin": "null"},
    ],
    ids=str,
)
def test_other_sites_cannot_use_it(app: App, headers: dict[str, str]) -> None:
    assert ask(app.url, "GET", "/config", headers)[0] == 403
    assert ask(app.url, "POST", "/gradio_api/queue/join", {**headers, **JSON, "Content-Length": "2"}, b"{}")[0] == 403


# --- How it starts and ends.


def test_an_error_at_the_start_is_one_clear_line(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check_line(run("app", "--port", port), f"port {port} (Address already in use): choose others with --host and")
    check_line(run("app", "--port", 70_000), "--port must be from 0 to 65535, not 70000")
    check_line(run("app", "--host", "no such host"), "nothing can be served at no such host")
    check_line(run("app", "--host", "192.0.2.1", "--port", "0"), "nothing can be served at 192.0.2.1")
    check_line(run("app", "--model", "mrcnn_dpt_nano"), "did you mean mrcnn_dpt_nano_digits?")


def test_without_gradio_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['gradio'] = None; from dpt_zoo.cli import main; sys.exit(main(['app', '--port', '0']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    check_line((done.returncode, done.stdout, done.stderr), 'pip install "dpt-zoo[app]"')


def test_it_ends_quietly_and_leaves_nothing(tmp_path: Path, quick_python: Path) -> None:
    def end(number: int) -> int:
        folder = tmp_path / str(number)
        folder.mkdir()
        with running_app(temporary=folder, python=quick_python) as app:
            Client(app.url).detect(SCENE)
            status = app.stop(number)
        assert [line for line in app.log if " objects in " not in line] == []
        assert list(folder.iterdir()) == []
        return status

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(end, [signal.SIGINT, signal.SIGTERM])) == [130, 143]


def test_options_out_of_range_are_an_error_in_the_page(client: Client) -> None:
    image = file_data(client.upload(SCENE), orig_name="image.png")
    bad: list[tuple[Any, ...]] = [(7, 0, 0), (0, 0.6, 0), (0, 0, 64), ([], None, "x")]
    for options in bad:
        with pytest.raises(AppError, match=r"is not an option: choose one of 0, "):
            client.call("detect", [image, MODEL, *options])
    large = io.BytesIO()
    Image.new("RGB", (2600, 2600)).save(large, "PNG")
    image = file_data(client.upload(large.getvalue()), orig_name="image.png")
    with pytest.raises(AppError, match="the image would have 100 slices, at most 64 are accepted"):
        client.call("detect", [image, MODEL, 0, 0, 320])
    with pytest.raises(AppError, match="object is 999, but"):
        client.call("explain", [image, MODEL, 999, *OPTIONS])
    with pytest.raises(AppError, match="an object of a slice cannot be explained"):
        client.call("explain", [image, MODEL, 0, 0, 0, 1280])


def test_the_server_keeps_one_image_of_a_page(app: App, client: Client) -> None:
    others = set(app.folder.glob("*/canvas.png"))
    client.detect(SCENE)
    (first,) = set(app.folder.glob("*/canvas.png")) - others
    client.detect(SCENE)
    (second,) = set(app.folder.glob("*/canvas.png")) - others
    assert second != first
    assert not first.parent.exists()

    second.unlink()  # as the server does when its folder is full
    with pytest.raises(AppError, match="the image is no longer on the server: choose it again"):
        client.show(DEFAULT_SCORE, [])


def test_unknown_models_are_an_error_in_the_page(client: Client) -> None:
    with pytest.raises(AppError, match="there is no model 'x'"):
        client.detect(SCENE, model="x")


def check_line(done: tuple[int, str, str], words: str) -> None:
    status, out, error = done
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert error.startswith("dpt-zoo: ")
    assert words in error


def test_an_exported_file_is_one_of_the_models(tmp_path: Path) -> None:
    from dpt_zoo.app.page import Models

    file = make_onnx(tmp_path / "model.onnx")
    make_onnx(tmp_path / "other.onnx")
    models = Models(str(file), "cpu")
    assert models.first_name == "model.onnx" and models.choices()[0] == ("model.onnx", "model.onnx")
    assert models.load("model.onnx").classes == ("red", "green", "blue")
    summary, card = models.describe("model.onnx")
    assert summary == "An exported model: first_pixel, float32, 3 classes" and "Apache-2.0" in card
    assert models.describe("mrcnn_dpt_nano_digits") == Models("mrcnn_dpt_nano_digits", "cpu").describe(
        "mrcnn_dpt_nano_digits"
    )
    for name in (str(file), str(tmp_path / "other.onnx"), "other.onnx", "../model.onnx"):
        with pytest.raises(UnknownModelError):
            models.load(name)
