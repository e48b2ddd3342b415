"""`dpt-zoo evaluate`: COCO's metrics of a detector."""

import argparse
import sys
from pathlib import Path
from typing import Any

from .printing import is_main_process, print_table


def add_commands(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    evaluate = commands.add_parser("evaluate", help="measure a detector on a data set")
    add = evaluate.add_argument
    add("recipe", metavar="CONFIG|NAME", help="configs/....py, or one of `dpt-zoo list`")
    add("weights", nargs="?", metavar="WEIGHTS", help="NAME, path, https:// or hf:// (default: NAME's)")
    add("--eval", nargs="+", choices=("bbox", "segm"), dest="tasks", help="default: all that the model finds")
    add("--data-root", type=Path, metavar="DIR", help="COCO, YOLO or Pascal VOC data")
    add("--annotations", type=Path, metavar="FILE", help="or a COCO annotation file")
    add("--images", type=Path, metavar="DIR", help="and the folder of its images")
    add("--limit", type=int, metavar="N", help="measure on the first N images only")
    add("--skip-missing", action="store_true", help="leave out images that are missing or unreadable")
    add("--batch-size", type=int, metavar="N", help="images at a time")
    add("--workers", type=int, metavar="N", help="processes that load data, beside each that detects")
    add("--amp", action="store_true", help="half precision where that is safe, on a GPU")
    add("--evaluator", choices=("faster-coco-eval", "pycocotools"), help="what compares; the metrics are the same")
    add("--work-dir", type=Path, metavar="DIR", help="keep what is found, and write a report with plots and pictures")
    add("--resume", action="store_true", help="go on with what --work-dir holds")
    add("--out", type=Path, metavar="PREFIX", help="write COCO results to PREFIX.bbox.json and PREFIX.segm.json")
    add("--format-only", action="store_true", help="write them for a test server, and measure nothing")
    add("--show-dir", type=Path, metavar="DIR", help="draw the truth, and what was found, on all images")
    add("--per-class", action="store_true", help="print the average precision of each class, too")
    evaluate.set_defaults(run=run_evaluate, evaluator="faster-coco-eval")


def run_evaluate(args: argparse.Namespace) -> int:
    """Measure, and print COCO's tables."""
    from ..evaluation.evaluator import evaluate
    from ..evaluation.metrics import NAMES

    options = {key: value for key, value in vars(args).items() if key not in ("run", "recipe", "weights", "per_class")}
    evaluation = evaluate(args.recipe, args.weights, **options)
    if not is_main_process():
        return 0
    if evaluation.skipped:
        print(f"skipped, of {evaluation.num_images + len(evaluation.skipped):,} images:", file=sys.stderr)
        print(*(f"  {image}" for image in evaluation.skipped), sep="\n", file=sys.stderr)
    if evaluation.metrics:
        print_table(("", *NAMES), [(task, *map(_show, row.values())) for task, row in evaluation.metrics.items()])
    if args.per_class:
        for task, classes in evaluation.per_class.items():
            print()
            print_table(
                (f"{task}, by class", *NAMES), [(name, *map(_show, row.values())) for name, row in classes.items()]
            )
    return 0


def _show(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:.1f}"
