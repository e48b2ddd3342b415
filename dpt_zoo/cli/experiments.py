"""`dpt-zoo train`, `evaluate`, `compare` and `reproduce`: train detectors, and measure them."""

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..utils.text import format_percent, plural, printable
from .printing import is_main_process, print_table, show
from .weights import fetch_coco

if TYPE_CHECKING:
    from ..evaluation.result import Evaluation

_MAX_SHOWN = 10  # classes, and images
_THRESHOLD = ("score", "precision", "recall", "f1")
DIFFERENT = 1
"""The exit status of `reproduce` if a detector failed, or if a metric differs from the published one."""


def add_commands(commands: Any) -> None:
    """Add the subcommands to argparse's `commands`."""
    train = commands.add_parser(
        "train",
        help="train a config, or fine-tune a detector on your own data",
        description="Train a config as it is, or fine-tune a detector of `dpt-zoo list` from its weights.",
    )
    train.set_defaults(run=run_train)
    text = "measure a detector or the results of detect-dataset on a data set, or a classifier on ImageNet"
    evaluate = commands.add_parser("evaluate", help=text)
    evaluate.set_defaults(run=run_evaluate, evaluator="faster-coco-eval")
    reproduce = commands.add_parser(
        "reproduce",
        help="evaluate the detectors, and compare the metrics with the published ones",
        description="Evaluate each detector in its own process. Finished evaluations are not repeated.",
    )
    reproduce.set_defaults(run=run_reproduce)

    compare = commands.add_parser(
        "compare",
        help="set evaluations of the same images side by side",
        description="Print the metrics, the classes that differ most, and the images that only one of them gets right.",
    )
    compare.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="the --work-dir of `dpt-zoo evaluate`")
    compare.set_defaults(run=run_compare)

    for add in (train.add_argument, evaluate.add_argument):
        file = ", or a file of `dpt-zoo export`" if add == evaluate.add_argument else ""
        count = {"nargs": "?"} if add == evaluate.add_argument else {}
        models = f"a detector of `dpt-zoo list`, weights that say what they are, or a config file, configs/....py{file}"
        add("model", metavar="NAME|FILE", **count, help=models)
        add("--data-root", type=Path, metavar="DIR", help="folder or zip archive of a data set (default: the config's)")
        add("--annotations", type=Path, metavar="FILE", help="COCO annotation file, instead of --data-root")
        add("--images", type=Path, metavar="DIR", help="folder of the images of --annotations")
        add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    for add in (evaluate.add_argument, reproduce.add_argument):
        add("--limit", type=int, metavar="N", help="evaluate only the first N images")
        add("--skip-missing", action="store_true", help="skip images that are missing or unreadable")
    for add in (train.add_argument, evaluate.add_argument, reproduce.add_argument):
        add("--batch-size", type=int, metavar="N", help="images in a batch of each process")
        add("--workers", type=int, metavar="N", help="processes that load data, for each process that computes")
        add("--amp", action="store_true", help="compute in half precision where that is safe; needs a GPU")

    add = train.add_argument
    add("--work-dir", type=Path, metavar="DIR", help="folder for checkpoints and logs (default: runs/ and the name)")
    add("--weights", metavar="W", help="weights to start from: NAME, path, https://... or hf://org/repo/file")
    add("--resume", action="store_true", help="continue from the newest checkpoint in --work-dir")
    add("--epochs", type=int, metavar="N", help="passes over the data; the learning-rate schedule is scaled")
    add("--accumulate", type=int, default=1, metavar="N", help="batches in an optimizer step (default: %(default)s)")
    add("--scale-lr", action="store_true", help="scale the learning rate with the number of images in a step")
    add("--tune-lr", action="store_true", help="choose the learning rate by a range test of 100 steps")
    add("--compile", action="store_true", help="compile the backbone")
    add("--gradient-checkpointing", action="store_true", help="use less memory and more time")
    add("--ema", action="store_true", help="validate and save a moving average of the weights")
    add("--patience", type=int, metavar="N", help="stop after N validations without a better box AP")
    add("--freeze", nargs="+", default=[], metavar="PART", help="parts that are not trained: backbone, neck, ...")
    add(
        "--keep-empty",
        action=argparse.BooleanOptionalAction,
        help="train on images without objects (default: if a detector is fine-tuned)",
    )
    add("--balance", action="store_true", help="draw images of rare classes more often")
    trackers = ("tensorboard", "wandb", "mlflow", "clearml")
    add("--logger", dest="loggers", nargs="+", default=[], choices=trackers, help="trackers of experiments to log with")
    add("--seed", type=int, metavar="N", help="random seed (default: random)")
    add("--deterministic", action="store_true", help="refuse operations that give different results in each run")
    add("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the config to change")

    add = evaluate.add_argument
    add("--predictions", metavar="DIR", help="results of `dpt-zoo detect-dataset`, instead of a model")
    add("--weights", metavar="W", help="NAME, path, https://... or hf://org/repo/file (default: the model's own)")
    add("--max-detections", type=int, metavar="N", help="objects of an image that count (default: 100)")
    add("--tasks", nargs="+", choices=("bbox", "segm"), help="boxes, masks or both (default: all of the model)")
    add("--evaluator", choices=("faster-coco-eval", "pycocotools"), help="library for the metrics; both give the same")
    add("--work-dir", type=Path, metavar="DIR", help="write predictions, metrics and a report with pictures")
    add("--resume", action="store_true", help="use the predictions in --work-dir")
    add("--output", type=Path, metavar="PREFIX", help="write COCO results to PREFIX.bbox.json and PREFIX.segm.json")
    add("--format-only", action="store_true", help="write COCO results for a test server, without metrics")
    add("--show-dir", type=Path, metavar="DIR", help="draw ground truth and predictions on all images")
    add("--per-class", action="store_true", help="also print the metrics of each class")
    tuning = "write the best score threshold of each class into the weights: by F1, or with at least this precision"
    add("--tune-thresholds", nargs="?", const="f1", type=_parse_criterion, metavar="PRECISION", help=tuning)

    add = reproduce.add_argument
    add("names", nargs="*", metavar="NAME", help="detectors, or patterns such as 'mrcnn*' (default: all twelve)")
    add("--classifiers", action="store_true", help="the ImageNet classifiers (default: all three), not detectors")
    add(
        "--data-root", type=Path, required=True, metavar="DIR", help="folder of COCO data, with val2017, or of ImageNet"
    )
    add("--download", action="store_true", help="first fetch COCO's images and annotations into --data-root")
    add("--work-dir", type=Path, metavar="DIR", help="default: runs/results, or runs/results-FORMAT")
    add("--processes", type=int, default=1, metavar="N", help="processes for each detector: the number of GPUs")
    add("--format", choices=("onnx", "openvino"), default="pytorch", help="export each detector, and evaluate the file")


