"""Measure the zoo side by side with comparable software.

python scripts/benchmark.py backbone --json backbone.json --plot backbone.png

limits      the machine's rates of matrix products and copies
import      the start of the parts that do not import PyTorch
backbone    the backbone's inference and training step
pixels      the backbone on small and large images
precision   the backbone in lower precision than float32
detect      a photograph, from pixels to objects
train       a detector's training step
weights     downloading, converting and reading weights
evaluate    COCO metrics, from files
export      exported files in ONNX Runtime and OpenVINO, and the same detectors on PyTorch
serve       the HTTP service and the bare detector behind it
all         all of these
"""

import argparse
from dataclasses import fields, replace
from importlib import import_module
from itertools import chain
from pathlib import Path

from benchmarks.measuring import QUICK, Settings

MODULES = {
    "limits": "limits",
    "import": "importing",
    "backbone": "backbone",
    "pixels": "pixels",
    "precision": "precision",
    "detect": "detect",
    "train": "train",
    "weights": "weights",
    "evaluate": "evaluate",
    "export": "export",
    "serve": "serve",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="SUBJECT", dest="subject")
    options = _options()
    for subject in (*MODULES, "all"):
        commands.add_parser(subject, parents=[options])
    _measure(parser.parse_args())


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--json", type=Path, metavar="FILE", help="write the measurements")
    options.add_argument("--plot", type=Path, metavar="FILE.png", help="plot the measurements")
    options.add_argument("--quick", action="store_true", help="small inputs, one run, unless other options say more")
    settings = options.add_argument_group("settings; a subject uses those it has")
    add = settings.add_argument
    add("--runs", type=int, default=argparse.SUPPRESS)
    add("--threads", type=int, default=argparse.SUPPRESS)
    add("--size", choices=("tiny", "small", "medium"), default=argparse.SUPPRESS)
    add("--height", type=int, default=argparse.SUPPRESS)
    add("--width", type=int, default=argparse.SUPPRESS)
    add("--megapixels", type=float, nargs="+", default=argparse.SUPPRESS, help="pixels: sizes of the images")
    add("--architectures", nargs="+", choices=("retinanet", "mrcnn"), default=argparse.SUPPRESS)
    add("--steps", type=int, default=argparse.SUPPRESS, help="train: timed steps in each process")
    add("--megabytes", type=int, default=argparse.SUPPRESS, help="weights: size of the file to download")
    add("--images", type=int, default=argparse.SUPPRESS, help="evaluate, serve: number of images")
    add("--detections", type=int, default=argparse.SUPPRESS, help="evaluate: detections in each image")
    add("--scenes", type=int, default=argparse.SUPPRESS, help="precision: scenes for the demo detectors")
    add("--exported", type=Path, metavar="DIR", default=argparse.SUPPRESS, help="export, serve: use and keep its files")
    add("--demos-only", action="store_true", default=argparse.SUPPRESS, help="export: only the demo detectors")
    return options


def _measure(args: argparse.Namespace) -> None:
    from benchmarks.report import report

    given = {field.name: getattr(args, field.name) for field in fields(Settings) if field.name in args}
    settings = replace(QUICK if args.quick else Settings(), **given)
    subjects = MODULES if args.subject == "all" else [args.subject]
    modules = (import_module(f"benchmarks.{MODULES[subject]}") for subject in subjects)
    report(chain.from_iterable(module.compare(settings) for module in modules), args.json, args.plot)


if __name__ == "__main__":
    main()
