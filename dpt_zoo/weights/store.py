"""A name becomes trusted weights on disk: found in the cache, or fetched, checked, converted and kept."""

import contextlib
import dataclasses
import datetime
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from torch import Tensor

from ..errors import FetchError, InputError, OutputError, WeightsError
from ..manifest.locations import BaiduNetdisk, GoogleDrive, HubFile, LocalFile, Location, parse_location
from ..manifest.records import DemoDetector, PublishedWeights, WeightsRecord, read_manifest
from ..utils.files import atomic_path
from ..utils.progress import Downloads, ProgressCallback
from . import gdrive, http
from .cache import CacheEntry, Provenance, cache_dir, remove
from .converting import write_safetensors
from .digests import structure_sha256, tensors_sha256
from .huggingface import fetch_from_hub
from .loading import check_finite
from .reading import Weights, read_state_dict, read_weights, verify_crc

logger = logging.getLogger(__name__)


def is_offline() -> bool:
    """Whether the user forbids the network: `DPT_ZOO_OFFLINE` or `HF_HUB_OFFLINE` is set to 1, true, yes or on."""
    return bool(_offline_variables())


def read_trusted(location: str | Path | WeightsRecord) -> tuple[Path, dict[str, Tensor]]:
    """Read the tensors of weights, as `read_trusted_weights` does."""
    path, weights = read_trusted_weights(location)
    return path, weights.tensors


def read_trusted_weights(location: str | Path | WeightsRecord) -> tuple[Path, Weights]:
    """Read weights: of a model by its name or record, or from a path, `https://...` or `hf://org/repo/file`.

    Returns:
        The file that they are in, and what it holds: tensors that are finite, and a meta that may say anything.

    Raises:
        InputError: the location is of no known form.
        FetchError, OutputError: they are not here and cannot be fetched, or not be kept.
        WeightsError: the file cannot be read, or is refused.
    """
    if isinstance(location, str):
        location = read_manifest().records.get(location, location)
    if isinstance(location, WeightsRecord):
        with Downloads() as bars:
            path = obtain(location, progress=bars.callback_for(location.name))
        return path, read_weights(path)
    source = parse_location(location)
    if not isinstance(source, LocalFile):
        return read_trusted_weights(_record_of(source))
    weights = read_weights(source.path)
    check_finite(weights.tensors, source.path)
    return source.path, weights


def obtain(
    record: WeightsRecord,
    *,
    folder: Path | None = None,
    keep_original: bool = False,
    thorough: bool = False,
    progress: ProgressCallback | None = None,
) -> Path:
    """The weights' file in the cache, fetched first if it is not there; of a demo, the project's own.

    What is there needs no network and no lock. While one process fetches, others that want the same wait for it.

    Args:
        folder: the cache's folder; by default `cache_dir()`.
        keep_original: keep the fetched file as well, beside the converted one.
        thorough: check the values of what is in the cache even if the file is as it was.
        progress: takes the bytes fetched so far, and all there are to fetch.

    Raises:
        FetchError: no source gave the right file; the text tells each one's reason, and the ways by hand.
        OutputError: the folder cannot be written, or is full.
        WeightsError: a demo's file is not as it was shipped.
    """
    if isinstance(record, DemoDetector):
        return _shipped(record)
    entry = CacheEntry(folder or cache_dir(), record.name)
    with contextlib.suppress(WeightsError):
        if found := find(record, entry, thorough=thorough):
            return found
    with _locked(entry):
        try:
            if found := find(record, entry, thorough=thorough):
                return found
        except WeightsError as error:
            logger.warning("%s; it is now %s", error, entry.put_aside(entry.weights))
        _fetch_from_any(record, entry, keep_original, progress)
    return entry.weights


def adopt(record: WeightsRecord, path: Path, *, folder: Path | None = None) -> Path:
    """Take a file that was fetched by hand: check it as any other, convert it into the cache, leave it as it is.

    Raises:
        WeightsError: it cannot be read, or is refused.
        OutputError: the cache's folder cannot be written, or is full.
    """
    entry = CacheEntry(folder or cache_dir(), record.name)
    with _locked(entry):
        _accept(record, entry, LocalFile(path), path, _measure(path))
    return entry.weights


