"""The score threshold of each class, chosen by measurement."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..utils.files import expand_user
from ..weights.metadata import write_metadata
from ..weights.store import read_metadata
from .matching import RIGHT, Matches

DEFAULT = 0.3
"""The threshold of a class without a right prediction, which cannot be measured; the default of `Detector`."""
Criterion = Literal["f1"] | float
"""The best F1, or the highest recall with at least this precision."""


class Curve(NamedTuple):
    """The quality of one class's predictions of at least each score.

    Attributes:
        scores: `(N,)`, the different scores, the highest first.
        precision: `(N,)`, how many of the predictions are right, in [0, 1].
        recall: `(N,)`, how many of the objects are detected, in [0, 1].
        f1: `(N,)`, the harmonic mean of precision and recall.
    """

    scores: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]


class Threshold(NamedTuple):
    """The threshold of a class, with the quality of the predictions of at least this score, in [0, 1].

    `precision`, `recall` and `f1` are None if the class could not be measured.
    """

    score: float
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None


def compute_curve(matches: Matches, label: int) -> Curve:
    """Return the curve of the class with index `label` in `matches`, which has objects."""
    chosen = matches.labels == label
    scores, is_right = matches.scores[chosen], matches.outcomes[chosen] == RIGHT
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])  # of each score
    num_right, num_predictions, num_objects = is_right.cumsum()[last], last + 1, matches.num_objects[label]
    f1 = 2 * num_right / (num_predictions + num_objects)
    return Curve(scores[last], num_right / num_predictions, num_right / num_objects, f1)


def choose_threshold(curve: Curve, criterion: Criterion) -> Threshold:
    """Return the best threshold by a `criterion` on a class's `curve`; of equally good ones, the highest.

    It lies halfway between two scores, so that it keeps a distance from both. If no threshold has the precision that is
    asked for, it is the one with the highest precision.
    """
    if not curve.recall.any():
        return Threshold(DEFAULT)
    if criterion == "f1":
        quality = curve.f1
    else:
        is_precise = curve.precision >= criterion
        quality = np.where(is_precise, curve.recall, -1) if is_precise.any() else curve.precision
    best = int(quality.argmax())
    halfway = float(curve.scores[best : best + 2].mean())
    return Threshold(halfway, *(float(values[best]) for values in curve[1:]))


def tune_thresholds(matches: Matches, criterion: Criterion) -> dict[str, Threshold]:
    """Return the best threshold by a `criterion` of each class in `matches` that has objects, by name."""
    return {
        name: choose_threshold(compute_curve(matches, label), criterion)
        for label, name in enumerate(matches.classes)
        if matches.num_objects[label]
    }


def check_tunable(weights: str | Path) -> None:
    """Check that thresholds can be written into the `weights` that an evaluation was given.

    Raises:
        InputError: It is not a safetensors file on this machine.
        WeightsError: The file does not say which model it is for.
    """
    path = expand_user(weights)
    if path.suffix != ".safetensors" or not path.is_file():
        hint = "`dpt-zoo convert NAME mine.safetensors` makes one"
        raise InputError(f"tune_thresholds needs a safetensors file to write them into, not {weights}: {hint}")
    read_metadata(path)


def write_thresholds(path: Path, classes: Sequence[str], thresholds: Mapping[str, Threshold]) -> None:
    """Write the `thresholds` of the model's `classes` into its weights file; `DEFAULT` for those not measured.

    Raises:
        OutputError: The file cannot be written. It is unchanged.
    """
    scores = tuple(thresholds[name].score if name in thresholds else DEFAULT for name in classes)
    write_metadata(replace(read_metadata(path), score_thresholds=scores), path, path)
