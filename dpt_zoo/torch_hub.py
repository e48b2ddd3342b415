"""The torch.hub entry points: one for each detector of the manifest, the authors' and the shipped, and two to work."""

from collections.abc import Callable
from typing import Any

from .manifest.records import DemoDetector, PublishedDetector, read_manifest


def entry_points() -> dict[str, Callable[..., Any]]:
    """A function for each detector, by name, which makes it, and whose docstring tells its figures; two to work."""
    models = {name: _entry_point(checkpoint) for name, checkpoint in read_manifest().detectors.items()}
    return {**models, "train": train, "evaluate": evaluate}


def train(recipe: str, **options: Any) -> Any:
    """Train a recipe, or fine-tune a detector by its name: see `dpt_zoo.train`. Returns the weights' file."""
    from .training.trainer import train

    return train(recipe, **options)


def evaluate(recipe: str, **options: Any) -> Any:
    """Measure a detector on a data set: see `dpt_zoo.evaluate`. Returns COCO's figures, and what they are of."""
    from .evaluation.evaluator import evaluate

    return evaluate(recipe, **options)


def _entry_point(checkpoint: PublishedDetector | DemoDetector) -> Callable[..., Any]:
    def entry_point(**kwargs: Any) -> Any:
        from .models.factory import create_model

        return create_model(checkpoint.name, **kwargs)

    entry_point.__name__ = entry_point.__qualname__ = checkpoint.name
    entry_point.__doc__ = f"""{checkpoint.summary}

    Keyword arguments: pretrained=True, weights=None (a .pth or .safetensors file), num_classes=None,
    device="cpu"; see `dpt_zoo.create_model`. Returns an MMDetection model in eval mode.
    """
    return entry_point