def _parse_criterion(text: str) -> float | str:
    return text if text == "f1" else float(text)


def run_train(args: argparse.Namespace) -> int:
    """Train, and print the path of the weights."""
    from ..engine.config import parse_cfg_options
    from ..training.trainer import train

    weights = train(**{**vars(args), "cfg_options": parse_cfg_options(args.cfg_options)})
    if is_main_process():
        show(weights)
    return 0


def run_evaluate(args: argparse.Namespace) -> int:
    """Evaluate, and print COCO's tables."""
    from ..analysis.metrics import MAX_DETECTIONS
    from ..manifest.records import read_manifest

    if args.model in read_manifest().classifiers:
        return _evaluate_classifier(args)
    per_class, predictions = vars(args).pop("per_class"), vars(args).pop("predictions")
    if predictions is not None:
        evaluation = _evaluate_predictions(predictions, args)
    elif args.model is None:
        raise InputError("name a model to evaluate, or --predictions DIR")
    else:
        from ..evaluation.evaluator import evaluate

        evaluation = evaluate(**vars(args))
    if not is_main_process():
        return 0
    if evaluation.skipped:
        title = f"skipped, of {evaluation.num_images + len(evaluation.skipped):,} images:"
        show("\n  ".join([title, *map(str, evaluation.skipped)]), to=sys.stderr)
    if evaluation.metrics:
        _print_metrics("", evaluation.metrics)
        if evaluation.max_detections != MAX_DETECTIONS:
            limits = f"{evaluation.max_detections} predictions of an image count"
            show(f"{limits}: AP is not COCO's, which counts {MAX_DETECTIONS}")
    for task, classes in evaluation.per_class.items() if per_class else ():
        show()
        _print_metrics(f"{task}, by class", classes)
    if evaluation.thresholds:
        show()
        rows = [(name, *(_format(each[key]) for key in _THRESHOLD)) for name, each in evaluation.thresholds.items()]
        print_table(("threshold", *_THRESHOLD), rows)
    return 0


