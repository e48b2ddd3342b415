"""What a run found, in the formats of other tools: made from its journal, one image in memory at a time."""

import codecs
import contextlib
import csv
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
import yaml
from pycocotools import mask as coco_mask

from ..errors import OutputError
from ..inference.detections import RLE, coco_category_ids
from ..utils.files import open_atomic
from ..utils.text import printable
from .journal import ImageResult, Journal

_RUN_BITS = (4, 8, 12, 16)
"""Bits that the length of a run may take in Label Studio's masks."""


def write_json(journal: Journal, folder: Path) -> None:
    """Write `detections.json`: the model, its classes, and of each image what its line in the journal has."""
    settings = journal.settings
    head = {"model": settings.model, "score_threshold": settings.score_threshold, "classes": settings.classes}
    with open_atomic(folder / "detections.json") as file:
        file.write(json.dumps(head).encode()[:-1] + b', "images": ')
        _write_list(file, (entry.to_json() for entry in journal))
        file.write(b"}\n")


def write_coco(journal: Journal, folder: Path) -> None:
    """Write `coco.json`: images, categories and, with their scores, annotations.

    Images that are all named by numbers, as COCO's are, have these as ids; otherwise they count from 1.
    """
    classes = journal.settings.classes
    ids = _image_ids(journal)
    categories = [{"id": id, "name": name} for id, name in zip(coco_category_ids(classes), classes, strict=True)]
    with open_atomic(folder / "coco.json") as file:
        file.write(b'{"categories": ' + json.dumps(categories).encode() + b', "images": ')
        _write_list(file, (_coco_image(id, entry) for id, entry in zip(ids, journal, strict=True)))
        file.write(b', "annotations": ')
        records = (record for id, entry in zip(ids, journal, strict=True) for record in _coco_annotations(id, entry))
        _write_list(file, ({"id": number, **record} for number, record in enumerate(records, 1)))
        file.write(b"}\n")


def write_csv(journal: Journal, folder: Path) -> None:
    """Write `detections.csv`: a row for each object. Boxes and the masks' areas are in pixels."""
    columns = ("image", "frame", "time", "name", "label", "score", "x1", "y1", "x2", "y2", "area")
    with open_atomic(folder / "detections.csv") as file:
        rows = csv.writer(codecs.getwriter("utf-8")(file, "backslashreplace"), lineterminator="\n")
        rows.writerow(columns)
        for entry in journal:
            found = entry.found
            areas = [""] * len(found) if found.rles is None else [int(coco_mask.area(rle)) for rle in found.rles]
            for name, label, score, box, area in zip(
                found.names, found.labels, found.scores, found.boxes.tolist(), areas, strict=True
            ):
                rows.writerow((entry.name, entry.frame, entry.time, name, label, score, *box, area))


def write_yolo(journal: Journal, folder: Path) -> None:
    """Write `labels/STEM.txt`, a line for each object: class, box (centre, width, height, in parts of the image's
    size), score; and `data.yaml` with the classes.
    """
    with _open_folder(folder / "labels") as labels:
        for entry in journal:
            height, width = entry.found.image_size
            x1, y1, x2, y2 = (entry.found.boxes / np.array([width, height, width, height], np.float64)).T
            boxes = zip((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, strict=True)
            lines = (
                f"{label} {' '.join(f'{number:.6f}' for number in box)} {score:.6f}\n"
                for label, box, score in zip(entry.found.labels, boxes, entry.found.scores, strict=True)
            )
            _write_file(labels / f"{entry.stem}.txt", "".join(lines).encode())
    names = dict(enumerate(journal.settings.classes))
    with open_atomic(folder / "data.yaml") as file:
        file.write(yaml.safe_dump({"names": names}, allow_unicode=True, sort_keys=False).encode())


def write_voc(journal: Journal, folder: Path) -> None:
    """Write `annotations/STEM.xml`, as Pascal VOC has it: a box is its first and last pixel, which count from 1."""
    with _open_folder(folder / "annotations") as annotations:
        for entry in journal:
            root = _voc_annotation(entry)
            ElementTree.indent(root)
            _write_file(annotations / f"{entry.stem}.xml", ElementTree.tostring(root, "utf-8"))


def write_label_studio(journal: Journal, folder: Path) -> None:
    """Write `labelstudio.json`, tasks with predictions, and `labelstudio.xml`, the labelling interface they are for.

    Boxes are rectangles, masks are brush strokes. Images of this machine are named as Label Studio serves local files
    if its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT is "/".
    """
    settings = journal.settings
    with open_atomic(folder / "labelstudio.json") as file:
        _write_list(file, (_label_studio_task(entry, settings.model) for entry in journal))
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image")
    for tag, name in (("RectangleLabels", "box"), ("BrushLabels", "mask")):
        labels = ElementTree.SubElement(view, tag, name=name, toName="image")
        for each in settings.kept:
            ElementTree.SubElement(labels, "Label", value=printable(each))
    ElementTree.indent(view)
    with open_atomic(folder / "labelstudio.xml") as file:
        file.write(ElementTree.tostring(view, "utf-8"))


WRITERS: Mapping[str, Callable[[Journal, Path], None] | None] = {
    "json": write_json,
    "jsonl": None,
    "coco": write_coco,
    "csv": write_csv,
    "yolo": write_yolo,
    "voc": write_voc,
    "labelstudio": write_label_studio,
}
"""What writes each format into a folder; None for the journal, which is there."""


def _write_list(file: Any, items: Iterable[Any]) -> None:
    """Write a JSON list, an item a line."""
    separator = b"[\n"
    for item in items:
        file.write(separator + json.dumps(item).encode())
        separator = b",\n"
    file.write(b"[]" if separator == b"[\n" else b"\n]")


def _image_ids(journal: Journal) -> list[int]:
    stems = [PurePosixPath(entry.name).stem if entry.frame is None else "" for entry in journal]
    if all(stem.isascii() and stem.isdecimal() for stem in stems) and len(set(map(int, stems))) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(stems) + 1))


