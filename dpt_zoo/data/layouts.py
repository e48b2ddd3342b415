"""Data sets in COCO's, YOLO's and Pascal VOC's layouts, all as COCO annotation files.

`supervision` reads all three too, but by way of pixels: polygons come back with their corners moved, those that fall
apart as crowds, which are not learned; all masks of a data set are in memory at once; class ids and VOC's boxes depend
on its version. Here a label becomes a COCO record as exactly as it was written, and remembers its file and line.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..utils.files import make_folder, open_atomic
from .checks import PROVENANCE, CheckedSplit, check_coco
from .annotations import Object, Picture
from .issues import Issue
from .voc import read_voc
from .yolo import find_config, read_yolo


@dataclass(frozen=True)
class SplitFiles:
    """One part of a data set, such as "train", in COCO's format.

    Attributes:
        name: what the data set calls it.
        annotations: its COCO annotation file.
        images: the folder that the file's image names are relative to.
        issues: what could not be converted, if the data set has another format.
    """

    name: str
    annotations: Path
    images: Path
    issues: tuple[Issue, ...] = ()


def find_splits(folder: Path, work_dir: Path) -> list[SplitFiles]:
    """Find the parts of a data set, that for training first; YOLO's and Pascal VOC's labels are converted.

    COCO: `annotations/instances_NAME.json`, with the images in `NAME/`, `images/NAME/` or `images/`; or, as Roboflow
    writes it, `NAME/_annotations.coco.json` beside the images.

    YOLO: `data.yaml` with `names`, and with folders (or lists) of images as `train`, `val` and `test`. Labels are boxes
    or polygons; their files are where `labels` stands for `images`. An image without a label has no objects.

    Pascal VOC: `Annotations/*.xml` and `JPEGImages/`, split by `ImageSets/Main/NAME.txt`; or XML files beside the
    images, in the folder or in one for each split. Pixels count from 1; difficult objects are objects as others.

    Images stay where they are. Labels that cannot be converted are left out, and told in `SplitFiles.issues`.

    Args:
        folder: the data set's.
        work_dir: where converted annotations are written.

    Raises:
        DataError: the folder is none of these, or what all labels of it depend on is missing or wrong.
        OutputError: the converted annotations cannot be written.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    splits = _find_coco(folder) or _convert(folder, work_dir)
    return sorted(splits, key=lambda split: (not split.name.startswith("train"), split.name))


def check_splits(splits: Iterable[SplitFiles], *, classes: Sequence[str] | None = None, **options: Any) -> list[CheckedSplit]:
    """Find all that is wrong with the parts of a data set.

    Args:
        splits: as `find_splits` gives them.
        classes: the names that each has to have, in order; by default those of the first.
        options: of `check_coco`.
    """
    checks = []
    for split in splits:
        check = check_coco(split.annotations, split.images, classes=classes, **options)
        checks.append(dataclasses.replace(check, issues=split.issues + check.issues))
        classes = classes or tuple(check.classes) or None
    return checks


def _find_coco(folder: Path) -> list[SplitFiles]:
    annotations = folder / "annotations"
    splits = []
    for file in sorted(annotations.glob("instances_*.json")) or sorted(annotations.glob("*.json")):
        name = file.stem.removeprefix("instances_")
        homes = [folder / name, folder / "images" / name, folder / "images"]
        splits.append(SplitFiles(name, file, next(filter(Path.is_dir, homes), homes[0])))
    for file in sorted(folder.glob("*/_annotations.coco.json")):
        splits.append(SplitFiles(file.parent.name, file, file.parent))
    return splits


def _convert(folder: Path, work_dir: Path) -> list[SplitFiles]:
    """Write the COCO annotations of a YOLO or a Pascal VOC folder."""
    config = find_config(folder)
    classes, parts = read_yolo(folder, config) if config else read_voc(folder)
    if not parts:
        raise DataError(
            f"{folder}: no data set is found here: COCO has annotations/instances_*.json, YOLO has data.yaml, "
            "Pascal VOC has Annotations/*.xml"
        )
    make_folder(work_dir)
    splits = []
    for part in parts:
        path = work_dir / f"instances_{part.name}.json"
        with open_atomic(path) as file:
            file.write(json.dumps(_as_coco(part.pictures, classes)).encode())
        splits.append(SplitFiles(part.name, path, folder, tuple(part.issues)))
    return splits


def _as_coco(pictures: Iterable[Picture], classes: Sequence[str]) -> dict[str, Any]:
    """COCO's records; all ids count from 1."""
    ids = {name: number for number, name in enumerate(classes, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, 1):
        width, height = picture.size
        image = {"id": image_id, "file_name": picture.name, "width": width, "height": height}
        images.append({**image, PROVENANCE: picture.source})
        for thing in picture.objects:
            x1, y1, x2, y2 = thing.box
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": ids[thing.name],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": _area(thing),
                "segmentation": thing.polygons,
                "iscrowd": 0,
                PROVENANCE: thing.source,
            }
            annotations.append(annotation)
    categories = [{"id": ids[name], "name": name} for name in classes]
    return {"images": images, "annotations": annotations, "categories": categories}


def _area(thing: Object) -> float:
    """An object's area: that of its polygons, by the shoelace formula, or of its box."""
    if not thing.polygons:
        x1, y1, x2, y2 = thing.box
        return abs((x2 - x1) * (y2 - y1))
    return round(sum(_polygon_area(np.array(polygon)) for polygon in thing.polygons), 2)


def _polygon_area(polygon: NDArray[np.float64]) -> float:
    xs, ys = polygon[::2], polygon[1::2]
    return abs(float(xs @ np.roll(ys, -1) - ys @ np.roll(xs, -1))) / 2
