"""Fetch, check and convert the weights of several models."""

import fnmatch
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DPTZooError, InputError
from ..manifest.records import PublishedWeights, get_model_info, list_models, read_manifest
from ..utils.progress import Downloads
from .cache import CacheEntry, default_cache_dir
from .store import obtain


@dataclass
class Outcome:
    """The result for one model: its weights are at `path`, unless there is an `error`."""

    name: str
    path: Path
    was_cached: bool
    error: DPTZooError | None = None


def select_names(patterns: Sequence[str], all_detectors: bool = False) -> list[str]:
    """Return the names of the authors' models that match shell-style `patterns`, each once.

    A pattern can also be the full name of any model. With `all_detectors`, the authors' detectors come first.

    Raises:
        InputError: No model is selected, or no model matches a pattern.
    """
    names = list_models() if all_detectors else []
    records = read_manifest().records.values()
    published = [record.name for record in records if isinstance(record, PublishedWeights)]
    for pattern in patterns:
        matching = [name for name in published if fnmatch.fnmatchcase(name, pattern)]
        names += matching or [get_model_info(pattern).name]  # raises an error with the most similar name
    if not names:
        raise InputError("no model is named: give names, patterns such as 'mrcnn*', or --all")
    return list(dict.fromkeys(names))


def download(
    names: Sequence[str],
    *,
    cache_dir: Path | None = None,
    jobs: int = 1,
    keep_original: bool = False,
    verify: bool = False,
) -> list[Outcome]:
    """Fetch the weights that are not in the cache. If one fails, continue with the others.

    Args:
        names: names of models; the outcomes have the same order.
        cache_dir: the cache folder; by default `default_cache_dir()`.
        jobs: number of simultaneous downloads.
        keep_original: also keep the fetched files, beside the converted ones.
        verify: check the values of cached weights, and fetch damaged ones again.

    Raises:
        InputError: `jobs` is less than 1, or there is no model of a name.
    """
    if jobs < 1:
        raise InputError(f"jobs must be at least 1, not {jobs}")
    entries = {name: CacheEntry(cache_dir or default_cache_dir(), get_model_info(name).name) for name in names}
    outcomes = {name: Outcome(name, entry.weights, entry.is_unchanged()) for name, entry in entries.items()}
    pending = iter(list(outcomes.values()))  # shared by the threads

    def work() -> None:
        for outcome in pending:
            record, progress = get_model_info(outcome.name), bars.callback_for(outcome.name)
            try:
                outcome.path = obtain(
                    record, cache_dir=cache_dir, keep_original=keep_original, verify=verify, progress=progress
                )
            except DPTZooError as error:
                outcome.error = error

    with Downloads(sum(not outcome.was_cached for outcome in outcomes.values())) as bars:
        # Daemon threads: an interrupt ends the command at once, and the next run resumes the downloads.
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(jobs, len(names)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [outcomes[name] for name in names]
