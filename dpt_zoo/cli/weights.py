"""`dpt-zoo download` (also of COCO), `import`, `cache`, `convert` and `publish`: the commands for weights."""

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, WeightsError
from ..manifest.locations import is_location
from ..manifest.records import (
    Classifier,
    PublishedDetector,
    WeightsRecord,
    get_detector_info,
    get_model_info,
    read_manifest,
)
from ..weights.cache import CacheEntry, default_cache_dir, list_entries
from .printing import BAD_INPUT, cache_state, complain, format_size, print_table, show

if TYPE_CHECKING:
    from ..manifest.metadata import WeightsMetadata


def add_commands(commands: Any) -> None:
    """Add the subcommands to argparse's `commands`."""
    cached = argparse.ArgumentParser(add_help=False)
    cached.add_argument("--cache-dir", type=Path, metavar="DIR", help="cache folder (default: $DPT_ZOO_CACHE)")

    download = commands.add_parser("download", parents=[cached], help="fetch, check and convert weights, or COCO")
    names = "models, patterns such as 'mrcnn*', or coco-val2017, coco-train2017 and coco-annotations"
    download.add_argument("names", nargs="*", metavar="NAME", help=names)
    download.add_argument(
        "--data-root", type=Path, default=Path("coco"), metavar="DIR", help="for COCO (default: coco)"
    )
    download.add_argument("--all", action="store_true", help="all twelve detectors")
    download.add_argument("--jobs", type=int, default=2, metavar="N", help="simultaneous downloads (default: 2)")
    download.add_argument("--keep-original", action="store_true", help="also keep the authors' files")
    download.add_argument("--verify", action="store_true", help="check the values of cached weights again")
    download.set_defaults(run=run_download)

    importing = commands.add_parser("import", parents=[cached], help="import weights that were downloaded by hand")
    importing.add_argument("name", metavar="NAME", help="the model")
    importing.add_argument("file", type=Path, metavar="FILE", help="its weights, .pth or .safetensors")
    importing.set_defaults(run=run_import)

    cache = commands.add_parser("cache", help="list, verify or remove cached weights")
    actions = cache.add_subparsers(required=True, metavar="ACTION")
    for name, act, text in (
        ("list", list_cache, "list the cached weights"),
        ("verify", verify_cache, "check the values of cached weights again"),
        ("remove", remove_from_cache, "remove weights"),
    ):
        action = actions.add_parser(name, parents=[cached], help=text)
        action.add_argument("names", nargs="*", metavar="NAME")
        action.set_defaults(run=run_cache, act=act)
        if act is remove_from_cache:
            action.add_argument("--all", action="store_true", help="remove all")
            action.add_argument("--forget", action="store_true", help="also forget the hashes of the first download")

    convert = commands.add_parser("convert", help="convert weights to another format")
    convert.add_argument("input", metavar="INPUT", help="a weights file, or a model's name")
    convert.add_argument("output", type=Path, metavar="OUTPUT", help="the file to write")
    mmdet2 = "safetensors (default), or mmdet2: a .pth file for the authors' code"
    convert.add_argument("--to", choices=("safetensors", "mmdet2"), default="safetensors", help=mmdet2)
    convert.add_argument("--half", action="store_true", help="write float16")
    described = "the model that the weights are for, if INPUT does not say it: then OUTPUT is enough to load it"
    convert.add_argument("--model", metavar="NAME", help=described)
    convert.add_argument(
        "--license", metavar="ID", help="SPDX identifier of the weights' licence to write, such as MIT"
    )
    convert.set_defaults(run=run_convert)

    publish = commands.add_parser("publish", help="upload a model to the Hugging Face Hub")
    publish.add_argument("model", metavar="NAME|FILE", help="one of the authors' models, or a file of `dpt-zoo train`")
    publish.add_argument("--repo", required=True, metavar="ORG/NAME", help="created if it does not exist")
    publish.add_argument("--private", action="store_true", help="create a private repository")
    publish.set_defaults(run=run_publish)


def run_download(args: argparse.Namespace) -> int:
    """Fetch, check and convert weights; print a table of the results."""
    from ..weights.prefetch import download, select_names

    data_root, given = vars(args).pop("data_root"), vars(args).pop("names")
    archives = [name for name in given if name.startswith("coco-")]
    fetch_coco(archives, data_root)
    weights = [name for name in given if name not in archives]
    if archives and not (weights or args.all):
        return 0
    names = select_names(weights, vars(args).pop("all"))
    outcomes = download(names, **vars(args))
    rows = []
    for outcome in outcomes:
        state = "was cached" if outcome.was_cached else "fetched"
        result = ("FAILED", "-", "-") if outcome.error else (state, format_size(outcome.path), str(outcome.path))
        rows.append((outcome.name, *result))
    print_table(("name", "state", "size", "file"), rows)
    failed = [outcome.error for outcome in outcomes if outcome.error]
    for error in failed:
        complain(error)
    return BAD_INPUT if failed else 0


def fetch_coco(names: Sequence[str], data_root: Path) -> None:
    """Fetch the archives of COCO with these `names` into the folder `data_root`, and print where they are."""
    from ..reproduction.coco import download_coco
    from ..utils.progress import Downloads

    with Downloads(len(names)) as bars:
        for name in names:
            was_fetched = download_coco(name, data_root, progress=bars.callback_for(name))
            show(f"{name}: {'fetched' if was_fetched else 'was there'}, {data_root}")


