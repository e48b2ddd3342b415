"""`dpt-zoo export`: write a detector as one file that needs none of this package's code."""

import argparse
from pathlib import Path
from typing import Any

from ..errors import InputError
from .printing import format_size, show


def add_commands(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    export = commands.add_parser(
        "export",
        help="write a detector as one ONNX, OpenVINO or torch.export file",
        description="Write a detector as one graph, from images to objects, in one file, and check the file.",
    )
    add = export.add_argument
    add("model", metavar="NAME|FILE", help="a detector of `dpt-zoo list`, or weights that say what they are")
    add("path", type=Path, metavar="OUT", help="the file: .onnx, .xml (OpenVINO, with a .bin) or .pt2 (torch.export)")
    add("--weights", metavar="W", help="path, https://... or hf://org/repo/file (default: the model's own)")
    add("--batch", type=int, metavar="N", help="the only number of images (default: any number)")
    add("--height", type=int, metavar="H", help="the only height of images, a multiple of 32 (default: any)")
    add("--width", type=int, metavar="W", help="the only width of images, a multiple of 32 (default: any)")
    add("--half", action="store_true", help="store the weights in half precision: half the size")
    add("--preprocessing", action="store_true", help="the graph takes one uint8 image of any size, and resizes it")
    lowest = "the lowest score for which the graph can be asked (default: the config's, 0.05)"
    add("--score-threshold", type=float, metavar="S", help=lowest)
    add("--max-detections", type=int, metavar="N", help="the most objects of an image (default: the config's, 100)")
    add("--nms-iou", type=float, metavar="IOU", help="IoU above which one of two is kept (default: the config's, 0.5)")
    add("--class-agnostic-nms", action="store_true", help="compare objects of different classes, too")
    add("--int8", metavar="IMAGES", help="quantise an .xml file to int8 with a folder or pattern of images of the task")
    add("--force", action="store_true", help="write the int8 file even if it loses too much or is not faster here")
    export.set_defaults(run=run_export)


def run_export(args: argparse.Namespace) -> int:
    """Export, and print the path and size of the files."""
    from ..exporting.exporter import export

    height, width = vars(args).pop("height"), vars(args).pop("width")
    if (height is None) != (width is None):
        raise InputError("--height and --width must be given together")
    path = export(**vars(args), image_size=None if height is None else (height, width))
    paths = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    show(", ".join(f"{each} ({format_size(each)})" for each in paths))
    return 0
