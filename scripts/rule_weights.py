"""Weights computed by a rule from the tensors' names. The reference outputs of the authors' code are for them.

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
    """Return the rule's float32 array for the tensor `name`: the first branch that matches, then the override."""
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
    """Return the rule's values for the names and shapes of `template`, and `template`'s own where `is_kept`."""
    return {
        name: tensor.clone() if is_kept(name, tensor) else torch.from_numpy(rule_array(name, tuple(tensor.shape)))
        for name, tensor in template.items()
    }


def is_kept(name: str, tensor: Tensor) -> bool:
    """Return whether an entry keeps its own value: integer buffers and the classifier's patch centres do."""
    return not tensor.is_floating_point() or name.endswith("box_coder.anchor")


def load_rule_weights(model: ModelT) -> ModelT:
    """Load the rule's values into a model, converted from float32 to its precision."""
    model.load_state_dict(rule_state_dict(model.state_dict()))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of a model")
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
