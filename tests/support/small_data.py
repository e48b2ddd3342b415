"""Small valid data sets in each layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

WIDTH, HEIGHT = 64, 48
CLASSES = ["cat", "dog"]

BOX = [8.0, 6.0, 40.0, 30.0]  # xyxy
POLYGON = [10.0, 8.0, 50.0, 10.0, 30.5, 40.0]
POLYGON_BOX = [10.0, 8.0, 50.0, 40.0]  # xyxy

Json = dict[str, Any]


def make_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 60, 30)).save(path)


def coco_annotation(id: int, image_id: int, category_id: int = 1, **fields: Any) -> Json:
    x1, y1, x2, y2 = POLYGON_BOX
    box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": 619.5, "segmentation": [POLYGON], "iscrowd": 0}
    return {"id": id, "image_id": image_id, "category_id": category_id, **box, **fields}


def coco_content() -> Json:
    """Four images: one with two objects, one with a crowd and an RLE, one with a box, and one without objects."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[10:20, 12:30] = 1
    rle = coco_mask.encode(mask)
    compressed = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
    runs = [12 * HEIGHT + 10, *[10, HEIGHT - 10] * 17, 10, (WIDTH - 30) * HEIGHT + HEIGHT - 20]
    area: Json = {"bbox": [12, 10, 18, 10], "area": 180}
    return {
        "images": [
            {"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT} for number in (1, 2, 3, 4)
        ],
        "annotations": [
            coco_annotation(11, 1),
            coco_annotation(12, 1, 2, segmentation=[[1, 1, 9, 1, 9, 9], [20, 20, 30, 20, 30, 30]]),
            coco_annotation(13, 2, segmentation=compressed, **area),
            coco_annotation(14, 2, 2, segmentation={"size": [HEIGHT, WIDTH], "counts": runs}, iscrowd=1, **area),
            coco_annotation(15, 3, segmentation=[], **area),
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)],
    }


def make_coco(root: Path, break_it: Callable[[Json], object] = lambda content: None, split: str = "train2017") -> Path:
    """Make a split in COCO's layout, after its content was changed, and return its annotation file."""
    content = coco_content()
    break_it(content)
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    for number in (1, 2, 3, 4):
        make_image(root / split / f"{number}.png")
    return path


def make_yolo(root: Path) -> Path:
    """Make a YOLO data set: each split has an image with a box and a polygon, and one without a label."""
    (root / "data.yaml").parent.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text("path: ../datasets/pets\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n")
    x1, y1, x2, y2 = BOX
    box = [(x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT]
    polygon = [value / (HEIGHT if index % 2 else WIDTH) for index, value in enumerate(POLYGON)]
    for split in ("train", "val"):
        make_image(root / "images" / split / "a.png")
        make_image(root / "images" / split / "b.png")
        label = root / "labels" / split / "a.txt"
        label.parent.mkdir(parents=True)
        label.write_text("\n".join(f"{label} {' '.join(map(str, row))}" for label, row in ((0, box), (1, polygon))))
    return root


def make_voc(root: Path) -> Path:
    """Make a Pascal VOC data set: a split of two images, with a box and a polygon, and one of an image with a box."""
    for name in ("a", "b", "c"):
        make_image(root / "JPEGImages" / f"{name}.jpg")
    label = root / "Annotations" / "a.xml"
    label.parent.mkdir()
    label.write_text(voc_xml(voc_object("cat", [*BOX]), voc_object("dog", [*POLYGON_BOX], POLYGON)))
    label.with_name("c.xml").write_text(voc_xml(voc_object("cat", [*BOX])))
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("c\n")
    (lists / "cat_train.txt").write_text("a 1\nb -1\n")
    return root


def voc_object(name: str, box: list[float], polygon: list[float] | None = None) -> str:
    x1, y1, x2, y2 = box
    sides = [f"{'xy'[index % 2]}{index // 2 + 1}" for index in range(len(polygon or []))]
    corners = "".join(f"<{side}>{value + 1:g}</{side}>" for side, value in zip(sides, polygon or [], strict=True))
    return (
        f"<object><name>{name}</name><difficult>0</difficult>"
        f"<bndbox><xmin>{x1 + 1:g}</xmin><ymin>{y1 + 1:g}</ymin><xmax>{x2:g}</xmax><ymax>{y2:g}</ymax></bndbox>"
        f"{f'<polygon>{corners}</polygon>' if polygon else ''}</object>"
    )


def voc_xml(*objects: str, size: str = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>") -> str:
    return f"<annotation><filename>ignored.jpg</filename>{size}{''.join(objects)}</annotation>"
