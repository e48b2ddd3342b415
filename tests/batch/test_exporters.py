"""The results of a detection run in the formats of other tools, read by these tools."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import defusedxml.ElementTree
import numpy as np
import pandas as pd
import pytest
import supervision as sv
from detection_runs import SETTINGS, detections_in, frames_of, result_of, write
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from trackers import load_mot_file

from dpt_zoo import Detections
from dpt_zoo.batch.exporters import WRITERS
from dpt_zoo.batch.journal import ImageResult, Journal
from dpt_zoo.cli import detect
from dpt_zoo.data.checks import SplitFiles, check_splits
from dpt_zoo.errors import InputError
from dpt_zoo.formats.voc import read_voc


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Of an image with two objects, one with none, and a frame with two."""
    nothing = detections_in("/data/b/2.webp")[:0]
    return write(tmp_path, [result_of("1.jpg"), ImageResult("b/2.webp", "b/2", nothing), *frames_of("clip.mp4", 1)])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The images' files."""
    for name in ("1.jpg", "b/2.webp", "clip.mp4/000000.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def export(journal: Journal, folder: Path, name: str) -> None:
    writer = WRITERS[name]
    assert writer
    writer(journal, folder)


def test_the_command_offers_them() -> None:
    assert tuple(WRITERS) == detect.FORMATS


def test_json(journal: Journal, tmp_path: Path) -> None:
    export(journal, tmp_path, "json")
    content = json.loads((tmp_path / "detections.json").read_text())
    assert (content["model"], content["classes"]) == ("mrcnn", list(SETTINGS.classes))
    lines = [json.loads(line) for line in (tmp_path / "detections.jsonl").read_text().splitlines()]
    assert content["images"] == lines
    first = Detections.from_json(lines[0], content["classes"])
    assert first.masks is not None and first.masks.sum(axis=(1, 2)).tolist() == [600, 200]


def test_coco(journal: Journal, images: Path, tmp_path: Path) -> None:
    export(journal, tmp_path, "coco")
    coco = COCO(tmp_path / "coco.json")
    assert [image["file_name"] for image in coco.loadImgs([1, 2, 3])] == ["1.jpg", "b/2.webp", "clip.mp4/000000"]
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["cat", "a/../dog"]
    dog, cat = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert (dog["category_id"], dog["bbox"], dog["score"], dog["area"]) == (2, [20, 15, 30, 20], 0.75, 600)
    assert coco.annToMask(cat).sum() == cat["area"] == 200
    assert not coco.getAnnIds(imgIds=[2]) and len(coco.getAnnIds(imgIds=[3])) == 2


def test_coco_is_data_to_train_on(images: Path, tmp_path: Path) -> None:
    journal = write(tmp_path, [result_of("1.jpg")])
    export(journal, tmp_path, "coco")
    (check,) = check_splits([SplitFiles("coco", tmp_path / "coco.json", images)])
    assert check.num_objects == check.num_masks == 2 and not check.issues


def test_cocos_images_keep_their_ids(tmp_path: Path) -> None:
    journal = write(tmp_path, [result_of("000000000139.jpg"), result_of("b/000000000285.jpg")])
    export(journal, tmp_path, "coco")
    assert sorted(COCO(tmp_path / "coco.json").imgs) == [139, 285]


def test_csv(journal: Journal, tmp_path: Path) -> None:
    export(journal, tmp_path, "csv")
    rows = pd.read_csv(tmp_path / "detections.csv")
    assert rows["image"].tolist() == ["1.jpg", "1.jpg", "clip.mp4/000000", "clip.mp4/000000"]
    assert rows["frame"].isna().tolist() == [True, True, False, False]
    assert rows["name"].tolist()[:2] == ["a/../dog", "cat"]
    assert rows[["label", "score", "x1", "y1", "x2", "y2", "area"]].iloc[0].tolist() == [1, 0.75, 20, 15, 50, 35, 600]


@pytest.mark.parametrize(
    "name", ["a\rb.jpg", "a\r\nb.jpg", "a\nb.jpg", 'a"b.jpg', "a,b.jpg", " a\r", "=1+1.jpg", "-a\tb.jpg"]
)
def test_csv_reads_back(tmp_path: Path, name: str) -> None:
    export(write(tmp_path, [result_of(name, "a")]), tmp_path, "csv")
    with (tmp_path / "detections.csv").open(newline="") as file:
        rows = list(csv.reader(file, strict=True))
    assert [row[0] for row in rows] == ["image", name, name]
    assert {len(row) for row in rows} == {11}


def test_label_studio_of_a_long_url(tmp_path: Path) -> None:
    url = f"https://example.org/{'x' * 3000}.png"
    export(write(tmp_path, [ImageResult("x.png", "x", detections_in(url))]), tmp_path, "labelstudio")
    (task,) = json.loads((tmp_path / "labelstudio.json").read_text())
    assert task["data"]["image"] == url


def test_csv_of_a_model_without_masks_and_of_odd_names(tmp_path: Path) -> None:
    journal = write(tmp_path, [ImageResult('say "a",\nb\udce9.jpg', "a", replace(detections_in("x")[0], rles=None))])
    export(journal, tmp_path, "csv")
    rows = pd.read_csv(tmp_path / "detections.csv")
    assert rows["image"].tolist() == ['say "a",\nb\\udce9.jpg'] and rows["area"].isna().all()


def test_tracks(tmp_path: Path) -> None:
    """Two frames with two objects; of one, the track is not known yet in the first frame."""
    with Journal(tmp_path, replace(SETTINGS, tracker="bytetrack")) as journal:
        for result, ids in zip(frames_of("clip.mp4", 2), ([1, -1], [1, 2]), strict=True):
            journal.append(replace(result, detections=replace(result.detections, track_ids=np.array(ids))))
    for name in ("json", "coco", "csv", "mot"):
        export(journal, tmp_path, name)
    images = json.loads((tmp_path / "detections.json").read_text())["images"]
    assert [[each["track_id"] for each in image["objects"]] for image in images] == [[1, -1], [1, 2]]
    annotations = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    assert [each.get("track_id") for each in annotations] == [1, None, 1, 2]
    assert pd.read_csv(tmp_path / "detections.csv")["track_id"].tolist() == [1, -1, 1, 2]
    frames = load_mot_file(tmp_path / "mot" / "clip.mp4.txt")
    assert [each.ids.tolist() for each in frames.values()] == [[1], [1, 2]] and list(frames) == [1, 2]
    assert frames[2].boxes.tolist() == [[20, 15, 30, 20], [5, 10, 20, 10]]
    assert frames[2].confidences.tolist() == [0.75, 0.5]


def test_mot_needs_tracks(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs tracks"):
        export(journal, tmp_path, "mot")


def test_yolo(journal: Journal, images: Path, tmp_path: Path) -> None:
    export(journal, tmp_path, "yolo")
    assert (tmp_path / "labels/b/2.txt").read_text() == ""
    assert (tmp_path / "labels/clip.mp4/000000.txt").read_text() == (tmp_path / "labels/1.txt").read_text()
    assert [line.split()[-1] for line in (tmp_path / "labels/1.txt").read_text().splitlines()] == [
        "0.750000",
        "0.500000",
    ]
    data = sv.DetectionDataset.from_yolo(str(images), str(tmp_path / "labels"), str(tmp_path / "data.yaml"))
    assert data.classes == list(SETTINGS.classes)
    read = data.annotations[str(images / "1.jpg")]
    np.testing.assert_allclose(read.xyxy, [[20, 15, 50, 35], [5, 10, 25, 20]], atol=1e-3)
    assert read.class_id is not None and read.class_id.tolist() == [1, 0]


def test_voc(journal: Journal, images: Path, tmp_path: Path) -> None:
    export(journal, tmp_path, "voc")
    data = sv.DetectionDataset.from_pascal_voc(str(images), str(tmp_path / "annotations"))
    read = data.annotations[str(images / "1.jpg")]
    assert read.xyxy.tolist() == [[20, 15, 50, 35], [5, 10, 25, 20]]
    assert sorted(data.classes) == sorted(SETTINGS.classes)
    (tmp_path / "Annotations").symlink_to(tmp_path / "annotations")
    (tmp_path / "JPEGImages").symlink_to(images)
    _, (part,) = read_voc(tmp_path)
    assert {(each["height"], each["width"]) for each in part.images} == {(40, 60)}
    assert [(each["category"], each["bbox"]) for each in part.annotations] == [
        ("a/../dog", [20, 15, 30, 20]),
        ("cat", [5, 10, 20, 10]),
    ]
    assert defusedxml.ElementTree.parse(tmp_path / "annotations/b/2.xml").findtext("filename") == "b/2.webp"


def test_voc_has_whole_pixels_and_no_forbidden_characters(tmp_path: Path) -> None:
    one = replace(detections_in("x")[0], boxes=np.array([[20.25, 15.25, 50.25, 35.25]], np.float32))
    with Journal(tmp_path, replace(SETTINGS, classes=("", "\x01&<"))) as journal:
        journal.append(ImageResult("\x02\udce9.jpg", "a", one))
    export(journal, tmp_path, "voc")
    root = defusedxml.ElementTree.fromstring((tmp_path / "annotations/a.xml").read_bytes())
    assert [element.text for element in root.iterfind("object/bndbox/*")] == ["21", "16", "51", "36"]
    assert (root.findtext("object/name"), root.findtext("filename")) == ("\\x01&<", "\\x02\\udce9.jpg")


def test_label_studio(journal: Journal, tmp_path: Path) -> None:
    export(journal, tmp_path, "labelstudio")
    first, second, frame = json.loads((tmp_path / "labelstudio.json").read_text())
    assert [task["data"]["image"] for task in (first, second, frame)] == [
        "/data/1.jpg",
        "/data/b/2.webp",
        "/data/clip.mp4",
    ]
    (prediction,) = first["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("mrcnn", 0.625)
    box, mask, *_ = prediction["result"]
    assert [box["value"][side] for side in ("x", "y", "width", "height")] == pytest.approx([100 / 3, 37.5, 50, 50])
    assert box["value"]["rectanglelabels"] == ["a/../dog"]
    dog, cat = (decode_label_studio_rle(result["value"]["rle"]) for result in prediction["result"][1::2])
    masks = detections_in("x").masks
    assert masks is not None
    for decoded, expected in ((dog, masks[0]), (cat, masks[1])):
        assert np.array_equal(decoded.reshape(40, 60, 4), 255 * np.repeat(expected[..., None], 4, axis=2))
    assert second["predictions"][0]["result"] == []

    controls = ElementTree.parse(tmp_path / "labelstudio.xml").getroot()
    for result in (box, mask):
        (control,) = (each for each in controls if each.get("name") == result["from_name"])
        assert control.tag.lower() == result["type"] and control.get("toName") == result["to_name"] == "image"
        assert {label.get("value") for label in control} >= set(result["value"][result["type"]])


def test_label_studio_finds_files_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "a b.jpg"
    path.touch()
    export(write(tmp_path, [ImageResult("a b.jpg", "a b", detections_in(str(path)))]), tmp_path, "labelstudio")
    (task,) = json.loads((tmp_path / "labelstudio.json").read_text())
    assert task["data"]["image"] == f"/data/local-files/?d={str(tmp_path).lstrip('/')}/a%20b.jpg"


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("jsonl", "mot")])
def test_nothing_at_all_is_sound_too(tmp_path: Path, name: str) -> None:
    export(write(tmp_path, []), tmp_path, name)
    for path in tmp_path.glob("*.json"):
        json.loads(path.read_text())


@pytest.mark.parametrize("name", ["yolo", "voc"])
def test_a_folder_is_made_anew(journal: Journal, tmp_path: Path, name: str) -> None:
    export(journal, tmp_path, name)
    folder = tmp_path / ("labels" if name == "yolo" else "annotations")
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    (folder / "stale").touch()
    export(journal, tmp_path, name)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".*"))


def decode_label_studio_rle(code: list[int]) -> NDArray[Any]:
    """Read the `rle-pack` code as it is defined: a header, then runs of one value or of many."""
    bits, at = "".join(f"{byte:08b}" for byte in code), 0

    def read(size: int) -> int:
        nonlocal at
        at += size
        return int(bits[at - size : at], 2)

    values = np.zeros(read(32), np.uint8)
    word, sizes, done = read(5) + 1, [read(4) + 1 for _ in range(4)], 0
    while done < len(values):
        is_run = read(1)
        length = read(sizes[read(2)]) + 1
        values[done : done + length] = read(word) if is_run else [read(word) for _ in range(length)]
        done += length
    return values
