"""`dpt-zoo list` and `info`: what there is, and what is known of it."""

import argparse
from typing import Any

from ..errors import InputError
from ..manifest import (
    SCHEDULE_TITLES,
    Checkpoint,
    Classifier,
    WeightsRecord,
    get_checkpoint,
    get_weights_record,
    list_models,
)
from ..weights.cache import Entry, Facts, cache_dir
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
    """Print the table of models."""
    names = list_models(args.pattern)
    if not names:
        raise InputError(f"no model's name matches {args.pattern!r}: `dpt-zoo list` shows all")
    print_table(
        ("name", "params", "schedule", "box AP", "mask AP", "cached"),
        [_list_row(get_checkpoint(name)) for name in names],
    )
    return 0


def run_info(args: argparse.Namespace) -> int:
    """Print what the manifest and the cache know of a model."""
    record = get_weights_record(args.name)
    facts = {
        "model": record.title,
        "parameters": f"{record.num_params:,}",
        "classes": f"{record.num_classes:,} ({'COCO' if isinstance(record, Checkpoint) else 'ImageNet-1k'})",
        **_published(record),
        "licence": f"{record.license}, paper: {record.paper}",
        "sources": "\n".join(source.url for source in record.sources),
        **_trust(record),
    }
    print(record.name)
    for key, value in facts.items():
        first, *others = value.splitlines()
        print("\n".join([f"  {key:17}{first}", *(f"{'':19}{line}" for line in others)]))
    return 0


def _list_row(checkpoint: Checkpoint) -> tuple[str, ...]:
    box, mask = (checkpoint.published.get(task, {}).get("mAP") for task in ("bbox", "segm"))
    return (
        checkpoint.name,
        f"{checkpoint.num_params / 1e6:.1f} M",
        SCHEDULE_TITLES[checkpoint.schedule],
        str(box),
        "-" if mask is None else str(mask),
        cache_state(Entry(cache_dir(), checkpoint.name)),
    )


def _published(record: Checkpoint | Classifier) -> dict[str, str]:
    if isinstance(record, Classifier):
        return {"published": f"top-1 accuracy {record.published['top1']}"}
    return {
        "config": str(record.config_path),
        **{
            f"published {task}": "  ".join(f"{figure} {value}" for figure, value in figures.items())
            for task, figures in record.published.items()
        },
    }


def _trust(record: WeightsRecord) -> dict[str, str]:
    """What is known of the weights' file, and who says so."""
    entry = Entry(cache_dir(), record.name)
    facts = entry.read_facts()
    known: WeightsRecord | Facts | None = facts
    said_by = f"recorded at the first download here, on {facts.recorded}" if facts else ""
    if record.sha256 or record.tensors_sha256:
        known, said_by = record, "pinned by the manifest"
    unknown = "unknown: nobody has recorded it yet"
    return {
        "sha256": f"{known.sha256}\n{said_by}" if known and known.sha256 else unknown,
        "size": f"{known.num_bytes:,} bytes" if known and known.num_bytes else "unknown",
        "tensors sha256": f"{known.tensors_sha256}\n{said_by}" if known and known.tensors_sha256 else unknown,
        "structure sha256": f"{record.structure_sha256}\npinned by the manifest",
        "cached": {
            "yes": f"{entry.weights}\nhash, structure and finite numbers are checked",
            "unchecked": f"{entry.weights}\nnot yet checked, or changed since: it is checked before it is used",
            "in part": f"no, {entry.part} has come so far",
            "no": f"no, {entry.weights} is not there",
        }[cache_state(entry)],
    }
