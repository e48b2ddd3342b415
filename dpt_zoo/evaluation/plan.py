"""What an evaluation has to do: the images that count, the model's classes as the data's, what is done already."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from ..data.checks import CheckedSplit
from ..data.issues import IssueType, list_names
from ..errors import DataError, InputError, OutputError
from ..models.factory import read_classes, unnamed_classes
from ..utils.files import hash_file, open_atomic
from ..weights.reading import Weights
from .predictions import Predictions
from .result import RESULT

UNREADABLE = (IssueType.MISSING_IMAGE, IssueType.UNREADABLE_IMAGE)
"""What can be wrong with an image that is skipped."""

_SETTINGS = "settings.json"


@dataclass(frozen=True)
class Plan:
    """What an evaluation has to do.

    Attributes:
        annotations, images: the annotation file, and the folder of its images.
        image_ids: the images that count, in the file's order.
        skipped: those that cannot be read, and why.
        classes: the names of the model's classes, by label.
        category_ids: the data's category of each; None for one that the data do not have.
        folder: of what is found, see `ResultsWriter`.
        left: of the file's images, counted from 0, those that nothing was looked for in yet.
        weights_sha256, annotations_sha256: of the files.
    """

    annotations: Path
    images: Path
    image_ids: tuple[int, ...]
    skipped: tuple[str, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int | None, ...]
    folder: Path
    left: tuple[int, ...]
    weights_sha256: str
    annotations_sha256: str


def make_plan(
    cfg: Config, check: CheckedSplit, path: Path, weights: Weights, work_dir: Path, *, limit: int | None, resume: bool
) -> Plan:
    """Decide what is to be done, and make the folder of what is found.

    Args:
        cfg: the recipe.
        check: of the data; images that it found unreadable are skipped.
        path, weights: the weights' file, and what is in it.
        work_dir: the run's folder; what it holds of an earlier run is removed, or with `resume` gone on with.
        limit: how many images count at most.

    Raises:
        DataError: no image can be read, or the model does not know the data's classes.
        InputError: what is to be resumed is another evaluation.
        OutputError: the folder cannot be written.
    """
    content = json.loads(check.annotations.read_bytes())
    skipped = {each.image_id: str(each) for each in check.issues if each.type in UNREADABLE}
    numbers = {image["id"]: number for number, image in enumerate(content["images"]) if image["id"] not in skipped}
    image_ids = tuple(numbers)[:limit]
    if not image_ids:
        raise DataError(f"{check.annotations}: none of its images can be read")
    categories = {category["name"]: category["id"] for category in content["categories"]}
    classes = _match_classes(read_classes(cfg, weights), tuple(categories), check.annotations)
    folder = work_dir / "detections"
    recipe = (cfg.model, cfg.test_dataloader.dataset.pipeline, cfg.test_cfg)
    settings = {
        "weights": hash_file(path).hexdigest(),
        "annotations": hash_file(check.annotations).hexdigest(),
        "recipe": hashlib.sha256(str(recipe).encode()).hexdigest(),
    }
    done = _begin(folder, settings, resume)
    return Plan(
        annotations=check.annotations,
        images=check.images,
        image_ids=image_ids,
        skipped=tuple(skipped.values()),
        classes=classes,
        category_ids=tuple(categories.get(name) for name in classes),
        folder=folder,
        left=tuple(numbers[image_id] for image_id in image_ids if image_id not in done),
        weights_sha256=settings["weights"],
        annotations_sha256=settings["annotations"],
    )


def _match_classes(classes: tuple[str, ...], names: tuple[str, ...], annotations: Path) -> tuple[str, ...]:
    """The model's classes, which have to be at least the data's; without names of their own, they take those."""
    if classes == unnamed_classes(len(classes)) and len(names) == len(classes):
        return names
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise DataError(
            f"{annotations}: {len(unknown)} of its {len(names)} classes are none of the model's {len(classes)}: "
            f"{list_names(unknown)}; the model knows {list_names(classes)}"
        )
    return classes


def _begin(folder: Path, settings: Mapping[str, str], resume: bool) -> Predictions:
    """Make the folder of what is found, or go on with what it holds."""
    try:
        earlier = json.loads((folder / _SETTINGS).read_bytes()) if resume else None
    except (OSError, ValueError):
        earlier = None
    if earlier is not None:
        changed = [name for name, value in settings.items() if earlier.get(name) != value]
        if changed:
            raise InputError(
                f"{folder.parent} holds an evaluation with other {' and '.join(changed)}: choose another work_dir, or "
                "begin anew without resume"
            )
    try:
        (folder.parent / RESULT).unlink(missing_ok=True)  # of an earlier evaluation, which this one may not get to
        if earlier is None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}: choose another work_dir") from error
    with open_atomic(folder / _SETTINGS) as file:
        file.write(json.dumps(settings).encode())
    return Predictions(folder)
