"""`dpt-zoo evaluate`: COCO's metrics of a detector."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.text import format_percent
from .printing import is_main_process, print_table


def add_commands(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    evaluate = commands.add_parser("evaluate", help="measure a detector on a data set")
    add = evaluate.add_argument
    add("model", metavar="NAME|CONFIG", help="one of `dpt-zoo list`, or a config file such as configs/....py")
    add("--weights", metavar="FILE", help="NAME, path, https://... or hf://org/repo/file (default: the model's own)")
    add("--tasks", nargs="+", choices=("bbox", "segm"), help="boxes, masks or both (default: all of the model)")
    add("--data-root", type=Path, metavar="DIR", help="a folder of COCO, YOLO or Pascal VOC data")
    add("--annotations", type=Path, metavar="FILE", help="instead, a COCO annotation file")
    add("--images", type=Path, metavar="DIR", help="and the folder of its images")
    add("--limit", type=int, metavar="N", help="evaluate the first N images only")
    add("--skip-missing", action="store_true", help="skip images that are missing or unreadable")
    add("--batch-size", type=int, metavar="N", help="images in a batch")
    add("--workers", type=int, metavar="N", help="processes that load data, for each that detects")
    add("--amp", action="store_true", help="compute in half precision where that is safe (needs a GPU)")
    add("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    add("--evaluator", choices=("faster-coco-eval", "pycocotools"), help="what computes; the metrics are the same")
    add("--work-dir", type=Path, metavar="DIR", help="write predictions, metrics and a report with pictures")
    add("--resume", action="store_true", help="use the predictions in --work-dir")
    add("--output", type=Path, metavar="PREFIX", help="write COCO results to PREFIX.bbox.json and PREFIX.segm.json")
    add("--format-only", action="store_true", help="write COCO results for a test server, and compute no metrics")
    add("--show-dir", type=Path, metavar="DIR", help="draw ground truth and predictions on all images")
    add("--per-class", action="store_true", help="also print the metrics of each class")
    evaluate.set_defaults(run=run_evaluate, evaluator="faster-coco-eval")


def run_evaluate(args: argparse.Namespace) -> int:
    """Evaluate, and print COCO's tables."""
    from ..evaluation.evaluator import evaluate

    options = {key: value for key, value in vars(args).items() if key not in ("run", "model", "per_class")}
    evaluation = evaluate(args.model, **options)
    if not is_main_process():
        return 0
    if evaluation.skipped:
        print(f"skipped, of {evaluation.num_images + len(evaluation.skipped):,} images:", file=sys.stderr)
        print(*(f"  {image}" for image in evaluation.skipped), sep="\n", file=sys.stderr)
    if evaluation.metrics:
        _print_metrics("", evaluation.metrics)
    if args.per_class:
        for task, classes in evaluation.per_class.items():
            print()
            _print_metrics(f"{task}, by class", classes)
    return 0


def _print_metrics(title: str, rows: Mapping[Any, Mapping[str, float | None]]) -> None:
    from ..evaluation.metrics import NAMES

    cells = [(name, *map(format_percent, metrics.values())) for name, metrics in rows.items()]
    print_table((title, *NAMES), cells)
