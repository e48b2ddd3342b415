"""The parts of a data set that a recipe trains on and validates with, found and checked before it does."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from mmengine.config import Config, ConfigDict

from ..errors import DataError
from .checks import CheckedSplit, raise_errors
from .layouts import SplitFiles, check_splits, find_splits
from .issues import IssueType

Split = Literal["train", "val"]

_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "test")}
"""How the names of such parts begin, the likeliest first."""


def prepare_splits(
    cfg: Config,
    data_root: Path | None,
    work_dir: Path,
    parts: Sequence[Split] = ("train", "val"),
    *,
    ignored: Collection[IssueType] = (),
    **options: Any,
) -> dict[Split, CheckedSplit]:
    """Find a recipe's data, or those in a folder of COCO, YOLO or Pascal VOC data instead, and check them.

    Args:
        cfg: the recipe.
        data_root: the folder. One without names for its parts is all of the first that is asked for.
        work_dir: where converted annotations are written.
        parts: what is needed; of a folder's, only the first has to be there.
        ignored: what may be wrong all the same.
        options: of `check_coco`; by default, objects need masks if the recipe's model finds them.

    Raises:
        DataError: the data cannot be used: its text lists what is wrong with them.
        OutputError: the converted annotations cannot be written.
    """
    splits = _choose(find_splits(data_root, work_dir), parts, data_root) if data_root else _splits_of(cfg, parts)
    finds_masks = "mask_head" in cfg.model.get("roi_head", {})
    checks = check_splits(splits.values(), **{"with_masks": finds_masks, **options})
    raise_errors(*checks, ignored=ignored)
    return dict(zip(splits, checks, strict=True))


def _choose(splits: list[SplitFiles], parts: Sequence[Split], folder: Path) -> dict[Split, SplitFiles]:
    first = parts[0]
    if len(splits) == 1 and not splits[0].name.startswith(_NAMES["train"] + _NAMES["val"]):
        return {first: splits[0]}
    chosen: dict[Split, SplitFiles] = {}
    for part in parts:
        found = [split for name in _NAMES[part] for split in splits if split.name.startswith(name)]
        if found:
            chosen[part] = found[0]
    if first not in chosen:
        names = ", ".join(split.name for split in splits)
        raise DataError(f"{folder}: of its parts, {names}, none is called {first}: rename the one that is it")
    return chosen


def _splits_of(cfg: Config, parts: Sequence[Split]) -> dict[Split, SplitFiles]:
    loaders = {part: cfg.get(f"{part}_dataloader") for part in parts}
    return {part: _split_of(loader.dataset) for part, loader in loaders.items() if loader}


def _split_of(dataset: ConfigDict) -> SplitFiles:
    root = Path(dataset.get("data_root", ""))
    annotations = root / dataset.ann_file
    return SplitFiles(annotations.stem.removeprefix("instances_"), annotations, root / dataset.data_prefix.img)
