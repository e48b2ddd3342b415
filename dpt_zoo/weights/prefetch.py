"""Fetch, check and convert the weights of many models."""

import fnmatch
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DPTZooError, InputError
from ..manifest.records import get_model_info, list_models, read_manifest, record_measured
from ..utils.progress import Downloads
from .cache import CacheEntry, cache_dir


@dataclass(frozen=True)
class Outcome:
    """What became of one model's weights: they are at `path`, or `error` says why not."""

    name: str
    path: Path
    was_cached: bool
    error: DPTZooError | None = None


def select_names(patterns: Sequence[str], every_detector: bool = False) -> list[str]:
    """Names of models that match shell-style patterns, each once; patterns are for what the authors published.

    Raises:
        InputError: nothing is selected, or nothing matches a pattern.
    """
    names = list_models() if every_detector else []
    for pattern in patterns:
        found = [name for name in read_manifest().published if fnmatch.fnmatchcase(name, pattern)]
        names += found or [get_model_info(pattern).name]  # which tells the nearest name
    if not names:
        raise InputError("no model is named: give names, patterns such as 'mrcnn*', or --all")
    return list(dict.fromkeys(names))


def download(
    names: Sequence[str],
    *,
    folder: Path | None = None,
    jobs: int = 1,
    keep_original: bool = False,
    thorough: bool = False,
) -> list[Outcome]:
    """Fetch what is not yet in the cache; where one fails, the others are done all the same.

    Args:
        names: of detectors and classifiers.
        folder: the cache's folder; by default `cache_dir()`.
        jobs: how many to fetch at a time.
        keep_original: keep the fetched files as well, beside the converted ones.
        thorough: check the values of what is in the cache, and fetch afresh what fails.

    Returns:
        The outcomes, in the order of `names`.

    Raises:
        InputError: an argument cannot be used.
    """
    if jobs < 1:
        raise InputError(f"jobs must be at least 1, not {jobs}")
    records = [get_model_info(name) for name in names]
    entries = [CacheEntry(folder or cache_dir(), name) for name in names]
    was_cached = [entry.is_unchanged() for entry in entries]
    outcomes: dict[str, Outcome] = {}
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(records)):
        waiting.put(index)

    def work(bars: Downloads) -> None:
        from .store import obtain

        while True:
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                return
            record, entry = records[index], entries[index]
            path, error = entry.weights, None
            try:
                progress = bars.callback_for(record.name)
                path = obtain(
                    record, folder=entry.folder, keep_original=keep_original, thorough=thorough, progress=progress
                )
            except DPTZooError as caught:
                error = caught
            outcomes[record.name] = Outcome(record.name, path, was_cached[index], error)

    with Downloads(was_cached.count(False)) as bars:
        # Daemons: an interrupt ends the command at once, and what has come so far is gone on with next time.
        threads = [threading.Thread(target=work, args=(bars,), daemon=True) for _ in range(min(jobs, len(records)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [outcomes[name] for name in names]


def record(outcomes: Sequence[Outcome]) -> list[str]:
    """Write into the manifest what was measured of the authors' files; return the names of those written.

    Raises:
        OutputError: the manifest cannot be written.
    """
    measured = {}
    for outcome in outcomes:
        facts = CacheEntry(outcome.path.parent, outcome.name).read_provenance() if outcome.error is None else None
        if facts and facts.sha256:
            measured[outcome.name] = {
                "sha256": facts.sha256,
                "num_bytes": facts.num_bytes,
                "tensors_sha256": facts.tensors_sha256,
            }
    record_measured(measured)
    return list(measured)
