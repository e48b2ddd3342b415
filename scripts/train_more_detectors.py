"""Train the detectors of configs/more on digit scenes, and print their AP as a table: the one in docs/backbone.md.

python scripts/train_more_detectors.py runs/more

Backbones have the weights of the demo detector; necks and heads are new. A detector's log has a line for every ten
steps, and one for the AP.
"""

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dpt_zoo.mmlab  # before mmengine

# isort: split
from mmengine.config import Config

import dpt_zoo
from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.manifest.records import data_path
from dpt_zoo.utils.markdown import table

DEMO = "retinanet_dpt_nano_digits"
CHANNELS = [32, 64, 128, 192]  # of the demo's maps
ENLARGING = {"Resize", "RandomChoiceResize", "RandomFlip"}  # transforms that digit scenes do not need


def find_configs() -> list[Path]:
    """Return the configs of the detectors beyond the zoo's own."""
    return sorted(data_path("configs/more").glob("*.py"))


def digit_options(config: Path, side: int) -> dict[str, Any]:
    """Return the settings with which a file of `configs/more` trains the demo's backbone on scenes of `side` pixels."""
    cfg = Config.fromfile(config)
    pipeline = cfg.train_dataloader.dataset.pipeline
    neck_channels = CHANNELS if len(cfg.model.neck.in_channels) == len(CHANNELS) else CHANNELS[-1:]
    return {
        "model.backbone.size": "nano",
        "model.backbone.drop_path_rate": 0.0,
        "model.backbone.init_cfg.checkpoint": DEMO,
        "model.neck.in_channels": neck_channels,
        "train_dataloader.dataset.pipeline": [each for each in pipeline if each["type"] not in ENLARGING],
        "val_dataloader.dataset.pipeline.1.scale": (side, side),
        "val_dataloader.batch_size": 8,
        "default_hooks.logger.interval": 10,
        "optim_wrapper.optimizer.lr": 5e-4,
        "optim_wrapper.clip_grad": {"max_norm": 10.0},
        "param_scheduler": [
            {"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": 20},
            {"type": "CosineAnnealingLR", "by_epoch": True, "convert_to_iter_based": True},
        ],
        **_small_second_stage(cfg.model),
    }


def _small_second_stage(model: Any) -> dict[str, Any]:
    """Return the settings with which a second stage learns from fewer boxes, by a small head for masks, if any."""
    if "roi_head" not in model:
        return {}
    rcnn = model.train_cfg.rcnn
    stages = [f".{stage}" for stage in range(len(rcnn))] if isinstance(rcnn, list) else [""]
    settings = {f"model.train_cfg.rcnn{stage}.sampler.num": 32 for stage in stages}
    settings |= {"model.train_cfg.rpn_proposal.max_per_img": 100, "model.test_cfg.rpn.max_per_img": 100}
    if model.roi_head.get("mask_head"):
        settings |= {"model.roi_head.mask_head.num_convs": 1, "model.roi_head.mask_head.conv_out_channels": 32}
    return settings


def measure(configs: Sequence[Path], args: argparse.Namespace) -> Iterator[list[str]]:
    """Train and evaluate each config, and yield its row of the table."""
    scenes = args.folder / f"scenes-{args.side}"
    make_digit_scenes(scenes, num_train=args.num_train, num_test=args.num_test, size=args.side)
    for config in configs:
        work_dir = args.folder / config.stem
        start = time.process_time()
        weights = dpt_zoo.train(
            config,
            data_root=scenes,
            work_dir=work_dir,
            epochs=args.epochs,
            batch_size=args.batch_size,
            workers=0,
            seed=0,
            device="cpu",
            cfg_options=digit_options(config, args.side),
        )
        minutes = (time.process_time() - start) / 60
        (trained,), (log,) = work_dir.glob("*.py"), work_dir.glob("*/vis_data/scalars.json")
        shutil.copyfile(log, args.folder / f"{config.stem}.log.jsonl")
        metrics = dpt_zoo.evaluate(trained, weights=weights, data_root=scenes, workers=0, device="cpu").metrics
        aps = [f"{metrics[task]['mAP']:.1f}" if task in metrics else "" for task in ("bbox", "segm")]
        yield [f"`{config.stem}`", *aps, f"{minutes:.1f}"]


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the scenes and the length of training."""
    parser.add_argument("--num-train", type=int, default=400, metavar="N", help="training scenes (%(default)s)")
    parser.add_argument("--num-test", type=int, default=100, metavar="N", help="test scenes (%(default)s)")
    parser.add_argument("--side", type=int, default=128, metavar="PIXELS", help="height and width (%(default)s)")
    parser.add_argument("--epochs", type=int, default=1, metavar="N", help="%(default)s")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="%(default)s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder for the scenes and the runs")
    parser.add_argument("names", nargs="*", help="stems of config files; by default all")
    add_training_options(parser)
    args = parser.parse_args()
    rows = []
    for row in measure([config for config in find_configs() if not args.names or config.stem in args.names], args):
        rows.append(row)
        print(*row, flush=True)
    print(table(["config", "box AP", "mask AP", "processor minutes"], rows))


if __name__ == "__main__":
    main()
