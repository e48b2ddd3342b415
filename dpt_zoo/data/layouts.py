"""Data sets in COCO's, YOLO's and Pascal VOC's layouts, all as COCO annotation files.

`supervision` also reads all three, but through pixel masks: the corners of polygons move, polygons that fall apart
become crowds, which are not learned, and all masks are in memory at once. Here a label becomes a COCO annotation with
exactly its coordinates, and with its file and line.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..utils.files import make_folder, open_atomic
from .annotations import LabelledSplit
from .checks import SplitFiles
from .voc import read_voc
from .yolo import find_yaml, read_yolo


def find_splits(folder: Path, work_dir: Path) -> list[SplitFiles]:
    """Find the splits of a data set, the training split first, and convert YOLO's and Pascal VOC's labels.

    COCO: `annotations/instances_NAME.json`, with the images in `NAME/`, `images/NAME/` or `images/`; or, as Roboflow
    exports it, `NAME/_annotations.coco.json` beside the images.

    YOLO: `data.yaml` with `names`, and with folders (or lists) of images as `train`, `val` and `test`. Labels are boxes
    or polygons, in files below `labels` instead of `images`. An image without a label has no objects.

    Pascal VOC: `Annotations/*.xml` and `JPEGImages/`, split by `ImageSets/Main/NAME.txt`; or XML files beside the
    images, in the folder or in one for each split. Pixels count from 1; "difficult" is ignored.

    Images are not copied. Labels that cannot be converted are left out and reported in `SplitFiles.issues`.

    Args:
        folder: the data set's folder.
        work_dir: the folder for converted annotations.

    Raises:
        DataError: The folder has none of these layouts, or its `data.yaml` cannot be used.
        OutputError: The converted annotations cannot be written.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    splits = _find_coco(folder) or _convert(folder, work_dir)
    return sorted(splits, key=lambda split: (not split.name.startswith("train"), split.name))


def _find_coco(folder: Path) -> list[SplitFiles]:
    annotations = folder / "annotations"
    splits = []
    for file in sorted(annotations.glob("instances_*.json")) or sorted(annotations.glob("*.json")):
        name = file.stem.removeprefix("instances_")
        candidates = [folder / name, folder / "images" / name, folder / "images"]
        splits.append(SplitFiles(name, file, next(filter(Path.is_dir, candidates), candidates[0])))
    for file in sorted(folder.glob("*/_annotations.coco.json")):
        splits.append(SplitFiles(file.parent.name, file, file.parent))
    return splits


def _convert(folder: Path, work_dir: Path) -> list[SplitFiles]:
    """Write COCO annotation files for a YOLO or Pascal VOC folder."""
    path = find_yaml(folder)
    classes, labelled = read_yolo(path) if path else read_voc(folder)
    if not labelled:
        raise DataError(
            f"{folder}: no data set is found here: COCO has annotations/instances_*.json, YOLO has data.yaml, "
            "Pascal VOC has Annotations/*.xml"
        )
    make_folder(work_dir)
    splits = []
    for split in labelled:
        annotations = work_dir / f"instances_{split.name}.json"
        with open_atomic(annotations) as file:
            file.write(json.dumps(_as_coco(split, classes)).encode())
        splits.append(SplitFiles(split.name, annotations, folder, tuple(split.issues)))
    return splits


def _as_coco(split: LabelledSplit, classes: Sequence[str]) -> dict[str, Any]:
    ids = {name: number for number, name in enumerate(classes, 1)}
    for annotation in split.annotations:
        annotation["category_id"] = ids[annotation.pop("category")]
    categories = [{"id": id, "name": name} for name, id in ids.items()]
    return {"images": split.images, "annotations": split.annotations, "categories": categories}
