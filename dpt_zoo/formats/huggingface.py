"""Reader of Hugging Face's data sets with COCO-like objects, through the `datasets` library."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError
from ..utils.dependencies import explain_imports
from ..utils.files import exists, list_files, make_folder, open_atomic
from ..utils.images import DECODER_ERRORS, FORMATS
from .annotations import LabelledSplit, check_number, list_categories
from .issues import IssueType

LABELS = ("category", "categories", "category_id", "label", "labels", "class")
"""The usual names of an object's class."""


def read_huggingface(folder: Path, work_dir: Path) -> tuple[list[str], list[LabelledSplit]]:
    """Return the classes and the splits of a data set. Without one, there are no splits.

    It may be what `save_to_disk` wrote, Parquet files as on the Hub, or an `imagefolder` with `metadata.jsonl`. Each
    row has an `image`, and `objects` with `bbox` as [x, y, width, height] and `category`. Images inside these files are
    written to `work_dir`.

    Raises:
        DataError: The data set cannot be read, or has other columns.
    """
    has_metadata = list_files(folder, "metadata.*") or list_files(folder, "*/metadata.*")
    is_saved = any(exists(folder / name) for name in ("dataset_dict.json", "state.json"))
    parquet = [path for path in list_files(folder, "**/*.parquet") if path.stem != "metadata"]
    if not (is_saved or parquet or has_metadata):
        return [], []
    with explain_imports():
        import datasets
    datasets.disable_progress_bars()
    try:
        if is_saved:
            loaded = datasets.load_from_disk(str(folder))
        elif parquet:
            files: dict[str, list[str]] = {}
            for path in parquet:
                name = path.stem.partition("-")[0] if path.parent in (folder, folder / "data") else path.parent.name
                files.setdefault(name, []).append(str(path))
            loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(work_dir / "cache"))
        else:
            loaded = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(work_dir / "cache"))
    except Exception as error:  # of any of its readers
        raise DataError(f"{folder}: datasets cannot read this: {type(error).__name__}: {error}") from error
    tables = loaded if isinstance(loaded, Mapping) else {"train": loaded}
    key, classes = _find_classes(folder, next(iter(tables.values())).features)
    splits = []
    for name, table in tables.items():
        splits.append(LabelledSplit(name, work_dir / "images" / name))
        rows = table.cast_column("image", datasets.Image(decode=False))
        for number, row in enumerate(rows, 1):
            _read_row(splits[-1], row, number, key, classes)
    return classes or list_categories(splits), splits


def _find_classes(folder: Path, features: Any) -> tuple[str, list[str]]:
    """Return the name of the objects' feature with the class, and the classes, if they are numbers with names."""
    objects: Any = features.get("objects") if "image" in features else None
    objects = getattr(objects, "feature", objects[0] if isinstance(objects, list) else objects)
    key = next((key for key in LABELS if isinstance(objects, Mapping) and key in objects), None)
    if key is None or "bbox" not in objects:
        raise DataError(
            f"{folder}: its columns are {', '.join(features)}: it needs image, and objects with bbox and category"
        )
    feature = objects[key]
    while not hasattr(feature, "names") and hasattr(feature, "feature"):  # a list of classes
        feature = feature.feature
    return key, list(getattr(feature, "names", ()))


def _read_row(split: LabelledSplit, row: Mapping[str, Any], number: int, key: str, classes: list[str]) -> None:
    where = f"{split.name}, row {number}"
    path = _find_file(split, row["image"], number)
    if path is None:
        split.add_issue(IssueType.MISSING_IMAGE, where, "the row has no image in a supported format")
        return
    if not split.add_file(path):
        return
    objects = row["objects"]
    if isinstance(objects, list):  # one dict for each object
        objects = {name: [each[name] for each in objects] for name in ("bbox", key)}
    for index, (box, label) in enumerate(zip(objects["bbox"], objects[key], strict=False), 1):
        try:
            x, y, width, height = map(check_number, box)
            name = classes[label] if classes else str(label)
            split.add_object(name, [x, y, x + width, y + height], [], f"{where}, object {index}")
        except (ValueError, TypeError, IndexError) as error:
            split.add_issue(IssueType.LABEL, f"{where}, object {index}", str(error))


def _find_file(split: LabelledSplit, image: Mapping[str, Any] | None, number: int) -> Path | None:
    """Return the file of an image, written from its bytes."""
    image = image or {}
    content = image.get("bytes")
    if content is None:
        path = Path(image.get("path") or "")
        if not path.is_file():
            return None
        content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as opened:
            if opened.format not in FORMATS:
                return None
            suffix = f".{opened.format.lower()}"
    except DECODER_ERRORS:
        suffix = Path(image.get("path") or "").suffix or ".jpg"  # the checks report what is wrong with it
    path = split.folder / f"{number:06}{suffix}"
    make_folder(path.parent)
    with open_atomic(path) as file:
        file.write(content)
    return path
