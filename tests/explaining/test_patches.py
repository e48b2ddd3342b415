"""The patches that DePatch predicts, and those that an object's score depends on."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reference_data import ROOT
from running import Run
from torch import Tensor, nn

import dpt_zoo
from dpt_zoo.errors import InputError
from dpt_zoo.explaining.patches import Explanation
from dpt_zoo.models.depatch import DePatch

SCENE = ROOT / "dpt_zoo" / "app" / "examples" / "digits-1.png"
DEMOS = ["retinanet_dpt_nano_digits", "mrcnn_dpt_nano_digits"]


@pytest.fixture(scope="module", params=DEMOS)
def detector(request: pytest.FixtureRequest) -> dpt_zoo.Detector:
    return dpt_zoo.Detector(request.param, device="cpu")


@pytest.fixture
def model() -> Any:
    return dpt_zoo.create_model(DEMOS[0])


class Constant(nn.Module):
    """Predicts the same offsets for all patches, whatever the image shows."""

    def __init__(self, offsets: tuple[float, float, float, float]) -> None:
        super().__init__()
        self.weight = torch.empty(0)  # its type is asked for
        self.offsets = torch.tensor(offsets)

    def forward(self, x: Tensor) -> Tensor:
        return self.offsets.expand(*x.shape[:2], 4)


def set_offsets(model: Any, offsets: tuple[float, float, float, float]) -> None:
    for module in model.modules():
        if isinstance(module, DePatch):
            module.offset_predictor = Constant(offsets)


def explain(model: Any, size: tuple[int, int] = (192, 192)) -> Explanation:
    """Explain a scene of `size`: (width, height)."""
    return dpt_zoo.Detector(model).explain(Image.open(SCENE).convert("RGB").resize(size))


def test_without_offsets_the_patches_are_the_regular_grid(model: Any) -> None:
    set_offsets(model, (0, 0, 0, 0))
    for stage, side in zip(explain(model).stages, (8, 16, 32), strict=True):
        assert stage.grid_shape == (192 // side, 192 // side)
        assert np.array_equal(stage.boxes, stage.regular_boxes)
        assert np.all(stage.shift == 0) and np.all(stage.growth == 1)
        # The middle of each patch of `side` pixels, row by row, with the same size everywhere.
        centres = stage.boxes.reshape(-1, 2, 2).mean(axis=1)
        steps = np.arange(side / 2, 192, side)
        assert np.allclose(centres, [(x, y) for y in steps for x in steps], atol=1e-4)
        sizes = stage.boxes[:, 2:] - stage.boxes[:, :2]
        assert np.allclose(sizes, sizes[0], atol=1e-4)


def test_known_offsets_are_where_arithmetic_puts_them(model: Any) -> None:
    offsets = (0.5, -0.25, 0.3, -0.1)
    set_offsets(model, offsets)
    for module in model.modules():
        if isinstance(module, DePatch):
            module.box_coder.wh_bias.data[:] = torch.tensor([0.2, 0.4])
    for stage, side in zip(explain(model).stages, (8, 16, 32), strict=True):
        for row, column in ((1, 2), (3, 1), (3, 3)):
            x = (column + 0.5 + math.tanh(0.5)) * side
            y = (row + 0.5 + math.tanh(-0.25)) * side
            half_width, half_height = math.tanh(0.3 + 0.2) * side, math.tanh(-0.1 + 0.4) * side
            box = np.clip([x - half_width, y - half_height, x + half_width, y + half_height], 0, 192)
            index = row * stage.grid_shape[1] + column
            assert stage.boxes[index] == pytest.approx(box, abs=1e-3)
            points = [(px, py) for px in np.linspace(box[0], box[2], 3) for py in np.linspace(box[1], box[3], 3)]
            assert np.allclose(stage.points[index], points, atol=1e-3)
        inner = stage.grid_shape[1] + 1  # not cut off by the border
        growth = math.sqrt(math.tanh(0.5) * math.tanh(0.3) / math.tanh(0.2) / math.tanh(0.4))
        assert stage.shift[inner] == pytest.approx(math.hypot(math.tanh(0.5), math.tanh(0.25)), abs=1e-4)
        assert stage.growth[inner] == pytest.approx(growth, abs=1e-3)


def test_pixels_are_those_of_the_original_image(model: Any) -> None:
    """A wide image is resized to 192 x 96 pixels; the network sees it without padding, twice as small."""
    set_offsets(model, (0, 0, 0, 0))
    stage = explain(model, (384, 192)).stages[0]
    assert stage.grid_shape == (12, 24)
    centres = stage.boxes.reshape(-1, 2, 2).mean(axis=1)
    assert np.allclose(centres[[0, -1]], [[8, 8], [376, 184]], atol=1e-4)


class TestObjects:
    def test_an_object_rests_on_the_patches_around_it(self, detector: dpt_zoo.Detector) -> None:
        detections = detector(SCENE)
        for index in range(3):
            explanation = detector.explain(SCENE, index)
            assert explanation.detections.boxes.tolist() == detections.boxes.tolist()
            x0, y0, x1, y1 = detections.boxes[index]
            stage = explanation.stages[0]
            assert stage.importance is not None and stage.importance.max() == 1
            centres = stage.boxes.reshape(-1, 2, 2).mean(axis=1)
            is_inside = np.all((centres >= (x0, y0)) & (centres <= (x1, y1)), axis=1)
            assert stage.importance[is_inside].mean() > 5 * stage.importance[~is_inside].mean()

    def test_the_model_is_unchanged(self, detector: dpt_zoo.Detector) -> None:
        before = detector(SCENE).scores.tolist()
        detector.explain(SCENE, 0)
        assert detector(SCENE).scores.tolist() == before
        assert all(parameter.grad is None for parameter in detector.model.parameters())
        assert not any(module._forward_hooks for module in detector.model.modules())

    def test_no_such_object(self, detector: dpt_zoo.Detector) -> None:
        with pytest.raises(InputError, match=r"object is 99, but .* objects were detected, counted from 0"):
            detector.explain(SCENE, 99)
        with pytest.raises(InputError, match="object must be a whole number from 0"):
            detector.explain(SCENE, -1)


@pytest.mark.parametrize("arguments", [(), ("--object", 0)], ids=["patches", "object"])
def test_the_command_draws(run: Run, tmp_path: Path, arguments: tuple[Any, ...]) -> None:
    path = tmp_path / "patches.png"
    status, out, err = run("explain", SCENE, "--model", DEMOS[0], "--output", path, *arguments)
    assert (status, err) == (0, "") and out.startswith("object  class  score\n0 ")
    with Image.open(path) as picture:
        assert min(picture.size) > 300
        assert len(np.unique(np.asarray(picture.convert("RGB").resize((50, 20))).reshape(-1, 3), axis=0)) > 100
