"""Top-1 and top-5 accuracy of the ImageNet classifiers, measured with timm's transforms and readers of data sets."""

import contextlib
import hashlib
import itertools
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from mmengine.dist import barrier, get_rank, get_world_size, is_main_process
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from timm.data.readers import create_reader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..engine.distributed import process_group
from ..engine.runner import from_main_process
from ..errors import DataError, ImageError, InputError
from ..manifest.records import Classifier, read_manifest
from ..models.classifier import adapt_checkpoint
from ..utils.dependencies import explain_imports
from ..utils.devices import device_name
from ..utils.environment import versions
from ..utils.files import expand_user, hash_file, lock_folder, make_folder
from ..utils.json_files import DAMAGE, JsonLinesWriter, read_json_lines
from ..utils.progress import progress_bar
from ..utils.validation import check_integer, check_not_empty
from ..weights.loading import load_weights
from ..weights.store import read_trusted_weights
from .accuracy import ACCURACY, Accuracy
from .plan import prepare_folder

SPLITS = ("validation", "val")
"""The folder of the validation images in a folder of ImageNet: the first that exists."""
TOP = 5
"""Number of classes of an image that are written, the one with the highest score first."""

Sample = tuple[int, Tensor, int]
"""The number of an image, its pixels `(3, 224, 224)`, and its class."""


