"""Detection in a data set of any size, in one call."""

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import InputError
from ..inference.detector import Detector
from ..utils.dependencies import explain_imports
from ..utils.environment import usable_cores
from ..utils.progress import progress_bar
from ..utils.text import plural
from ..utils.urls import redact
from ..utils.validation import check_integer
from .plan import Plan, Settings, make_plan, wait_for_plan
from .ranks import find_local_rank, find_rank
from .results import SCHEMAS, Counts, read_counts
from .runner import LocalRunner, Reports, Runner
from .schedule import Schedule, Tally
from .sources import find_entries
from .storage import Folder, normalize

RunnerName = Literal["local", "rank", "ray"]
"""What runs a detection: processes of this machine, one of many processes that share the work, or a Ray cluster."""
NEUTRAL = ("device", "batch_size", "num_threads", "compile")
"""Arguments of `Detector` that may change when a run is continued: they change detections at most by rounding."""
PLAN_SECONDS = 3600.0  # longest wait for the plan that the process of rank 0 makes
READERS = 16  # threads that read the counts of finished parts


@dataclass(frozen=True)
class DatasetRun:
    """The outcome of `detect_dataset`. In a process of several ranks, it is that of its own share.

    Attributes:
        output: the address of the results.
        num_parts: the number of parts.
        counts: the images, those that could not be read, and the objects.
        set_aside: the names of the parts that failed again and again, and why. Another run tries them again.
    """

    output: str
    num_parts: int
    counts: Counts
    set_aside: dict[str, str]


def detect_dataset(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    model: str | Path,
    runner: RunnerName = "local",
    address: str | None = None,
    workers: int | None = None,
    gpus_per_worker: float = 0,
    images_per_part: int = 500,
    rows: Literal["images", "objects"] = "images",
    column: str | None = None,
    **options: Any,
) -> DatasetRun:
    """Detect the objects in a data set, and write the results as Parquet files. Continue the run if there is one.

    A part's file appears when the part is finished. A run that was interrupted at any moment is continued by the same
    call, with any runner and on any number of machines. Each image has its results once.

    Args:
        inputs: folders and patterns of images, images, tar shards (.tar), tables with a column of bytes or of addresses
            (.parquet, .arrow), and lists of addresses (.csv, .tsv, .jsonl); each a path or a URL of object storage
            (s3://, gs://, az://, hf://). Relative paths in a list start at its folder.
        output: the folder of the results: a path, or a URL of object storage. All machines need to see it.
        model: a name from `list_models`, or a file from `dpt_zoo.export`, which all machines need to see.
        runner: "local" for processes of this machine; "rank" for one of the processes that torchrun or Slurm started,
            which has its share of the parts; "ray" for a Ray cluster.
        address: the address of the Ray cluster; by default RAY_ADDRESS, or a Ray on this machine.
        workers: the number of processes that detect, each with a model of its own: by default one for each core, with
            "rank" one, and with "ray" as many as the cluster has room for.
        gpus_per_worker: with "ray", the GPUs of a worker, such as 0.25.
        images_per_part: the number of images in a part. A shard is a part of its own.
        rows: what a row of the results is: "images" or "objects".
        column: the column of the images in tables; by default the only one that can be.
        options: the other arguments of `Detector`, such as `score_threshold` and `device`. `num_threads` is that of a
            worker, by default 1, also for PyTorch.

    Returns:
        The number of images, of those that could not be read, and of objects; and the parts that were set aside after
        they failed three times.

    Raises:
        InputError: An argument or an input cannot be used, or `output` holds a run with other inputs or settings.
        DependencyError: A package for this runner or this storage is not installed.
        FetchError, WeightsError: The model cannot be loaded.
        OutputError: A file cannot be written. The parts before it are kept.
    """
    for name, value, known in (("runner", runner, get_args(RunnerName)), ("rows", rows, tuple(SCHEMAS))):
        if value not in known:
            raise InputError(f"{name} must be {' or '.join(map(repr, known))}, not {value!r}")
    check_integer("images_per_part", images_per_part, 1)
    if workers is not None:
        check_integer("workers", workers, 1)
    if runner != "ray" and (address is not None or gpus_per_worker):
        raise InputError("address and gpus_per_worker are only for runner='ray'")
    model_name, options = _to_text(model), {name: _to_text(value) for name, value in options.items()}
    settings = {
        "options": _significant(model_name, options),
        "rows": rows,
        "column": column,
        "images_per_part": images_per_part,
    }
    addresses = [str(each) for each in ([inputs] if isinstance(inputs, str | Path) else inputs)]
    folder = Folder(str(output))
    rank, world_size = find_rank() if runner == "rank" else (0, 1)
    with closing(_make_runner(runner, model_name, options, address, workers, gpus_per_worker)) as chosen:
        if rank:
            plan = wait_for_plan(folder, settings, PLAN_SECONDS)
        else:
            described = Settings.from_json({**chosen.describe(), **settings})
            entries = find_entries(addresses, column, images_per_part)
            with progress_bar("planning") as progress:
                plan = make_plan(folder, described, entries, progress)
        return _run(plan, folder, range(rank, plan.num_parts, world_size), chosen)


