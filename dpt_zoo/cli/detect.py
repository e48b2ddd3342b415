"""`dpt-zoo detect`: objects in images."""

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ImageError, InputError
from .printing import BAD_INPUT, complain

if TYPE_CHECKING:
    from ..inference import Detector


def add_commands(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    detect = commands.add_parser("detect", help="find objects in images")
    detect.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    detect.add_argument("--model", required=True, metavar="NAME", help="one of `dpt-zoo list`")
    detect.add_argument(
        "--weights", metavar="FILE", help="a path, https://... or hf://org/repo/file (default: the zoo's own)"
    )
    detect.add_argument("--out", type=Path, default=Path("detections"), metavar="DIR", help="default: %(default)s")
    detect.add_argument("--score-threshold", type=float, default=0.3, metavar="S", help="default: %(default)s")
    detect.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; default: a GPU where there is one")
    detect.set_defaults(run=run_detect)


def run_detect(args: argparse.Namespace) -> int:
    """Detect objects in images; a bad one is reported, and the others are done."""
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {args.out}: no folder can be made there: {error.strerror}") from error
    from ..inference import Detector
    from ..inference.saving import output_stems

    detector = Detector(args.model, weights=args.weights, score_threshold=args.score_threshold, device=args.device)
    status = 0
    for path, stem in zip(args.images, output_stems(args.images), strict=True):
        try:
            _detect_one(detector, path, args.out / stem)
        except ImageError as error:
            complain(error)
            status = BAD_INPUT
    return status


def _detect_one(detector: "Detector", path: Path, stem: Path) -> None:
    from ..inference import load_image
    from ..inference.saving import JPEG_SUFFIXES, save_coco, save_picture

    image = load_image(path)
    detections = detector(image)
    suffix = ".jpg" if path.suffix.lower() in JPEG_SUFFIXES else ".png"
    picture, records = stem.with_name(f"{stem.name}.detections{suffix}"), stem.with_name(f"{stem.name}.detections.json")
    save_picture(picture, image, detections)
    save_coco(records, detections, image_id=int(path.stem) if path.stem.isdecimal() else path.stem)
    counts = Counter(detections.names).most_common()
    found = ", ".join(f"{count} {name}" for name, count in counts) or f"nothing above {detector.score_threshold}"
    print(f"{path}: {found}\n  {picture}\n  {records}", flush=True)
