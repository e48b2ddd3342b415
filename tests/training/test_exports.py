"""What tools export goes through `check-data`, a training step and `evaluate`, as it is or in an archive."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import Run
from tool_exports import EXPORTS, Expected

import dpt_zoo
from dpt_zoo.data.checks import check_splits
from dpt_zoo.data.layouts import find_splits

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("number", "export"), list(enumerate(EXPORTS)), ids=[export.__name__ for export in EXPORTS])
def test_an_export_is_checked_learned_and_evaluated(
    number: int, export: Callable[[Path], Expected], tmp_path: Path, run: Run
) -> None:
    objects = export(tmp_path / "export")
    data = tmp_path / "export"
    if number % 2:
        data = Path(shutil.make_archive(str(data), "zip", data))
        shutil.rmtree(tmp_path / "export")
    status, out, err = run("check-data", data)
    assert (status, err) == (0, "") and f"{len(objects)} image" in out

    have_masks = all(mask is not None for image in objects.values() for _, _, mask in image)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 2, "workers": 0, "seed": 0, "device": "cpu"}
    weights = dpt_zoo.train(
        "mrcnn_dpt_nano_digits" if have_masks else "retinanet_dpt_nano_digits",
        data_root=data,
        work_dir=tmp_path / "run",
        cfg_options={"train_cfg.val_begin": 2},
        **options,
    )
    evaluation = dpt_zoo.evaluate(weights, **data_to_evaluate(data, tmp_path / "checked"), workers=0)
    assert evaluation.num_images == len(objects)
    assert evaluation.metrics.keys() == ({"bbox", "segm"} if have_masks else {"bbox"})
    found = {name for name, metrics in evaluation.per_class["bbox"].items() if metrics["mAP"] is not None}
    assert found == {name for image in objects.values() for name, _, _ in image}


def data_to_evaluate(data: Path, work_dir: Path) -> dict[str, Any]:
    """Return the arguments for `evaluate`: the data set or, if all is for training, its annotations and images."""
    splits = find_splits(data, work_dir)
    if [split.name for split in splits] != ["train"]:
        return {"data_root": data}
    (checked,) = check_splits(splits, work_dir=work_dir)
    return {"annotations": checked.annotations, "images": checked.images}
