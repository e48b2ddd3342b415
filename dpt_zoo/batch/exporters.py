"""Export of a detection run to the formats of other tools, with one image in memory at a time."""

import codecs
import csv
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
import yaml
from pycocotools import mask as coco_mask

from ..errors import InputError, OutputError
from ..inference.detections import Detections, coco_category_ids
from ..utils.files import open_atomic
from ..utils.json_files import write_json_list
from ..utils.text import printable
from ..views.objects import RLE
from .journal import ImageResult, RunResults

_RUN_BITS = (4, 8, 12, 16)  # the numbers of bits for the length of a run in Label Studio's masks


def write_json(journal: RunResults, folder: Path) -> None:
    """Write `detections.json`: the model, its classes, and each image's line of the journal."""
    head = {name: getattr(journal.settings, name) for name in ("model", "score_threshold", "classes")}
    with open_atomic(folder / "detections.json") as file:
        file.write(json.dumps(head).encode()[:-1] + b', "images": ')
        write_json_list(file, (result.to_json() for result in journal))
        file.write(b"}\n")


def write_coco(journal: RunResults, folder: Path) -> None:
    """Write `coco.json`. Image ids are the file names if these are different numbers, as in COCO, else 1, 2, 3, ..."""
    classes = journal.settings.classes
    categories = [{"id": id, "name": name} for id, name in zip(coco_category_ids(classes), classes, strict=True)]
    stems = [PurePosixPath(result.name).stem if result.frame is None else "" for result in journal]
    ids = [int(stem) for stem in stems if stem.isascii() and stem.isdecimal()]
    if len(set(ids)) < len(stems):
        ids = list(range(1, len(stems) + 1))
    with open_atomic(folder / "coco.json") as file:
        file.write(b'{"categories": ' + json.dumps(categories).encode() + b', "images": ')
        write_json_list(file, (_coco_image(id, result) for id, result in zip(ids, journal, strict=True)))
        file.write(b', "annotations": ')
        write_json_list(file, _coco_annotations(ids, journal))
        file.write(b"}\n")


def write_csv(journal: RunResults, folder: Path) -> None:
    """Write `detections.csv`: one row for each object. Boxes and the areas of masks are in pixels.

    The last column is "track_id" if videos were tracked.
    """
    with open_atomic(folder / "detections.csv") as file:
        rows = csv.writer(codecs.getwriter("utf-8")(file, "backslashreplace"), lineterminator="\r\n")
        is_tracked = journal.settings.tracker is not None
        head = ("image", "frame", "time", "name", "label", "score", "x1", "y1", "x2", "y2", "area")
        rows.writerow((*head, "track_id") if is_tracked else head)
        for result in journal:
            each = result.detections
            areas = [""] * len(each) if each.rles is None else [int(coco_mask.area(rle)) for rle in each.rles]
            ids = [()] * len(each) if each.track_ids is None else [(id,) for id in each.track_ids]
            objects = zip(each.names, each.labels, each.scores, each.boxes.tolist(), areas, ids, strict=True)
            for *values, box, area, track_id in objects:
                rows.writerow((result.name, result.frame, result.time, *values, *box, area, *track_id))


def write_yolo(journal: RunResults, folder: Path) -> None:
    """Write `data.yaml`, and `labels/STEM.txt` with a line per object: class, centre, width, height (0 to 1), score."""
    _write_folder(folder / "labels", ((f"{result.stem}.txt", _yolo_lines(result.detections)) for result in journal))
    names = dict(enumerate(journal.settings.classes))
    with open_atomic(folder / "data.yaml") as file:
        file.write(yaml.safe_dump({"names": names}, allow_unicode=True, sort_keys=False).encode())


def write_voc(journal: RunResults, folder: Path) -> None:
    """Write `annotations/STEM.xml` in Pascal VOC's format: a box has its first and last pixel, counted from 1."""
    _write_folder(folder / "annotations", ((f"{result.stem}.xml", _voc_annotation(result)) for result in journal))


def write_label_studio(journal: RunResults, folder: Path) -> None:
    """Write tasks with boxes and masks to `labelstudio.json`, and the labelling interface to `labelstudio.xml`.

    Label Studio shows images of this machine if it runs with LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT="/".
    """
    settings = journal.settings
    with open_atomic(folder / "labelstudio.json") as file:
        write_json_list(file, (_label_studio_task(result, settings.model) for result in journal))
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image")
    for tag, name in (("RectangleLabels", "box"), ("BrushLabels", "mask")):
        labels = ElementTree.SubElement(view, tag, name=name, toName="image")
        for class_name in settings.kept_classes:
            ElementTree.SubElement(labels, "Label", value=printable(class_name))
    with open_atomic(folder / "labelstudio.xml") as file:
        file.write(_to_bytes(view))


def write_mot(journal: RunResults, folder: Path) -> None:
    """Write `mot/VIDEO.txt` in MOT Challenge's format of results: a line for each object in a track.

    The columns are the frame's number and the track's id, both from 1; left, top, width and height of the box, in
    pixels; the score; and three times -1.

    Raises:
        InputError: The objects were not tracked.
    """
    if journal.settings.tracker is None:
        raise InputError("the format mot needs tracks: detect with --track")
    videos = itertools.groupby(journal, key=lambda result: PurePosixPath(result.stem).parent.as_posix())
    _write_folder(folder / "mot", ((f"{video}.txt", b"".join(map(_mot_lines, results))) for video, results in videos))