def _coco_image(id: int, entry: ImageResult) -> dict[str, Any]:
    height, width = entry.found.image_size
    return {"id": id, "file_name": entry.name, "width": width, "height": height}


def _coco_annotations(image_id: int, entry: ImageResult) -> Iterator[dict[str, Any]]:
    for record in entry.found.to_coco(image_id):
        _, _, width, height = record["bbox"]
        area = float(coco_mask.area(record["segmentation"])) if "segmentation" in record else width * height
        yield {**record, "area": area, "iscrowd": 0}


def _voc_annotation(entry: ImageResult) -> ElementTree.Element:
    height, width = entry.found.image_size
    root = ElementTree.Element("annotation")
    _add(root, "filename", printable(entry.name))
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        _add(size, tag, value)
    found = entry.found
    for name, score, box in zip(found.names, found.scores, found.boxes.tolist(), strict=True):
        thing = ElementTree.SubElement(root, "object")
        _add(thing, "name", printable(name))
        _add(thing, "difficult", 0)
        _add(thing, "score", f"{score:.6f}")
        corners = ElementTree.SubElement(thing, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), _pixels(box), strict=True):
            _add(corners, tag, value)
    return root


def _add(element: ElementTree.Element, tag: str, value: Any) -> None:
    ElementTree.SubElement(element, tag).text = str(value)


def _pixels(box: list[float]) -> tuple[int, int, int, int]:
    """The first and last pixels that a box touches, from 1."""
    x1, y1 = (math.floor(side) + 1 for side in box[:2])
    x2, y2 = (math.ceil(side) for side in box[2:])
    return x1, y1, max(x1, x2), max(y1, y2)


def _label_studio_task(entry: ImageResult, model: str) -> dict[str, Any]:
    found = entry.found
    height, width = found.image_size
    results: list[dict[str, Any]] = []
    for name, score, kind, value in _label_studio_values(entry):
        result = {
            "id": f"{len(results) + 1}",
            "type": f"{kind}labels",
            "from_name": "box" if kind == "rectangle" else "mask",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": score,
            "value": {**value, f"{kind}labels": [printable(name)]},
        }
        results.append(result)
    prediction = {"model_version": model, "score": float(found.scores.mean()) if len(found) else 0.0, "result": results}
    return {"data": {"image": _label_studio_image(entry)}, "predictions": [prediction]}


def _label_studio_values(entry: ImageResult) -> Iterator[tuple[str, float, str, dict[str, Any]]]:
    """Of each box and mask: class, score, kind of region, and where it is."""
    found = entry.found
    height, width = found.image_size
    for index, (name, score, box) in enumerate(
        zip(found.names, found.scores.tolist(), found.boxes.tolist(), strict=True)
    ):
        x1, y1, x2, y2 = (100 * side / size for side, size in zip(box, (width, height) * 2, strict=True))
        yield name, score, "rectangle", {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0}
        if found.rles is not None:
            yield name, score, "brush", {"format": "rle", "rle": _label_studio_rle(found.rles[index])}


def _label_studio_image(entry: ImageResult) -> str:
    source = entry.found.path or entry.name
    path = Path(source)
    if entry.frame is not None or not path.is_file():
        return source
    return f"/data/local-files/?d={quote(os.fsencode(path.resolve().as_posix().lstrip('/')))}"


def _label_studio_rle(mask: RLE) -> list[int]:
    """A mask as the bytes of the `rle-pack` code: runs of 0 and 255 over the pixels' four channels, row by row."""
    values = np.repeat(coco_mask.decode(mask).ravel(), 4)
    edges = np.flatnonzero(np.diff(values)) + 1
    bits = [f"{values.size:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _RUN_BITS)]
    for start, end in itertools.pairwise((0, *edges.tolist(), values.size)):
        for first in range(start, end, 1 << _RUN_BITS[-1]):
            length = min(end - first, 1 << _RUN_BITS[-1])
            index = next(index for index, size in enumerate(_RUN_BITS) if length <= 1 << size)
            bits.append(f"1{index:02b}{length - 1:0{_RUN_BITS[index]}b}{255 * int(values[start]):08b}")
    code = "".join(bits)
    return [int(code[start : start + 8].ljust(8, "0"), 2) for start in range(0, len(code), 8)]


def _write_file(path: Path, content: bytes) -> None:
    """Write a file of a folder that is to appear as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@contextlib.contextmanager
def _open_folder(path: Path) -> Iterator[Path]:
    """Give a new folder to write to, which takes the place of `path` when the block ends well.

    Raises:
        OutputError: that is not possible.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        if path.exists():
            shutil.rmtree(path)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}: choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
