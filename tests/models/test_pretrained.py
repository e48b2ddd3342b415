"""Weights of a backbone under the names of other code."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from reference_data import random_images
from rule_weights import load_rule_weights, rule_state_dict
from safetensors.torch import save_file
from torch import Tensor

import dpt_zoo.models  # noqa: F401  (registers the classifiers)
from dpt_zoo.errors import WeightsError
from dpt_zoo.models import DPT, detection
from dpt_zoo.models.pretrained import load_backbone, to_zoo_names

State = dict[str, Tensor]


def nano() -> DPT:
    return load_rule_weights(DPT("nano")).eval()


def renamed(state: State, rename: Callable[[str], str]) -> State:
    return {rename(name): tensor.contiguous() for name, tensor in state.items()}


def as_list(name: str) -> str:
    """Rename `patch_embed2.norm.weight` to `patch_embeds.1.norm.weight`."""
    return re.sub(r"^(patch_embed|pos_embed|block)(\d)", lambda found: f"{found[1]}s.{int(found[2]) - 1}", name)


FORMS: dict[str, Callable[[str], str]] = {
    "the authors'": str,
    "a detector's": lambda name: f"backbone.{name}",
    "a task's": lambda name: f"model.encoder.{name}",
    "lists": as_list,
    "lists in a model": lambda name: f"student.{as_list(name)}",
    "lists from 1": lambda name: re.sub(r"^(patch_embed|block)(\d)", r"\1s.\2", name),
    "underscores": lambda name: re.sub(r"^(patch_embed|pos_embed|block)(\d)", r"\1_\2", name),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("in_order", [True, False])
def test_names_of_other_code(form: str, in_order: bool, tmp_path: Path) -> None:
    state = nano().state_dict()
    others = {"neck.lateral_convs.0.conv.weight": torch.zeros(4), "head.fc.bias": torch.zeros(3)}
    content = renamed(state, FORMS[form]) | (others if "." in FORMS[form]("") else {})
    torch.save(content if in_order else dict(sorted(content.items())), tmp_path / "other.pth")
    loaded = DPT("nano")
    load_backbone(loaded, tmp_path / "other.pth")
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    state = renamed(nano().state_dict(), FORMS["lists"])
    del state["patch_embeds.2.offset_predictor.weight"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"1 tensors differ: patch_embed3\.offset_predictor\.weight \(not in the"):
        load_backbone(DPT("nano"), tmp_path / "other.pth")


def test_a_file_of_something_else_keeps_its_names() -> None:
    state = {"conv1.weight": torch.zeros(2), "fc.bias": torch.zeros(1)}
    assert to_zoo_names(state) == state


# --- PVT: as DPT, with plain patch embeddings


def as_pvt(state: State) -> State:
    """Return the tensors of a PVT that has a DPT's blocks, and embeddings of the size of its predictors' layers."""
    plain = {
        name.replace(".patch_embed.", "."): tensor
        for name, tensor in state.items()
        if not re.match(r"patch_embed[234]\.(?!patch_embed)", name)
    }
    return renamed(plain, str)


def pvt_maps(dpt: DPT, images: Tensor) -> list[Tensor]:
    """Compute what a PVT computes: DPT's blocks behind plain embeddings."""
    maps, x = [], images
    for stage in (1, 2, 3, 4):
        embed = dpt.get_submodule(f"patch_embed{stage}")
        plain: Any = embed if stage == 1 else embed.patch_embed
        size = plain.proj.kernel_size[0]
        shape = (x.shape[2] // size, x.shape[3] // size)
        convolved = F.conv2d(x, plain.proj.weight, plain.proj.bias, stride=size)
        tokens = plain.norm(convolved.flatten(2).transpose(1, 2)) + dpt.position_embedding(stage, shape)
        x = dpt.transform(tokens, shape, stage).transpose(1, 2).unflatten(2, shape)
        maps.append(x)
    return maps


def test_a_pvt_becomes_a_dpt_with_the_same_features(tmp_path: Path) -> None:
    source = nano()
    pvt = as_pvt(source.state_dict()) | {"head.weight": torch.zeros(9, 192), "cls_token": torch.zeros(1, 1, 192)}
    save_file(pvt, tmp_path / "pvt.safetensors")
    backbone = detection.DPT("nano", init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "pvt.safetensors")})
    backbone.init_weights()
    images = random_images(7, (2, 3, 64, 96))
    with torch.inference_mode():
        for given, expected in zip(backbone.eval()(images), pvt_maps(source, images), strict=True):
            torch.testing.assert_close(given, expected, rtol=0, atol=1e-4)


def test_an_incomplete_pvt_is_refused(tmp_path: Path) -> None:
    pvt = as_pvt(nano().state_dict())
    del pvt["patch_embed2.proj.bias"]
    save_file(pvt, tmp_path / "pvt.safetensors")
    with pytest.raises(WeightsError, match=r"patch_embed2\.patch_embed\.proj\.weight \(not in the file\)"):
        load_backbone(DPT("nano"), tmp_path / "pvt.safetensors")


@pytest.mark.parametrize("form", ["a task's", "lists"])
def test_timm_loads_them_into_a_classifier(form: str, tmp_path: Path) -> None:
    own = timm.create_model("dpt_tiny").state_dict()
    values = rule_state_dict(own)
    buffers = (".value_spatial_shapes", ".box_coder.anchor")
    state = {name: tensor for name, tensor in values.items() if not name.endswith(buffers)}
    save_file(renamed(state, FORMS[form]), tmp_path / "fork.safetensors")
    overlay = {"file": str(tmp_path / "fork.safetensors")}
    model = timm.create_model("dpt_tiny", pretrained=True, pretrained_cfg_overlay=overlay)
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
