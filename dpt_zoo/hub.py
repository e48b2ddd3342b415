"""The torch.hub entry points, one for each detector of the manifest."""

from collections.abc import Callable
from typing import Any

from .manifest import Checkpoint, get_checkpoint, list_models


def entry_points() -> dict[str, Callable[..., Any]]:
    """A function for each detector, by name, which makes it; its docstring tells the published figures."""
    return {name: _entry_point(get_checkpoint(name)) for name in list_models()}


def _entry_point(checkpoint: Checkpoint) -> Callable[..., Any]:
    def entry_point(**kwargs: Any) -> Any:
        from .factory import create_model

        return create_model(checkpoint.name, **kwargs)

    entry_point.__name__ = entry_point.__qualname__ = checkpoint.name
    entry_point.__doc__ = f"""{checkpoint.summary}

    Keyword arguments: pretrained=True, weights=None (a .pth or .safetensors file), num_classes=None,
    device="cpu"; see `dpt_zoo.create_model`. Returns an MMDetection model in eval mode.
    """
    return entry_point
