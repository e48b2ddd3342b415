"""`dpt-zoo evaluate`: COCO's figures of a detector."""

import argparse
import json
from pathlib import Path
from typing import Any

from .printing import is_main_process, print_table


def add_commands(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    evaluate = commands.add_parser("evaluate", help="measure a detector on a data set")
    evaluate.add_argument("recipe", metavar="CONFIG|NAME", help="configs/....py, or one of `dpt-zoo list`")
    evaluate.add_argument("weights", nargs="?", metavar="WEIGHTS", help="NAME, path, https://, hf:// (default: NAME's)")
    evaluate.add_argument("--eval", nargs="+", choices=("bbox", "segm"), dest="kinds", help="default: all it finds")
    evaluate.add_argument("--data-root", type=Path, metavar="DIR", help="COCO, YOLO or Pascal VOC data")
    evaluate.add_argument("--batch-size", type=int, metavar="N", help="images at a time")
    evaluate.add_argument("--workers", type=int, metavar="N", help="processes that load data")
    evaluate.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON, too")
    evaluate.set_defaults(run=run_evaluate)


def run_evaluate(args: argparse.Namespace) -> int:
    """Measure, and print COCO's table."""
    from ..evaluation import FIGURES, evaluate
    from ..files import open_atomic

    options = {key: getattr(args, key) for key in ("kinds", "data_root", "batch_size", "workers")}
    figures = evaluate(args.recipe, args.weights, **options)
    if args.out and is_main_process():
        with open_atomic(args.out) as file:
            file.write(f"{json.dumps(figures, indent=2)}\n".encode())
    if is_main_process():
        print_table(("", *FIGURES), [(kind, *map(_show, row.values())) for kind, row in figures.items()])
    return 0


def _show(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:.1f}"
