"""Find, fetch and check the weights of a model name, a path or a URL, and keep them in the cache. Imports no torch."""

import contextlib
import dataclasses
import datetime
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from ..errors import DependencyError, FetchError, InputError, OutputError, WeightsError
from ..manifest.locations import BaiduNetdisk, GoogleDrive, HubFile, HubModel, LocalFile, Location, parse_location
from ..manifest.metadata import WeightsMetadata, parse_config
from ..manifest.records import DemoDetector, PublishedWeights, WeightsRecord, read_manifest
from ..utils.dependencies import explain_imports
from ..utils.files import atomic_path, remove
from ..utils.progress import Downloads, ProgressCallback
from ..utils.urls import redact
from . import gdrive, http
from .cache import CacheEntry, Provenance, default_cache_dir
from .digests import structure_sha256, tensors_sha256
from .huggingface import fetch_from_hub
from .metadata import find_metadata, require_metadata, write_metadata
from .raw_tensors import RawTensor, check_finite
from .reading import Weights, read_raw_weights, read_weights, verify_crc

logger = logging.getLogger(__name__)


def offline_variables() -> list[str]:
    """Return the environment variables that forbid network access: those set to 1, true, yes or on."""
    names = ("DPT_ZOO_OFFLINE", "HF_HUB_OFFLINE")
    return [name for name in names if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")]


def read_trusted_weights(location: str | Path | WeightsRecord) -> tuple[Path, Weights]:
    """Read weights, and return the path of the file and its content. Fetch them first if necessary.

    All tensors are finite. The meta is not checked.

    Args:
        location: a model's name or record, a path, `https://...` or `hf://org/repo/file`.

    Raises:
        InputError: The location has none of these forms.
        FetchError: The weights cannot be fetched.
        OutputError: The cache folder cannot be written.
        WeightsError: The file cannot be read, or is refused.
    """
    resolved = _resolve(location)
    if isinstance(resolved, LocalFile):
        weights = read_raw_weights(resolved.path)
        check_finite(weights.tensors, resolved.path)
        return resolved.path, weights.to_torch()
    path = _obtain_with_bar(resolved)
    return path, read_weights(path)


def find_weights(location: str | Path) -> Path:
    """Return the path of weights, which are fetched and checked first if necessary. A file at a path is not read.

    `location` and the errors are those of `read_trusted_weights`.
    """
    resolved = _resolve(location)
    return resolved.path if isinstance(resolved, LocalFile) else _obtain_with_bar(resolved)


def read_metadata(location: str | Path) -> WeightsMetadata:
    """Return what weights at a path or a URL say about their model. They are fetched first if necessary.

    `location` and the errors are those of `read_trusted_weights`.

    Raises:
        WeightsError: The file does not say which model it is for, or its metadata is invalid.
    """
    path = find_weights(location)
    return require_metadata(read_raw_weights(path).meta, path)


def _resolve(location: str | Path | WeightsRecord) -> WeightsRecord | LocalFile:
    if isinstance(location, str):
        location = read_manifest().records.get(location, location)
    if isinstance(location, WeightsRecord):
        return location
    parsed = parse_location(location)
    if isinstance(parsed, LocalFile):
        return parsed
    # A record of weights that are not in the manifest: only the location is known.
    key = hashlib.sha256(parsed.url.encode()).hexdigest()[:16]
    file_name = urlsplit(parsed.url).path.rpartition("/")[2]  # without the query, which may be secret
    stem = re.sub(r"[^\w-]+", "_", file_name.partition(".")[0], flags=re.ASCII)
    return WeightsRecord(name=f"at-{key}-{stem[:64]}", locations=(parsed,))


def _obtain_with_bar(record: WeightsRecord) -> Path:
    with Downloads() as bars:
        return obtain(record, progress=bars.callback_for(record.name))


def obtain(
    record: WeightsRecord,
    *,
    cache_dir: Path | None = None,
    keep_original: bool = False,
    verify: bool = False,
    progress: ProgressCallback | None = None,
) -> Path:
    """Return the path of a model's cached weights, or of a demo's shipped weights. Fetch them if necessary.

    Cached weights need no network and no lock. If several processes need the same weights, one of them fetches them.

    Args:
        record: the model's record.
        cache_dir: the cache folder; by default `default_cache_dir()`.
        keep_original: also keep the fetched file, beside the converted one.
        verify: check the values of cached weights even if the file is unchanged since the last check.
        progress: called with the bytes received so far and the total.

    Raises:
        FetchError: No location sent the right file. The text has the reason for each location.
        OutputError: The cache folder cannot be written, or is full.
        WeightsError: A demo's file is damaged.
    """
    if isinstance(record, DemoDetector):
        path = Path(record.locations[0].url)
        _check_hashes(record, None, None, _check_tensors(record, read_raw_weights(path).tensors, path), path)
        return path
    entry = CacheEntry(cache_dir or default_cache_dir(), record.name)
    with contextlib.suppress(WeightsError):
        if cached := find(record, entry, verify=verify):
            return cached
    with _locked(entry):
        try:
            if cached := find(record, entry, verify=verify):
                return cached
        except WeightsError as error:
            logger.warning("%s; it is now %s", error, entry.put_aside(entry.weights))
        _fetch_from_any(record, entry, keep_original, progress)
    return entry.weights


def adopt(record: WeightsRecord, path: Path, *, cache_dir: Path | None = None) -> Path:
    """Check a file that was downloaded by hand, convert it into the cache, and return its path there.

    Raises:
        WeightsError: The file cannot be read, or is refused.
        OutputError: The cache folder cannot be written, or is full.
    """
    entry = CacheEntry(cache_dir or default_cache_dir(), record.name)
    with _locked(entry):
        _accept(record, entry, LocalFile(path), path, http.measure(path))
    return entry.weights


def discard(entry: CacheEntry, *, forget: bool = False) -> None:
    """Remove the files of an `entry`. With `forget`, also remove its hashes and origin.

    Raises:
        InputError: The cache did not write the files: it has no record of them.
        OutputError: The files cannot be removed.
    """
    if not entry.is_ours():
        reason = f"{entry.folder} has no record of it: if you do not need the files, remove them yourself"
        raise InputError(f"{entry.name} was not removed: {reason}")
    with _locked(entry):
        provenance = entry.read_provenance()
        if entry.original.is_file() and provenance and http.measure(entry.original).sha256 == provenance.sha256:
            remove(entry.original)  # another file of this name is the user's own
        if entry.has_record():
            remove(entry.weights)
        if forget:
            remove(entry.provenance_file)
        remove(entry.quarantine)
        _clear(entry)


def find(record: WeightsRecord, entry: CacheEntry, *, verify: bool = False) -> Path | None:
    """Return the path of the weights in an `entry`, or None if there are none.

    A file that is unchanged since its last check is not read again, unless `verify` is set.

    Raises:
        WeightsError: The weights are not those that were accepted.
    """
    if not os.path.lexists(entry.weights):
        return None
    provenance = entry.read_provenance()
    if provenance and entry.is_unchanged() and not verify:
        _check_hashes(record, None, provenance.sha256, provenance.tensors_sha256, entry.weights)
        return entry.weights
    if not entry.weights.is_file():
        raise WeightsError(f"{entry.weights}: this is not a file")
    stamp = entry.stamp()
    digest = _check_tensors(record, read_raw_weights(entry.weights).tensors, entry.weights)
    known = provenance if provenance and provenance.tensors_sha256 == digest else None
    _check_hashes(record, provenance, known.sha256 if known else None, digest, entry.weights)
    known = known or Provenance(str(entry.weights), _today(), None, None, digest, stamp)
    with contextlib.suppress(OutputError):  # a read-only cache is usable
        entry.write_provenance(dataclasses.replace(known, stamp=stamp))
    return entry.weights


def _fetch_from_any(
    record: WeightsRecord, entry: CacheEntry, keep_original: bool, progress: ProgressCallback | None
) -> None:
    failures = []
    for location in _locations(record):
        try:
            original, measured = _fetch(record, location, entry, progress)
            _accept(record, entry, location, original, measured)
        except (DependencyError, FetchError, WeightsError) as error:
            failures.append(f"{redact(location.url)}: {error}" if isinstance(error, FetchError) else str(error))
        else:
            if keep_original and entry.part.parent in original.parents:
                original.replace(entry.original)
            elif keep_original and original.resolve() != entry.original.resolve():  # the user's own file
                with atomic_path(entry.original) as partial:
                    shutil.copyfile(original, partial)
            _clear(entry)
            return
    if pages := [each.url for each in record.locations if isinstance(each, GoogleDrive | BaiduNetdisk)]:
        command = f"dpt-zoo import {record.name} FILE"
        failures.append(f"By hand: open {' or '.join(pages)} in a browser, then run\n  {command}")
    raise FetchError("\n  ".join([f"{record.name}: its weights could not be fetched", *failures]))


def _locations(record: WeightsRecord) -> Iterator[Location]:
    """Yield the locations to try, the user's mirror first."""
    mirror = os.environ.get("DPT_ZOO_MIRROR", "")
    if mirror and isinstance(record, PublishedWeights):
        try:
            yield from [_in_mirror(mirror, f"{record.name}{suffix}") for suffix in (".safetensors", ".pth")]
        except InputError as error:
            raise InputError(f"DPT_ZOO_MIRROR: {error}") from error
    yield from (location for location in record.locations if not isinstance(location, BaiduNetdisk))


def _in_mirror(mirror: str, name: str) -> Location:
    """Return the location of a file in a mirror: a folder, or a URL, whose query (a token) is kept."""
    if "://" not in mirror:
        return parse_location(Path(mirror, name))
    address, _, query = mirror.partition("#")[0].partition("?")
    return parse_location(f"{address.rstrip('/')}/{name}{query and '?'}{query}")


def _fetch(
    record: WeightsRecord, location: Location, entry: CacheEntry, progress: ProgressCallback | None
) -> tuple[Path, http.Download]:
    if isinstance(location, LocalFile):
        if not location.path.is_file():
            raise FetchError("there is no such file")
        return location.path, http.measure(location.path)
    if variables := offline_variables():
        raise FetchError(f"not asked, {' and '.join(variables)} is set")
    if isinstance(location, HubFile):
        with explain_imports():
            path = _fetch_from_hub(location, entry.staging / "hub", progress)
        return path, http.measure(path)
    opener = gdrive.opener_of(location.id) if isinstance(location, GoogleDrive) else http.opener_of(location.url)
    converted = 4 * record.num_params if isinstance(record, PublishedWeights) else 0  # bytes as float32
    return entry.part, http.download(location.url, opener, entry.part, reserve=converted, progress=progress)


def _fetch_from_hub(location: HubFile, folder: Path, progress: ProgressCallback | None) -> Path:
    """Download a file of the Hub. Of a model, first its config.json, by which the Hub counts downloads."""
    if not isinstance(location, HubModel):
        return fetch_from_hub(location, folder, progress)
    metadata = parse_config(fetch_from_hub(location.config, folder).read_bytes(), location.config.url)
    path = fetch_from_hub(location, folder, progress)
    known = find_metadata(read_raw_weights(path).meta, path)
    if known is None:
        write_metadata(metadata, path, path)
    elif known != metadata:
        raise WeightsError(f"{location.url}: its {location.config.file} contradicts its {location.file}")
    return path


def _accept(
    record: WeightsRecord, entry: CacheEntry, location: Location, original: Path, measured: http.Download
) -> None:
    """Check a file that was fetched from `location`, and convert it into the cache."""
    provenance = entry.read_provenance()
    try:
        weights = read_raw_weights(original)
        verify_crc(original)
        digest = _check_tensors(record, weights.tensors, original)
        sha256 = measured.sha256 if weights.container == "pth" else None
        _check_hashes(record, provenance, sha256, digest, original)
    except WeightsError as error:
        if isinstance(location, LocalFile):
            raise
        place = redact(location.url)
        raise WeightsError(f"{place}: {error}; the file is now {entry.put_aside(original)}") from error
    if provenance is None or provenance.tensors_sha256 != digest or sha256 not in (None, provenance.sha256):
        num_bytes = measured.num_bytes if sha256 else None
        provenance = Provenance(redact(location.url), _today(), sha256, num_bytes, digest, ())
    entry.write_provenance(provenance)
    entry.staging.mkdir(exist_ok=True)
    converted = entry.staging / "converted.safetensors"
    if weights.container == "safetensors":
        shutil.copyfile(original, converted)
    else:
        from .converting import write_safetensors  # imports torch

        write_safetensors(weights.to_torch(), converted)
    converted.replace(entry.weights)
    entry.write_provenance(dataclasses.replace(provenance, stamp=entry.stamp()))


def _check_tensors(record: WeightsRecord, tensors: Mapping[str, RawTensor], path: Path) -> str:
    """Refuse tensors of another model, and numbers that are not finite; return the tensors' digest."""
    structure = structure_sha256(tensors)
    if record.structure_sha256 not in (structure, None):
        others = read_manifest().records.values()
        owner = next((each.name for each in others if each.structure_sha256 == structure), "an unknown model")
        reason = f"these are not {record.name}'s tensors: names, types and shapes are those of {owner}"
        raise WeightsError(f"{path}: {reason}")
    check_finite(tensors, path)
    return tensors_sha256(tensors)


def _check_hashes(
    record: WeightsRecord, provenance: Provenance | None, sha256: str | None, digest: str, path: Path
) -> None:
    """Compare hashes with the manifest's. If it has none, compare with those of this machine's first download."""
    if record.sha256 or record.tensors_sha256:
        known, owner, remedy = (record.sha256, record.tensors_sha256), "the manifest has", "fetch it again"
    elif provenance:
        known, owner = (provenance.sha256, provenance.tensors_sha256), f"the first download, {provenance.recorded}, had"
        remedy = f"fetch it again, or if the published file was replaced: dpt-zoo cache remove {record.name} --forget"
    else:
        return
    given = (sha256, digest)
    if not any(expected and expected == value for expected, value in zip(known, given, strict=True)):
        shown, expected = (
            f"SHA-256 {file or 'unknown'} (tensors {tensors or 'unknown'})" for file, tensors in (given, known)
        )
        raise WeightsError(f"{path}: this is another file than expected: it has {shown}, {owner} {expected}: {remedy}")


def _clear(entry: CacheEntry) -> None:
    """Remove the temporary files of fetching, also those that killed processes left."""
    finals = (entry.original, entry.provenance_file)
    partials = [path for final in finals for path in entry.folder.glob(f".{final.name}.*.partial")]
    for path in (entry.part, http.version_file(entry.part), entry.staging, *partials):
        remove(path)


@contextlib.contextmanager
def _locked(entry: CacheEntry) -> Iterator[None]:
    """Lock the entry against other processes. An OSError in the block is raised as an OutputError."""
    try:
        entry.part.parent.mkdir(parents=True, exist_ok=True)
        entry.lock.parent.mkdir(exist_ok=True)
        lock = FileLock(entry.lock)
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            logger.warning("%s: another process is fetching it, waiting", entry.name)
            held = lock.acquire()
        with held:
            yield
    except OSError as error:
        hint = "free some space, or choose another folder with DPT_ZOO_CACHE"
        raise OutputError(f"{entry.folder}: the cache cannot be written ({error.strerror or error}): {hint}") from error


def _today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()
