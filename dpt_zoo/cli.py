"""The `dpt-zoo` command."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .errors import DPTZooError, ImageError, InputError
from .manifest import SCHEDULE_TITLES, Checkpoint, get_checkpoint, list_models
from .weights.cache import cached_file

if TYPE_CHECKING:
    from .inference import Detector

BAD_INPUT = 2
"""The exit status when something that the command was given could not be used."""
INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = _parser().parse_args(arguments)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except DPTZooError as error:
        _complain(error)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `dpt-zoo list | head` is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def run_list(args: argparse.Namespace) -> int:
    """Print the table of models."""
    names = list_models(args.pattern)
    if not names:
        raise InputError(f"no model's name matches {args.pattern!r}: `dpt-zoo list` shows all")
    rows: list[tuple[str, ...]] = [("name", "params", "schedule", "box AP", "mask AP", "cached")]
    rows += [_list_row(get_checkpoint(name)) for name in names]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def run_info(args: argparse.Namespace) -> int:
    """Print what the manifest and the cache know of a model."""
    checkpoint = get_checkpoint(args.name)
    cached = cached_file(checkpoint.name)
    facts = {
        "model": checkpoint.title,
        "parameters": f"{checkpoint.num_params:,}",
        "classes": f"{checkpoint.num_classes} (COCO)",
        "config": str(checkpoint.config_path),
        **{
            f"published {task}": "  ".join(f"{figure} {value}" for figure, value in figures.items())
            for task, figures in checkpoint.published.items()
        },
        "source": checkpoint.sources[0].url,
        "sha256": checkpoint.sha256 or "unknown: nobody has recorded it yet",
        "size": "unknown" if checkpoint.num_bytes is None else f"{checkpoint.num_bytes:,} bytes",
        "cached": str(cached) if cached.is_file() else f"no, {cached} is not there",
    }
    print(checkpoint.name)
    for key, value in facts.items():
        print(f"  {key:16}{value}")
    return 0


def run_detect(args: argparse.Namespace) -> int:
    """Detect objects in images; a bad one is reported, and the others are done."""
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {args.out}: no folder can be made there: {error.strerror}") from error
    from .inference import Detector
    from .inference.saving import output_stems

    detector = Detector(args.model, weights=args.weights, score_threshold=args.score_threshold, device=args.device)
    status = 0
    for path, stem in zip(args.images, output_stems(args.images), strict=True):
        try:
            _detect_one(detector, path, args.out / stem)
        except ImageError as error:
            _complain(error)
            status = BAD_INPUT
    return status


def _detect_one(detector: "Detector", path: Path, stem: Path) -> None:
    from .inference import load_image
    from .inference.saving import JPEG_SUFFIXES, save_coco, save_picture

    image = load_image(path)
    detections = detector(image)
    suffix = ".jpg" if path.suffix.lower() in JPEG_SUFFIXES else ".png"
    picture, records = stem.with_name(f"{stem.name}.detections{suffix}"), stem.with_name(f"{stem.name}.detections.json")
    save_picture(picture, image, detections)
    save_coco(records, detections, image_id=int(path.stem) if path.stem.isdecimal() else path.stem)
    counts = Counter(detections.names).most_common()
    found = ", ".join(f"{count} {name}" for name, count in counts) or f"nothing above {detector.score_threshold}"
    print(f"{path}: {found}\n  {picture}\n  {records}", flush=True)


def _list_row(checkpoint: Checkpoint) -> tuple[str, ...]:
    box, mask = (checkpoint.published.get(task, {}).get("mAP") for task in ("bbox", "segm"))
    return (
        checkpoint.name,
        f"{checkpoint.num_params / 1e6:.1f} M",
        SCHEDULE_TITLES[checkpoint.schedule],
        str(box),
        "-" if mask is None else str(mask),
        "yes" if cached_file(checkpoint.name).is_file() else "no",
    )


def _complain(error: DPTZooError) -> None:
    print(f"dpt-zoo: {error}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dpt-zoo", description="The twelve COCO detectors of DPT (arXiv 2107.14467).")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="show the models")
    listing.add_argument("pattern", nargs="?", default="*", help="only names that match, such as 'mrcnn*'")
    listing.set_defaults(run=run_list)

    info = commands.add_parser("info", help="show what is known of a model")
    info.add_argument("name", metavar="NAME")
    info.set_defaults(run=run_info)

    detect = commands.add_parser("detect", help="find objects in images")
    detect.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    detect.add_argument("--model", required=True, metavar="NAME", help="one of `dpt-zoo list`")
    detect.add_argument(
        "--weights", type=Path, metavar="FILE", help="a .pth or .safetensors file (default: the cached)"
    )
    detect.add_argument("--out", type=Path, default=Path("detections"), metavar="DIR", help="default: %(default)s")
    detect.add_argument("--score-threshold", type=float, default=0.3, metavar="S", help="default: %(default)s")
    detect.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; default: a GPU where there is one")
    detect.set_defaults(run=run_detect)
    return parser