def discard(entry: CacheEntry, *, forget: bool = False) -> None:
    """Remove what is in the cache of a model; also what is remembered of its weights if it shall `forget`.

    Raises:
        OutputError: the cache's folder cannot be written.
    """
    with _locked(entry):
        for path in (entry.weights, entry.original, entry.quarantine):
            remove(path)
        _clear(entry)
        if forget:
            remove(entry.provenance_file)


def find(record: WeightsRecord, entry: CacheEntry, *, thorough: bool = False) -> Path | None:
    """The cached weights, or None where there are none.

    A file that is as it was when last checked is not read again, unless the check is to be `thorough`.

    Raises:
        WeightsError: what is there are not the weights that were accepted.
    """
    if not os.path.lexists(entry.weights):
        return None
    facts = entry.read_provenance()
    if facts and entry.is_unchanged() and not thorough:
        _check_hashes(record, None, facts.sha256, facts.tensors_sha256, entry.weights)
        return entry.weights
    if not entry.weights.is_file():
        raise WeightsError(f"{entry.weights}: this is no file")
    stamp = entry.stamp()
    tensors = read_state_dict(entry.weights)
    digest = _check_tensors(record, tensors, entry.weights)
    known = facts if facts and facts.tensors_sha256 == digest else None
    _check_hashes(record, facts, known.sha256 if known else None, digest, entry.weights)
    known = known or Provenance(str(entry.weights), _today(), None, None, digest, stamp)
    with contextlib.suppress(OutputError):  # a cache that cannot be written can be used
        entry.write_provenance(dataclasses.replace(known, stamp=stamp))
    return entry.weights


