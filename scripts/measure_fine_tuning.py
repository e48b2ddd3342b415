"""Measure fine-tuning on generated scenes of digits, with `train`'s defaults.

python scripts/measure_fine_tuning.py starts      five random data sets: AP before and after, and the time
python scripts/measure_fine_tuning.py empty       false positives with and without images that have no objects
python scripts/measure_fine_tuning.py balance     AP of a rare class with and without --balance
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import dpt_zoo
from dpt_zoo.data.digits import Digits, annotate, digit_scene, read_digits
from dpt_zoo.training.defaults import FILE

DETECTORS = ("retinanet_dpt_nano_digits", "mrcnn_dpt_nano_digits")
STARTS = ((60, 1), (200, 3), (800, 10), (60, 10), (200, 1))
"""The number of scenes and of classes of each start."""
NUM_VALIDATED, NUM_TESTED = 20, 60
Groups = Sequence[Sequence[int]]  # the digits of each class


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=("starts", "empty", "balance"))
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 to 4 for starts, 0 to 2 for the others")
    parser.add_argument("--epochs", type=int, help="default: as chosen for starts, 6 for the others")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="settings to compare")
    args = parser.parse_args()
    from dpt_zoo.engine.config import parse_cfg_options

    measure: Callable[..., list[Any]] = globals()[f"measure_{args.subject}"]
    options: dict[str, Any] = {"cfg_options": parse_cfg_options(args.cfg_options)}
    options["epochs"] = args.epochs or (None if args.subject == "starts" else 6)
    for seed in args.seeds or range(5 if args.subject == "starts" else 3):
        with tempfile.TemporaryDirectory() as folder:
            print(*measure(Path(folder), seed, **options), sep=" | ", flush=True)


def measure_starts(folder: Path, seed: int, **options: Any) -> list[Any]:
    """Fine-tune on random classes, scenes of a random size, and random digits."""
    num_images, num_classes = STARTS[seed % len(STARTS)]
    rng = np.random.default_rng(seed)
    size = int(rng.integers(64, 129))
    groups = [each.tolist() for each in np.array_split(rng.permutation(10), num_classes)]
    for split, count in (("train", num_images), ("val", NUM_VALIDATED), ("test", NUM_TESTED)):
        write_scenes(folder / "data", split, [groups] * count, groups, size, seed)
    name = DETECTORS[seed % 2]
    start = create_start(folder / "start.pth", name, num_classes, seed)
    weights, choices, *seconds = run(folder, name, seed, **options)
    before, after = (evaluate(name, each, folder) for each in (start, weights))
    facts = [name, f"{num_images} scenes", f"{num_classes} classes", f"{size} px", *choices]
    return [*facts, f"AP {before:.1f} -> {after:.1f}", *seconds]


def measure_empty(folder: Path, seed: int, **options: Any) -> list[Any]:
    """Fine-tune on 60 scenes of the digits 0 to 4 and 40 of the others, which are no objects."""
    groups = [[number] for number in range(5)]
    other = [[number] for number in range(5, 10)]
    write_scenes(folder / "data", "train", [groups] * 60 + [other] * 40, groups, 192, seed)
    write_scenes(folder / "data", "val", [groups] * NUM_VALIDATED, groups, 192, seed)
    write_scenes(folder / "data", "test", [groups] * NUM_TESTED, groups, 192, seed)
    write_scenes(folder / "empty", "test", [other] * NUM_TESTED, groups, 192, seed)
    row = [DETECTORS[seed % 2]]
    for keep_empty in (False, True):
        weights, *_ = run(folder / str(keep_empty), row[0], seed, folder / "data", keep_empty=keep_empty, **options)
        detector = dpt_zoo.Detector(weights, score_threshold=0.3)
        found = sum(map(len, detector.stream(folder / "empty" / "test")))
        row += [f"{'with' if keep_empty else 'without'} empty: {found} false positives"]
        row += [f"AP {evaluate(row[0], weights, folder):.1f}"]
    return row


def measure_balance(folder: Path, seed: int, **options: Any) -> list[Any]:
    """Fine-tune on scenes of three classes, of which every tenth has only objects of the third."""
    groups = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    rare = [groups[2:] if number % 10 == 0 else groups[:2] for number in range(100)]
    write_scenes(folder / "data", "train", rare, groups, 192, seed)
    for split, count in (("val", NUM_VALIDATED), ("test", NUM_TESTED)):
        write_scenes(folder / "data", split, [groups] * count, groups, 192, seed)
    row = [DETECTORS[seed % 2]]
    for balance in (False, True):
        weights, *_ = run(folder / str(balance), row[0], seed, folder / "data", balance=balance, **options)
        row += [f"{'with' if balance else 'without'} --balance: AP {evaluate(row[0], weights, folder):.1f}"]
        row += [f"rare class {evaluate(row[0], weights, folder, 'class 2'):.1f}"]
    return row


def run(
    folder: Path, name: str, seed: int, data: Path | None = None, **options: Any
) -> tuple[Path, list[str], str, str]:
    """Train, and return the weights, the choices, and the time."""
    start, processor = time.monotonic(), os.times()
    weights = dpt_zoo.train(name, data_root=data or folder / "data", work_dir=folder / "run", seed=seed, **options)
    spent = [after - before for before, after in zip(processor, os.times(), strict=True)]
    choices = json.loads((folder / "run" / FILE).read_text())
    shown = [f"{key} {value:.3g}" if key == "lr" else f"{key} {value}" for key, value in choices.items()]
    return weights, shown, f"{time.monotonic() - start:.0f} s", f"{sum(spent[:4]):.0f} s of a core"


def create_start(path: Path, name: str, num_classes: int, seed: int) -> Path:
    """Write the weights with which a run starts."""
    torch.manual_seed(seed)
    model = dpt_zoo.create_model(name, num_classes=num_classes)
    meta = {"dataset_meta": {"classes": tuple(f"class {number}" for number in range(num_classes))}}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, path)
    return path


def evaluate(name: str, weights: Path, folder: Path, of_class: str | None = None) -> float:
    """Return the box AP on the test scenes, of all classes or one."""
    annotations, images = folder / "data/annotations/instances_test.json", folder / "data/test"
    says_what_it_is = weights.suffix == ".safetensors"
    evaluation = dpt_zoo.evaluate(
        weights if says_what_it_is else name,
        weights=None if says_what_it_is else weights,
        annotations=annotations,
        images=images,
        tasks=["bbox"],
    )
    metrics = evaluation.metrics["bbox"] if of_class is None else evaluation.per_class["bbox"][of_class]
    return float(metrics["mAP"] or 0)


def write_scenes(folder: Path, split: str, scenes: Sequence[Groups], groups: Groups, size: int, seed: int) -> None:
    """Write a scene for each of `scenes`, with digits of these groups; objects are digits of `groups`, the classes."""
    digits = read_digits("train" if split == "train" else "test")
    label_of = {int(digit): number for number, group in enumerate(groups) for digit in group}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / split).mkdir(parents=True)
    for number, drawn in enumerate(scenes, 1):
        chosen = np.isin(digits.labels, np.concatenate(drawn))
        rng = np.random.default_rng([seed, len(split), number])
        scene = digit_scene(rng, Digits(digits.images[chosen], digits.labels[chosen]), size)
        Image.fromarray(scene.image).save(folder / split / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": size, "height": size})
        for label, entry in zip(scene.labels, annotate(scene, number, len(annotations) + 1), strict=True):
            if label in label_of:
                annotations.append({**entry, "category_id": label_of[label] + 1, "id": len(annotations) + 1})
    categories = [{"id": number + 1, "name": f"class {number}"} for number in range(len(groups))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main()
