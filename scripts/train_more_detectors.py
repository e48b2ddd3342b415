"""Train the detectors of configs/more on digit scenes, and print their AP as a table: the one in docs/backbone.md.

python scripts/train_more_detectors.py runs/more

Backbones have the weights of the demo detector; necks and heads are new.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dpt_zoo.mmlab  # before mmengine

# isort: split
from mmengine.config import Config

import dpt_zoo
from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.manifest.records import data_path
from dpt_zoo.utils.markdown import table

SIDE = 192  # of a scene, in pixels
DEMO = "retinanet_dpt_nano_digits"
CHANNELS = [32, 64, 128, 192]  # of the demo's maps
ENLARGING = {"Resize", "RandomChoiceResize", "RandomFlip"}  # transforms that digit scenes do not need


def find_configs() -> list[Path]:
    """Return the configs of the detectors beyond the zoo's own."""
    return sorted(data_path("configs/more").glob("*.py"))


def digit_options(config: Path, warm_up: int = 50) -> dict[str, Any]:
    """Return the settings with which a config trains the demo's backbone on digit scenes.

    Args:
        config: a file of `configs/more`.
        warm_up: number of iterations until the learning rate is reached.
    """
    cfg = Config.fromfile(config)
    pipeline = cfg.train_dataloader.dataset.pipeline
    neck_channels = CHANNELS if len(cfg.model.neck.in_channels) == len(CHANNELS) else CHANNELS[-1:]
    return {
        "model.backbone.size": "nano",
        "model.backbone.drop_path_rate": 0.0,
        "model.backbone.init_cfg.checkpoint": DEMO,
        "model.neck.in_channels": neck_channels,
        "train_dataloader.dataset.pipeline": [each for each in pipeline if each["type"] not in ENLARGING],
        "val_dataloader.dataset.pipeline.1.scale": (SIDE, SIDE),
        "val_dataloader.batch_size": 8,
        "optim_wrapper.optimizer.lr": 5e-4,
        "optim_wrapper.clip_grad": {"max_norm": 10.0},
        "param_scheduler": [
            {"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": warm_up},
            {"type": "CosineAnnealingLR", "by_epoch": True, "convert_to_iter_based": True},
        ],
    }


def train_on_digits(config: Path, scenes: Path, work_dir: Path, *, epochs: int, batch_size: int = 8) -> Path:
    """Train a config on digit scenes, and return the file of the weights."""
    return dpt_zoo.train(
        config,
        data_root=scenes,
        work_dir=work_dir,
        epochs=epochs,
        batch_size=batch_size,
        workers=0,
        seed=0,
        device="cpu",
        cfg_options=digit_options(config),
    )


def measure(configs: Sequence[Path], folder: Path, num_train: int, num_test: int, epochs: int) -> list[list[str]]:
    """Train and evaluate, and return a row of the table for each config."""
    scenes = folder / "scenes"
    make_digit_scenes(scenes, num_train=num_train, num_test=num_test)
    rows = []
    for config in configs:
        work_dir = folder / config.stem
        start = time.perf_counter()
        weights = train_on_digits(config, scenes, work_dir, epochs=epochs)
        minutes = (time.perf_counter() - start) / 60
        (trained,) = work_dir.glob("*.py")
        metrics = dpt_zoo.evaluate(trained, weights=weights, data_root=scenes, workers=0, device="cpu").metrics
        aps = [str(metrics[task]["mAP"]) if task in metrics else "" for task in ("bbox", "segm")]
        rows.append([f"`{config.stem}`", *aps, f"{minutes:.1f}"])
        print(*rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder for the scenes and the runs")
    parser.add_argument("names", nargs="*", help="stems of config files; by default all")
    parser.add_argument("--num-train", type=int, default=800, metavar="N", help="training scenes (%(default)s)")
    parser.add_argument("--num-test", type=int, default=200, metavar="N", help="test scenes (%(default)s)")
    parser.add_argument("--epochs", type=int, default=4, metavar="N", help="%(default)s")
    args = parser.parse_args()
    configs = [config for config in find_configs() if not args.names or config.stem in args.names]
    rows = measure(configs, args.folder, args.num_train, args.num_test, args.epochs)
    print(table(["config", "box AP", "mask AP", "minutes"], rows))


if __name__ == "__main__":
    main()
