"""Results of a detection run, made by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpt_zoo import Detections
from dpt_zoo.batch.journal import ImageResult, Journal, RunSettings
from dpt_zoo.inference.detections import encode_mask

SETTINGS = RunSettings(
    model="mrcnn", weights="0" * 64, classes=("cat", "a/../dog"), kept_classes=("cat", "a/../dog"), score_threshold=0.3
)


def detections_in(path: str, *, image: bool = False) -> Detections:
    """A cat and before it a dog, in an image of 60x40 pixels."""
    cat, dog = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    cat[10:20, 5:25] = True
    dog[15:35, 20:50] = True
    return Detections(
        boxes=np.array([[20, 15, 50, 35], [5, 10, 25, 20]], np.float32),
        scores=np.array([0.75, 0.5], np.float32),
        labels=np.array([1, 0]),
        classes=SETTINGS.classes,
        image_size=(40, 60),
        rles=[encode_mask(dog), encode_mask(cat)],
        image=np.full((40, 60, 3), 100, np.uint8) if image else None,
        path=path,
    )


def result_of(name: str, stem: str | None = None) -> ImageResult:
    return ImageResult(name, stem or name.partition(".")[0], detections_in(f"/data/{name}"))


def frames_of(name: str, number: int) -> list[ImageResult]:
    frames = [f"{name}/{index:06d}" for index in range(number)]
    results = [ImageResult(each, each, detections_in(f"/data/{name}"), i, i / 25) for i, each in enumerate(frames)]
    return [*results[:-1], replace(results[-1], is_last=True)]


def write(folder: Path, results: list[ImageResult], *, resume: bool = False) -> Journal:
    with Journal(folder, SETTINGS, resume=resume) as journal:
        for result in results:
            journal.append(result)
    return journal


def read_names(folder: Path) -> dict[str, list[str]]:
    """Return the images' names in a run's files of each format."""

    def load(name: str) -> Any:
        return json.loads((folder / name).read_text())

    return {
        "json": [image["name"] for image in load("detections.json")["images"]],
        "jsonl": [json.loads(line)["name"] for line in (folder / "detections.jsonl").read_text().splitlines()],
        "coco": [image["file_name"] for image in load("coco.json")["images"]],
        "csv": pd.read_csv(folder / "detections.csv")["image"].unique().tolist(),
        "yolo": [path.stem for path in (folder / "labels").rglob("*.txt")],
        "voc": [path.stem for path in (folder / "annotations").rglob("*.xml")],
        "labelstudio": [task["data"]["image"] for task in load("labelstudio.json")],
    }
