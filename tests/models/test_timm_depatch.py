"""DePatch in timm's PVT v2 and Swin Transformer."""

import itertools
import math
from typing import Any

import pytest
import timm
import torch
from reference_data import random_images
from torch import Tensor, nn

from dpt_zoo.errors import InputError
from dpt_zoo.models import DePatch, with_depatch
from dpt_zoo.models.timm_depatch import DeformableEmbedding

SMALL_SWIN = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}
MODELS: dict[str, dict[str, Any]] = {
    "pvt_v2_b0": {"depths": (1, 1, 1, 1)},
    "swin_tiny_patch4_window7_224": SMALL_SWIN,
}
CHANNELS = (32, 64, 160, 256)  # of PVT v2 B0


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def deformable_parts(model: nn.Module) -> list[DeformableEmbedding]:
    return [module for module in model.modules() if isinstance(module, DeformableEmbedding)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sides", [(64, 96), (72, 104)])  # 72 / 8 = 9 is odd
def test_features_are_the_same_until_training(name: str, sides: tuple[int, int]) -> None:
    sizes: dict[str, Any] = {"img_size": sides} if name.startswith("swin") else {}
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True, **sizes, **MODELS[name]).eval()
    images = random_images(7, (2, 3, *sides))
    with torch.inference_mode():
        before = [each.clone() for each in model(images)]
        after = with_depatch(model)(images)
    assert len(deformable_parts(model)) == 3
    for expected, given in zip(before, after, strict=True):
        assert given.shape == expected.shape
        assert (given - expected).abs().max() <= 1e-4 * expected.std()


def test_the_new_parameters_are_the_papers() -> None:
    model = timm.create_model("pvt_v2_b0")
    before = num_parameters(model)
    stages = list(itertools.pairwise(CHANNELS))
    parts = deformable_parts(with_depatch(model))
    assert num_parameters(model) - before == sum(4 * c * d + 7 * d + 2 for c, d in stages)
    # With its 3x3 points for a patch, each embedding is as large as the paper's DePatch between the same widths.
    assert [num_parameters(part) for part in parts] == [num_parameters(DePatch(c, d)) for c, d in stages]


@pytest.mark.parametrize("name", ["pvt_v2_b0", "swin_tiny_patch4_window7_224"])
def test_the_boxes_learn(name: str) -> None:
    sizes: dict[str, Any] = {"img_size": 64} if name.startswith("swin") else {}
    model = with_depatch(timm.create_model(name, num_classes=5, **sizes, **MODELS[name]))
    model(random_images(7, (2, 3, 64, 64))).sum().backward()
    for part in deformable_parts(model):
        for parameter in (part.offset_predictor.weight, part.box_coder.wh_bias):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0


@pytest.mark.parametrize(("kernel_size", "padding"), [(2, 0), (3, 1)])
def test_patches_are_where_the_boxes_are(kernel_size: int, padding: int) -> None:
    """On a map whose value is the pixel's x, a box that is moved right and enlarged reads its own columns."""
    part = DeformableEmbedding(nn.Identity(), 1, 4, kernel_size, padding).double()
    moved, grown = 0.2, 0.9  # of a cell: the centre, and half of the side
    offsets = torch.tensor([math.atanh(moved), 0, 0, 0], dtype=torch.float64)
    nn.init.zeros_(part.patch_embed.norm.weight)
    nn.init.ones_(part.patch_embed.norm.bias)
    part.offset_predictor.weight.data = (offsets / (4 * nn.functional.gelu(torch.ones(1)).item()))[:, None].repeat(1, 4)
    part.box_coder.wh_bias.data.fill_(math.atanh(grown))
    ramp = torch.arange(16, dtype=torch.float64).expand(1, 1, 8, 16)
    with torch.inference_mode():
        patches = part(ramp)
    assert patches.shape == (1, 1, 4 * kernel_size, 8 * kernel_size)
    cell = 3  # away from the edges
    centre = 2 * cell - padding + kernel_size / 2 - 0.5 + 2 * moved
    expected = torch.linspace(centre - 2 * grown, centre + 2 * grown, kernel_size)
    row = 1 * kernel_size  # the second row of cells
    columns = patches[0, 0, row, cell * kernel_size : (cell + 1) * kernel_size]
    assert torch.allclose(columns, expected.double())


def test_other_models_are_refused() -> None:
    with pytest.raises(InputError, match=r"cannot change ResNet: it supports timm's PVT v2 and the first Swin"):
        with_depatch(timm.create_model("resnet10t"))
    model = with_depatch(timm.create_model("pvt_v2_b0"))
    with pytest.raises(InputError, match="already has DePatch"):
        with_depatch(model)


def test_device_precision_and_mode_are_the_models() -> None:
    model = with_depatch(timm.create_model("pvt_v2_b0").bfloat16().eval())
    tensors: list[Tensor] = [*model.parameters()]
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    assert not any(module.training for module in model.modules())
