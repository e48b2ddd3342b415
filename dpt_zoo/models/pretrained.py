"""Load the weights of a backbone, also from checkpoints that other code wrote, under other names."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..weights.loading import load_weights
from ..weights.store import read_trusted_weights
from .backbone import DPT
from .depatch import DePatch

LANDMARK = re.compile(r"^(.*?)patch_embeds?[._]?([01])\.proj\.weight$")
"""The first patch embedding: a prefix, and the number of the first stage."""
PLAIN = {"proj.weight", "proj.bias", "norm.weight", "norm.bias"}
"""The tensors of a plain patch embedding."""


def load_backbone(backbone: DPT, location: str | Path) -> str:
    """Load weights of a classifier or a detector into a backbone, and return a line about what was loaded.

    Args:
        backbone: the backbone.
        location: a model's name ("dpt_tiny"), a path, `https://...` or `hf://org/repo/file`.

    Raises:
        FetchError: The weights are not in the cache and cannot be fetched.
        OutputError: The cache cannot be written.
        WeightsError: The file is missing, unreadable, or of another network.
    """
    path, weights = read_trusted_weights(location)
    own = {name: tensor for name, tensor in to_zoo_names(weights.tensors).items() if not is_classifiers_own(name)}
    load_weights(backbone, own, path, f"DPT-{backbone.size.capitalize()}")
    taken = set(map(id, own.values()))
    left_out = sorted({name.split(".")[0] for name, tensor in weights.tensors.items() if id(tensor) not in taken})
    return f"{len(own)} tensors from {location}, left out: {', '.join(left_out) or 'none'}"


def is_classifiers_own(name: str) -> bool:
    """Return whether `name` is a tensor of the classifier that the backbone does not have."""
    own = ("cls_token", "norm.", "head.")
    return name.startswith(own) or name.endswith((".value_spatial_shapes", ".box_coder.anchor"))


def to_zoo_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a DPT or a PVT under the names of this project, which are the authors'.

    Recognised are a prefix before all names (`model.`, `encoder.`, ...), whose other tensors are left out; lists of
    stages, `patch_embeds.0` for `patch_embed1`; and a PVT (arXiv 2102.12122), whose plain patch embeddings become
    DePatch that samples the regular patches, with the same features up to rounding. Other tensors keep their names.
    """
    matches = [match for match in map(LANDMARK.match, tensors) if match]
    if not matches:
        return dict(tensors)
    prefix, first = min((match[1], int(match[2])) for match in matches)
    stages = re.compile(r"^(patch_embed|pos_embed|block)s?[._]?(\d)\b")
    named = {
        stages.sub(lambda found: f"{found[1]}{int(found[2]) - first + 1}", name.removeprefix(prefix)): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    for stage in ("patch_embed2.", "patch_embed3.", "patch_embed4."):
        plain = {name.removeprefix(stage): tensor for name, tensor in named.items() if name.startswith(stage)}
        if plain.keys() == PLAIN and plain["proj.weight"].shape[2:] == (2, 2):
            named = {name: tensor for name, tensor in named.items() if not name.startswith(stage)}
            named |= {f"{stage}{name}": tensor for name, tensor in _to_depatch(plain).items()}
    return named


def _to_depatch(plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the DePatch that computes what a plain embedding of 2x2 patches does."""
    weight = plain["proj.weight"]  # (out, in, 2, 2)
    depatch = DePatch(weight.shape[1], weight.shape[0])
    # The corners of 3x3 points are the centres of the patch's pixels; the other points are not used at first.
    projection = torch.zeros(*weight.shape[:2], depatch.points, depatch.points, dtype=weight.dtype)
    projection[:, :, ::2, ::2] = weight
    return {
        **depatch.state_dict(),
        **{f"patch_embed.{name}": tensor for name, tensor in plain.items()},
        "output_proj.weight": projection.permute(0, 3, 2, 1).flatten(1),  # by column, row, channel
        "output_proj.bias": plain["proj.bias"],
        "norm.weight": plain["norm.weight"],
        "norm.bias": plain["norm.bias"],
    }
