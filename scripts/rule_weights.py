"""Weights made by a rule from each tensor's name: what the authors' code was run on, so ours can be compared.

python scripts/rule_weights.py mrcnn_dpt_t_1x rule.safetensors
"""

import argparse
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

ModelT = TypeVar("ModelT", bound=nn.Module)


def rule_array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array that the rule gives the tensor `name`: the first branch that matches, then the override."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(size=shape)
    if name.endswith("norm.weight") or re.search(r"norm\d\.weight$", name):
        values = 1 + 0.1 * z
    elif "pos_embed" in name:
        values = 0.2 * z
    elif name.endswith("offset_predictor.weight"):
        values = 0.5 * z
    elif name.endswith("wh_bias"):
        values = math.log(math.sqrt(5 / 3)) + 0.1 * z
    elif len(shape) == 1:
        values = 0.02 * z
    else:
        values = z * math.sqrt(1 / math.prod(shape[1:]))
    if name == "bbox_head.retina_cls.bias":
        values = -2.0 + 0.5 * z
    return values.astype(np.float32)


def rule_state_dict(template: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rule's values for a state dict's names and shapes; what the rule leaves as it is comes from `template`."""
    return {
        name: tensor.clone() if is_kept(name, tensor) else torch.from_numpy(rule_array(name, tuple(tensor.shape)))
        for name, tensor in template.items()
    }


def is_kept(name: str, tensor: Tensor) -> bool:
    """Whether the rule keeps this entry's own value: integer buffers, and the classifier's patch centres."""
    return not tensor.is_floating_point() or name.endswith("box_coder.anchor")


def load_rule_weights(model: ModelT) -> ModelT:
    """Put the rule's values into a model, in its own precision (float64 holds the float32 values widened)."""
    model.load_state_dict(rule_state_dict(model.state_dict()))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a model of the zoo")
    parser.add_argument("file", type=Path, help="the safetensors file to write")
    args = parser.parse_args()

    from safetensors.torch import save

    import dpt_zoo
    from dpt_zoo.utils.files import open_atomic

    model = dpt_zoo.create_model(args.name, pretrained=False)
    with open_atomic(args.file) as file:
        file.write(save(rule_state_dict(model.state_dict())))


if __name__ == "__main__":
    main()
