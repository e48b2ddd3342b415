"""Data sets in the layouts of COCO, YOLO and Pascal VOC, as COCO annotation files.

Coordinates are converted exactly; `supervision` would move the corners of polygons, which it turns into pixel masks.
"""

import json
from pathlib import Path

from ..errors import DataError
from ..utils.files import make_folder, open_atomic
from .checks import SplitFiles
from .voc import read_voc
from .yolo import find_yaml, read_yolo


def find_splits(folder: Path, work_dir: Path) -> list[SplitFiles]:
    """Find the splits of a data set, the training split first, and convert YOLO's and Pascal VOC's labels.

    - COCO: `annotations/instances_NAME.json`, with the images in `NAME/`, `images/NAME/` or `images/`; or, as Roboflow
      exports it, `NAME/_annotations.coco.json` beside the images.
    - YOLO: `data.yaml` with `names`, and with folders (or lists) of images as `train`, `val` and `test`. Labels are
      boxes or polygons, in files below `labels` instead of `images`. An image without a label has no objects.
    - Pascal VOC: `Annotations/*.xml` and `JPEGImages/`, split by `ImageSets/Main/NAME.txt`; or XML files beside the
      images, in the folder or in one for each split. Pixels count from 1; "difficult" is ignored.

    Converted annotations are written to `work_dir`; images are not copied. Invalid labels become `SplitFiles.issues`.

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
    yaml_file = find_yaml(folder)
    classes, labelled = read_yolo(yaml_file) if yaml_file else read_voc(folder)
    if not labelled:
        raise DataError(
            f"{folder}: no data set is found here: COCO has annotations/instances_*.json, YOLO has data.yaml, "
            "Pascal VOC has Annotations/*.xml"
        )
    make_folder(work_dir)
    ids = {name: id for id, name in enumerate(classes, 1)}
    categories = [{"id": id, "name": name} for name, id in ids.items()]
    splits = []
    for split in labelled:
        for annotation in split.annotations:
            annotation["category_id"] = ids[annotation.pop("category")]
        content = {"images": split.images, "annotations": split.annotations, "categories": categories}
        path = work_dir / f"instances_{split.name}.json"
        with open_atomic(path) as file:
            file.write(json.dumps(content).encode())
        splits.append(SplitFiles(split.name, path, folder, tuple(split.issues)))
    return splits