def _offline_variables() -> list[str]:
    """Those of the variables that forbid the network."""
    names = ("DPT_ZOO_OFFLINE", "HF_HUB_OFFLINE")
    return [name for name in names if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")]


def _shipped(record: DemoDetector) -> Path:
    path = Path(record.locations[0].url)
    _check_hashes(record, None, None, _check_tensors(record, read_state_dict(path), path), path)
    return path


def _fetch_from_any(
    record: WeightsRecord, entry: CacheEntry, keep_original: bool, progress: ProgressCallback | None
) -> None:
    failures = []
    for source in _sources(record):
        try:
            original, measured = _fetch(record, source, entry, progress)
            _accept(record, entry, source, original, measured)
        except FetchError as error:
            failures.append(f"{source.url}: {error}")
        except WeightsError as error:
            failures.append(str(error))
        else:
            if keep_original:
                _keep_original(entry, original)
            _clear(entry)
            return
    raise FetchError("\n  ".join([f"{record.name}: its weights could not be fetched", *failures, *_by_hand(record)]))


def _sources(record: WeightsRecord) -> Iterator[Location]:
    """Where to ask, in order: the user's mirror first."""
    mirror = os.environ.get("DPT_ZOO_MIRROR", "").rstrip("/")
    if mirror and isinstance(record, PublishedWeights):
        try:
            yield from [parse_location(f"{mirror}/{record.name}{suffix}") for suffix in (".safetensors", ".pth")]
        except InputError as error:
            raise InputError(f"DPT_ZOO_MIRROR: {error}") from error
    yield from (source for source in record.locations if not isinstance(source, BaiduNetdisk))


def _fetch(
    record: WeightsRecord, source: Location, entry: CacheEntry, progress: ProgressCallback | None
) -> tuple[Path, http.Download]:
    if isinstance(source, LocalFile):
        if not source.path.is_file():
            raise FetchError("there is no such file")
        return source.path, _measure(source.path)
    if is_offline():
        raise FetchError(f"not asked, {' and '.join(_offline_variables())} is set")
    if isinstance(source, HubFile):
        path = fetch_from_hub(source, entry.staging / "hub", progress)
        return path, _measure(path)
    opener = gdrive.opener_of(source.id) if isinstance(source, GoogleDrive) else http.opener_of(source.url)
    converted = 4 * record.num_params if isinstance(record, PublishedWeights) else 0
    return entry.part, http.download(source.url, opener, entry.part, reserve=converted, progress=progress)


def _accept(
    record: WeightsRecord, entry: CacheEntry, source: Location, original: Path, measured: http.Download
) -> None:
    """Check a file that came from `source`, and put what is in it into the cache."""
    facts = entry.read_provenance()
    try:
        weights = read_weights(original)
        verify_crc(original)
        digest = _check_tensors(record, weights.tensors, original)
        sha256 = measured.sha256 if weights.container == "pth" else None
        _check_hashes(record, facts, sha256, digest, original)
    except WeightsError as error:
        if isinstance(source, LocalFile):
            raise
        raise WeightsError(f"{source.url}: {error}; the file is now {entry.put_aside(original)}") from error
    if facts is None or facts.tensors_sha256 != digest or sha256 not in (None, facts.sha256):
        facts = Provenance(source.url, _today(), sha256, measured.num_bytes if sha256 else None, digest, ())
    entry.write_provenance(facts)
    entry.staging.mkdir(exist_ok=True)
    converted = entry.staging / "converted.safetensors"
    write_safetensors(weights, converted)
    converted.replace(entry.weights)
    entry.write_provenance(dataclasses.replace(facts, stamp=entry.stamp()))


def _check_tensors(record: WeightsRecord, tensors: dict[str, Tensor], path: Path) -> str:
    """Refuse what is not this model's, or not finite; return the digest."""
    structure = structure_sha256(tensors)
    if record.structure_sha256 not in (structure, None):
        others = read_manifest().records.values()
        like = next((f"those of {each.name}" for each in others if each.structure_sha256 == structure), "others")
        raise WeightsError(f"{path}: these are not {record.name}'s tensors, by name, type and shape they are {like}")
    check_finite(tensors, path)
    return tensors_sha256(tensors)


def _check_hashes(record: WeightsRecord, facts: Provenance | None, sha256: str | None, digest: str, path: Path) -> None:
    """Hold hashes against the manifest's, or where it has none against those of the first download here."""
    if record.sha256 or record.tensors_sha256:
        known, whence, remedy = (record.sha256, record.tensors_sha256), "the manifest has", "fetch it again"
    elif facts:
        known, whence = (facts.sha256, facts.tensors_sha256), f"the first download here, on {facts.recorded}, had"
        remedy = f"fetch it again, or if it was replaced there: dpt-zoo cache remove {record.name} --forget"
    else:
        return
    if not any(expected and expected == found for expected, found in zip(known, (sha256, digest), strict=True)):
        expected, found = (_show_hashes(*each) for each in (known, (sha256, digest)))
        raise WeightsError(f"{path}: this is another file than expected: it has {found}, {whence} {expected}: {remedy}")


def _show_hashes(sha256: str | None, digest: str | None) -> str:
    return f"SHA-256 {sha256 or 'unknown'} (of its tensors {digest or 'unknown'})"


def _by_hand(record: WeightsRecord) -> list[str]:
    places = [source.url for source in record.locations if isinstance(source, GoogleDrive | BaiduNetdisk)]
    if not places:
        return []
    return [f"By hand: open {' or '.join(places)} in a browser, then run", f"dpt-zoo import {record.name} FILE"]


def _keep_original(entry: CacheEntry, original: Path) -> None:
    if entry.part.parent in original.parents:
        original.replace(entry.original)
    elif original.resolve() != entry.original.resolve():  # a file of the user's own
        with atomic_path(entry.original) as partial:
            shutil.copyfile(original, partial)


def _clear(entry: CacheEntry) -> None:
    """Remove what fetching leaves."""
    for path in (entry.part, http.version_file(entry.part), entry.staging, *entry.partials()):
        remove(path)


def _record_of(source: Location) -> WeightsRecord:
    """A record for weights that the manifest does not have: all that is known of them is where they are."""
    key = hashlib.sha256(source.url.encode()).hexdigest()[:16]
    stem = re.sub(r"[^\w-]+", "_", source.url.rpartition("/")[2].partition(".")[0], flags=re.ASCII)
    return WeightsRecord(name=f"at-{key}-{stem[:64]}", locations=(source,))


@contextlib.contextmanager
def _locked(entry: CacheEntry) -> Iterator[None]:
    """Hold the entry against other processes; an OSError inside is about the cache's folder."""
    try:
        entry.part.parent.mkdir(parents=True, exist_ok=True)
        entry.lock.parent.mkdir(exist_ok=True)
        lock = FileLock(entry.lock)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("%s: another process is fetching it, waiting", entry.name)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    except OSError as error:
        raise OutputError(
            f"{entry.folder}: the cache cannot be written ({error.strerror or error}): "
            f"make room or choose another folder, by DPT_ZOO_CACHE"
        ) from error


def _measure(path: Path) -> http.Download:
    try:
        return http.measure(path)
    except OSError as error:
        raise WeightsError(f"{path}: it cannot be read: {error.strerror}") from error


def _today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()
