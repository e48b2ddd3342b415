"""`dpt-zoo app`: a page in the browser."""

import argparse
import logging
from typing import Any


def add_commands(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    app = commands.add_parser("app", help="find objects in images on a page in the browser")
    app.add_argument(
        "--model", default="mrcnn_dpt_nano_digits", metavar="NAME", help="the first that is shown; default: %(default)s"
    )
    app.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; default: a GPU where there is one")
    app.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="default: %(default)s, which is for this machine alone"
    )
    app.add_argument("--port", type=int, default=7860, metavar="N", help="default: %(default)s; 0: any that is free")
    app.set_defaults(run=run_app)


def run_app(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    from ..app.server import serve

    log = logging.getLogger("dpt_zoo.app")
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)
    serve(
        args.model,
        device=args.device,
        host=args.host,
        port=args.port,
        ready=lambda address: print(f"{address} (Ctrl-C ends it)", flush=True),
    )
    return 0
