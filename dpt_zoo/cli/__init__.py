"""The `dpt-zoo` command. Each module adds some of its subcommands."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from .._version import __version__
from ..errors import DPTZooError
from ..utils.dependencies import explain_imports
from ..utils.text import printable
from . import app, bulk, data, detect, experiments, explain, export, models, serve, weights
from .printing import BAD_INPUT, complain, prepared_streams

INTERRUPTED = 130  # the exit status after Ctrl-C, as in shells


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    try:
        with prepared_streams(), explain_imports():
            args = _parser().parse_args(arguments)
            run = vars(args).pop("run")
            status: int = run(args)
            return status
    except DPTZooError as error:
        complain(error)
        return BAD_INPUT
    except OSError as error:  # an impossible name, a damaged disk, ...
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Escape arguments in an error."""
        super().error(printable(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="dpt-zoo", description="The twelve COCO detectors of DPT (arXiv 2107.14467).")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (models, weights, data, experiments, detect, bulk, explain, export, app, serve):
        module.add_commands(commands)
    return parser
