"""Train torchvision's Mask R-CNN and RetinaNet with DPT on digit scenes, and print their AP: docs/backbone.md.

python scripts/train_torchvision_detectors.py runs/torchvision

Backbones have the weights of the demo detector; pyramids and heads are new. A detector's log has a line for every ten
steps, and one for the AP of the saved and reloaded weights.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.transforms import v2
from train_more_detectors import add_training_options

from dpt_zoo.analysis.metrics import TASKS, CocoMetrics, Task
from dpt_zoo.data.digits import CLASSES, make_digit_scenes
from dpt_zoo.models import torchvision_backbone
from dpt_zoo.utils.markdown import table

DEMO = "retinanet_dpt_nano_digits"
NUM_CLASSES = len(CLASSES) + 1  # with the background
INTERVAL = 10  # steps for each line of the log


def make_mask_rcnn(side: int) -> nn.Module:
    """Return a new Mask R-CNN for scenes of `side` pixels, with few boxes and a small mask head: digits are simple."""
    few = {"box_batch_size_per_image": 32, "rpn_post_nms_top_n_train": 100, "rpn_post_nms_top_n_test": 100}
    backbone = torchvision_backbone(DEMO, drop_path_rate=0.0)
    model = MaskRCNN(backbone, NUM_CLASSES, min_size=side, max_size=side, **few)
    model.roi_heads.mask_head = MaskRCNNHeads(backbone.out_channels, [32], dilation=1)
    model.roi_heads.mask_predictor = MaskRCNNPredictor(32, 32, NUM_CLASSES)
    return model


def make_retinanet(side: int) -> nn.Module:
    """Return a new RetinaNet for scenes of `side` pixels."""
    backbone = torchvision_backbone(
        DEMO, out_indices=(1, 2, 3), extra_blocks=LastLevelP6P7(256, 256), drop_path_rate=0.0
    )
    return RetinaNet(backbone, NUM_CLASSES, min_size=side, max_size=side)


DETECTORS = {"mask_rcnn": make_mask_rcnn, "retinanet": make_retinanet}


def open_scenes(folder: Path, split: str) -> Dataset[Any]:
    """Return the scenes of a split as torchvision's detectors take them: images in [0, 1] and targets."""
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    annotations = folder / "annotations" / f"instances_{split}.json"
    scenes = CocoDetection(folder / split, str(annotations), transforms=to_tensor)
    return wrap_dataset_for_transforms_v2(scenes, target_keys=("image_id", "boxes", "labels", "masks"))


def train(model: nn.Module, scenes: Dataset[Any], epochs: int, batch_size: int) -> Iterator[dict[str, float]]:
    """Train a detector, and yield a line of the log, with the mean loss, every ten steps."""
    loader = DataLoader(scenes, batch_size, shuffle=True, drop_last=True, collate_fn=_collate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
    num_steps = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=num_steps, pct_start=0.2)
    losses: list[float] = []
    for _ in range(epochs):
        for images, targets in loader:
            loss: Tensor = torch.stack([*model.train()(images, targets).values()]).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if len(losses) % INTERVAL == 0:
                yield {"step": len(losses), "loss": sum(losses[-INTERVAL:]) / INTERVAL}


def _collate(samples: list[Any]) -> list[Any]:
    return [*zip(*samples, strict=True)]


@torch.inference_mode()
def evaluate(model: nn.Module, scenes: Dataset[Any], annotations: Path) -> dict[Task, float | None]:
    """Return the AP of boxes, and of masks if the detector has them, in percent."""
    predictions = []
    for image, target in DataLoader(scenes, batch_size=None):
        (detected,) = model.eval()([image])
        boxes = detected["boxes"].clone()
        boxes[:, 2:] -= boxes[:, :2]
        shapes: dict[str, Any] = {"bbox": boxes.tolist()}
        if "masks" in detected:
            masks = (detected["masks"][:, 0] > 0.5).permute(1, 2, 0).numpy().astype(np.uint8)
            shapes["segmentation"] = coco_mask.encode(np.asfortranarray(masks))
        labels, scores = detected["labels"].tolist(), detected["scores"].tolist()
        for label, score, *shape in zip(labels, scores, *shapes.values(), strict=True):
            known = {"image_id": target["image_id"], "category_id": label, "score": score}
            predictions.append(known | dict(zip(shapes, shape, strict=True)))
    tasks: tuple[Task, ...] = TASKS if isinstance(model, MaskRCNN) else ("bbox",)
    metrics = CocoMetrics(json.loads(annotations.read_text()), tasks)
    metrics.add(predictions)
    return {task: score.metrics["mAP"] for task, score in metrics.compute().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder for the scenes, the weights and the logs")
    parser.add_argument("names", nargs="*", default=list(DETECTORS), help="%(default)s by default")
    add_training_options(parser)
    args = parser.parse_args()
    scenes = args.folder / f"scenes-{args.side}"
    make_digit_scenes(scenes, num_train=args.num_train, num_test=args.num_test, size=args.side)
    rows = []
    for name in args.names:
        torch.manual_seed(0)
        make = DETECTORS[name]
        model = make(args.side)
        log = list(train(model, open_scenes(scenes, "train2017"), args.epochs, args.batch_size))
        torch.save(model.state_dict(), args.folder / f"{name}.pth")
        model = make(args.side)
        model.load_state_dict(torch.load(args.folder / f"{name}.pth"))
        test_scenes = open_scenes(scenes, "val2017")
        aps = evaluate(model, test_scenes, scenes / "annotations" / "instances_val2017.json")
        log.append({f"{task}_mAP": ap for task, ap in aps.items() if ap is not None})
        (args.folder / f"torchvision_{name}.log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log))
        shown = [f"{aps[task]:.1f}" if task in aps else "" for task in TASKS]
        rows.append([f"torchvision's {type(model).__name__}", *shown])
        print(*rows[-1], flush=True)
    print(table(["detector", "box AP", "mask AP"], rows))


if __name__ == "__main__":
    main()
