"""The process that evaluates a detector: `python -m dpt_zoo.reproduction.worker NUM_PROCESSES ARGUMENTS`.

It ends with status 0, or with the reason in `error.json`, or by the signal that ended one of its own processes.
"""

import contextlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from ..errors import DPTZooError
from ..evaluation.evaluator import evaluate
from .runner import ERROR


def run(arguments: dict[str, Any]) -> int:
    """Call `dpt_zoo.evaluate`, and return an exit status."""
    try:
        evaluate(**arguments)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except DPTZooError as error:
        print(f"dpt-zoo: {error}", file=sys.stderr)
        _write_error(Path(arguments["work_dir"]), str(error))
        return 1
    except Exception as error:
        traceback.print_exc()
        _write_error(Path(arguments["work_dir"]), f"{type(error).__name__}: {error}")
        return 1
    return 0


def launch(num_processes: int, arguments: str) -> int:
    """Run in several processes under torchrun, and return or end with the status of the one that failed first."""
    options = ["--standalone", "--local-addr=localhost", f"--nproc-per-node={num_processes}"]
    try:
        torchrun([*options, "-m", "dpt_zoo.reproduction.worker", "1", arguments])
    except ChildFailedError as error:
        statuses = [failure.exitcode for failure in error.failures.values()]
        # By SIGTERM, torchrun ends the other processes.
        killed = [status for status in statuses if status < 0 and (status != -signal.SIGTERM or len(statuses) == 1)]
        if killed:
            os.kill(os.getpid(), -killed[0])
        return error.get_first_failure()[1].exitcode
    return 0


def _write_error(folder: Path, text: str) -> None:
    """Write why this process failed. The first of several counts: the others fail because it is gone."""
    with contextlib.suppress(OSError), (folder / ERROR).open("x") as file:
        json.dump(text, file)


if __name__ == "__main__":
    count, content = sys.argv[1:]
    sys.exit(launch(int(count), content) if count != "1" else run(json.loads(content)))
