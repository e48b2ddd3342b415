"""`dpt-zoo list` and `info`: the models of the zoo."""

import argparse
import sys
from typing import Any

from ..errors import InputError
from ..manifest.locations import is_location
from ..manifest.model_card import card
from ..manifest.records import (
    SCHEDULE_TITLES,
    Classifier,
    DemoDetector,
    DetectorRecord,
    PublishedDetector,
    WeightsRecord,
    get_model_info,
    list_models,
    read_manifest,
)
from ..utils.text import format_percent
from ..weights.cache import CacheEntry, Provenance, default_cache_dir
from .printing import cache_state, print_table, show


def add_commands(commands: Any) -> None:
    """Add the subcommands to argparse's `commands`."""
    listing = commands.add_parser("list", help="list the models")
    listing.add_argument("pattern", nargs="?", default="*", help="list only names that match, such as 'mrcnn*'")
    listing.set_defaults(run=run_list)

    info = commands.add_parser("info", help="show a model card, and the model's files on this machine")
    info.add_argument("name", metavar="NAME|FILE", help="a model of `dpt-zoo list`, or a weights file")
    info.set_defaults(run=run_info)


def run_list(args: argparse.Namespace) -> int:
    """Print a table of the authors' models, and one of the demos."""
    records = read_manifest().detectors
    matching = [records[name] for name in list_models(args.pattern, include_demos=True)]
    if not matching:
        raise InputError(f"no model's name matches {args.pattern!r}: `dpt-zoo list` shows all")
    models = [record for record in matching if isinstance(record, PublishedDetector)]
    demos = [record for record in matching if isinstance(record, DemoDetector)]
    if models:
        header = ("name", "params", "schedule", "box AP", "mask AP", "cached")
        print_table(header, [_model_row(record) for record in models])
    if models and demos:
        show()
    if demos:
        show("Demos, trained by this project on digit scenes and shipped with it:")
        rows = [(record.name, _millions(record), *_average_precisions(record), record.data) for record in demos]
        print_table(("name", "params", "box AP", "mask AP", "measured on"), rows)
    return 0


def run_info(args: argparse.Namespace) -> int:
    """Print a model card, rendered on a terminal, and the state of the model's files on this machine.

    Of a weights file, print what it says about its model.
    """
    if is_location(args.name):
        from ..weights.store import read_metadata

        content = read_metadata(args.name).to_json()
        print_table(("", ""), [(name, str(value)) for name, value in content.items() if value])
        return 0
    record = get_model_info(args.name)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(card(record), hyperlinks=False))
    else:
        show(card(record).rstrip("\n"))
    show("\nOn this machine:")
    for key, value in _local_state(record).items():
        first, *others = value.splitlines()
        show("\n".join([f"  {key:17}{first}", *(f"{'':19}{line}" for line in others)]))
    return 0


def _model_row(record: PublishedDetector) -> tuple[str, ...]:
    state = cache_state(CacheEntry(default_cache_dir(), record.name))
    return record.name, _millions(record), SCHEDULE_TITLES[record.schedule], *_average_precisions(record), state


def _millions(record: DetectorRecord) -> str:
    return f"{record.num_params / 1e6:.1f} M"


def _average_precisions(record: DetectorRecord) -> tuple[str, ...]:
    return tuple(format_percent(record.metrics.get(task, {}).get("mAP")) for task in ("bbox", "segm"))


def _local_state(record: PublishedDetector | Classifier | DemoDetector) -> dict[str, str]:
    """Return the paths of a model's files, and the known hashes with their origin."""
    entry = CacheEntry(default_cache_dir(), record.name)
    provenance = entry.read_provenance()
    known: WeightsRecord | Provenance | None = provenance
    origin = f"recorded at the first download, {provenance.recorded}" if provenance else ""
    if record.sha256 or record.tensors_sha256:
        known, origin = record, "from the manifest"
    unknown = "unknown, not yet recorded"
    cached = {
        "yes": f"{entry.weights}\nhash, structure and finite numbers were checked",
        "unchecked": f"{entry.weights}\nnot checked, or changed since: it will be checked before it is used",
        "partly": f"no, {entry.part} is incomplete",
        "no": f"no, {entry.weights} does not exist",
    }
    is_demo = isinstance(record, DemoDetector)
    return {
        **({} if isinstance(record, Classifier) else {"config": str(record.config_path)}),
        **({"log": str(record.log_path)} if isinstance(record, DemoDetector) else {}),
        "sha256": f"{known.sha256}\n{origin}" if known and known.sha256 else unknown,
        "size": f"{known.num_bytes:,} bytes" if known and known.num_bytes else "unknown",
        "tensors sha256": f"{known.tensors_sha256}\n{origin}" if known and known.tensors_sha256 else unknown,
        "structure sha256": f"{record.structure_sha256}\nfrom the manifest",
        "cached": "not needed: shipped with the project" if is_demo else cached[cache_state(entry)],
    }
