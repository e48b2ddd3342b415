"""The page on deploying: its examples, which do not use this package, find what `Detector` finds."""

import json
import re
import runpy
import shutil
import tarfile
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from app_browser import running_browser
from PIL import Image
from playwright.sync_api import Route
from reference_data import ROOT

from dpt_zoo import Detections, Detector
from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.exporting.preprocessing import add_preprocessing
from dpt_zoo.runtimes.graph_metadata import INPUTS, OUTPUTS

PAGE = (ROOT / "docs" / "deployment.md").read_text()
EXAMPLES = ROOT / "docs" / "examples"
MODEL = "mrcnn_dpt_nano_digits"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    make_digit_scenes(folder, num_train=1, num_test=1)
    return folder / "val2017" / "000001.png"


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(MODEL, device="cpu")


@pytest.fixture(scope="module")
def with_preprocessing(exported_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as an ONNX file that takes an image of any size, without tracing it again."""
    model = ir.load(exported_demo)
    add_preprocessing(model, (192, 192), 32)
    path = tmp_path_factory.mktemp("exported") / "preprocessing.onnx"
    ir.save(model, path)
    return path


def mask_iou(mask: Any, other: Any) -> float:
    return float((mask & other).sum() / (mask | other).sum())


@pytest.mark.parametrize(("size", "tolerance"), [((192, 192), 0.01), ((320, 280), 1)], ids=["as it is", "resized"])
def test_python(size: tuple[int, int], tolerance: float, exported_demo: Path, scene: Path, detector: Detector) -> None:
    picture = Image.open(scene).resize(size)
    expected = detector(picture)
    example = runpy.run_path(str(EXAMPLES / "detect_onnx.py"))
    found = example["detect"](ort.InferenceSession(exported_demo), picture)
    assert [name for name, *_ in found] == expected.names
    np.testing.assert_allclose([score for _, score, *_ in found], expected.scores, atol=tolerance / 10)
    np.testing.assert_allclose([box for _, _, box, _ in found], expected.boxes, atol=tolerance)
    assert expected.masks is not None and len(expected) > 0
    assert min(map(mask_iou, (mask for *_, mask in found), expected.masks)) > 0.9


def test_python_with_preprocessing(
    with_preprocessing: Path, scene: Path, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(with_preprocessing, "preprocessing.onnx")
    Image.open(scene).save("photo.jpg", quality=95)
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "preprocessing.onnx" in block)
    names: dict[str, Any] = {}
    exec(code, names)
    found = dict(zip((output.name for output in names["session"].get_outputs()), names["found"], strict=True))
    expected = detector("photo.jpg")
    np.testing.assert_allclose(found["boxes"], expected.boxes, atol=0.01)
    np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-4)


def test_triton_config() -> None:
    (config,) = re.findall(r"```\n(name:.*?)```", PAGE, re.S)
    assert re.findall(r'{ name: "(\w+)"', config) == [*INPUTS, *OUTPUTS]


@pytest.fixture(scope="module")
def onnxruntime_web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the version that the example imports, from npm's registry."""
    (version,) = re.findall(r"onnxruntime-web@([\d.]+)", (EXAMPLES / "detect_onnx.html").read_text())
    folder = tmp_path_factory.mktemp("npm")
    url = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{version}.tgz"
    with urlopen(url) as answer, tarfile.open(fileobj=answer, mode="r|gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


@pytest.mark.browser
@pytest.mark.network
def test_javascript(onnxruntime_web: Path, with_preprocessing: Path, scene: Path, detector: Detector) -> None:
    types = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm"}

    def answer(route: Route) -> None:
        name = route.request.url.rpartition("/")[2]
        path = EXAMPLES / name if name.endswith(".html") else onnxruntime_web / "dist" / name
        headers = {"Access-Control-Allow-Origin": "*"}
        route.fulfill(path=path, content_type=types[path.suffix], headers=headers)

    with running_browser() as browser:
        page = browser.new_page()
        page.route("**/*", answer)
        page.goto("https://example.org/detect_onnx.html")
        page.set_input_files("#model", with_preprocessing)
        page.wait_for_function("document.getElementById('objects').textContent", timeout=120_000)
        ready = page.inner_text("#objects")
        page.set_input_files("#picture", scene)
        page.wait_for_function(f"document.getElementById('objects').textContent != {ready!r}", timeout=120_000)
        found = [json.loads(line) for line in page.inner_text("#objects").splitlines()]
    expected: Detections = detector(scene)
    assert [each["label"] for each in found] == expected.labels.tolist()
    np.testing.assert_allclose([each["score"] for each in found], expected.scores, atol=1e-3)
    np.testing.assert_allclose([each["box"] for each in found], expected.boxes, atol=0.05)