def run_import(args: argparse.Namespace) -> int:
    """Import weights that were downloaded by hand into the cache."""
    from ..weights.store import adopt

    path = adopt(get_model_info(args.name), args.file, cache_dir=args.cache_dir)
    show(f"{args.name}: checked and converted, {path}")
    return 0


def run_cache(args: argparse.Namespace) -> int:
    """List, verify or remove cached weights."""
    entries = {entry.name: entry for entry in list_entries(args.cache_dir or default_cache_dir())}
    for name in args.names:
        if name not in entries:
            raise InputError(f"{name!r} is not in the cache: see `dpt-zoo cache list`")
    status: int = args.act([entries[name] for name in args.names] or list(entries.values()), args)
    return status


def list_cache(entries: Sequence[CacheEntry], args: argparse.Namespace) -> int:
    """Print a table of the cached weights."""
    show(args.cache_dir or default_cache_dir())
    rows = []
    for entry in entries:
        provenance = entry.read_provenance()
        location = provenance.location if provenance else "-"
        rows.append((entry.name, cache_state(entry), format_size(entry.weights), location))
    if rows:
        print_table(("name", "cached", "size", "location"), rows)
    return 0


def verify_cache(entries: Sequence[CacheEntry], args: argparse.Namespace) -> int:
    """Check the values of cached weights again."""
    from ..weights.store import find

    status = 0
    for entry in entries:
        record = read_manifest().records.get(entry.name) or WeightsRecord(name=entry.name, locations=())
        try:
            path = find(record, entry, verify=True)
            show(f"{entry.name}: {'unchanged' if path else 'not cached'}")
        except WeightsError as error:
            complain(error)
            status = BAD_INPUT
    return status


def remove_from_cache(entries: Sequence[CacheEntry], args: argparse.Namespace) -> int:
    """Remove weights from the cache."""
    from ..weights.store import discard

    if not args.names and not args.all:
        raise InputError("no model is named: give names, or --all")
    for entry in entries:
        if args.all and not entry.is_ours():
            show(f"{entry.name}: not removed, the cache has no record of it")
            continue
        discard(entry, forget=args.forget)
        show(f"{entry.name}: removed{', first download forgotten' if args.forget else ''}")
    return 0


def run_convert(args: argparse.Namespace) -> int:
    """Convert a weights file, or a model's weights, to another format."""
    from ..manifest.metadata import check_license
    from ..weights.converting import convert

    is_file = os.path.isfile(args.input)  # noqa: PTH113
    path = Path(args.input) if is_file else _fetch(args.input)
    if not is_file and args.model:
        raise InputError(f"--model is for a file: {args.input} is a model itself")
    metadata = _describe_file(path, args.model) if is_file else _describe_record(args.input)
    if args.license is not None:
        if metadata is None:
            raise InputError("--license needs --model, because the file does not say which model it is for")
        check_license(args.license)
        metadata = dataclasses.replace(metadata, license=args.license)
    weights = convert(path, args.output, to=args.to, half=args.half, metadata=metadata)
    show(f"{args.output}: {len(weights.tensors)} tensors, {format_size(args.output)}")
    return 0


def run_publish(args: argparse.Namespace) -> int:
    """Upload a model to the Hugging Face Hub and print the URL of the commit."""
    from ..models.metadata import describe_record
    from ..weights.publishing import publish
    from ..weights.store import find_weights, read_metadata

    if is_location(args.model):
        path = find_weights(args.model)
        show(publish(path, read_metadata(path), args.repo, private=args.private))
        return 0
    record = get_detector_info(args.model)
    if not isinstance(record, PublishedDetector):
        raise InputError(
            f"{args.model} is shipped with this project: `publish` is for the authors' models and your own"
        )
    path = _fetch(record.name)
    if provenance := CacheEntry(path.parent, record.name).read_provenance():  # the card has the measured hash and size
        record = dataclasses.replace(record, sha256=provenance.sha256, num_bytes=provenance.num_bytes)
    show(publish(path, describe_record(record), args.repo, record=record, private=args.private))
    return 0


def _describe_record(name: str) -> "WeightsMetadata | None":
    """Return what the weights of a model of the zoo say about it; None for a classifier."""
    from ..models.metadata import describe_record

    record = get_model_info(name)
    return None if isinstance(record, Classifier) else describe_record(record)


def _describe_file(path: Path, model: str | None) -> "WeightsMetadata | None":
    """Return what a weights file says about its model, or what weights for the named `model` say."""
    from ..engine.config import load_config
    from ..models.factory import create_model
    from ..models.metadata import describe
    from ..weights.metadata import find_metadata
    from ..weights.reading import read_raw_weights

    if model is None:
        return find_metadata(read_raw_weights(path).meta, path)
    detector: Any = create_model(model, weights=path)  # so that weights of another model are refused
    return dataclasses.replace(describe(load_config(model)), classes=detector.dataset_meta["classes"])


def _fetch(name: str) -> Path:
    """Return the path of a model's cached weights, and fetch them if necessary."""
    from ..weights.prefetch import download

    (outcome,) = download([name])
    if outcome.error:
        raise outcome.error
    return outcome.path
