"""`dpt-zoo download`, `import`, `cache`, `convert` and `publish`: all about weights."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, WeightsError
from ..manifest.records import PublishedDetector, WeightsRecord, get_detector_info, get_model_info, read_manifest
from ..weights.cache import CacheEntry, cache_dir, list_entries
from .printing import BAD_INPUT, cache_state, complain, print_table, size


def add_commands(commands: Any) -> None:
    """Add the subcommands to argparse's `commands`."""
    dest = argparse.ArgumentParser(add_help=False)
    dest.add_argument("--dest", type=Path, metavar="DIR", help="the cache's folder (default: $DPT_ZOO_CACHE)")

    download = commands.add_parser("download", parents=[dest], help="fetch, check and convert weights")
    download.add_argument("names", nargs="*", metavar="NAME", help="models, or patterns such as 'mrcnn*'")
    download.add_argument("--all", action="store_true", help="all twelve detectors")
    download.add_argument("--jobs", type=int, default=2, metavar="N", help="files at a time; default: %(default)s")
    download.add_argument("--keep-original", action="store_true", help="keep the authors' files too")
    download.add_argument("--verify", action="store_true", help="check the values of what is here already")
    download.add_argument("--record", action="store_true", help="write the measured hashes into the manifest")
    download.set_defaults(run=run_download)

    importing = commands.add_parser("import", parents=[dest], help="take weights that were fetched by hand")
    importing.add_argument("name", metavar="NAME", help="the model that they are of")
    importing.add_argument("file", type=Path, metavar="FILE", help="the authors' .pth, or .safetensors")
    importing.set_defaults(run=run_import)

    cache = commands.add_parser("cache", help="list, verify or remove what is in the cache")
    acts = cache.add_subparsers(required=True, metavar="ACTION")
    for name, act, text in (
        ("list", list_cache, "show what is there"),
        ("verify", verify_cache, "check all values again"),
        ("remove", remove_from_cache, "remove weights"),
    ):
        action = acts.add_parser(name, parents=[dest], help=text)
        action.add_argument("names", nargs="*", metavar="NAME")
        action.set_defaults(run=run_cache, act=act)
        if act is remove_from_cache:
            action.add_argument("--all", action="store_true", help="all that is there")
            action.add_argument("--forget", action="store_true", help="their hashes too: the next download is trusted")

    convert = commands.add_parser("convert", help="convert weights to another form")
    convert.add_argument("source", metavar="SOURCE", help="a weights file, or a model's name")
    convert.add_argument("target", type=Path, metavar="TARGET", help="the file to write")
    convert.add_argument(
        "--to",
        choices=("safetensors", "mmdet2"),
        default="safetensors",
        help="mmdet2: the .pth that the authors' own code loads; default: %(default)s",
    )
    convert.add_argument("--half", action="store_true", help="in float16")
    convert.set_defaults(run=run_convert)

    publish = commands.add_parser("publish", help="upload a model to the Hugging Face Hub")
    publish.add_argument("name", metavar="NAME")
    publish.add_argument("--repo", required=True, metavar="ORG/NAME", help="made if it is not there")
    publish.add_argument("--private", action="store_true", help="make it a private one")
    publish.set_defaults(run=run_publish)


def run_download(args: argparse.Namespace) -> int:
    """Fetch, check and convert weights; print what became of each."""
    from ..weights.prefetch import download, record, select_names

    outcomes = download(
        select_names(args.names, args.all),
        folder=args.dest,
        jobs=args.jobs,
        keep_original=args.keep_original,
        thorough=args.verify,
    )
    rows = []
    for outcome in outcomes:
        if outcome.error:
            rows.append((outcome.name, "FAILED", "-", "-"))
        else:
            state = "was cached" if outcome.was_cached else "fetched"
            rows.append((outcome.name, state, size(outcome.path), str(outcome.path)))
    print_table(("name", "state", "size", "file"), rows)
    if args.record:
        written = record(outcomes)
        print(f"recorded in the manifest: {', '.join(written) or 'nothing, no file of the authors was fetched'}")
    failed = [outcome.error for outcome in outcomes if outcome.error]
    for error in failed:
        complain(error)
    return BAD_INPUT if failed else 0


