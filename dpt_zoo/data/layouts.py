"""Data sets in the layouts that tools write, as COCO annotation files.

Coordinates are converted exactly; `supervision` would move the corners of polygons, which it turns into pixel masks.
"""

import contextlib
import itertools
import json
import re
from pathlib import Path

from ..errors import DataError
from ..formats.annotations import PROVENANCE, LabelledSplit, has_keys, mapped
from ..formats.huggingface import read_huggingface
from ..formats.labelme import read_labelme
from ..formats.supervisely import read_supervisely
from ..formats.via import read_via
from ..formats.voc import read_voc
from ..formats.yolo import find_description, read_yolo
from ..utils.files import exists, expand_user, is_clutter, list_files, make_folder, open_atomic
from .archives import unpack
from .checks import SplitFiles
from .completion import leaves_folder, spell


def find_splits(folder: Path, work_dir: Path) -> list[SplitFiles]:
    """Find the splits of a data set, the training split first, and convert other labels than COCO's.

    `folder` may also be a zip archive, which is unpacked beside it once.

    - COCO: `annotations/instances_NAME.json`, with the images in `NAME/`, `images/NAME/` or `images/`; or, as Roboflow
      exports it, `NAME/_annotations.coco.json` beside the images; or a COCO file of any name in the folder, with the
      images in `images/`, `data/` or `JPEGImages/`, as Label Studio, FiftyOne and labelme2coco export it.
    - YOLO: a YAML file with `names`, and with folders (or lists) of images as `train`, `val` and `test`; or
      `classes.txt`, with the images in `images/`. Labels are boxes or polygons, in files below `labels` instead of
      `images`. An image without a label has no objects. `folder` may also be the YAML file.
    - Pascal VOC: `Annotations/*.xml` and `JPEGImages/`, split by `ImageSets/Main/NAME.txt`; or XML files beside the
      images, in the folder or in one for each split. Pixels count from 1; "difficult" is ignored.
    - Supervisely: `meta.json` and a folder for each split, with `ann/` and `img/`.
    - VGG Image Annotator: a JSON file with all regions, beside the images or `images/`, in the folder or in one for
      each split.
    - labelme: a JSON file for each image, beside it, in the folder or in one for each split.
    - Hugging Face: what `save_to_disk` wrote, Parquet files, or an `imagefolder`, with `image` and `objects`.

    Hidden files, and what operating systems and archives leave beside data, are ignored. If the folder has nothing but
    another one, as after an archive is unpacked, the data may be there. Converted annotations are written to
    `work_dir`; images are not copied. Invalid labels become `SplitFiles.issues`.

    Raises:
        DataError: The folder has none of these layouts, or its YAML file cannot be used.
        OutputError: The converted annotations cannot be written.
    """
    folder = expand_user(folder)
    if folder.is_file() and folder.suffix.lower() == ".zip":
        folder = unpack(folder)
    if folder.is_file() and folder.suffix.lower() in (".yaml", ".yml"):
        splits = _convert(*read_yolo(folder), work_dir)
    elif not folder.is_dir():
        is_file = "this is a file: give the folder of the data set, or a COCO file as annotations, with images"
        reason = is_file if exists(folder) else "there is no such folder or archive"
        raise DataError(f"{folder}: {reason}")
    else:
        inside = [path for path in folder.iterdir() if not is_clutter(path.name)]
        splits = _find_splits(folder, work_dir)
        if not splits and len(inside) == 1 and inside[0].is_dir():
            splits = _find_splits(inside[0], work_dir)
    if not splits:
        raise DataError(
            f"{folder}: no data set is found here: COCO has annotations/instances_*.json, YOLO has data.yaml with "
            "names and train, Pascal VOC has Annotations/*.xml, Supervisely has meta.json, labelme and VGG Image "
            "Annotator have JSON files beside the images; CVAT and Label Studio can export COCO"
        )
    return sorted(splits, key=lambda split: (not split.name.startswith("train"), split.name))


def _find_splits(folder: Path, work_dir: Path) -> list[SplitFiles]:
    if splits := _find_coco(folder):
        return splits
    description = find_description(folder)
    if splits := _convert(*(read_yolo(description) if description else read_voc(folder)), work_dir):
        return splits
    files = [file for file in list_files(folder, "*.json") if has_keys(file, "images", "annotations", "categories")]
    if files:
        return [_pair(folder, file) for file in files if not _is_copy(file, folder)]
    for read in (read_supervisely, read_via, read_labelme):
        if splits := _convert(*read(folder), work_dir):
            return splits
    return _convert(*read_huggingface(folder, work_dir), work_dir)


def _find_coco(folder: Path) -> list[SplitFiles]:
    files = list_files(folder, "annotations/instances_*.json") or list_files(folder, "annotations/*.json")
    splits = [_pair(folder, file) for file in files if not _is_copy(file, folder)]
    for file in list_files(folder, "*/_annotations.coco.json"):
        splits.append(SplitFiles(file.parent.name, file, file.parent))
    return splits


def _pair(folder: Path, file: Path) -> SplitFiles:
    """Find the folder of an annotation file's images: the first in which one of them is, or the first that exists."""
    split = file.stem.removeprefix("instances_")
    candidates = [folder / split, folder / "images" / split, folder / "images"]
    others = [folder / "data", folder / "JPEGImages", folder]
    names = _read_names(file)
    images = [image for image in names if not leaves_folder(image)] + [each for name in names for each in spell(name)]
    found = (each for each in candidates + others if any(exists(each / image) for image in images))
    default = next(filter(Path.is_dir, candidates), candidates[0])
    return SplitFiles(split, file, next(found, default))


def _read_names(file: Path) -> list[str]:
    """Return the names of the first images in an annotation file, without parsing all of it."""
    names: list[str] = []
    with mapped(file) as content:
        for match in itertools.islice(re.finditer(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', content), 8):
            with contextlib.suppress(ValueError):
                names.append(json.loads(match[1]))
    return names


def _is_copy(file: Path, folder: Path) -> bool:
    """Return whether an earlier run, in the folder of its data, made an annotation file from others in the folder."""
    with mapped(file) as content:
        match = re.match(rb'{"%s": ("(?:[^"\\]|\\.)*")' % PROVENANCE.encode(), content)
        try:
            return match is not None and Path(json.loads(match[1])).resolve().is_relative_to(folder.resolve())
        except (OSError, ValueError, RuntimeError):  # no path
            return False


def _convert(classes: list[str], labelled: list[LabelledSplit], work_dir: Path) -> list[SplitFiles]:
    """Write COCO annotation files for the splits of a data set in another format."""
    ids = {name: id for id, name in enumerate(classes, 1)}
    categories = [{"id": id, "name": name} for name, id in ids.items()]
    splits = []
    for split in labelled:
        make_folder(work_dir)
        for annotation in split.annotations:
            annotation["category_id"] = ids[annotation.pop("category")]
        content = {
            PROVENANCE: str(split.folder),
            "images": split.images,
            "annotations": split.annotations,
            "categories": categories,
        }
        path = work_dir / f"instances_{split.name}.json"
        with open_atomic(path) as file:
            file.write(json.dumps(content).encode())
        splits.append(SplitFiles(split.name, path, split.folder, tuple(split.issues)))
    return splits
