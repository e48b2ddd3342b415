"""From a config to the metadata of its weights, and from the metadata of weights to a config."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from .. import mmlab  # noqa: F401  (before mmdet)

# isort: split
from mmdet.datasets import CocoDataset
from mmdet.utils import get_test_pipeline_cfg

from ..errors import InputError
from ..formats.issues import list_names
from ..manifest.metadata import WeightsMetadata
from ..manifest.records import DemoDetector, PublishedDetector, read_manifest

ARCHITECTURES = {"RetinaNet": "retinanet", "MaskRCNN": "mask_rcnn"}
"""The architecture by the type of a config's model."""
IGNORED = {
    *("train_cfg", "init_cfg", "drop_path_rate", "gradient_checkpointing", "frozen_stages", "batch_augments"),
    "meta_keys",
}
"""Settings that have no effect on detection, besides those of losses."""
DESCRIBED = {"num_classes", "scale"}
"""Settings that the metadata has."""


def described_config(metadata: WeightsMetadata) -> Config:
    """Return the config of the model that the metadata of weights describes, apart from its number of classes."""
    cfg = Config.fromfile(_find_record(metadata.architecture, metadata.size).config_path)
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        cfg[name].dataset.metainfo = {"classes": metadata.classes}
    for name in ("val_dataloader", "test_dataloader"):
        for transform in cfg[name].dataset.pipeline:
            if transform.type == "Resize":
                transform.scale = metadata.scale
    return cfg


def find_scale(cfg: Any) -> tuple[int, int]:
    """Return the maximum longer and shorter side of an image that is resized for detection, in pixels."""
    (scale,) = (each["scale"] for each in get_test_pipeline_cfg(cfg) if each["type"] == "Resize")
    return int(max(scale)), int(min(scale))


def describe(cfg: Any) -> WeightsMetadata:
    """Return metadata for weights of a config's model, with the classes of its training data.

    Raises:
        InputError: The metadata cannot describe the model. The text has the reason.
    """
    backbone = cfg.model.get("backbone") or {}
    record = _find_record(ARCHITECTURES.get(cfg.model.type), backbone.get("size"))
    if not cfg.get("test_dataloader"):
        raise InputError("there is no test_dataloader, which says how images are resized")
    settings, known = (dict(_detection_settings(each)) for each in (cfg, Config.fromfile(record.config_path)))
    if differing := sorted({name for name, _ in settings.items() ^ known.items()}):
        raise InputError(f"settings differ from those of {record.name}: {list_names(differing)}")
    metainfo = cfg.train_dataloader.dataset.get("metainfo") or CocoDataset.METAINFO
    return WeightsMetadata(
        architecture=record.architecture,
        size=record.size,
        classes=tuple(metainfo["classes"]),
        scale=find_scale(cfg),
    )


def describe_record(record: PublishedDetector | DemoDetector) -> WeightsMetadata:
    """Return the metadata of the weights of a detector of the zoo."""
    metadata = describe(Config.fromfile(record.config_path))
    training = {"data": record.dataset, "measured by": record.measured_by, "model": record.name}
    return dataclasses.replace(metadata, license=record.license, metrics=record.metrics, training=training)


def _find_record(architecture: str | None, size: str | None) -> PublishedDetector | DemoDetector:
    """Return the first detector of an architecture and a size: all have the same network and the same test settings."""
    for record in read_manifest().detectors.values():
        if (record.architecture, record.size) == (architecture, size):
            return record
    raise InputError("the model is not a RetinaNet or Mask R-CNN with a DPT backbone")


def _detection_settings(cfg: Any) -> Iterator[tuple[str, str]]:
    """Yield the settings on which detections depend, except those in the metadata, as paths and texts."""
    _load, *transforms = get_test_pipeline_cfg(cfg)
    yield from _flatten("model", cfg.model)
    yield from _flatten("test pipeline", [each for each in transforms if each["type"] != "LoadAnnotations"])


def _flatten(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, each in value.items():
            if name not in IGNORED | DESCRIBED and not name.startswith("loss"):
                yield from _flatten(f"{path}.{name}", each)
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _flatten(f"{path}.{index}", each)
    else:
        yield path, repr(value)
