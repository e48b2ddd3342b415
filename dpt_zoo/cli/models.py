"""`dpt-zoo list` and `info`: what there is, and what is known of it."""

import argparse
import sys
from typing import Any

from ..errors import InputError
from ..manifest.model_card import card
from ..manifest.records import (
    SCHEDULE_TITLES,
    Classifier,
    DemoDetector,
    Metrics,
    PublishedDetector,
    WeightsRecord,
    get_model_info,
    list_models,
    read_manifest,
)
from ..weights.cache import CacheEntry, Provenance, cache_dir
from .printing import cache_state, print_table


def add_commands(commands: Any) -> None:
    """Add the subcommands to argparse's `commands`."""
    listing = commands.add_parser("list", help="show the models")
    listing.add_argument("pattern", nargs="?", default="*", help="only names that match, such as 'mrcnn*'")
    listing.set_defaults(run=run_list)

    info = commands.add_parser("info", help="show what is known of a model")
    info.add_argument("name", metavar="NAME")
    info.set_defaults(run=run_info)


def run_list(args: argparse.Namespace) -> int:
    """Print the table of the authors' models, and below it that of those trained by this project."""
    manifest = read_manifest()
    models = list_models(args.pattern)
    demos = list_models(args.pattern, include_demos=True)[len(models) :]
    if not models and not demos:
        raise InputError(f"no model's name matches {args.pattern!r}: `dpt-zoo list` shows all")
    if models:
        print_table(
            ("name", "params", "schedule", "box AP", "mask AP", "cached"),
            [_list_row(manifest.checkpoints[name]) for name in models],
        )
    if models and demos:
        print()
    if demos:
        print("Trained by this project on digit scenes, and shipped with it:")
        print_table(
            ("name", "params", "box AP", "mask AP", "measured on"),
            [_list_demo_row(manifest.demos[name]) for name in demos],
        )
    return 0


def run_info(args: argparse.Namespace) -> int:
    """Print a model's card, and what this machine has of it."""
    record = get_model_info(args.name)
    _print_markdown(card(record))
    print("\nOn this machine:")
    for key, value in _facts_here(record).items():
        first, *others = value.splitlines()
        print("\n".join([f"  {key:17}{first}", *(f"{'':19}{line}" for line in others)]))
    return 0


def _print_markdown(text: str) -> None:
    """Print a page as it is for programs, and set for a terminal."""
    if not sys.stdout.isatty():
        print(text, end="")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text, hyperlinks=False))


def _list_row(checkpoint: PublishedDetector) -> tuple[str, ...]:
    return (
        checkpoint.name,
        _millions(checkpoint.num_params),
        SCHEDULE_TITLES[checkpoint.schedule],
        *_average_precisions(checkpoint.metrics),
        cache_state(CacheEntry(cache_dir(), checkpoint.name)),
    )


def _list_demo_row(demo: DemoDetector) -> tuple[str, ...]:
    return demo.name, _millions(demo.num_params), *_average_precisions(demo.metrics), demo.data


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M"


def _average_precisions(figures: Metrics) -> tuple[str, ...]:
    return tuple(str(figures.get(task, {}).get("mAP", "-")) for task in ("bbox", "segm"))


def _facts_here(record: PublishedDetector | Classifier | DemoDetector) -> dict[str, str]:
    """Where a model's files are, and what is known of them."""
    files: dict[str, str] = {}
    if not isinstance(record, Classifier):
        files["config"] = str(record.config_path)
    if isinstance(record, DemoDetector):
        files["log"] = str(record.log_path)
    return {**files, **_trust(record)}


def _trust(record: WeightsRecord) -> dict[str, str]:
    """What is known of the weights' file, and who says so."""
    entry = CacheEntry(cache_dir(), record.name)
    facts = entry.read_provenance()
    known: WeightsRecord | Provenance | None = facts
    said_by = f"recorded at the first download here, on {facts.recorded}" if facts else ""
    if record.sha256 or record.tensors_sha256:
        known, said_by = record, "pinned by the manifest"
    unknown = "unknown: nobody has recorded it yet"
    cached = {
        "yes": f"{entry.weights}\nhash, structure and finite numbers are checked",
        "unchecked": f"{entry.weights}\nnot yet checked, or changed since: it is checked before it is used",
        "in part": f"no, {entry.part} has come so far",
        "no": f"no, {entry.weights} is not there",
    }
    return {
        "sha256": f"{known.sha256}\n{said_by}" if known and known.sha256 else unknown,
        "size": f"{known.num_bytes:,} bytes" if known and known.num_bytes else "unknown",
        "tensors sha256": f"{known.tensors_sha256}\n{said_by}" if known and known.tensors_sha256 else unknown,
        "structure sha256": f"{record.structure_sha256}\npinned by the manifest",
        "cached": "not needed: shipped with the project"
        if isinstance(record, DemoDetector)
        else cached[cache_state(entry)],
    }
