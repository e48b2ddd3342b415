"""The plan of an evaluation: which images to detect in, and how the model's classes match the data's."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..analysis.metrics import CocoDict
from ..data.checks import CheckedSplit
from ..errors import DataError, InputError, OutputError
from ..formats.issues import IssueType, list_names
from ..models.factory import unnamed_classes
from ..utils.files import hash_file, open_atomic
from ..utils.json_files import DAMAGE
from .options import EvaluationOptions
from .predictions import read_image_ids
from .result import RESULT

UNREADABLE = (IssueType.MISSING_IMAGE, IssueType.UNREADABLE_IMAGE)  # `skip_missing` skips these images


class ModelFile(NamedTuple):
    """A file of weights, their digest, the names of the classes, and settings that predictions depend on."""

    path: Path
    digest: str
    classes: tuple[str, ...]
    config: str


@dataclass(frozen=True)
class Plan:
    """The files of an evaluation, the images to detect in, and the match of the model's classes with the data's."""

    images: Path  # the folder of the images
    image_ids: tuple[int, ...]  # the images to evaluate, in the order of the annotation file
    skipped: tuple[str, ...]  # the images that cannot be read, and why
    classes: tuple[str, ...]  # the names of the model's classes, by label
    category_ids: tuple[int | None, ...]  # the data's category of each class; None if the data lack it
    folder: Path  # of the predictions, see `PredictionsFile`
    remaining: tuple[int, ...]  # the images without predictions, as indices into those of the annotation file
    weights: dict[str, str]  # the "path" and "sha256" of the file
    annotations: dict[str, str]  # the "path" and "sha256" of the file


def make_plan(
    options: EvaluationOptions, model: ModelFile, split: CheckedSplit, ground_truth: CocoDict, work_dir: Path
) -> Plan:
    """Plan an evaluation, and make the folder of its predictions in `work_dir`.

    `split` is the checked data, and `ground_truth` the content of its annotation file. Existing predictions are
    removed, unless `options.resume` is set.

    Raises:
        DataError: No image can be read, or the data have classes that the model does not know.
        InputError: The folder has predictions of another evaluation.
        OutputError: The folder cannot be written.
    """
    skipped = {each.image_id: str(each) for each in split.issues if each.type in UNREADABLE}
    indices = {image["id"]: index for index, image in enumerate(ground_truth["images"]) if image["id"] not in skipped}
    image_ids = tuple(indices)[: options.limit]
    if not image_ids:
        raise DataError(f"{split.annotations}: none of its images can be read")
    categories = {category["name"]: category["id"] for category in ground_truth["categories"]}
    classes = match_classes(model.classes, tuple(categories), split.annotations)
    settings = {
        "weights": model.digest,
        "annotations": hash_file(split.annotations).hexdigest(),
        "config": hashlib.sha256(model.config.encode()).hexdigest(),
    }
    folder = work_dir / "predictions"
    prepare_folder(folder, RESULT, settings, options.resume)
    finished = read_image_ids(folder)
    return Plan(
        images=split.images,
        image_ids=image_ids,
        skipped=tuple(skipped.values()),
        classes=classes,
        category_ids=tuple(categories.get(name) for name in classes),
        folder=folder,
        remaining=tuple(indices[image_id] for image_id in image_ids if image_id not in finished),
        weights={"path": str(model.path), "sha256": hash_file(model.path).hexdigest()},
        annotations={"path": str(split.annotations), "sha256": settings["annotations"]},
    )


def match_classes(classes: tuple[str, ...], names: tuple[str, ...], annotations: Path) -> tuple[str, ...]:
    """Return the model's `classes`, which must include the data's `names`; a model without names takes the data's.

    `annotations` is the data's file, for error texts.

    Raises:
        DataError: The data have classes that the model does not know.
    """
    if classes == unnamed_classes(len(classes)) and len(names) == len(classes):
        return names
    known = set(classes)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(
            f"{annotations}: the model does not know {len(unknown)} of its {len(names)} classes: "
            f"{list_names(unknown)}; the model's {len(classes)} classes are {list_names(classes)}"
        )
    return classes


def prepare_folder(folder: Path, result: str, settings: Mapping[str, str], resume: bool) -> None:
    """Make the folder of the predictions, or check that the predictions in it can be resumed.

    Args:
        folder: the folder.
        result: the name of the file beside it with the result, which is removed: the evaluation may fail.
        settings: what predictions depend on, by name.
        resume: keep the predictions of an evaluation with the same settings.

    Raises:
        InputError: The folder has predictions of another evaluation.
        OutputError: The folder cannot be written.
    """
    settings_file = folder / "settings.json"
    try:
        earlier = dict(json.loads(settings_file.read_bytes())) if resume else None
    except (OSError, *DAMAGE):
        earlier = None
    if earlier is not None:
        changed = [name for name, value in settings.items() if earlier.get(name) != value]
        if changed:
            raise InputError(
                f"{folder.parent} has an evaluation with other {' and '.join(changed)}: "
                "choose another work_dir, or start again without resume"
            )
    try:
        (folder.parent / result).unlink(missing_ok=True)
        if earlier is None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}: choose another work_dir") from error
    with open_atomic(settings_file) as file:
        file.write(json.dumps(settings).encode())