def run_import(args: argparse.Namespace) -> int:
    """Take a file that was fetched by hand into the cache."""
    from ..weights.store import adopt

    path = adopt(get_model_info(args.name), args.file, folder=args.dest)
    print(f"{args.name}: checked and converted, {path}")
    return 0


def run_cache(args: argparse.Namespace) -> int:
    """List, verify or remove what is in the cache."""
    entries = {entry.name: entry for entry in list_entries(args.dest or cache_dir())}
    for name in args.names:
        if name not in entries:
            raise InputError(f"{name!r} is not in the cache: `dpt-zoo cache list` shows what is")
    chosen = [entries[name] for name in args.names] or list(entries.values())
    action: int = args.act(chosen, args)
    return action


def list_cache(entries: Sequence[CacheEntry], args: argparse.Namespace) -> int:
    """Print the table of what is in the cache."""
    print(args.dest or cache_dir())
    if entries:
        print_table(("name", "cached", "size", "from"), [_cache_row(entry) for entry in entries])
    return 0


def verify_cache(entries: Sequence[CacheEntry], args: argparse.Namespace) -> int:
    """Check the values of the cached weights against what was accepted."""
    from ..weights.store import find

    status = 0
    for entry in entries:
        try:
            found = find(_record_of(entry), entry, thorough=True)
            print(f"{entry.name}: {'as it was accepted' if found else 'no weights here'}", flush=True)
        except WeightsError as error:
            complain(error)
            status = BAD_INPUT
    return status


def remove_from_cache(entries: Sequence[CacheEntry], args: argparse.Namespace) -> int:
    """Remove weights from the cache."""
    from ..weights.store import discard

    if not args.names and not args.all:
        raise InputError("nothing is named to remove: give names, or --all")
    for entry in entries:
        discard(entry, forget=args.forget)
        print(f"{entry.name}: removed{', and forgotten' if args.forget else ''}")
    return 0


def run_convert(args: argparse.Namespace) -> int:
    """Convert a weights file, or a model's cached weights, to another form."""
    from ..weights.converting import convert

    weights = convert(_find_file(args.source), args.target, to=args.to, half=args.half)
    print(f"{args.target}: {len(weights.tensors)} tensors, {size(args.target)}")
    return 0


def run_publish(args: argparse.Namespace) -> int:
    """Upload a model to the Hugging Face Hub."""
    from ..weights.publishing import publish

    checkpoint = get_detector_info(args.name)
    if not isinstance(checkpoint, PublishedDetector):
        raise InputError(f"{args.name} is shipped with this project: `publish` is for the authors' models")
    path = _find_weights(args.name)
    facts = CacheEntry(path.parent, args.name).read_provenance()
    if facts:  # the card tells what was measured
        checkpoint = dataclasses.replace(checkpoint, sha256=facts.sha256, num_bytes=facts.num_bytes)
    print(publish(checkpoint, args.repo, path, private=args.private))
    return 0


def _cache_row(entry: CacheEntry) -> tuple[str, ...]:
    facts = entry.read_provenance()
    return entry.name, cache_state(entry), size(entry.weights), facts.source if facts else "unknown"


def _record_of(entry: CacheEntry) -> WeightsRecord:
    """The manifest's record, or for weights from elsewhere an empty one."""
    return read_manifest().records.get(entry.name) or WeightsRecord(name=entry.name, locations=())


def _find_file(source: str) -> Path:
    """A file by its path, or else a model's cached weights by its name."""
    return Path(source) if Path(source).is_file() else _find_weights(get_model_info(source).name)


def _find_weights(name: str) -> Path:
    """A model's cached weights, fetched if they are not there."""
    from ..weights.prefetch import download

    (outcome,) = download([name])
    if outcome.error:
        raise outcome.error
    return outcome.path
