"""The benchmark measures what it says. No test depends on times."""

import contextlib
import io
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmark import main
from benchmarks.backbone import make_forward, make_training_step
from benchmarks.detect import (
    PASSING_SCORES,
    THRESHOLD,
    build_with_scores,
    find_classifier,
    prepare_detection,
    time_parts,
)
from benchmarks.measuring import QUICK, Action, Comparison, measure_peak, run_in_child, time_in_turn
from benchmarks.report import format_table
from exported_files import make_onnx, make_openvino
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("benchmark")]  # one process runs the command once

SUBJECTS = ["limits", "import", "backbone", "pixels", "precision", "detect", "train", "weights", "evaluate", "export"]
SUBJECTS += ["serve"]


def measure_memory(make: Callable[..., Action], way: str, height: int, width: int) -> float:
    network = {"size": "tiny", "shape": (1, 3, height, width)}
    place = {"make": (make.__module__, make.__name__), "device": "cpu", "threads": 1}
    return float(run_in_child(measure_peak, way=way, **place, **network))


@dataclass(frozen=True)
class Measured:
    """The printed and written output of `all --quick`."""

    printed: str
    comparisons: list[Comparison]
    plot: Path

    def values(self, subject: str, quantity: str) -> list[float]:
        """Return all values of a quantity."""
        matching = [each for each in self.comparisons if each.subject == subject and each.quantity.startswith(quantity)]
        return [value for each in matching for values in each.values.values() for value in values]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Run the command in this process, which has imported what all subjects need."""
    folder, threads = tmp_path_factory.mktemp("benchmark"), torch.get_num_threads()
    json_file, plot_file = folder / "all.json", folder / "all.png"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("DPT_ZOO_CACHE", str(folder / "cache"))
        make_onnx(folder / "retinanet_dpt_nano_digits.onnx", has_masks=False)  # exporting takes a minute
        make_openvino(folder / "retinanet_dpt_nano_digits.xml", has_masks=False)
        arguments = ["all", "--quick", "--exported", folder, "--json", json_file, "--plot", plot_file]
        patch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
        main()
    torch.set_num_threads(threads)
    contents = json.loads(json_file.read_text())
    assert contents["machine"]["python"] == sys.version.split()[0]
    assert contents["machine"]["torch"] == torch.__version__.partition("+")[0]
    return Measured(printed.getvalue(), [Comparison(**each) for each in contents["comparisons"]], plot_file)


class TestAllSubjects:
    def test_each_is_measured(self, measured: Measured) -> None:
        assert list(dict.fromkeys(each.subject for each in measured.comparisons)) == SUBJECTS
        for each in measured.comparisons:
            assert each.values and all(each.values.values()), each
            assert all(map(math.isfinite, chain.from_iterable(each.values.values()))), each

    def test_what_is_printed_is_what_is_written(self, measured: Measured) -> None:
        assert measured.printed.startswith("processor: ")
        for each in measured.comparisons:
            assert f"{each.subject}: {each.setting}\n" in measured.printed
            assert format_table(each) in measured.printed

    def test_the_plot_has_room_for_all(self, measured: Measured) -> None:
        with Image.open(measured.plot) as image:
            assert image.format == "PNG"
            assert image.height > 50 * len(measured.comparisons)  # three in a row

    def test_both_ways_of_the_backbone_do_the_same_arithmetic(self, measured: Measured) -> None:
        ours, explicit = measured.values("backbone", "arithmetic")
        assert ours > 0.1
        assert ours == pytest.approx(explicit)

    def test_arithmetic_grows_somewhat_faster_than_pixels(self, measured: Measured) -> None:
        for exponent in measured.values("pixels", "exponent of arithmetic"):
            assert 1 < exponent < 1.2
        for share in measured.values("pixels", "attention's share"):
            assert 0 < share < 0.5

    def test_lower_precision_deviates_from_float32(self, measured: Measured) -> None:
        exact, *others = measured.values("precision", "largest deviation of map 1")
        assert exact == 0
        assert all(0 < each < 0.1 for each in others)

    def test_the_parts_of_a_detection_make_up_the_whole(self, measured: Measured) -> None:
        shares = measured.values("detect", "share of our time")
        assert all(0 < each < 1 for each in shares)
        assert sum(shares) == pytest.approx(2)  # with sparse scores and with many

    def test_fetching_and_converting_need_little_memory(self, measured: Measured) -> None:
        (growth,) = measured.values("weights", "growth of the peak memory")
        (peak,) = measured.values("weights", "peak memory above")
        assert growth < 64 and peak < 2.5

    def test_exported_files_need_less_memory_than_pytorch(self, measured: Measured) -> None:
        pytorch, *exported = measured.values("export", "peak memory over the bare process")
        assert len(exported) == 2 and max(exported) < pytorch / 2

    def test_metrics_are_those_of_pycocotools(self, measured: Measured) -> None:
        assert all(0.1 < each < 0.9 for each in measured.values("evaluate", "mAP"))
        assert all(each < 1e-9 for each in measured.values("evaluate", "largest difference"))


class TestMemory:
    """Memory, unlike time, does not depend on the other processes."""

    def test_of_the_backbone(self) -> None:
        ours, explicit = (measure_memory(make_forward, way, 480, 736) for way in ("ours", "explicit"))
        assert 0 < ours < 0.65 * explicit

    def test_of_its_training(self) -> None:
        # The heap keeps a varying amount of freed memory: the smaller of two peaks is nearer to the need.
        ways = ("ours, checkpointed", "ours, checkpointed", "ours", "explicit")
        *checkpoints, ours, explicit = (measure_memory(make_training_step, way, 480, 736) for way in ways)
        checkpointed = min(checkpoints)
        assert 0 < checkpointed < 0.85 * ours
        assert ours < 0.65 * explicit


@pytest.mark.parametrize("architecture", ["retinanet", "mrcnn"])
@pytest.mark.parametrize("way", ["explicit", "torchvision ResNet-50"])
def test_sparse_scores_are_equally_many_in_every_network(way: str, architecture: str) -> None:
    model = build_with_scores(way, "cpu", architecture, "sparse", "tiny", 64, 96)
    layer, background = find_classifier(model)
    seen = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    prepare_detection(way, model, 64, 96)()
    if background is None:
        scores = torch.cat([each.flatten() for each in seen]).sigmoid()
    else:
        scores = seen[0].softmax(dim=1)
        scores[:, background] = 0
    assert (scores > THRESHOLD).sum().item() == pytest.approx(PASSING_SCORES, rel=0.02)


def test_the_parts_of_mask_rcnn_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock moves only while modules run: 3 s in the backbone, 1 s in each call of the mask head."""
    spans: list[int] = []
    monkeypatch.setattr("benchmarks.detect.time", SimpleNamespace(perf_counter=lambda: sum(spans)))
    model = build_with_scores("ours", "cpu", "mrcnn", "sparse", "tiny", 64, 96)
    model.backbone.register_forward_hook(lambda *call: spans.append(3))
    model.roi_head.mask_head.upsample.register_forward_hook(lambda *call: spans.append(1))
    shares = time_parts(model, "cpu", QUICK)
    num_calls = spans.count(1) / 2  # one run is the warm-up
    assert num_calls >= 1
    assert shares == {
        "preparation": [0],
        "backbone": [pytest.approx(3 / (3 + num_calls))],
        "rest of the network": [pytest.approx(num_calls / (3 + num_calls))],
        "post-processing": [0],
    }


def test_actions_are_timed_in_turn_after_a_warm_up() -> None:
    done = []
    times = time_in_turn({"one": lambda: done.append(1), "two": lambda: done.append(2)}, runs=2)
    assert done == [1, 2, 1, 2, 1, 2]
    assert {way: len(each) for way, each in times.items()} == {"one": 2, "two": 2}


def test_a_table_gives_what_ours_is_of_each_peer() -> None:
    values = {"ours": [1.0, 3.0, 2.0], "ours, smaller": [1.0], "theirs": [4.0]}
    assert format_table(Comparison("backbone", "setting", "time", "s", values)).splitlines() == [
        "time, s",
        "  ours           2  (1 to 3)  0.50 of theirs",
        "  ours, smaller  1            0.25 of theirs",
        "  theirs         4",
    ]
