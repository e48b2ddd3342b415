"""One small data set as different tools export it, with their quirks. All of it is written here, none is a real export.

Each function writes a data set to a folder and returns what is in it: for each image, by the end of its name, a class,
a box (xyxy) and, if the form has one, a mask for each object.
"""

import base64
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from small_data import HEIGHT, POLYGON, POLYGON_BOX, WIDTH, make_image, voc_object, voc_xml

datasets.disable_progress_bars()

Objects = list[tuple[str, list[float], NDArray[np.bool_] | None]]
Expected = dict[str, Objects]

RECTANGLE = [8, 6, 40, 30]  # xyxy
SQUARE = [12.0, 10.0, 30.0, 10.0, 30.0, 20.0, 12.0, 20.0]
HOLE = [16.0, 12.0, 24.0, 12.0, 24.0, 18.0, 16.0, 18.0]


def draw(*polygons: list[float]) -> NDArray[np.bool_]:
    """Return the mask of polygons."""
    rles = coco_mask.frPyObjects([list(polygon) for polygon in polygons], HEIGHT, WIDTH)
    return coco_mask.decode(coco_mask.merge(rles)).astype(bool)


def box_mask(x1: int, y1: int, x2: int, y2: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


def pairs(polygon: list[float]) -> list[list[float]]:
    return [list(pair) for pair in zip(polygon[::2], polygon[1::2], strict=True)]


def png(mask: NDArray[np.bool_], mode: str = "L") -> bytes:
    """Return a PNG of a mask: grey, of one bit, or in the alpha channel."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    image = grey.convert("1") if mode == "1" else grey
    if mode == "RGBA":
        image = Image.new("RGBA", grey.size, (9, 9, 9, 0))
        image.putalpha(grey)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


POLYGON_OBJECT = ("dog", POLYGON_BOX, draw(POLYGON))


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


# --- COCO files of other tools


def roboflow(root: Path) -> Expected:
    """A filler category 0 that is the parent of the others, `_annotations.coco.json` beside the images, and `valid`."""
    categories = [{"id": 0, "name": "pets", "supercategory": "none"}]
    categories += [{"id": id, "name": name, "supercategory": "pets"} for id, name in ((1, "cat"), (2, "dog"))]
    for split in ("train", "valid"):
        make_image(root / split / "a_png.rf.0f3c1e2d.png")
        x1, y1, x2, y2 = POLYGON_BOX
        annotation = {"id": 0, "image_id": 0, "category_id": 2, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": 1280}
        annotation |= {"segmentation": [POLYGON], "iscrowd": 0}
        image = {"id": 0, "license": 1, "file_name": "a_png.rf.0f3c1e2d.png", "height": HEIGHT, "width": WIDTH}
        content = {"info": {}, "licenses": [], "categories": categories, "images": [image], "annotations": [annotation]}
        write_json(root / split / "_annotations.coco.json", content)
    (root / "README.dataset.txt").write_text("Pets")
    return {"a_png.rf.0f3c1e2d.png": [POLYGON_OBJECT]}


def roboflow_boxes(root: Path) -> Expected:
    """Boxes with empty `segmentation`, the name before the upload in `extra`, and an image without annotations."""
    x1, y1, x2, y2 = RECTANGLE
    annotation = {"id": 0, "image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": 768}
    annotation |= {"segmentation": [], "iscrowd": 0}
    categories = [{"id": 0, "name": "cat-dog", "supercategory": "none"}]
    categories += [{"id": 1, "name": "cat", "supercategory": "cat-dog"}]
    names = ["b_jpg.rf.77aa.png", "a_jpg.rf.5c1b.png"]
    images: list[Any] = [
        {"id": id, "file_name": name, "height": HEIGHT, "width": WIDTH} for id, name in enumerate(names)
    ]
    for image in images:
        image |= {"license": 1, "date_captured": "2024-05-01T10:00:00+00:00", "extra": {"name": "a.jpg"}}
        make_image(root / "train" / image["file_name"])
    content = {"images": images, "categories": categories, "annotations": [annotation]}
    write_json(root / "train" / "_annotations.coco.json", content)
    return {names[0]: [], names[1]: [("cat", [*map(float, RECTANGLE)], None)]}


def cvat(root: Path) -> Expected:
    """Images in subfolders, boxes with fractions, and masks of the brush as RLE with `iscrowd`."""
    make_image(root / "images" / "train" / "day 1" / "frame_000000.png")
    polygon = {"segmentation": [POLYGON], "area": 619.5, "bbox": [10.0, 8.0, 40.0, 32.0], "iscrowd": 0}
    _cvat(root, "train", "day 1/frame_000000.png", [{"category_id": 1, **BRUSH}, {"category_id": 2, **polygon}])
    return {"frame_000000.png": [("cat", [12, 10, 30, 20], box_mask(12, 10, 30, 20)), POLYGON_OBJECT]}


def cvat_brush_only(root: Path) -> Expected:
    """A task without subsets, with nothing but masks of the brush."""
    make_image(root / "images" / "default" / "frame_000001.png")
    _cvat(root, "default", "frame_000001.png", [{"category_id": 2, **BRUSH}])
    return {"frame_000001.png": [("dog", [12, 10, 30, 20], box_mask(12, 10, 30, 20))]}


BRUSH: dict[str, Any] = {
    "segmentation": {
        "counts": [12 * HEIGHT + 10, *[10, HEIGHT - 10] * 17, 10, (WIDTH - 30) * HEIGHT + HEIGHT - 20],
        "size": [HEIGHT, WIDTH],
    },
    "area": 180.0,
    "bbox": [12.0, 10.0, 18.0, 10.0],
    "iscrowd": 1,
}


def _cvat(root: Path, subset: str, file_name: str, objects: list[dict[str, Any]]) -> None:
    image = {"id": 1, "width": WIDTH, "height": HEIGHT, "file_name": file_name, "license": 0, "coco_url": ""}
    common = {"image_id": 1, "attributes": {"occluded": False, "rotation": 0.0}}
    annotations = [{"id": id, **common, **each} for id, each in enumerate(objects, 1)]
    categories = [{"id": id, "name": name, "supercategory": ""} for id, name in ((1, "cat"), (2, "dog"))]
    content = {"licenses": [], "info": {}, "categories": categories, "images": [image], "annotations": annotations}
    write_json(root / "annotations" / f"instances_{subset}.json", content)


def _label_studio(root: Path, file_name: str) -> None:
    image = {"width": WIDTH, "height": HEIGHT, "id": 0, "file_name": file_name}
    annotation = {"id": 0, "image_id": 0, "category_id": 1, "segmentation": [POLYGON], "bbox": [10, 8, 40, 32]}
    annotation |= {"ignore": 0, "iscrowd": 0, "area": 619.5}
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    write_json(root / "result.json", {"images": [image], "categories": categories, "annotations": [annotation]})


def label_studio_uploads(root: Path) -> Expected:
    """Names in the folder of the server, with a prefix, beside images that have their own names."""
    make_image(root / "images" / "my photo.png")
    _label_studio(root, "../../../data/media/upload/1/1a2b3c4d-my%20photo.png")
    return {"my photo.png": [POLYGON_OBJECT]}


def label_studio_local_files(root: Path) -> Expected:
    """The URL of a file below the server's own folder."""
    make_image(root / "images" / "pets" / "käfer 1.png")
    _label_studio(root, "/data/local-files/?d=pets%2Fk%C3%A4fer%201.png")
    return {"käfer 1.png": [POLYGON_OBJECT]}


def label_studio_windows(root: Path) -> Expected:
    make_image(root / "images" / "1a2b3c4d-photo.png")
    _label_studio(root, "images\\1a2b3c4d-photo.png")
    return {"photo.png": [POLYGON_OBJECT]}


def text_ids(root: Path) -> Expected:
    """A COCO file with UUIDs, and without `area` and `iscrowd`."""
    make_image(root / "train" / "a.png")
    image = {"id": "0a1b-22", "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    annotation = {"id": "f-1", "image_id": "0a1b-22", "category_id": "2", "segmentation": [POLYGON]}
    categories = [{"id": "1", "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": [image], "categories": categories, "annotations": [annotation]}
    write_json(root / "annotations" / "instances_train.json", content)
    return {"a.png": [POLYGON_OBJECT]}


# --- labelme


def _labelme(path: Path, image_path: str, shapes: list[dict[str, Any]]) -> None:
    common: dict[str, Any] = {"group_id": None, "description": "", "flags": {}, "mask": None}
    content = {"version": "5.5.0", "flags": {}, "shapes": [{**common, **shape} for shape in shapes]}
    write_json(path, content | {"imagePath": image_path, "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH})


def labelme(root: Path) -> Expected:
    """Every shape that has an extent, a rectangle drawn backwards, and a point."""
    make_image(root / "a.png")
    make_image(root / "nothing in it.png")
    x1, y1, x2, y2 = RECTANGLE
    inside = np.eye(10, 18, dtype=bool)
    inside[0] = inside[-1] = inside[:, 0] = inside[:, -1] = True
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[10:20, 12:30] = inside
    shapes: list[dict[str, Any]] = [
        {"label": "cat", "shape_type": "rectangle", "points": [[x2, y2], [x1, y1]]},
        {"label": "dog", "shape_type": "polygon", "points": pairs(POLYGON)},
        {"label": "cat", "shape_type": "mask", "points": [[12, 10], [29, 19]]}
        | {"mask": base64.b64encode(png(inside, "1")).decode()},
        {"label": "nose", "shape_type": "point", "points": [[5, 5]]},
    ]
    _labelme(root / "a.json", "a.png", shapes)
    boxes: Objects = [("cat", [*map(float, RECTANGLE)], None), POLYGON_OBJECT, ("cat", [12, 10, 30, 20], mask)]
    return {"a.png": boxes, "nothing in it.png": []}


def labelme_in_folders(root: Path) -> Expected:
    """Labels and images in folders of their own, paths of Windows, an object of two parts, and a circle."""
    for split in ("train", "val"):
        make_image(root / split / "pictures" / "b.png")
        shapes: list[dict[str, Any]] = [
            {"label": "dog", "shape_type": "polygon", "points": pairs(POLYGON), "group_id": 1},
            {"label": "dog", "shape_type": "polygon", "points": pairs(SQUARE), "group_id": 1},
            {"label": "cat", "shape_type": "circle", "points": [[30, 24], [30, 34]]},
        ]
        _labelme(root / split / "b.json", "pictures\\b.png", shapes)
    angles = 2 * np.pi * np.arange(64) / 64
    circle = np.stack([30 + 10 * np.cos(angles), 24 + 10 * np.sin(angles)], 1).round(3).ravel().tolist()
    return {"b.png": [("dog", [10, 8, 50, 40], draw(POLYGON, SQUARE)), ("cat", [20, 14, 40, 34], draw(circle))]}


# --- VGG Image Annotator


def via(root: Path) -> Expected:
    """A project of version 2, with a checkbox as the class and other attributes."""
    make_image(root / "a.png")
    xs, ys = POLYGON[::2], POLYGON[1::2]
    regions = [
        {"shape_attributes": {"name": "rect", "x": 8, "y": 6, "width": 32, "height": 24}}
        | {"region_attributes": {"class": {"cat": True, "dog": False}, "quality": "good"}},
        {"shape_attributes": {"name": "polygon", "all_points_x": xs, "all_points_y": ys}}
        | {"region_attributes": {"class": {"dog": True}}},
        {"shape_attributes": {"name": "point", "cx": 5, "cy": 5}, "region_attributes": {"class": "nose"}},
    ]
    entry = {"filename": "a.png", "size": 128, "regions": regions, "file_attributes": {}}
    content = {"_via_settings": {}, "_via_img_metadata": {"a.png128": entry}, "_via_attributes": {}}
    write_json(root / "via_project.json", content)
    return {"a.png": [("cat", [*map(float, RECTANGLE)], None), POLYGON_OBJECT]}


def via_version_1(root: Path) -> Expected:
    """Exported regions, numbered by text, in each folder of images, as in Mask R-CNN's well-known example."""
    for split in ("train", "val"):
        make_image(root / split / "b.png")
        shape = {"name": "polygon", "all_points_x": POLYGON[::2], "all_points_y": POLYGON[1::2]}
        regions = {"0": {"shape_attributes": shape, "region_attributes": {"animal": "dog"}}}
        entry = {"fileref": "", "size": 128, "filename": "b.png", "base64_img_data": "", "file_attributes": {}}
        write_json(root / split / "via_region_data.json", {"b.png128": entry | {"regions": regions}})
    return {"b.png": [POLYGON_OBJECT]}


# --- Supervisely


def _supervisely(root: Path, dataset: str, name: str, objects: list[dict[str, Any]]) -> None:
    classes = [{"title": name, "shape": "any", "color": "#000000"} for name in ("dog", "cat")]
    write_json(root / "meta.json", {"classes": classes, "tags": [], "projectType": "images"})
    make_image(root / dataset / "img" / "a.png")
    content = {"description": "", "tags": [], "size": {"height": HEIGHT, "width": WIDTH}, "objects": objects}
    write_json(root / dataset / "ann" / name, content)


def supervisely(root: Path) -> Expected:
    """A rectangle that includes its last pixel, a polygon with a hole, and a bitmap in an alpha channel."""
    bitmap = np.tri(10, 18, dtype=bool)
    objects: list[dict[str, Any]] = [
        {"classTitle": "cat", "geometryType": "rectangle"}
        | {"points": {"exterior": [[8, 6], [39, 29]], "interior": []}},
        {"classTitle": "dog", "geometryType": "polygon"}
        | {"points": {"exterior": pairs(SQUARE), "interior": [pairs(HOLE)]}},
        {"classTitle": "dog", "geometryType": "bitmap"}
        | {"bitmap": {"origin": [20, 30], "data": base64.b64encode(zlib.compress(png(bitmap, "RGBA"))).decode()}},
    ]
    _supervisely(root, "ds0", "a.png.json", objects)
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[30:40, 20:38] = bitmap
    ring = draw(SQUARE) & ~draw(HOLE)
    expected: Objects = [("cat", [*map(float, RECTANGLE)], None), ("dog", [12, 10, 30, 20], ring)]
    return {"a.png": [*expected, ("dog", [20, 30, 30, 40], mask)]}


def supervisely_with_short_names(root: Path) -> Expected:
    """Labels are named without the image's suffix, and splits are data sets of the project."""
    objects = [{"classTitle": "dog", "geometryType": "polygon", "points": {"exterior": pairs(POLYGON), "interior": []}}]
    for dataset in ("train", "val"):
        _supervisely(root, dataset, "a.json", objects)
    return {"a.png": [POLYGON_OBJECT]}


# --- Hugging Face


def _rows(folder: Path) -> "datasets.Dataset":
    make_image(folder / "a.png")
    objects = {"id": [1], "area": [768], "bbox": [[8.0, 6.0, 32.0, 24.0]], "category": [1]}
    features = {
        "image_id": datasets.Value("int64"),
        "image": datasets.Image(),
        "objects": {
            "id": datasets.List(datasets.Value("int64")),
            "area": datasets.List(datasets.Value("int64")),
            "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
            "category": datasets.List(datasets.ClassLabel(names=["dog", "cat"])),
        },
    }
    row = {"image_id": 5, "image": str(folder / "a.png"), "objects": objects}
    return datasets.Dataset.from_list([row], features=datasets.Features(features))


def huggingface_saved(root: Path) -> Expected:
    table = _rows(root.parent / "original")
    datasets.DatasetDict({"train": table, "validation": table}).save_to_disk(str(root))
    return {"000001.png": [("cat", [*map(float, RECTANGLE)], None)]}


def huggingface_parquet(root: Path) -> Expected:
    (root / "data").mkdir(parents=True)
    _rows(root.parent / "original").to_parquet(str(root / "data" / "train-00000-of-00001.parquet"))
    return {"000001.png": [("cat", [*map(float, RECTANGLE)], None)]}


def huggingface_imagefolder(root: Path) -> Expected:
    """Classes by name, in `metadata.jsonl`."""
    make_image(root / "train" / "a.png")
    row = {"file_name": "a.png", "objects": {"bbox": [[8, 6, 32, 24]], "categories": ["cat"]}}
    (root / "train" / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    return {"000001.png": [("cat", [*map(float, RECTANGLE)], None)]}


# --- YOLO


def _yolo_line(label: int, numbers: list[float]) -> str:
    """Return a line of a label file."""
    return " ".join([str(label), *(f"{value / (HEIGHT if i % 2 else WIDTH):.6f}" for i, value in enumerate(numbers))])


def _draw_yolo(polygon: list[float]) -> NDArray[np.bool_]:
    """Return the mask of a polygon after its coordinates were rounded to six digits, as most tools write them."""
    sides = [HEIGHT if index % 2 else WIDTH for index in range(len(polygon))]
    return draw([round(value / side, 6) * side for value, side in zip(polygon, sides, strict=True)])


def yolo_segments(root: Path) -> Expected:
    """Polygons in Ultralytics' layout, with Windows' line ends, an empty file, and paths of another machine."""
    names = {0: "cat", 1: "dog"}
    lines = ["path: C:\\\\data\\\\pets", "train: images/train", "val: images/val", f"names: {names}"]
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text("\n".join(lines).replace("\\\\", "\\"))
    for split in ("train", "val"):
        make_image(root / "images" / split / "a.PNG")
        make_image(root / "images" / split / "nothing in it.png")
        labels = root / "labels" / split
        labels.mkdir(parents=True)
        (labels / "a.txt").write_bytes(f"{_yolo_line(1, POLYGON)}\r\n{_yolo_line(0, SQUARE)}\r\n".encode())
        (labels / "nothing in it.txt").touch()
    objects: Objects = [("dog", POLYGON_BOX, _draw_yolo(POLYGON)), ("cat", [12, 10, 30, 20], _draw_yolo(SQUARE))]
    return {"a.PNG": objects, "nothing in it.png": []}


def yolo_of_roboflow(root: Path) -> Expected:
    """Folders of images and labels in each split, paths that start above, and boxes beside a closed polygon."""
    x1, y1, x2, y2 = RECTANGLE
    for split in ("train", "valid"):
        make_image(root / split / "images" / "a_jpg.rf.0f3c.png")
        label = root / split / "labels" / "a_jpg.rf.0f3c.txt"
        label.parent.mkdir(parents=True)
        box = _yolo_line(0, [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
        label.write_text(f"{box}\n{_yolo_line(1, [*POLYGON, *POLYGON[:2]])}")
    lines = ["train: ../train/images", "val: ../valid/images", "test: ../test/images", "", "nc: 2"]
    lines += ["names: ['cat', 'dog']", "", "roboflow:", "  workspace: pets", "  version: 1", "  license: CC BY 4.0"]
    (root / "data.yaml").write_text("\n".join(lines))
    mask = _draw_yolo([*POLYGON, *POLYGON[:2]])
    return {"a_jpg.rf.0f3c.png": [("cat", [*map(float, RECTANGLE)], None), ("dog", POLYGON_BOX, mask)]}


# --- Pascal VOC


def voc(root: Path) -> Expected:
    """VOC2012's layout: lists of names, lists of a class beside them, difficult objects, and parts of objects."""
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"
    cat = voc_object("cat", [*map(float, RECTANGLE)]).replace("<difficult>0", "<difficult>1")
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split, name in (("train", "2008_000001"), ("val", "2008_000002")):
        make_image(root / "JPEGImages" / f"{name}.jpg")
        label = root / "Annotations" / f"{name}.xml"
        label.parent.mkdir(exist_ok=True)
        label.write_text(voc_xml(cat.replace("</object>", f"{part}</object>")))
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{name}\n")
        (root / "ImageSets" / "Main" / f"cat_{split}.txt").write_text(f"{name} -1\n")
    return {".jpg": [("cat", [*map(float, RECTANGLE)], None)]}


def voc_beside_images(root: Path) -> Expected:
    """Roboflow's export: XML files beside the images of each split, with polygons."""
    for split in ("train", "valid"):
        make_image(root / split / "a_jpg.rf.0f3c.png")
        label = voc_xml(voc_object("dog", [*POLYGON_BOX], POLYGON))
        (root / split / "a_jpg.rf.0f3c.xml").write_text(label)
    return {"a_jpg.rf.0f3c.png": [POLYGON_OBJECT]}


EXPORTS: list[Callable[[Path], Expected]] = [
    *(
        roboflow,
        roboflow_boxes,
        cvat,
        cvat_brush_only,
        label_studio_uploads,
        label_studio_local_files,
        label_studio_windows,
        text_ids,
    ),
    *(labelme, labelme_in_folders, via, via_version_1, supervisely, supervisely_with_short_names),
    *(huggingface_saved, huggingface_parquet, huggingface_imagefolder),
    *(yolo_segments, yolo_of_roboflow, voc, voc_beside_images),
]
