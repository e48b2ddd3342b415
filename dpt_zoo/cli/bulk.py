"""`dpt-zoo detect-dataset` and `export-dataset`: detect in data sets of any size, and export the results."""

import argparse
from pathlib import Path
from typing import Any

from ..utils.text import plural, printable
from .detect import FORMATS, add_detector_options
from .printing import BAD_INPUT, complain, show


def add_commands(commands: Any) -> None:
    """Add the subcommands to argparse's `commands`."""
    detect = commands.add_parser(
        "detect-dataset",
        help="detect objects in millions of images, on one machine or many",
        description="Detect objects in the images of folders, tables and shards, local or in object storage, and write "
        "the results as Parquet files. The same command continues an interrupted run.",
    )
    detect.set_defaults(run=run_detect_dataset)
    add = detect.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="folders, patterns, .tar, .parquet, .arrow, .csv, .jsonl; or URLs")
    add("--output", required=True, metavar="DIR", help="folder for the results, or its URL in object storage")
    add("--model", required=True, metavar="NAME", help="a detector of `dpt-zoo list`, or a file of `dpt-zoo export`")
    runners = "processes here, a share of torchrun's or Slurm's processes, or Ray's actors (default: %(default)s)"
    add("--runner", choices=("local", "rank", "ray"), default="local", help=runners)
    add("--address", metavar="A", help="address of the Ray cluster (default: RAY_ADDRESS, or Ray on this machine)")
    add("--workers", type=int, metavar="N", help="number of processes that detect (default: one for each core)")
    add("--gpus-per-worker", type=float, default=0, metavar="G", help="GPUs of a worker of Ray, such as 0.25")
    add("--images-per-part", type=int, default=500, metavar="N", help="images in an output file (default: %(default)s)")
    add("--rows", choices=("images", "objects"), default="images", help="what a row is (default: %(default)s)")
    add("--column", metavar="NAME", help="column of the images in tables (default: the only one that can be)")
    add_detector_options(add)

    export = commands.add_parser(
        "export-dataset",
        help="export the results of detect-dataset to the formats of other tools",
        description="Export the results of `dpt-zoo detect-dataset`. Images that could not be read are left out.",
    )
    export.set_defaults(run=run_export_dataset)
    add = export.add_argument
    add("folder", metavar="DIR", help="folder of the results, or its URL in object storage")
    add("--work-dir", type=Path, required=True, metavar="DIR", help="folder for the exported files")
    formats = [name for name in FORMATS if name not in ("jsonl", "mot")]
    add("--format", nargs="+", choices=formats, default=["json"], metavar="FORMAT", help=", ".join(formats))


def run_detect_dataset(args: argparse.Namespace) -> int:
    """Detect objects, and print how many. Images that cannot be read are counted, and are rows with an error."""
    from ..bulk.detect import detect_dataset

    try:
        run = detect_dataset(**vars(args))
    except KeyboardInterrupt:
        complain("interrupted: the same command continues the run")
        raise
    counts = run.counts
    show(f"{plural(counts.num_images, 'image')}, {plural(counts.num_objects, 'object')}")
    show(f"{run.output}: {plural(run.num_parts - len(run.set_aside), 'part')}")
    if counts.num_errors:
        complain(f"{plural(counts.num_errors, 'image')} could not be read: the column error says why")
    if run.set_aside:
        failures = [f"{name}: {reason}" for name, reason in run.set_aside.items()]
        title = f"{plural(len(failures), 'part')} failed three times, and will be tried again by the same command:"
        complain("\n  ".join([title, *map(printable, failures)]))
    return BAD_INPUT if counts.num_errors or run.set_aside else 0


def run_export_dataset(args: argparse.Namespace) -> int:
    """Export, and print the path of the folder."""
    from ..bulk.export import export_dataset

    num_errors = export_dataset(args.folder, args.work_dir, args.format)
    show(args.work_dir)
    if num_errors:
        complain(f"{plural(num_errors, 'image')} could not be read, and are left out")
    return 0
