"""COCO's figures of a detector: those that pycocotools has for what `Detector` finds."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from small_data import make_coco

import dpt_zoo
from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.errors import DataError, WeightsError

MODEL = "mrcnn_dpt_nano_digits"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digit scenes: 1 to train on, 6 to test with."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    make_digit_scenes(folder, num_train=1, num_test=6, seed=3)
    return folder


def test_the_figures_are_pycocotools(digits: Path, capfd: pytest.CaptureFixture[str]) -> None:
    figures = dpt_zoo.evaluate(MODEL, data_root=digits, workers=0)
    assert capfd.readouterr().out == ""
    assert figures == {kind: pycocotools_figures(digits, kind) for kind in ("bbox", "segm")}


def pycocotools_figures(digits: Path, kind: str) -> dict[str, float | None]:
    detector = dpt_zoo.Detector(MODEL, score_threshold=0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(digits / "annotations/instances_val2017.json")
        found: list[dict[str, Any]] = []
        for image in truth.imgs.values():
            found += detector(digits / "val2017" / image["file_name"]).to_coco(image["id"])
        if kind == "segm":  # or a mask would be small or large by its box
            for record in found:
                del record["bbox"]
        run = COCOeval(truth, truth.loadRes(found), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    names = ("mAP", "AP50", "AP75", "APs", "APm", "APl")
    pairs = zip(names, run.stats, strict=False)
    return {name: round(100 * round(float(value), 3), 1) if value >= 0 else None for name, value in pairs}


def test_the_command_prints_and_writes_them(digits: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "figures.json"
    status, printed, _ = run("evaluate", MODEL, "--data-root", digits, "--workers", "0", "--out", out)
    assert status == 0
    figures = json.loads(out.read_text())
    head, *rows = [line.split() for line in printed.splitlines()]
    assert head == list(figures["bbox"])
    for row, kind in zip(rows, ("bbox", "segm"), strict=True):
        assert row == [kind, *("-" if value is None else f"{value:.1f}" for value in figures[kind].values())]


def test_a_models_own_weights_and_a_file_give_the_same(digits: Path) -> None:
    file = dpt_zoo.get_checkpoint(MODEL).sources[0].url
    options: dict[str, Any] = {"data_root": digits, "workers": 0, "batch_size": 3}
    config = "configs/demo/mask_rcnn_dpt_nano_digits.py"
    assert dpt_zoo.evaluate(config, file, **options) == dpt_zoo.evaluate(MODEL, **options)


def test_weights_for_other_classes_are_refused(digits: Path, tmp_path: Path) -> None:
    make_coco(tmp_path, split="val2017")
    with pytest.raises(DataError, match="missing mask"):
        dpt_zoo.evaluate(MODEL, data_root=tmp_path)
    with pytest.raises(WeightsError, match=r"bbox_head\.retina_cls"):
        dpt_zoo.evaluate("retinanet_dpt_nano_digits", data_root=tmp_path)