def run_compare(args: argparse.Namespace) -> int:
    """Print evaluations side by side."""
    from ..evaluation.comparing import compare

    comparison = compare(args.folders)
    names = tuple(map(str, args.folders))
    for task in comparison.tasks:
        print_table((task, *names), [(name, *_differences(row)) for name, row in comparison.metrics(task).items()])
        show()
    for task in comparison.tasks:
        rows = list(comparison.class_differences(task).items())[:_MAX_SHOWN]
        print_table((f"{task} AP", *names), [(name, *_differences(row)) for name, row in rows])
        show()
    for other in range(1, len(names)):
        for right, wrong in ((0, other), (other, 0)):
            images = comparison.only_right_in(right, wrong)
            show(f"{plural(len(images), 'image')} right only in {names[right]}, not in {names[wrong]}")
            for image in images[:_MAX_SHOWN]:
                show(printable(f"  {image}: {plural(comparison.num_errors[image][wrong], 'error')}"))
    return 0


def _differences(row: Sequence[float | None]) -> list[str]:
    """Format a metric of each evaluation, with the difference to the first."""
    first, *others = row
    cells = [format_percent(first)]
    for value in others:
        difference = "" if first is None or value is None else f" ({value - first:+.1f})"
        cells.append(f"{format_percent(value)}{difference}")
    return cells


def _evaluate_classifier(args: argparse.Namespace) -> int:
    """Evaluate a classifier, and print its accuracy."""
    from ..evaluation.classification import evaluate_classifier

    options = vars(args)
    unused = ("annotations", "images", "skip_missing", "tasks", "output", "format_only", "show_dir", "per_class")
    for name in (*unused, "tune_thresholds"):
        if options.pop(name):
            raise InputError(f"--{name.replace('_', '-')} is not for a classifier: leave it out")
    del options["evaluator"]
    if args.data_root is None:
        raise InputError("--data-root is required with a classifier: a folder of ImageNet, with val")
    chosen = {name: value for name, value in options.items() if value is not None}
    accuracy = evaluate_classifier(**chosen)
    if is_main_process():
        percents = (f"{accuracy.top1:.2f}", f"{accuracy.top5:.2f}", f"{accuracy.num_images:,}")
        print_table(("", "top-1", "top-5", "images"), [(args.model, *percents)])
    return 0


def _evaluate_predictions(predictions: str, args: argparse.Namespace) -> "Evaluation":
    from ..evaluation.dataset_results import evaluate_results

    used = ("annotations", "tasks", "skip_missing", "evaluator")
    given = {name for name, value in vars(args).items() if value and (name, value) != ("device", "auto")}
    if unused := sorted(given.difference(used)):
        raise InputError(f"--predictions does not allow {', '.join(unused)}: leave them out")
    if args.annotations is None:
        raise InputError("--predictions needs --annotations FILE")
    return evaluate_results(predictions, **{name: getattr(args, name) for name in used})


def run_reproduce(args: argparse.Namespace) -> int:
    """Evaluate detectors, and print the summary and the path of the table."""
    from ..reproduction.runner import ReproductionOptions, reproduce, select_names

    is_download_needed = vars(args).pop("download")
    if vars(args).pop("classifiers"):
        if is_download_needed:
            raise InputError("--download fetches COCO, not ImageNet: leave it out with --classifiers")
        return _reproduce_classifiers(args)
    names = select_names(vars(args).pop("names"))
    if is_download_needed:
        fetch_coco(["coco-val2017", "coco-annotations"], args.data_root)
    if args.work_dir is None:
        args.work_dir = Path("runs", "results" if args.format == "pytorch" else f"results-{args.format}")
    results = reproduce(names, ReproductionOptions(**vars(args)), functools.partial(show, to=sys.stderr))
    show(f"{results.summary}\n{args.work_dir / 'results.md'}")
    return DIFFERENT if results.num_failed or results.num_different else 0


def _reproduce_classifiers(args: argparse.Namespace) -> int:
    """Evaluate the classifiers, and print their table and its path."""
    from ..reproduction.classifiers import reproduce_classifiers
    from ..reproduction.runner import ReproductionOptions

    names = vars(args).pop("names")
    args.work_dir = args.work_dir or Path("runs", "results-classifiers")
    results = reproduce_classifiers(names, ReproductionOptions(**vars(args)), functools.partial(show, to=sys.stderr))
    show(f"{results.table}\n{results.path}")
    return 0 if results.all_match else DIFFERENT


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _print_metrics(title: str, rows: Mapping[Any, Mapping[str, float | None]]) -> None:
    names = next(iter(rows.values()))
    print_table((title, *names), [(name, *map(format_percent, metrics.values())) for name, metrics in rows.items()])
