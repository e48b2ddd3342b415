"""`dpt-zoo train`: train a config, or fine-tune a detector on your own data."""

import argparse
from pathlib import Path
from typing import Any

from .printing import is_main_process


def add_commands(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    train = commands.add_parser(
        "train",
        help="train a config, or fine-tune a detector on your own data",
        description="A config is trained as it says. A detector of `dpt-zoo list` is fine-tuned from its weights.",
    )
    add = train.add_argument
    add("model", metavar="CONFIG|NAME", help="configs/....py, or one of `dpt-zoo list`")
    add("--data-root", type=Path, metavar="DIR", help="COCO, YOLO or Pascal VOC data (default: the config's)")
    add("--work-dir", type=Path, metavar="DIR", help="folder for checkpoints and logs (default: runs/ and the name)")
    add("--weights", metavar="WEIGHTS", help="detector weights to start from: NAME, path, https://... or hf://...")
    add("--resume", action="store_true", help="continue from the newest checkpoint in the work dir")
    add("--epochs", type=int, metavar="N", help="passes over the data; the schedule is scaled with them")
    add("--batch-size", type=int, metavar="N", help="images in a batch of each process")
    add("--accumulate", type=int, default=1, metavar="N", help="batches in a step (default: 1)")
    add("--scale-lr", action="store_true", help="scale the learning rate with the images in a step")
    add("--workers", type=int, metavar="N", help="processes that load data, for each process that trains")
    add("--amp", action="store_true", help="mixed precision, on a GPU")
    add("--compile", action="store_true", help="compile the backbone")
    add("--gradient-checkpointing", action="store_true", help="use less memory and more time")
    add("--ema", action="store_true", help="validate and save a moving average of the weights")
    add("--tensorboard", action="store_true", help="also log for TensorBoard")
    add("--seed", type=int, metavar="N", help="seed of all random choices (default: random)")
    add("--deterministic", action="store_true", help="refuse operations whose results differ between runs")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    add("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="settings to change in the config")
    train.set_defaults(run=run_train)


def run_train(args: argparse.Namespace) -> int:
    """Train, and print the path of the weights."""
    from ..engine.config import parse_cfg_options
    from ..training.trainer import train

    options = {name: value for name, value in vars(args).items() if name != "run"}
    weights = train(**{**options, "cfg_options": parse_cfg_options(args.cfg_options)})
    if is_main_process():
        print(weights)
    return 0
