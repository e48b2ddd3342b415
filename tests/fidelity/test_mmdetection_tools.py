"""MMDetection's tools run the configs unchanged: tools/test.py and tools/train.py of its wheel."""

import json
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from PIL import Image
from reference_data import PHOTO, read_json, rule_model

from dpt_zoo.inference.detections import COCO_CATEGORY_IDS
from dpt_zoo.manifest.records import get_detector_info, get_model_info
from dpt_zoo.weights.store import adopt

pytestmark = pytest.mark.slow

TOOLS = Path(mmdet.__file__).parent / ".mim" / "tools"


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """A COCO data set of one photograph; the ground truth is the detections of the authors' RetinaNet."""
    (recorded,) = read_json("detections_retinanet_dpt_t.json").values()
    ground_truth = []
    for index, (label, x1, y1, x2, y2, _) in enumerate(recorded["detections"]):
        box = {
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "category_id": COCO_CATEGORY_IDS[label],
        }
        ground_truth.append({"id": index + 1, "image_id": 1, "iscrowd": 0, **box})
    classes = rule_model("retinanet_dpt_t_1x").dataset_meta["classes"]
    categories = [{"id": id_, "name": name} for id_, name in zip(COCO_CATEGORY_IDS, classes, strict=True)]
    images = [{"id": 1, "file_name": "1.png", "width": 320, "height": 240}]
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        Image.open(PHOTO).save(tmp_path / split / "1.png")
        content = {"images": images, "annotations": ground_truth, "categories": categories}
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return tmp_path


def run_tool(python: str | Path, tool: str, *arguments: object, data_root: Path) -> str:
    """Run a tool after `import dpt_zoo.mmlab`, which is necessary only with mmcv-lite."""
    prelude = f"import dpt_zoo.mmlab, runpy; runpy.run_path({str(TOOLS / tool)!r}, run_name='__main__')"
    options = [
        f"{loader}_dataloader.{key}"
        for loader in ("train", "val", "test")
        for key in (f"dataset.data_root={data_root}/", "num_workers=0", "persistent_workers=False")
    ]
    evaluators = [
        f"{split}_evaluator.ann_file={data_root}/annotations/instances_val2017.json" for split in ("val", "test")
    ]
    command = [python, "-c", prelude, *map(str, arguments), "--work-dir", str(data_root / "runs")]
    done = subprocess.run(
        [*command, "--cfg-options", *options, *evaluators], cwd=data_root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_evaluation(data_root: Path) -> None:
    torch.save({"state_dict": rule_model("retinanet_dpt_t_1x").state_dict()}, data_root / "weights.pth")
    config = get_detector_info("retinanet_dpt_t_1x").config_path
    printed = run_tool(sys.executable, "test.py", config, data_root / "weights.pth", data_root=data_root)
    assert "bbox_mAP_copypaste: 1.000 1.000 1.000" in printed


def test_training_starts_from_imagenet_weights_and_can_be_resumed(data_root: Path, quick_python: Path) -> None:
    from dpt_zoo.models import DPTClassifier

    torch.save({"model": DPTClassifier("tiny").state_dict()}, data_root / "classifier.pth")
    adopt(get_model_info("dpt_tiny"), data_root / "classifier.pth")
    config = data_root / "one_epoch.py"
    config.write_text(
        f"_base_ = {str(get_detector_info('retinanet_dpt_t_1x').config_path)!r}\n"
        "train_cfg = dict(max_epochs=1)\n"
        "train_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', "
        "with_bbox=True), dict(type='Resize', scale=(128, 96)), dict(type='PackDetInputs')]))\n"
        "val_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), "
        "dict(type='Resize', scale=(128, 96)), dict(type='PackDetInputs')]))\n"
        "test_dataloader = val_dataloader\n"
    )
    printed = run_tool(quick_python, "train.py", config, data_root=data_root)
    assert "backbone: 177 tensors from dpt_tiny, left out: cls_token" in printed
    assert "train_loop" in torch.load(data_root / "runs" / "epoch_1.pth", weights_only=True, mmap=True)
