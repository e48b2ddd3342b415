"""`dpt-zoo check-data`, `convert-data`, `split-data` and `make-digits`: check and prepare data sets."""

import argparse
import dataclasses
import json
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..utils.progress import progress_bar
from ..utils.text import plural, printable
from .printing import BAD_INPUT, show

if TYPE_CHECKING:
    from ..data.checks import CheckedSplit


DATA_HELP = "folder or zip archive of a data set: COCO, YOLO, Pascal VOC, ... (see the documentation)"


def add_commands(commands: Any) -> None:
    """Add the subcommands to argparse's `commands`."""
    check = commands.add_parser("check-data", help="check a data set: show its contents, errors and warnings")
    check.add_argument("data", nargs="?", type=Path, metavar="DATA", help=DATA_HELP)
    check.add_argument("--annotations", type=Path, metavar="FILE", help="COCO annotation file, instead of DATA")
    check.add_argument("--images", type=Path, metavar="DIR", help="folder of the images of --annotations")
    check.add_argument("--jobs", type=int, metavar="N", help="number of images to read at a time")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.add_argument(
        "--report",
        nargs="?",
        const=Path("data_report"),
        type=Path,
        metavar="DIR",
        help="write a page with pictures (default: data_report)",
    )
    check.set_defaults(run=run_check_data)

    convert = commands.add_parser("convert-data", help="write a data set in COCO's, YOLO's or Pascal VOC's layout")
    convert.add_argument("data", type=Path, metavar="DATA", help=DATA_HELP)
    convert.add_argument("output", type=Path, metavar="OUT", help="new folder")
    convert.add_argument("--to", dest="layout", choices=("coco", "yolo", "voc"), default="coco", help="(default: coco)")
    convert.set_defaults(run=run_convert_data)

    split = commands.add_parser("split-data", help="split a data set of one folder, for training and validation")
    add = split.add_argument
    add("data", type=Path, metavar="DATA", help=DATA_HELP)
    add("output", type=Path, metavar="OUT", help="new folder, in COCO's layout")
    add("--val", type=float, default=0.2, metavar="F", help="fraction of the images to validate with (default: 0.2)")
    add("--test", type=float, default=0.0, metavar="F", help="fraction of the images to test with (default: 0)")
    add("--stratify", action="store_true", help="keep the fractions for each class too")
    add("--seed", type=int, default=0, metavar="N", help="random seed (default: %(default)s)")
    split.set_defaults(run=run_split_data)

    digits = commands.add_parser("make-digits", help="make a small data set of handwritten digits")
    add = digits.add_argument
    add("folder", type=Path, metavar="DIR", help="new folder")
    add("--num-train", type=int, default=8000, metavar="N", help="number of training scenes (default: %(default)s)")
    add("--num-test", type=int, default=500, metavar="N", help="number of test scenes (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="random seed (default: %(default)s)")
    digits.set_defaults(run=run_make_digits)


def run_check_data(args: argparse.Namespace) -> int:
    """Print the contents and the issues of a data set."""
    pair = (args.annotations, args.images)
    if pair.count(None) != (2 if args.data else 0):
        raise InputError("give a data set's folder, or both --annotations and --images")
    from ..data.checks import SplitFiles, check_splits
    from ..data.layouts import find_splits

    with tempfile.TemporaryDirectory() as work_dir, progress_bar("reading images") as progress:
        splits = find_splits(args.data, Path(work_dir)) if args.data else [SplitFiles(args.annotations.stem, *pair)]
        copies = Path(work_dir, "completed") if args.report else None
        checked = check_splits(splits, find_leaks=True, work_dir=copies, jobs=args.jobs, progress=progress)
        results = {files.name: split for files, split in zip(splits, checked, strict=True)}
        page = _write_report(args.report, results) if args.report else None
    if args.json:
        show(json.dumps([_as_json(name, split) for name, split in results.items()], indent=2))
    else:
        for name, split in results.items():
            _print(name, split)
    if page:
        show(f"report: {page}", to=sys.stderr)
    return BAD_INPUT if any(issue.type.is_error for split in checked for issue in split.issues) else 0


def run_convert_data(args: argparse.Namespace) -> int:
    """Convert a data set, and print what could not be written."""
    from ..data.conversion import convert_data

    with progress_bar("copying images") as progress:
        lost = convert_data(**vars(args), progress=progress)
    show("\n  ".join([f"{args.output}: written", *lost]))
    return 0


def run_split_data(args: argparse.Namespace) -> int:
    """Split a data set."""
    from ..data.conversion import split_data

    with progress_bar("copying images") as progress:
        counts = split_data(**vars(args), progress=progress)
    show(f"{args.output}: " + ", ".join(f"{plural(count, 'image')} in {name}" for name, count in counts.items()))
    return 0


def run_make_digits(args: argparse.Namespace) -> int:
    """Make digit scenes."""
    from ..data.digits import make_digit_scenes

    with progress_bar("drawing scenes") as progress:
        make_digit_scenes(**vars(args), progress=progress)
    show(f"{args.folder}: {args.num_train:,} scenes for training, {args.num_test:,} for testing")
    return 0


def _write_report(folder: Path, splits: Mapping[str, "CheckedSplit"]) -> Path:
    from ..evaluation.data_report import write_data_report

    with progress_bar("drawing issues") as progress:
        return write_data_report(folder, splits, progress=progress)


def _print(name: str, split: "CheckedSplit") -> None:
    from ..formats.issues import describe

    show(
        f"{name}: {plural(split.num_images, 'image')}, {split.num_empty_images:,} without objects; "
        f"{plural(split.num_objects, 'object')}, {split.num_masks:,} with masks; {len(split.classes):,} classes"
    )
    counts = ", ".join(f"{printable(class_name)} {count:,}" for class_name, count in split.classes.items())
    if counts:
        show(textwrap.fill(counts, 100, initial_indent="  ", subsequent_indent="  ", break_long_words=False))
    for noun, is_error in (("error", True), ("warning", False)):
        issues = [issue for issue in split.issues if issue.type.is_error == is_error]
        if issues:
            show(f"{name}: {plural(len(issues), noun)}\n{describe(issues)}")
    if not split.issues:
        show(f"{name}: no issues")


def _as_json(name: str, split: "CheckedSplit") -> dict[str, Any]:
    counts = ("num_images", "num_empty_images", "num_objects", "num_masks", "classes")
    return {
        "split": name,
        **{count: getattr(split, count) for count in counts},
        "issues": [
            {**dataclasses.asdict(issue), "type": issue.type.title, "is_error": issue.type.is_error}
            for issue in split.issues
        ],
    }
