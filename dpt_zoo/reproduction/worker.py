"""The process that evaluates a model: `python -m dpt_zoo.reproduction.worker NUM_PROCESSES ARGUMENTS`.

If it fails, it writes the reason to `error.json`, or ends by the signal that ended one of its own processes.
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
from ..manifest.records import read_manifest
from ..utils.streams import show
from .runner import ERROR


def run(arguments: dict[str, Any]) -> int:
    """Call `evaluate`, or `evaluate_classifier` for a classifier, with `arguments`, and return an exit status.

    With "exported_from", the name of a detector, its "model" is a file to export first, unless it exists.
    """
    name = arguments.pop("exported_from", None)
    try:
        if name is not None and not Path(arguments["model"]).exists():
            from ..exporting.exporter import export

            export(name, arguments["model"])
        if arguments["model"] in read_manifest().classifiers:
            from ..evaluation.classification import evaluate_classifier

            evaluate_classifier(**arguments)
        else:
            evaluate(**arguments)
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except DPTZooError as error:
        show(f"dpt-zoo: {error}", to=sys.stderr)
        reason = str(error)
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    # Of several processes, the first writes the reason: the others fail because it is gone.
    with contextlib.suppress(OSError), (Path(arguments["work_dir"]) / ERROR).open("x") as file:
        json.dump(reason, file)
    return 1


def launch(num_processes: int, arguments: str) -> int:
    """Call `run` with `arguments` (JSON) in `num_processes` processes; return the status of the first that failed."""
    options = ["--standalone", "--local-addr=localhost", f"--nproc-per-node={num_processes}"]
    try:
        torchrun([*options, "-m", "dpt_zoo.reproduction.worker", "1", arguments])
    except ChildFailedError as error:
        statuses = [failure.exitcode for failure in error.failures.values()]
        # torchrun ends the other processes by SIGTERM.
        killed = [status for status in statuses if status < 0 and (status != -signal.SIGTERM or len(statuses) == 1)]
        if killed:
            os.kill(os.getpid(), -killed[0])
        return error.get_first_failure()[1].exitcode
    return 0


if __name__ == "__main__":
    count, content = sys.argv[1:]
    sys.exit(launch(int(count), content) if count != "1" else run(json.loads(content)))
