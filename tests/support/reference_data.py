"""The recorded numbers, and the models that they belong to."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rule_weights import load_rule_weights
from torch import Tensor

import dpt_zoo

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "tests" / "reference"
PHOTO = REFERENCE / "img_coffee_320x240.png"

ARCHITECTURES = {
    "retinanet_dpt_t": "retinanet_dpt_t_1x",
    "retinanet_dpt_s": "retinanet_dpt_s_1x",
    "mask_rcnn_dpt_t": "mrcnn_dpt_t_1x",
    "mask_rcnn_dpt_s": "mrcnn_dpt_s_1x",
}
"""The architectures with recorded outputs, and a model of the zoo for each."""


def read_json(name: str) -> Any:
    return json.loads((REFERENCE / name).read_text())


@functools.lru_cache(maxsize=1)  # tests of a model follow each other, and a model has up to 400 MB
def rule_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a detector with the rule weights, in eval mode. It is shared: do not change it."""
    return load_rule_weights(dpt_zoo.create_model(name, pretrained=False).to(dtype))


def random_images(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Return the reference's input: standard normal numbers, in float32."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def sampled(tensor: Tensor) -> NDArray[np.float64]:
    """Return the 256 elements of a map that the reference recorded."""
    values = tensor.detach().contiguous().flatten().double().numpy()
    return values[np.random.RandomState(0).randint(0, values.size, 256)]


def relative_error(tensor: Tensor, recorded: Any, key: str) -> float:
    """Return the largest deviation from the map recorded under `key`, in its standard deviations; shapes must agree."""
    assert list(tensor.shape) == recorded[f"{key}.shape"].tolist()
    values = tensor.detach().double()
    errors = [
        np.abs(sampled(tensor) - recorded[f"{key}.vals"]).max(),
        abs(values.mean().item() - recorded[f"{key}.mean"].item()),
        abs(values.std(correction=0).item() - recorded[f"{key}.std"].item()),
    ]
    return float(max(errors) / recorded[f"{key}.std"].item())
