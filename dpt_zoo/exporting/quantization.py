"""Quantise an OpenVINO file to int8 with images of the task, and measure what is gained and lost."""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as op
from pycocotools import mask as coco_mask

from ..errors import DPTZooError, InputError
from ..inference.detections import Detections
from ..inference.detector import Detector
from ..inference.exported_backend import ExportedBackend
from ..inference.inputs import ImageInput
from ..runtimes.openvino_session import shared_core
from ..utils.streams import show
from . import openvino_file

QUANTISED = {"Convolution", "MatMul"}
"""The operators that compute in int8. They take most of the time; quantising the others would cost accuracy."""
MIN_SCORE, MIN_IOU = 0.3, 0.75
"""An object of at least this score is found again if one of its class, with half this score, has this IoU with it."""
MIN_FOUND = 0.98
"""The part of the objects that must be found again. With 95.8 %, the Mask R-CNN demo lost 0.9 box AP."""


def quantize(path: Path, images: Sequence[ImageInput], force: bool) -> Path:
    """Write an int8 copy of the OpenVINO file at `path`, made with `images`, and print what is gained and lost.

    Returns:
        The path of the copy, in the same folder.

    Raises:
        ImageError: An image cannot be read.
        InputError: Nothing is detected in the images.
        DPTZooError: Less than `MIN_FOUND` of the objects in the images are found again, or int8 is not faster. Not with
            `force`.
    """
    import nncf

    backend = ExportedBackend(path, device="cpu", scale=None, batch_size=None, num_threads=None)
    model = shared_core().read_model(path)
    others = {each.get_type_name() for each in model.get_ops()} - QUANTISED
    scope = nncf.IgnoredScope(types=sorted(others))
    dataset = nncf.Dataset(images, lambda each: backend.inputs([backend.resize(each.read())], MIN_SCORE))
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # progress bars
        quantised = nncf.quantize(model, dataset, subset_size=len(images), ignored_scope=scope)
    _state_box_size(quantised)
    versions = {**backend.metadata.versions, "nncf": nncf.__version__}
    metadata = replace(backend.metadata, precision="int8", versions=versions)
    out = path.with_name("int8.xml")
    openvino_file.save(quantised, json.dumps(metadata.to_json()), out)
    full, int8 = (Detector(each, device="cpu", score_threshold=MIN_SCORE / 2) for each in (path, out))
    check_gain(*_compare(full, int8, images), force)
    return out


def _state_box_size(model: openvino.Model) -> None:
    """Make the size of boxes a constant: without it, OpenVINO 2026.4 refuses quantised graphs of any image size."""
    for each in model.get_ops():
        if each.get_type_name() == "NonMaxSuppression":
            boxes = op.reshape(each.input_value(0), op.constant(np.array([0, 0, 4])), special_zero=True)
            each.input(0).replace_source_output(boxes.output(0))


def _compare(full: Detector, int8: Detector, images: Sequence[ImageInput]) -> tuple[int, int, float, float]:
    """Return how many objects are found again by the other detector, of how many, and both times per image in ms."""
    num_again = num_objects = 0
    times: tuple[list[float], list[float]] = ([], [])
    for each in images:
        image = each.read()
        found = [detector(image) for detector in (full, int8)]  # the first call with an image size takes longer
        for detector, measured in zip((full, int8), times, strict=True):
            start = time.perf_counter()
            detector(image)
            measured.append(1000 * (time.perf_counter() - start))
        for some, others in (found, found[::-1]):
            some = some.filter(MIN_SCORE)
            num_again += _count_again(some, others)
            num_objects += len(some)
    return num_again, num_objects, median(times[0]), median(times[1])


def _count_again(some: Detections, others: Detections) -> int:
    """Count the objects of `some` that are also in `others`."""
    if not len(some) or not len(others):
        return 0
    ious = coco_mask.iou(_shapes(some), _shapes(others), [False] * len(others))
    return int(((ious >= MIN_IOU) & (some.labels[:, None] == others.labels)).any(1).sum())


def _shapes(found: Detections) -> Any:
    """Return the masks of objects, or their boxes as xywh."""
    if found.rles is not None:
        return list(found.rles)
    boxes: NDArray[np.float64] = found.boxes.astype(np.float64)
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])


def check_gain(num_again: int, num_objects: int, full_time: float, int8_time: float, force: bool) -> None:
    """Print what is gained and lost, and refuse a file that loses too much or is not faster, unless `force`.

    Of `num_objects` in all images, `num_again` are found again. An image takes `full_time` before and `int8_time` ms.
    """
    if not num_objects:
        raise InputError("int8 needs images with objects: nothing is detected in those that were given")
    part = num_again / num_objects
    show(f"int8: {part:.1%} of {num_objects} objects are found again", to=sys.stderr)
    show(f"int8: {int8_time:.1f} ms per image instead of {full_time:.1f} ms", to=sys.stderr)
    if force:
        return
    if part < MIN_FOUND:
        raise DPTZooError(
            f"int8 was refused: only {part:.1%} of {num_objects} objects are found again, less than {MIN_FOUND:.0%}: "
            "give more images that are like those of the task, or use force"
        )
    if int8_time >= full_time:
        raise DPTZooError(
            f"int8 was refused: it takes {int8_time:.1f} ms per image on this machine, and float32 {full_time:.1f} ms: "
            "export without int8, or use force for another machine"
        )