WRITERS: Mapping[str, Callable[[RunResults, Path], None] | None] = {
    "json": write_json,
    "jsonl": None,
    "coco": write_coco,
    "csv": write_csv,
    "yolo": write_yolo,
    "voc": write_voc,
    "labelstudio": write_label_studio,
    "mot": write_mot,
}
"""The function that writes each format into a folder. None: the journal itself is in this format."""


def _coco_image(id: int, result: ImageResult) -> dict[str, Any]:
    height, width = result.detections.image_size
    return {"id": id, "file_name": result.name, "width": width, "height": height}


def _coco_annotations(image_ids: Sequence[int], journal: RunResults) -> Iterator[dict[str, Any]]:
    numbers = itertools.count(1)
    for image_id, result in zip(image_ids, journal, strict=True):
        for annotation in result.detections.to_coco(image_id):
            _, _, width, height = annotation["bbox"]
            area = float(coco_mask.area(annotation["segmentation"])) if "segmentation" in annotation else width * height
            yield {"id": next(numbers), **annotation, "area": area, "iscrowd": 0}


def _yolo_lines(detections: Detections) -> bytes:
    height, width = detections.image_size
    x1, y1, x2, y2 = (detections.boxes / np.array([width, height, width, height], np.float64)).T
    columns = (detections.labels, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, detections.scores)
    line = "{} {:.6f} {:.6f} {:.6f} {:.6f} {:.6f}\n"
    return "".join(line.format(*row) for row in zip(*columns, strict=True)).encode()


def _mot_lines(result: ImageResult) -> bytes:
    detections = result.detections
    assert result.frame is not None and detections.track_ids is not None
    lines = []
    for id, score, (x1, y1, x2, y2) in zip(
        detections.track_ids, detections.scores, detections.boxes.tolist(), strict=True
    ):
        if id > 0:
            box = f"{x1:.3f},{y1:.3f},{x2 - x1:.3f},{y2 - y1:.3f}"
            lines.append(f"{result.frame + 1},{id},{box},{score:.6f},-1,-1,-1\n")
    return "".join(lines).encode()


def _voc_annotation(result: ImageResult) -> bytes:
    detections = result.detections
    height, width = detections.image_size
    root = ElementTree.Element("annotation")
    _add(root, filename=printable(result.name))
    _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    for name, score, box in zip(detections.names, detections.scores, detections.boxes.tolist(), strict=True):
        element = ElementTree.SubElement(root, "object")
        _add(element, name=printable(name), difficult=0, score=f"{score:.6f}")
        left, top = (math.floor(side) + 1 for side in box[:2])
        right, bottom = max(left, math.ceil(box[2])), max(top, math.ceil(box[3]))
        _add(ElementTree.SubElement(element, "bndbox"), xmin=left, ymin=top, xmax=right, ymax=bottom)
    return _to_bytes(root)


def _add(element: ElementTree.Element, **values: object) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(element, tag).text = str(value)


def _to_bytes(root: ElementTree.Element) -> bytes:
    ElementTree.indent(root)
    return ElementTree.tostring(root, "utf-8")


def _label_studio_task(result: ImageResult, model: str) -> dict[str, Any]:
    detections = result.detections
    height, width = detections.image_size
    common = {"to_name": "image", "original_width": width, "original_height": height, "image_rotation": 0}
    regions: list[dict[str, Any]] = []

    def add_region(control: str, shape: str, score: float, name: str, **value: object) -> None:
        kind = {"id": f"{len(regions) + 1}", "type": f"{shape}labels", "from_name": control}
        regions.append({**kind, **common, "score": score, "value": {**value, f"{shape}labels": [printable(name)]}})

    objects = zip(detections.names, detections.scores.tolist(), detections.boxes.tolist(), strict=True)
    for index, (name, score, box) in enumerate(objects):
        x1, y1, x2, y2 = (100 * side / length for side, length in zip(box, (width, height) * 2, strict=True))
        add_region("box", "rectangle", score, name, x=x1, y=y1, width=x2 - x1, height=y2 - y1, rotation=0)
        if detections.rles is not None:
            add_region("mask", "brush", score, name, format="rle", rle=_label_studio_rle(detections.rles[index]))
    score = float(detections.scores.mean()) if len(detections) else 0.0
    prediction = {"model_version": model, "score": score, "result": regions}
    url = detections.path or result.name
    if result.frame is None and os.path.isfile(url):  # noqa: PTH113  (a URL is an impossible path)
        url = f"/data/local-files/?d={quote(os.fsencode(Path(url).resolve().as_posix().lstrip('/')))}"
    return {"data": {"image": url}, "predictions": [prediction]}


def _label_studio_rle(mask: RLE) -> list[int]:
    """Encode a mask in Label Studio's `rle-pack` code: runs of 0 and 255 over the RGBA pixels, row by row."""
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


def _write_folder(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write files, given as pairs of name and content, to a new folder that then replaces `path`."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, content in files:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        shutil.rmtree(path, ignore_errors=True)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}: choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
