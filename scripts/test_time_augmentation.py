"""Measure what test-time augmentation gains in AP on digit scenes, and what it costs in processor time.

python scripts/test_time_augmentation.py scenes
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image

from dpt_zoo import Detector, create_model
from dpt_zoo.analysis.metrics import CocoMetrics
from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.manifest.records import read_manifest

SEED = 77  # not that of the training data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the scenes are made here, and used again")
    parser.add_argument("--scenes", type=int, default=400)
    args = parser.parse_args()
    make_digit_scenes(args.folder, num_train=1, num_test=args.scenes, seed=SEED)
    ground_truth = json.loads((args.folder / "annotations/instances_val2017.json").read_text())
    paths = {each["id"]: args.folder / "val2017" / each["file_name"] for each in ground_truth["images"]}
    images = {id: np.asarray(Image.open(path).convert("RGB")) for id, path in paths.items()}
    for name in sorted(read_manifest().demos):
        detector = Detector(create_model(name, device="cpu"), score_threshold=0.05)
        for tta in (False, True):
            start = time.process_time()
            found = {id: detector(image, tta=tta) for id, image in images.items()}
            seconds = (time.process_time() - start) / len(images)
            metrics = CocoMetrics(ground_truth, ["bbox", "segm"] if detector.has_masks else ["bbox"])
            for id, detections in found.items():
                metrics.add(detections.to_coco(id, range(1, 11)))
            scores = {task: f"{score.metrics['mAP']:.2f}" for task, score in metrics.compute().items()}
            print(f"{name}, tta={tta}: AP {scores}, {1000 * seconds:.0f} ms", flush=True)


if __name__ == "__main__":
    main()
