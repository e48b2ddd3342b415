"""Measure the published results again, each detector in its own process. Does not import PyTorch."""

import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError
from ..evaluation.result import RESULT, RUNTIMES, Evaluation
from ..manifest.records import get_detector_info, list_models
from ..utils.environment import child_variables, usable_cores
from ..utils.files import hash_file, lock_folder, make_folder
from ..utils.json_files import DAMAGE
from ..utils.validation import check_integer
from .table import Detector, ResultsTable, Row

ERROR = "error.json"
"""The file that a failed process writes to the detector's folder: the reason, as a JSON string."""
Format = Literal["pytorch", "onnx", "openvino"]
"""What computes the results: PyTorch, or the runtime of an exported file."""
SUFFIXES: Mapping[Format, str] = {"pytorch": "", "onnx": ".onnx", "openvino": ".xml"}
"""The suffix of the exported file for each format."""


@dataclass(frozen=True, kw_only=True)
class ReproductionOptions:
    """The options of a reproduction; for those without a comment, see `dpt_zoo.evaluate`.

    Raises:
        InputError: A value cannot be used.
    """

    data_root: Path
    work_dir: Path  # each detector has a folder in it
    format: Format = "pytorch"  # for the others, each detector is exported to its folder first
    processes: int = 1  # for each detector; each process has its own GPU if there are GPUs
    limit: int | None = None
    batch_size: int | None = None
    workers: int | None = None
    amp: bool = False
    skip_missing: bool = False

    def __post_init__(self) -> None:
        for name, minimum in (("processes", 1), ("limit", 1), ("batch_size", 1), ("workers", 0)):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum)
        if self.format != "pytorch" and (self.processes > 1 or self.workers or self.amp):
            raise InputError(f"format={self.format!r} does not allow processes, workers and amp: leave them out")
        if not self.data_root.is_dir():
            raise InputError(f"data_root: there is no folder {self.data_root}")


def select_names(patterns: Sequence[str]) -> list[str]:
    """Return the names of detectors, each once.

    Args:
        patterns: shell-style patterns for the authors' detectors, and names of demos; if empty, all twelve detectors.

    Raises:
        UnknownModelError: No detector has such a name. The text suggests the nearest name.
    """
    names: list[str] = []
    for pattern in patterns or ["*"]:
        names += list_models(pattern) or [get_detector_info(pattern).name]
    return list(dict.fromkeys(names))


def reproduce(
    names: Sequence[str], options: ReproductionOptions, report: Callable[[str], None] = lambda line: None
) -> ResultsTable:
    """Evaluate detectors one after the other, and write the table after each, see `ResultsTable.write`.

    Earlier evaluations in `options.work_dir` with the same options are used. If a detector fails, the others are still
    evaluated. `names` are names of detectors; `report` is called with a line before and after each evaluation.

    Raises:
        UnknownModelError: No detector has such a name.
        InputError: Another run uses `options.work_dir`.
        OutputError: The results cannot be written.
    """
    make_folder(options.work_dir, "work_dir")
    with lock_folder(options.work_dir):
        rows = {name: Row(get_detector_info(name), _find_evaluation(name, options)) for name in names}
        results = ResultsTable(rows, dataclasses.asdict(options))
        results.write(options.work_dir)
        for number, (name, row) in enumerate(rows.items(), 1):
            if row.evaluation is None:
                report(f"{name}: {number} of {len(rows)}")
                rows[name] = _evaluate(row.record, options)
                results.write(options.work_dir)
            report(f"{name}: {rows[name].summary}")
    return results


def _find_evaluation(name: str, options: ReproductionOptions) -> Evaluation | None:
    """Return an earlier evaluation with the same options, data and weights, or None."""
    evaluation = Evaluation.read(options.work_dir / name)
    is_same = (
        evaluation is not None
        and evaluation.runtime.startswith(RUNTIMES[SUFFIXES[options.format]])
        and evaluation.limit == options.limit
        and evaluation.amp == options.amp
        and not evaluation.skipped  # the images may be there now
        and Path(evaluation.annotations["path"]).resolve().is_relative_to(options.data_root.resolve())
        and all(_is_unchanged(file) for file in (evaluation.annotations, evaluation.weights))
    )
    return evaluation if is_same else None


def _is_unchanged(file: Mapping[str, str]) -> bool:
    """Return whether a file is unchanged, or gone: weights may have been removed from the cache."""
    path = Path(file["path"])
    return not path.is_file() or hash_file(path).hexdigest() == file["sha256"]


def _evaluate(record: Detector, options: ReproductionOptions) -> Row:
    """Evaluate a detector in its own process, which may fail in any way."""
    folder = options.work_dir / record.name
    make_folder(folder)
    passed = ("limit", "batch_size", "workers", "amp", "skip_missing")
    arguments = {"model": record.name, "data_root": str(options.data_root), "work_dir": str(folder), "resume": True}
    arguments |= {option: getattr(options, option) for option in passed}
    if suffix := SUFFIXES[options.format]:
        arguments |= {"exported_from": record.name, "model": str(folder / f"{record.name}{suffix}")}
    if error := run_worker(arguments, options.processes):
        return Row(record, error=error.removeprefix(f"{record.name}: "))
    evaluation = Evaluation.read(folder)
    return Row(record, evaluation, None if evaluation else f"{folder} has no {RESULT} of the known form")


def run_worker(arguments: Mapping[str, Any], processes: int) -> str | None:
    """Evaluate a model with `arguments` in a number of new `processes`; return the reason if this fails."""
    error_file = Path(arguments["work_dir"], ERROR)
    error_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "dpt_zoo.reproduction.worker", str(processes), json.dumps(arguments)]
    status = _run(command, _environment(processes))
    return _describe_failure(status, error_file) if status != 0 else None


def _environment(processes: int) -> dict[str, str]:
    """Return this process's environment with this package in PYTHONPATH and the CPUs divided among the processes."""
    environment = child_variables()
    if processes > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(usable_cores()) // processes)))
    return environment


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a program and return its exit status, negative for a signal.

    Ctrl-C interrupts the program, a second Ctrl-C kills it. `KeyboardInterrupt` is raised when it has ended.
    """
    num_interrupts = num_sent = 0

    def count_interrupt(*_: object) -> None:
        nonlocal num_interrupts
        num_interrupts += 1

    # A handler, because an exception could lose a program that has just started. Only the main thread can have one.
    is_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGINT, count_interrupt) if is_main else None
    try:
        # In its own session: otherwise, a terminal's Ctrl-C would reach the program twice.
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        while (status := process.poll()) is None:
            if num_sent < num_interrupts:
                process.send_signal(signal.SIGINT if num_sent == 0 else signal.SIGKILL)
                num_sent += 1
            time.sleep(0.05)
    finally:
        if is_main:
            signal.signal(signal.SIGINT, previous)
    if num_interrupts:
        raise KeyboardInterrupt
    return status


def _describe_failure(status: int, error_file: Path) -> str:
    """Return why a program failed, in one line."""
    if status < 0:
        hint = ": was its memory too small?" if status == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-status).name}{hint}"
    try:
        first, *more = json.loads(error_file.read_bytes()).splitlines()
    except (OSError, *DAMAGE):
        return f"ended with status {status}"
    return f"{first.removesuffix(':')}: {more[0].strip()}" if more and more[0].startswith(" ") else first
