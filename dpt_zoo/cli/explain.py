"""`dpt-zoo explain`: draw where a detector looks."""

import argparse
from pathlib import Path
from typing import Any

from .printing import print_table, show


def add_commands(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    explain = commands.add_parser(
        "explain",
        help="draw where a detector looks in an image",
        description="Draw the patches that each DePatch stage predicts, or those that an object's score depends on.",
    )
    add = explain.add_argument
    add("image", metavar="IMAGE", help="an image file, or a URL")
    add(
        "--model",
        required=True,
        metavar="NAME|FILE",
        help="a detector of `dpt-zoo list`, or weights that say what they are",
    )
    add("--weights", metavar="W", help="path, https://... or hf://org/repo/file (default: the model's own)")
    add("--object", type=int, metavar="N", help="the number of a detected object, to draw the patches that it rests on")
    add("--score-threshold", type=float, default=0.3, metavar="S", help="the lowest score (default: %(default)s)")
    add(
        "--output",
        type=Path,
        default=Path("explanation.png"),
        metavar="FILE",
        help="PNG to write (default: %(default)s)",
    )
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    explain.set_defaults(run=run_explain)


def run_explain(args: argparse.Namespace) -> int:
    """Write the picture, and print the numbers of the objects."""
    from ..inference.detector import Detector

    detector = Detector(args.model, weights=args.weights, score_threshold=args.score_threshold, device=args.device)
    explanation = detector.explain(args.image, args.object)
    explanation.save(args.output)
    detections = explanation.detections
    objects = enumerate(zip(detections.names, detections.scores.tolist(), strict=True))
    print_table(("object", "class", "score"), [(str(index), name, f"{score:.2f}") for index, (name, score) in objects])
    show(args.output)
    return 0
