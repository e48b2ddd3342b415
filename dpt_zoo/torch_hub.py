"""The entry points of torch.hub: each model of the manifest, `train` and `evaluate`. Imports no torch."""

from collections.abc import Callable
from typing import Any

from .manifest.records import Classifier, DemoDetector, PublishedDetector, read_manifest


def entry_points() -> dict[str, Callable[..., Any]]:
    """Return the entry points by name. The docstring of a model's entry point has its metrics."""
    models = {name: _entry_point(record) for name, record in read_manifest().records.items()}
    return {**models, "train": train, "evaluate": evaluate}


def train(model: str, **kwargs: Any) -> Any:
    """Train a config file or fine-tune a detector, and return the path of its weights. See `dpt_zoo.train`."""
    from .training.trainer import train

    return train(model, **kwargs)


def evaluate(model: str, **kwargs: Any) -> Any:
    """Evaluate a detector on a data set, and return its COCO metrics. See `dpt_zoo.evaluate`."""
    from .evaluation.evaluator import evaluate

    return evaluate(model, **kwargs)


def _entry_point(record: PublishedDetector | DemoDetector | Classifier) -> Callable[..., Any]:
    def detector(**kwargs: Any) -> Any:
        from .models.factory import create_model

        return create_model(record.name, **kwargs)

    def classifier(pretrained: bool = True, **kwargs: Any) -> Any:
        import timm

        from . import models as models  # registers the classifiers in timm

        return timm.create_model(record.name, pretrained=pretrained, **kwargs)

    entry_point: Callable[..., Any]
    if isinstance(record, Classifier):
        entry_point = classifier
        usage = "pretrained=True, num_classes=1000, ...; see `timm.create_model`. Returns a timm model."
    else:
        entry_point = detector
        usage = 'pretrained=True, weights=None, num_classes=None, device="cpu"; see `dpt_zoo.create_model`.'
        usage += " Returns an MMDetection model in eval mode."
    entry_point.__name__ = entry_point.__qualname__ = record.name
    entry_point.__doc__ = f"{record.summary}\n\n    Keyword arguments: {usage}\n    "
    return entry_point
