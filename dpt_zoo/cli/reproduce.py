"""`dpt-zoo reproduce`: the published results, measured again."""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError

DIFFERENT = 1
"""The exit status when a detector failed, or a figure is not the published one."""


def add_commands(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    reproduce = commands.add_parser(
        "reproduce",
        help="evaluate the detectors, and set what is measured beside what is published",
        description="Each detector is evaluated in a process of its own. What is done already is not done again.",
    )
    reproduce.add_argument(
        "names", nargs="*", metavar="NAME", help="detectors, or patterns such as 'mrcnn*' (default: all twelve)"
    )
    subject = reproduce.add_mutually_exclusive_group(required=True)
    subject.add_argument("--data-root", type=Path, metavar="DIR", help="COCO, with val2017")
    subject.add_argument("--readme", type=Path, metavar="FILE", help="only write the manifest's tables into a README")
    reproduce.add_argument(
        "--work-dir", type=Path, default=Path("runs/results"), metavar="DIR", help="default: %(default)s"
    )
    reproduce.add_argument("--processes", type=int, default=1, metavar="N", help="for each detector, as many as GPUs")
    reproduce.add_argument("--limit", type=int, metavar="N", help="only so many images: a look, no reproduction")
    reproduce.add_argument("--batch-size", type=int, metavar="N", help="images at a time, for each process")
    reproduce.add_argument("--workers", type=int, metavar="N", help="processes that load data, for each that detects")
    reproduce.add_argument("--amp", action="store_true", help="half precision where that is safe")
    reproduce.add_argument("--skip-missing", action="store_true", help="leave out images that cannot be read")
    reproduce.set_defaults(run=run_reproduce)


def run_reproduce(args: argparse.Namespace) -> int:
    """Evaluate, and tell where the table is; or write a README's tables."""
    from ..reproduction.runner import ReproductionOptions, reproduce, select_names
    from ..reproduction.table import write_tables

    options = {key: value for key, value in vars(args).items() if key not in ("run", "names", "readme")}
    if args.readme:
        if args.names:
            raise InputError("--readme writes all tables: name no detectors")
        write_tables(args.readme)
        return 0
    tell = functools.partial(print, file=sys.stderr, flush=True)
    results = reproduce(select_names(args.names), ReproductionOptions(**options), tell)
    print(f"{results.summary}\n{args.work_dir / 'results.md'}")
    return DIFFERENT if results.num_failed or results.num_missed else 0
