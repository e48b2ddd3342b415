"""The benchmark measures what it says; how fast things are is for it to print, not for a test to demand."""

import re
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[1] / "scripts" / "benchmark.py"


def run(*arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, BENCHMARK, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    machine, versions, *lines = done.stdout.splitlines()
    assert "processors" in machine
    assert versions.startswith(f"Python {sys.version.split()[0]}, torch ")
    return lines


def test_import() -> None:
    lines = run("import", "--runs", "1")
    assert [line.split("  ")[0] for line in lines] == ["python -c pass", "import dpt_zoo", "dpt-zoo list"]


def test_backbone() -> None:
    head, ours, explicit, ratios = run("backbone", "--runs", "1", "--size", "tiny")
    assert head.startswith("DPT-tiny, 800x1216, float32")
    peaks = [float(line.split("weights")[1].split()[0]) for line in (ours, explicit)]
    assert 0 < peaks[0] < 0.65 * peaks[1]  # unlike time, memory does not depend on what else runs
    assert re.fullmatch(r"ours / explicit: time \d+\.\d\d, memory 0\.\d\d", ratios)


def test_train() -> None:
    short = ("--runs", "1", "--steps", "1", "--threads", "1")
    printed = run("train", *short, "--size", "tiny", "--height", "256", "--width", "384")
    assert printed[0] == "retinanet, DPT-tiny, 256x384, batch 1, 1 threads"
    setting, _, ours, checkpointed, *ratios = printed[4:]
    assert setting == "cpu, float32"
    peaks = [float(line.split("memory")[1].split()[0]) for line in (checkpointed, ours)]
    assert 0 < peaks[0] < 0.95 * peaks[1]
    for way, line in zip(("ours", "checkpointed"), ratios, strict=True):
        assert re.fullmatch(rf"  {way} / explicit: time \d+\.\d\d, memory \d\.\d\d", line)


def test_weights() -> None:
    printed = "\n".join(run("weights", "--runs", "1", "--megabytes", "20"))
    for ratio in ("ours / curl: speed", "above `import torch` / weights:", "ours / mmengine: time"):
        assert re.search(rf"{re.escape(ratio)} +\d+\.\d\d", printed), ratio
    # Unlike times, these do not depend on what else runs.
    memory = r"memory (?:growth|above `import torch` / weights:) +([\d.]+)"
    growth, peak = (float(found[1]) for found in re.finditer(memory, printed))
    assert growth < 64 and peak < 2.5


def test_evaluate() -> None:
    printed = run("evaluate", "--images", "20", "--detections", "30", "--runs", "1")
    assert printed[0] == "20 images with 30 detections each, 1 runs"
    for kind, lines in (("bbox", printed[2:7]), ("segm", printed[7:])):
        assert lines[0] == kind
        peaks = [float(line.split("memory")[1].split()[0]) for line in lines[1:3]]
        assert min(peaks) > 10
        assert re.fullmatch(r"  ours / pycocotools: speed \d+\.\d\d, memory \d\.\d\d", lines[3])
        figures = re.fullmatch(r"  mAP (\S+), the largest difference in the twelve figures (\S+)", lines[4])
        assert figures
        assert 0.1 < float(figures[1]) < 0.9
        assert float(figures[2]) < 1e-9