def _make_runner(
    name: RunnerName,
    model: str,
    options: Mapping[str, Any],
    address: str | None,
    workers: int | None,
    gpus_per_worker: float,
) -> Runner:
    if name == "ray":
        with explain_imports():
            from .ray_runner import RayRunner
        return RayRunner(model, options, address, workers, gpus_per_worker)
    default = max(1, len(usable_cores()) // (options.get("num_threads") or 1)) if name == "local" else 1
    local_rank = find_local_rank() if name == "rank" else 0
    return LocalRunner(model, options, workers or default, local_rank)


def _run(plan: Plan, folder: Folder, parts: Sequence[int], runner: Runner) -> DatasetRun:
    """Detect in those of `parts` that are not finished."""
    names = folder.names()
    finished = {part: plan.part_name(part) for part in parts if plan.part_name(part) in names}
    schedule = Schedule(part for part in parts if part not in finished)
    with progress_bar("images") as progress:
        tally = Tally(plan.num_images if len(parts) == plan.num_parts else None, progress)
        with ThreadPoolExecutor(READERS) as pool:
            for part, counts in zip(finished, pool.map(partial(read_counts, folder), finished.values()), strict=True):
                tally.finish(part, counts)
        if schedule.num_left:
            runner.run(folder.address, schedule, Reports(tally.finish, tally.show))
    names = folder.names()
    lost = [part for part in parts if part not in schedule.set_aside and plan.part_name(part) not in names]
    if lost:
        raise InputError(
            f"{redact(folder.address)}: {plural(len(lost), 'part')} were written to another machine's folder of this "
            "name: choose an output that all machines see"
        )
    if all(plan.part_name(part) in names for part in range(plan.num_parts)):
        folder.remove_partial("part-")
    set_aside = {plan.part_name(part): reason for part, reason in sorted(schedule.set_aside.items())}
    return DatasetRun(folder.address, len(parts), tally.counts, set_aside)


def _significant(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Detector` that change detections, also those by default, as types that JSON has.

    Raises:
        InputError: `Detector` has no such argument.
    """
    try:
        given = inspect.signature(Detector).bind(model, **options)
    except TypeError as error:
        raise InputError(f"options: {error}") from error
    given.apply_defaults()
    values = {name: value for name, value in given.arguments.items() if name not in ("model", "weights", *NEUTRAL)}
    return dict(json.loads(json.dumps(values, default=str)))


def _to_text(value: Any) -> Any:
    """Return a path as an absolute one, because workers may have another current folder, and a device as its name."""
    if isinstance(value, str | Path) and os.path.isfile(value):  # noqa: PTH113  (a URL is an impossible path)
        return normalize(str(value))
    return value if isinstance(value, int | float | tuple | list | None) else str(value)