def evaluate_classifier(
    model: str,
    *,
    data_root: str | Path,
    weights: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    workers: int = 2,
    amp: bool = False,
    work_dir: str | Path | None = None,
    resume: bool = False,
    device: "str | torch.device | None" = "auto",
) -> Accuracy:
    """Measure a classifier on ImageNet's validation images, in one process or in several under torchrun.

    An image is resized so that its shorter side has 256 pixels (bicubic), and its central 224x224 pixels are used, as
    the authors do.

    Args:
        model: "dpt_tiny", "dpt_small" or "dpt_medium".
        data_root: a folder with `val/` or `validation/`, or these images themselves: a folder or a tar file with a
            folder for each class, named by its WordNet id (n01440764, ...); or a folder of WebDataset shards with
            `_info.json`, which one process evaluates.
        weights: a path, `https://...` or `hf://org/repo/file`; by default the zoo's.
        limit: evaluate only the first `limit` images; at least 1.
        batch_size: images in a batch, at least 1.
        workers: data loading processes for each process; at least 0.
        amp: compute in half precision where that is safe. Requires a GPU.
        work_dir: the folder to write predictions and `accuracy.json` to.
        resume: keep the predictions in `work_dir`, which must be of the same evaluation, and add the missing ones.
        device: "auto" for a GPU if there is one, "cpu", "cuda", "cuda:1", ...

    Raises:
        InputError: An argument cannot be used, or another run uses `work_dir`.
        DataError: There are no images of the classes.
        DependencyError: The shards need the package webdataset, which is not installed.
        ImageError: An image cannot be read.
        FetchError, WeightsError: The weights cannot be fetched, or are of another model.
        OutputError: `work_dir` cannot be written.
    """
    record = _find_classifier(model)
    for name, value, minimum in (("limit", limit, 1), ("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value is not None:
            check_integer(name, value, minimum)
    for name, path in (("data_root", data_root), ("weights", weights), ("work_dir", work_dir)):
        check_not_empty(name, path)
    if resume and work_dir is None:
        raise InputError("resume=True requires work_dir")
    with process_group(device) as place, contextlib.ExitStack() as stack:
        if amp and place.type != "cuda":
            raise InputError("amp needs a GPU: run without it")
        network = timm.create_model(record.name)
        path, loaded = read_trusted_weights(weights or record)
        load_weights(network, adapt_checkpoint(loaded.tensors, network), path, record.name)
        root = _find_images(expand_user(data_root))
        images = _open_images(root, network, limit)
        chosen = work_dir or from_main_process(lambda: stack.enter_context(tempfile.TemporaryDirectory()))
        folder = expand_user(chosen).absolute()
        settings = {
            "weights": hash_file(path).hexdigest(),
            "data_root": str(root.absolute()),
            "images": images.names_sha256() if isinstance(images, _Images) else "",
            "amp": str(amp),
        }
        make_folder(folder, "work_dir")
        from_main_process(lambda: stack.enter_context(lock_folder(folder)))
        keep = resume and isinstance(images, _Images)
        from_main_process(lambda: prepare_folder(folder / "predictions", ACCURACY, settings, keep))
        start = time.perf_counter()
        expected: Collection[int] | None = None
        if isinstance(images, _Images):
            expected = images.indices[:limit]
            finished = from_main_process(lambda: {index for index, _, _ in _read_lines(folder)})
            images.indices = [index for index in expected if index not in finished][get_rank() :: get_world_size()]
        _classify(network.to(place).eval(), images, folder, batch_size, workers, amp)
        barrier()
        measured = {
            "limit": None if limit is None else int(limit),  # not NumPy's, which JSON cannot hold
            "amp": amp,
            "data_root": settings["data_root"],
            "weights": {"path": str(path), "sha256": settings["weights"]},
            "seconds": time.perf_counter() - start,
            "processes": get_world_size(),
            "device": device_name(place),
            "versions": versions(),
        }
        return from_main_process(lambda: _measure(folder, expected, measured))


def _find_classifier(name: str) -> Classifier:
    classifiers = read_manifest().classifiers
    if name not in classifiers:
        raise InputError(f"model must be one of {', '.join(classifiers)}, not {name!r}")
    return classifiers[name]


class _Images(Dataset[Sample]):
    """The images of a reader of timm, by their positions in `indices`."""

    def __init__(self, reader: Any, transform: Any) -> None:
        self.indices: Sequence[int] = range(len(reader))
        self._reader = reader
        self._transform = transform

    def names_sha256(self) -> str:
        """Return a digest of the names of all images, in their order."""
        return hashlib.sha256("\0".join(self._reader.filenames()).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Sample:
        index = self.indices[position]
        file, label = self._reader[index]
        try:
            with Image.open(file) as image:
                return index, self._transform(image.convert("RGB")), label
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ImageError(f"{self._reader.filename(index, absolute=True)}: not a readable image: {error}") from error


class _Stream(IterableDataset[Sample]):
    """The first `limit` images of WebDataset shards."""

    def __init__(self, reader: Any, transform: Any, limit: int | None) -> None:
        self._reader = reader
        self._transform = transform
        self._limit = limit

    def __iter__(self) -> Iterator[Sample]:
        for index, (image, label) in enumerate(itertools.islice(iter(self._reader), self._limit)):
            yield index, self._transform(image), label


def _find_images(data_root: Path) -> Path:
    """Return the folder or the file of the validation images.

    Raises:
        InputError: It does not exist.
    """
    root = next((data_root / split for split in SPLITS if (data_root / split).exists()), data_root)
    if not root.exists():
        raise InputError(f"data_root: there is no {root}")
    return root


def _open_images(root: Path, network: nn.Module, limit: int | None) -> _Images | _Stream:
    """Open a data set with the reader of timm that fits it, and the transform of the classifier's config.

    Raises:
        InputError: Several processes cannot share it.
        DependencyError: The package webdataset is not installed.
        DataError: It has no images of ImageNet's classes.
    """
    transform = create_transform(**resolve_data_config({}, model=network), is_training=False)
    if (root / "_info.json").is_file():
        if get_world_size() > 1:
            raise InputError(f"{root}: WebDataset shards are evaluated by one process: start it without torchrun")
        with explain_imports():
            import webdataset  # noqa: F401  (timm's reader needs it)
        reader = create_reader("wds/", root=str(root), split="validation", is_training=False)
        return _Stream(reader, transform, limit)
    wordnet_ids = {name: index for index, name in enumerate(ImageNetInfo().label_names())}
    try:
        options = {"cache_tarinfo": False} if root.is_file() else {}  # the cache is a pickle beside the file
        reader = create_reader("", root=str(root), class_map=wordnet_ids, **options)
    except RuntimeError as error:  # timm found no image
        raise _no_images(root) from error
    if not len(reader):
        raise _no_images(root)
    return _Images(reader, transform)


def _no_images(root: Path) -> DataError:
    return DataError(f"{root}: there are no images in folders named by ImageNet's WordNet ids, such as n01440764")


@torch.inference_mode()
def _classify(
    network: nn.Module, images: _Images | _Stream, folder: Path, batch_size: int, workers: int, amp: bool
) -> None:
    """Write a line for each image: its number, its class, and the classes with the five highest scores."""
    place = next(network.parameters()).device
    total = len(images) if isinstance(images, _Images) else None
    if total == 0:
        return
    loader = DataLoader(images, batch_size, num_workers=workers if total else min(workers, 1))  # shards may be fewer
    file = JsonLinesWriter(folder / "predictions" / f"{uuid.uuid4().hex}.jsonl")
    done = 0
    with contextlib.closing(file), progress_bar("classifying") as progress:
        for indices, pixels, labels in loader:
            with torch.autocast(place.type, enabled=amp):
                scores = network(pixels.to(place))
            best = scores.float().topk(TOP).indices.tolist()
            for line in zip(indices.tolist(), labels.tolist(), best, strict=True):
                file.append(line)
            done += len(labels)
            if is_main_process():
                progress(done, total)


def _read_lines(folder: Path) -> Iterator[tuple[int, int, list[int]]]:
    """Yield the complete lines of each file, up to a damaged one."""
    for path in sorted((folder / "predictions").glob("*.jsonl")):
        with contextlib.suppress(*DAMAGE):
            for (index, label, best), _ in read_json_lines(path):
                yield index, label, best


def _measure(folder: Path, expected: Collection[int] | None, measured: dict[str, Any]) -> Accuracy:
    """Count the correct predictions of the `expected` images (None for all), and write `accuracy.json`."""
    lines = {index: (label, best) for index, label, best in _read_lines(folder)}
    predictions = [lines[index] for index in (lines if expected is None else expected) if index in lines]
    if expected is not None and len(predictions) < len(expected):
        raise InputError(f"{folder}: predictions are missing: all processes need to see the same work_dir")
    if not predictions:
        raise DataError(f"{measured['data_root']}: there are no images")
    ranks = [best.index(label) if label in best else TOP for label, best in predictions]
    percent = 100 / len(ranks)
    accuracy = Accuracy(
        top1=percent * ranks.count(0), top5=percent * (len(ranks) - ranks.count(TOP)), num_images=len(ranks), **measured
    )
    accuracy.write(folder)
    return accuracy
