"""`dpt-zoo train`: a recipe from its beginning, or a detector on one's own data."""

import argparse
from pathlib import Path
from typing import Any

from .printing import is_main_process


def add_commands(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    train = commands.add_parser(
        "train",
        help="train a recipe, or fine-tune a detector on your own data",
        description="A config is trained as it says. A detector of `dpt-zoo list` is fine-tuned from its weights.",
    )
    train.add_argument("recipe", metavar="CONFIG|NAME", help="configs/....py, or one of `dpt-zoo list`")
    train.add_argument("--data-root", type=Path, metavar="DIR", help="COCO, YOLO or Pascal VOC data")
    train.add_argument("--work-dir", type=Path, metavar="DIR", help="default: runs/ and the recipe's name")
    train.add_argument("--weights", metavar="FILE", help="a detector's to start from: NAME, path, https://, hf://")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the work dir")
    train.add_argument("--epochs", type=int, metavar="N", help="the schedule is stretched to them")
    train.add_argument("--batch-size", type=int, metavar="N", help="images in a step, for each process")
    train.add_argument("--accumulate", type=int, default=1, metavar="N", help="batches that make one step")
    train.add_argument("--scale-lr", action="store_true", help="scale the learning rate with the images in a step")
    train.add_argument("--workers", type=int, metavar="N", help="processes that load data, for each that trains")
    train.add_argument("--amp", action="store_true", help="half precision where that is safe, on a GPU")
    train.add_argument("--compile", action="store_true", help="compile the backbone")
    train.add_argument("--gradient-checkpointing", action="store_true", help="less memory for more time")
    train.add_argument("--ema", action="store_true", help="validate and keep an average of the weights")
    train.add_argument("--tensorboard", action="store_true", help="write TensorBoard's files too")
    train.add_argument("--seed", type=int, metavar="N", help="of all random choices")
    train.add_argument("--deterministic", action="store_true", help="refuse what may differ between runs")
    train.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="change the config's settings")
    train.set_defaults(run=run_train)


def run_train(args: argparse.Namespace) -> int:
    """Train, and tell where the weights are."""
    from ..engine.config import parse_changes
    from ..training.trainer import train

    options = {key: value for key, value in vars(args).items() if key != "run"}
    weights = train(**{**options, "cfg_options": parse_changes(args.cfg_options)})
    if is_main_process():
        print(weights)
    return 0
