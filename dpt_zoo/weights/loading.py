"""Copy a state dict into a model. Refuse a state dict of another model."""

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor, nn

from ..errors import WeightsError

MAX_SHOWN = 4  # number of differing tensors that an error names; it counts the others


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], path: Path, model_name: str, *, resized: Collection[str] = ()
) -> list[str]:
    """Copy a state dict into a model, and return the names of the tensors that kept the model's values.

    Args:
        model: the model. Its parameters may be on the meta device.
        state: the state dict.
        path: the file of the state dict, for errors.
        model_name: the model's name, for errors.
        resized: names of tensors that depend on the number of classes. If the shape in the file differs from the
            model's, the model keeps its own values.

    Raises:
        WeightsError: Tensors are missing, unknown, or have another shape. The model is unchanged.
    """
    expected = model.state_dict()
    left_out = [name for name in resized if name in state and state[name].shape != expected[name].shape]
    differing = [name for name in expected if name not in left_out and _differs(expected[name], state.get(name))]
    differences = [_describe(name, expected[name], state.get(name)) for name in differing]
    differences += [f"{name} (not in the model)" for name in state if name not in expected]
    if differences:
        more = f" and {len(differences) - MAX_SHOWN} more" if len(differences) > MAX_SHOWN else ""
        raise WeightsError(
            f"{path}: these are not {model_name}'s weights, {len(differences)} tensors differ: "
            f"{', '.join(differences[:MAX_SHOWN])}{more}"
        )
    taken = {name: tensor for name, tensor in state.items() if name not in left_out}
    on_meta = any(tensor.is_meta for tensor in expected.values())
    if on_meta:  # copy: the tensors may be mapped from a file that is overwritten while the model is in use
        taken = {name: tensor.to(expected[name].dtype, copy=True) for name, tensor in taken.items()}
    # In place if possible: an optimizer may already refer to the parameters.
    model.load_state_dict(taken, strict=False, assign=on_meta)
    return left_out


def _differs(expected: Tensor, given: Tensor | None) -> bool:
    return given is None or given.shape != expected.shape or given.is_floating_point() != expected.is_floating_point()


def _describe(name: str, expected: Tensor, given: Tensor | None) -> str:
    if given is None:
        return f"{name} (not in the file)"
    forms = [f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}" for tensor in (given, expected)]
    return f"{name} ({forms[0]} in the file, {forms[1]} in the model)"
