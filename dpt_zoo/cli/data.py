"""`dpt-zoo check-data` and `make-digits`: what is in a data set and wrong with it, and one to try things on."""

import argparse
import json
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..utils.progress import progress_bar
from .printing import BAD_INPUT

if TYPE_CHECKING:
    from ..data.checks import CheckedSplit


def add_commands(commands: Any) -> None:
    """Add the subcommands to argparse's `commands`."""
    check = commands.add_parser("check-data", help="show what is in a data set, and what is wrong with it")
    check.add_argument("data", nargs="?", type=Path, metavar="DATA", help="a folder of COCO, YOLO or Pascal VOC data")
    check.add_argument("--annotations", type=Path, metavar="FILE", help="or a COCO annotation file, with ...")
    check.add_argument("--images", type=Path, metavar="DIR", help="... the folder of its images")
    check.add_argument("--jobs", type=int, metavar="N", help="images read at a time")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=run_check_data)

    digits = commands.add_parser("make-digits", help="make scenes of handwritten digits, to try things on")
    digits.add_argument("folder", type=Path, metavar="DIR", help="a new folder")
    digits.add_argument("--num-train", type=int, default=8000, metavar="N", help="default: %(default)s")
    digits.add_argument("--num-test", type=int, default=500, metavar="N", help="default: %(default)s")
    digits.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    digits.set_defaults(run=run_make_digits)


def run_check_data(args: argparse.Namespace) -> int:
    """Print what is in a data set, and all that is wrong with it."""
    pair = (args.annotations, args.images)
    if pair.count(None) != (2 if args.data else 0):
        raise InputError("name a data set's folder, or both --annotations and --images")
    from ..data.layouts import SplitFiles, check_splits, find_splits

    with tempfile.TemporaryDirectory() as work_dir, progress_bar("reading images") as progress:
        splits = find_splits(args.data, Path(work_dir)) if args.data else [SplitFiles(args.annotations.stem, *pair)]
        checks = check_splits(splits, jobs=args.jobs, progress=progress)
    if args.json:
        print(json.dumps([_record(split.name, check) for split, check in zip(splits, checks, strict=True)], indent=2))
    else:
        for split, check in zip(splits, checks, strict=True):
            _print(split.name, check)
    return BAD_INPUT if any(issue.type.is_error for check in checks for issue in check.issues) else 0


def run_make_digits(args: argparse.Namespace) -> int:
    """Make digit scenes."""
    from ..data.digits import make_digit_scenes

    with progress_bar("drawing scenes") as progress:
        make_digit_scenes(
            args.folder, num_train=args.num_train, num_test=args.num_test, seed=args.seed, progress=progress
        )
    print(f"{args.folder}: {args.num_train:,} scenes to train on, {args.num_test:,} to test with")
    return 0


def _print(name: str, check: "CheckedSplit") -> None:
    from ..data.issues import describe
    from ..utils.text import printable

    print(
        f"{name}: {check.num_images:,} images, {check.num_empty_images:,} of them without objects; "
        f"{check.num_objects:,} objects, {check.num_masks:,} of them with masks; {len(check.classes):,} classes"
    )
    counts = ", ".join(f"{printable(name)} {count:,}" for name, count in check.classes.items())
    if counts:
        print(textwrap.fill(counts, 100, initial_indent="  ", subsequent_indent="  ", break_long_words=False))
    for title, is_error in (("error", True), ("warning", False)):
        issues = [issue for issue in check.issues if issue.type.is_error == is_error]
        if issues:
            print(f"{name}: {len(issues):,} {title}{'s' * (len(issues) > 1)}\n{describe(issues)}")
    if not check.issues:
        print(f"{name}: sound")


def _record(name: str, check: "CheckedSplit") -> dict[str, Any]:
    return {
        "split": name,
        "num_images": check.num_images,
        "num_empty_images": check.num_empty_images,
        "num_objects": check.num_objects,
        "num_masks": check.num_masks,
        "classes": check.classes,
        "issues": [
            {
                "type": issue.type.title,
                "is_error": issue.type.is_error,
                "where": issue.where,
                "what": issue.what,
                "image_id": issue.image_id,
            }
            for issue in check.issues
        ],
    }
