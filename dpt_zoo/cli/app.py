"""`dpt-zoo app`: a web page for trying models on images."""

import argparse
import logging
from typing import Any

from .printing import show


def add_commands(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    app = commands.add_parser("app", help="open a web page that detects objects in your images")
    add = app.add_argument
    model = "the model selected first: a name, or a file of `dpt-zoo export` (default: %(default)s)"
    add("--model", default="mrcnn_dpt_nano_digits", metavar="NAME", help=model)
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, only for this machine)")
    add("--port", type=int, default=7860, metavar="N", help="default: %(default)s; 0: any free port")
    app.set_defaults(run=run_app)


def run_app(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    from ..app.server import serve

    logging.getLogger("dpt_zoo.app").setLevel(logging.INFO)
    serve(**vars(args), ready=lambda url: show(f"{url} (stop with Ctrl-C)"))
    return 0
