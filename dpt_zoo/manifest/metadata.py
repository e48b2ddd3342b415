"""What a weights file says about its model, so that its path alone is enough to load it."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from ..errors import InputError, WeightsError
from ..utils.json_files import DAMAGE
from ..utils.json_values import (
    MAX_SIDE,
    Check,
    check_thresholds,
    is_classes,
    is_integer,
    is_list,
    is_mapping,
    is_number,
    is_scores,
    is_text,
    or_none,
    parse_entries,
)
from .records import ARCHITECTURE_TITLES, Architecture, Metrics, Size

METADATA_KEY = "dpt_zoo"
"""Key of the metadata in the meta of a weights file."""
FORMAT = 1
"""Version of the metadata. Files of another version are refused."""
UNKNOWN_LICENSE = "NOASSERTION"


@dataclass(frozen=True, kw_only=True)
class WeightsMetadata:
    """What a weights file says about its model.

    Attributes:
        architecture: "retinanet" or "mask_rcnn".
        size: size of the backbone.
        classes: the names of all classes.
        scale: maximum longer and shorter side of a resized image, in pixels.
        license: SPDX identifier of the weights' licence, or "NOASSERTION".
        metrics: COCO metrics in percent, by task and name; empty if the weights were not measured.
        training: facts about the training, such as "epochs", by name.
        score_thresholds: the lowest score of an object of each class to return, as `evaluate` tuned it, or None.
    """

    architecture: Architecture
    size: Size
    classes: tuple[str, ...]
    scale: tuple[int, int]
    license: str = UNKNOWN_LICENSE
    metrics: Metrics = field(default_factory=dict)
    training: Mapping[str, str | float] = field(default_factory=dict)
    score_thresholds: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """The network as one word: "mask_rcnn_dpt_tiny"."""
        return f"{self.architecture}_dpt_{self.size}"

    @property
    def title(self) -> str:
        """The network as text: "Mask R-CNN DPT-Tiny"."""
        return f"{ARCHITECTURE_TITLES[self.architecture]} DPT-{self.size.capitalize()}"

    def to_json(self) -> dict[str, Any]:
        """Return the content of the metadata, of plain types."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, content: Any, path: object) -> "WeightsMetadata":
        """Return the metadata in the JSON value `content` of an untrusted file at `path`.

        Raises:
            WeightsError: It is incomplete, contradicts itself, or is of another version.
        """
        metadata = cls(**parse_entries(content, FORMAT, _VALID, path))
        check_thresholds(metadata.score_thresholds, metadata.classes, path)
        return metadata


def parse_config(text: bytes, path: object) -> WeightsMetadata:
    """Return the metadata in the text of an untrusted `config.json` at `path`, see `publishing.hub_config`.

    Raises:
        WeightsError: The file is another program's, or invalid.
    """
    try:
        content = json.loads(text)[METADATA_KEY]
    except DAMAGE as error:
        raise WeightsError(f"{path}: this is not the config of a model that `dpt-zoo publish` wrote") from error
    return WeightsMetadata.from_json(content, path)


def check_license(license: str) -> None:
    """Check a licence that a user gave.

    Raises:
        InputError: It is not an SPDX identifier.
    """
    if not _is_license(license):
        raise InputError(f"license must be an SPDX identifier, such as MIT or Apache-2.0, not {license!r}")


def _is_license(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.+-]{1,64}", value, re.ASCII) is not None


def _is_fact(value: Any) -> bool:
    return is_text(value) or is_number(-1e15, 1e15)(value)


_VALID: Mapping[str, Check] = {
    "architecture": lambda value: value in get_args(Architecture),
    "size": lambda value: value in get_args(Size),
    "classes": is_classes,
    "scale": is_list(2, is_integer(MAX_SIDE)),
    "license": _is_license,
    "metrics": is_mapping(lambda task: task in ("bbox", "segm"), is_mapping(is_text, is_number(0, 100))),
    "training": is_mapping(is_text, _is_fact),
    "score_thresholds": or_none(is_scores),
}
"""Whether the value of each entry is valid."""
