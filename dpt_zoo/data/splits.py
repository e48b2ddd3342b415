"""Find and check the training and validation splits of a config before it runs."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from mmengine.config import Config

from ..errors import DataError
from ..formats.issues import IssueType, describe
from ..utils.progress import ProgressCallback
from .checks import CheckedSplit, SplitFiles, check_splits, raise_errors
from .layouts import find_splits

Split = Literal["train", "val"]

logger = logging.getLogger(__name__)

_SHOWN = (IssueType.COMPLETED, IssueType.PARENT_CLASS, IssueType.MOSTLY_CROWDS)  # what a run does to the data

_PREFIXES: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "test")}  # of names, preferred first


def prepare_splits(
    cfg: Config,
    data_root: Path | None,
    work_dir: Path,
    splits: Sequence[Split] = ("train", "val"),
    *,
    ignored: Collection[IssueType] = (),
    read_images: bool = True,
    with_objects: bool = True,
    with_masks: bool | None = None,
    progress: ProgressCallback | None = None,
) -> dict[Split, CheckedSplit]:
    """Find and check the data of a config, or the data set in a folder or zip archive instead.

    What is completed or left out is logged as a warning.

    Args:
        data_root: the folder. If it has one split, and its name is unknown, it is used as the first of `splits`.
        work_dir: the folder for converted and completed annotations.
        splits: the splits to use; of those in `data_root`, only the first is required.
        ignored: the types of errors that are accepted where they concern a single image.
        read_images: whether to decode the images, see `check_splits`.
        with_objects: whether objects are required, see `check_splits`.
        with_masks: whether every object needs a mask, or masks are not used; by default, as the config's model does.
        progress: called with the number of checked images and the total, for each split.

    Raises:
        DataError: The data cannot be used. The text lists the issues.
        OutputError: The converted annotations cannot be written.
    """
    files = _choose(find_splits(data_root, work_dir), splits, data_root) if data_root else _read_config(cfg, splits)
    if with_masks is None:
        with_masks = "mask_head" in cfg.model.get("roi_head", {})
    checked = check_splits(
        files.values(),
        with_objects=with_objects,
        with_masks=with_masks,
        read_images=read_images,
        work_dir=work_dir,
        progress=progress,
    )
    raise_errors(*checked, ignored=ignored)
    for split in checked:
        _check_paths(split)
    if shown := [issue for split in checked for issue in split.issues if issue.type in _SHOWN]:
        logger.warning("the data set was adapted:\n%s", describe(shown, limit=5))
    return dict(zip(files, checked, strict=True))


def _check_paths(split: CheckedSplit) -> None:
    for path in (split.annotations, split.images):
        try:
            str(path).encode()
        except UnicodeEncodeError as error:  # MMEngine writes configs, and paths in them, as UTF-8
            raise DataError(f"{path!a}: this path is not valid UTF-8: rename the folder") from error


def _choose(available: list[SplitFiles], splits: Sequence[Split], folder: Path) -> dict[Split, SplitFiles]:
    if len(available) == 1 and not available[0].name.startswith(_PREFIXES["train"] + _PREFIXES["val"]):
        return {splits[0]: available[0]}
    chosen: dict[Split, SplitFiles] = {}
    for split in splits:
        by_prefix = [[files for files in available if files.name.startswith(prefix)] for prefix in _PREFIXES[split]]
        if matches := next(filter(None, by_prefix), None):
            chosen[split], *others = matches
            for other in others:
                logger.warning("%s: %s is used for %s, %s is not", folder, chosen[split].name, split, other.name)
    if splits[0] not in chosen:
        names = ", ".join(files.name for files in available)
        raise DataError(f"{folder}: no split is named {splits[0]}, only {names}: rename the one to use")
    return chosen


def _read_config(cfg: Config, splits: Sequence[Split]) -> dict[Split, SplitFiles]:
    files: dict[Split, SplitFiles] = {}
    for split in splits:
        if loader := cfg.get(f"{split}_dataloader"):
            root = Path(loader.dataset.get("data_root", ""))
            files[split] = SplitFiles(split, root / loader.dataset.ann_file, root / loader.dataset.data_prefix.img)
    return files
