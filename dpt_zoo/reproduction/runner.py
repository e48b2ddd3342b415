"""The published results, measured again: each detector in a process of its own. Imports no torch."""

import codecs
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..evaluation.result import RESULT, Evaluation
from ..manifest.records import get_detector_info, list_models
from ..utils.files import hash_file, make_folder
from .table import Record, ResultsTable, Row

FIELDS = {field.name for field in dataclasses.fields(Evaluation)}
"""What an `evaluation.json` has at least."""


@dataclass(frozen=True, kw_only=True)
class ReproductionOptions:
    """How detectors are evaluated.

    Attributes:
        data_root: the data set's folder.
        work_dir: where the results are written; each detector has a folder in it.
        processes: how many evaluate a detector together, each on a GPU of its own where there are GPUs.
        limit, batch_size, workers, amp, skip_missing: as `dpt_zoo.evaluate` has them.

    Raises:
        InputError: a value cannot be used.
    """

    data_root: Path
    work_dir: Path
    processes: int = 1
    limit: int | None = None
    batch_size: int | None = None
    workers: int | None = None
    amp: bool = False
    skip_missing: bool = False

    def __post_init__(self) -> None:
        for name, least in (("processes", 1), ("limit", 1), ("batch_size", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be a whole number from {least}, not {value}")
        if not self.data_root.is_dir():
            raise InputError(f"data_root: there is no folder {self.data_root}")


def select_names(patterns: Sequence[str]) -> list[str]:
    """Names of detectors, each once; all twelve without `patterns`, which are shell-style and for these; demos by name.

    Raises:
        UnknownModelError: nothing has such a name; the text suggests the nearest.
    """
    names: list[str] = []
    for pattern in patterns or ["*"]:
        names += list_models(pattern) or [get_detector_info(pattern).name]
    return list(dict.fromkeys(names))


def reproduce(
    names: Sequence[str], settings: ReproductionOptions, tell: Callable[[str], None] = lambda line: None
) -> ResultsTable:
    """Evaluate detectors one after the other, and write what is known so far after each, see `ResultsTable.write`.

    What was evaluated with the same settings before is taken from there. One that fails ends no other.

    Args:
        names: of detectors, see `select_names`.
        settings: how they are evaluated.
        tell: takes a line about each, before and after it is evaluated.

    Raises:
        UnknownModelError: there is no such detector.
        OutputError: the results cannot be written.
    """
    make_folder(settings.work_dir, "work_dir")
    rows = {name: Row(get_detector_info(name), _find_evaluation(name, settings)) for name in names}
    results = ResultsTable(rows, dataclasses.asdict(settings))
    results.write(settings.work_dir)
    for number, name in enumerate(rows, 1):
        if rows[name].evaluation is None:
            tell(f"{name}: {number} of {len(rows)}")
            rows[name] = _evaluate(rows[name].record, settings)
            results.write(settings.work_dir)
        tell(f"{name}: {rows[name].summary}")
    return results


def _find_evaluation(name: str, settings: ReproductionOptions) -> dict[str, Any] | None:
    """What an evaluation with the same settings, data and weights left; None if none did."""
    evaluation = _read_evaluation(settings.work_dir / name)
    is_same = (
        evaluation is not None
        and evaluation["limit"] == settings.limit
        and evaluation["amp"] == settings.amp
        and not evaluation["skipped"]  # what was missing may be there now
        and Path(evaluation["annotations"]["path"]).resolve().is_relative_to(settings.data_root.resolve())
        and all(_is_unchanged(evaluation[file]) for file in ("annotations", "weights"))
    )
    return evaluation if is_same else None


def _read_evaluation(folder: Path) -> dict[str, Any] | None:
    try:
        evaluation = json.loads((folder / RESULT).read_bytes())
    except (OSError, ValueError):
        return None
    return evaluation if isinstance(evaluation, dict) and evaluation.keys() >= FIELDS else None


def _is_unchanged(file: Mapping[str, str]) -> bool:
    """Whether a file is what it was, as far as it is still there: weights may have been removed since."""
    path = Path(file["path"])
    return not path.is_file() or hash_file(path).hexdigest() == file["sha256"]


# --- A process


def _evaluate(record: Record, settings: ReproductionOptions) -> Row:
    """Evaluate a detector in a process of its own, which may fail in any way."""
    folder = settings.work_dir / record.name
    status, said = _run(_command(record.name, folder, settings), _environment(settings.processes))
    if status != 0:
        return Row(record, error=_reason(status, said).removeprefix(f"{record.name}: "))
    evaluation = _read_evaluation(folder)
    return Row(record, evaluation, error=None if evaluation else f"{folder} has no {RESULT} of the known form")


def _command(name: str, folder: Path, settings: ReproductionOptions) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr=localhost"]
    launcher.append(f"--nproc-per-node={settings.processes}")
    options = ["--data-root", str(settings.data_root), "--work-dir", str(folder), "--resume"]
    for option, value in (
        ("--limit", settings.limit),
        ("--batch-size", settings.batch_size),
        ("--workers", settings.workers),
    ):
        if value is not None:
            options += [option, str(value)]
    options += ["--amp"] * settings.amp + ["--skip-missing"] * settings.skip_missing
    return [sys.executable, *(launcher if settings.processes > 1 else []), "-m", "dpt_zoo", "evaluate", name, *options]


def _environment(processes: int) -> dict[str, str]:
    """This process's, in which this very package is found, and several processes share the processors."""
    paths = [str(Path(__file__).resolve().parent.parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if processes > 1:
        num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cpus // processes)))
    return environment


def _run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Run a program, passing its standard error on; return its exit status, and the end of what it wrote there.

    On a terminal the program finds one as well, and so shows its progress. An interrupt of this process is passed on,
    and waited for; a second one kills the program.
    """
    reading, writing = os.openpty() if sys.stderr.isatty() and hasattr(os, "openpty") else os.pipe()
    # In a session of its own, or it would get a terminal's Ctrl-C twice.
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": writing, "start_new_session": True}
    with subprocess.Popen(command, env=environment, **options) as process:
        os.close(writing)
        try:
            said = _pass_on(reading)
        except BaseException:
            try:
                process.send_signal(signal.SIGINT)
                _pass_on(reading)
            finally:
                process.kill()
            raise
        finally:
            os.close(reading)
    return process.returncode, said


def _pass_on(stream: int) -> str:
    """Write what comes to standard error until all who write it have ended; return the end of it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    end = ""
    while chunk := _read(stream):
        text = decoder.decode(chunk)
        sys.stderr.write(text)
        sys.stderr.flush()
        end = (end + text)[-20_000:]
    return end


def _read(stream: int) -> bytes:
    try:
        return os.read(stream, 65536)
    except OSError:  # how a terminal ends
        return b""


def _reason(status: int, said: str) -> str:
    """Why a program failed, in one line.

    Args:
        status: the program's, negative for a signal.
        said: the end of its standard error; torchrun tells there which of its processes failed, and how.
    """
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said).replace("\r", "\n")  # no colours, no moves on a terminal
    statuses = [int(each) for each in re.findall(r"exitcode +: (-?\d+)", plain)] or [status]
    # By SIGTERM, torchrun itself ends the others.
    killing = [-each for each in statuses if each < 0 and (each != -signal.SIGTERM or len(statuses) == 1)]
    if killing:
        hint = ": was its memory too small?" if killing[0] == signal.SIGKILL else ""
        return f"killed by {signal.Signals(killing[0]).name}{hint}"
    own = re.split(r"^[EW]\d{4} .*torch/distributed/elastic", plain, maxsplit=1, flags=re.MULTILINE)[0]
    complaint = r"^dpt-zoo: (.+(?:\n +.+)?)"  # with the first of the lines that say more
    exception = r"^(?:\[rank\d+\]: )?([\w.]+(?:Error|Exception)\b.*)"
    for telling in (complaint, exception, r"^(.*\S.*)"):
        if found := re.findall(telling, own, re.MULTILINE):
            return re.sub(r":?\n +", ": ", found[-1]).strip()
    return f"ended with status {statuses[-1]}"
