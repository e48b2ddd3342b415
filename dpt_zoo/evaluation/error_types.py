"""The cost of each type of error in AP, as TIDE (arXiv 2008.08115) defines it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import matching
from .matching import RIGHT, Matches

RECALLS = np.linspace(0, 1, 101)  # at which COCO's evaluation takes the precision
TYPES = {
    "classification": matching.CLASS,
    "localisation": matching.LOCATION,
    "both": matching.BOTH,
    "duplicate": matching.DUPLICATE,
    "background": matching.BACKGROUND,
}
"""The types of wrong predictions, by name."""
MEANINGS = {
    "classification": "another class than the object, whose box it fits (IoU of at least 0.5)",
    "localisation": "the right class, but an IoU from 0.1 to 0.5",
    "both": "wrong class and an IoU from 0.1 to 0.5",
    "duplicate": "another prediction of a higher score has the object",
    "background": "no object there (IoU of at most 0.1)",
    "missed": "objects that no prediction would find with its class or box corrected",
}


class ErrorType(NamedTuple):
    """A type of error: how many there are, and by how much AP at IoU 0.5 would rise without them, in percent."""

    number: int
    cost: float


def compute_error_types(matches: Matches) -> dict[str, ErrorType]:
    """Return the errors by type. The costs do not add up to the missing AP, because errors hide one another."""
    base = average_precision(matches.scores, matches.labels, matches.outcomes == RIGHT, matches.num_objects)
    errors = {}
    for name, outcome in TYPES.items():
        is_error = matches.outcomes == outcome
        is_corrected = is_error & (matches.corrected >= 0)
        labels = np.where(is_corrected, matches.corrected, matches.labels)
        is_right = (matches.outcomes == RIGHT) | is_corrected
        kept = ~is_error | is_corrected
        without = average_precision(matches.scores[kept], labels[kept], is_right[kept], matches.num_objects)
        errors[name] = ErrorType(int(is_error.sum()), without - base)
    left = matches.num_objects - matches.num_missed
    without = average_precision(matches.scores, matches.labels, matches.outcomes == RIGHT, left)
    errors["missed"] = ErrorType(int(matches.num_missed.sum()), without - base)
    return errors


def average_precision(
    scores: NDArray[np.float64],
    labels: NDArray[np.int64],
    is_right: NDArray[np.bool_],
    num_objects: NDArray[np.int64],
) -> float:
    """Return COCO's AP at one IoU in percent, the mean over the classes that have objects; 0 without any.

    Args:
        scores: `(N,)`.
        labels: `(N,)`, the classes.
        is_right: `(N,)`, whether a prediction is right.
        num_objects: `(num_classes,)`.
    """
    order = np.argsort(-scores, kind="stable")
    labels, is_right = labels[order], is_right[order]
    present = np.flatnonzero(num_objects).tolist()
    precisions = [_class_precision(is_right[labels == label], int(num_objects[label])) for label in present]
    return 100 * float(np.mean(precisions)) if precisions else 0.0


def _class_precision(is_right: NDArray[np.bool_], num_objects: int) -> float:
    """Return the mean precision over `RECALLS` of one class's predictions, the highest score first."""
    if not is_right.size:
        return 0.0
    num_right = is_right.cumsum()
    precision = num_right / np.arange(1, len(is_right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(num_right / num_objects, RECALLS, side="left")
    return float(np.append(precision, 0)[np.minimum(places, len(precision))].mean())
