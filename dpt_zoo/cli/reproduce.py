"""`dpt-zoo reproduce`: the published results, measured again."""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

DIFFERENT = 1
"""The exit status when a detector failed, or a metric differs from the published one."""


def add_commands(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    reproduce = commands.add_parser(
        "reproduce",
        help="evaluate the detectors, and compare with the published metrics",
        description="Evaluate each detector in a process of its own. Finished evaluations are not repeated.",
    )
    add = reproduce.add_argument
    add("names", nargs="*", metavar="NAME", help="detectors, or patterns such as 'mrcnn*' (default: all twelve)")
    add("--data-root", type=Path, required=True, metavar="DIR", help="a folder of COCO data, with val2017")
    add("--work-dir", type=Path, default=Path("runs/results"), metavar="DIR", help="default: %(default)s")
    add("--processes", type=int, default=1, metavar="N", help="processes for each detector: the number of GPUs")
    add("--limit", type=int, metavar="N", help="evaluate the first N images only, which is not a reproduction")
    add("--batch-size", type=int, metavar="N", help="images in a batch, for each process")
    add("--workers", type=int, metavar="N", help="processes that load data, for each that detects")
    add("--amp", action="store_true", help="compute in half precision where that is safe (needs a GPU)")
    add("--skip-missing", action="store_true", help="skip images that are missing or unreadable")
    reproduce.set_defaults(run=run_reproduce)


def run_reproduce(args: argparse.Namespace) -> int:
    """Evaluate, and print the summary and the path of the table."""
    from ..reproduction.runner import ReproductionOptions, reproduce, select_names

    options = {key: value for key, value in vars(args).items() if key not in ("run", "names")}
    report = functools.partial(print, file=sys.stderr, flush=True)
    results = reproduce(select_names(args.names), ReproductionOptions(**options), report)
    print(f"{results.summary}\n{args.work_dir / 'results.md'}")
    return DIFFERENT if results.num_failed or results.num_different else 0
