"""Put a state dict into a model, and refuse what is not this model's."""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import WeightsError

SHOWN = 4
"""Differing tensors that an error names before it only counts them."""


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], path: Path, model_name: str, *, resized: Collection[str] = ()
) -> list[str]:
    """Copy `state`, read from `path`, into `model`, whose parameters may yet be on the meta device.

    Args:
        model_name: what the errors call the model.
        resized: tensors whose shape follows the number of classes: where the file's shape differs from the
            model's, they are left at the model's values.

    Returns:
        The names that were left so, in the model's order.

    Raises:
        WeightsError: the file lacks tensors, has others, or has some of another shape; the model is then unchanged.
    """
    expected = model.state_dict()
    left_out = [name for name in resized if name in state and state[name].shape != expected[name].shape]
    differing = [name for name in expected if name not in left_out and _differs(expected[name], state.get(name))]
    differences = [_describe(name, expected[name], state.get(name)) for name in differing]
    differences += [f"{name} (not in the model)" for name in state if name not in expected]
    if differences:
        more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise WeightsError(
            f"{path}: these are not {model_name}'s weights, {len(differences)} tensors differ: "
            f"{', '.join(differences[:SHOWN])}{more}"
        )
    taken = {name: tensor for name, tensor in state.items() if name not in left_out}
    on_meta = any(tensor.is_meta for tensor in expected.values())
    if on_meta:  # copies, since a file that the tensors are mapped from may be overwritten while the model is in use
        taken = {name: tensor.to(expected[name].dtype, copy=True) for name, tensor in taken.items()}
    # In place where that can be: an optimizer may know the parameters already.
    model.load_state_dict(taken, strict=False, assign=on_meta)
    return left_out


def check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights, read from `path`, with a number that is not finite.

    Raises:
        WeightsError: there is one; the text names its tensor.
    """
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{path}: {name} holds numbers that are not finite: fetch the file again")


def _differs(expected: Tensor, found: Tensor | None) -> bool:
    return found is None or found.shape != expected.shape or found.is_floating_point() != expected.is_floating_point()


def _describe(name: str, expected: Tensor, found: Tensor | None) -> str:
    if found is None:
        return f"{name} (not in the file)"
    return f"{name} ({_form(found)} in the file, {_form(expected)} in the model)"


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
