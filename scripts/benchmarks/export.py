"""A detector on PyTorch, and exported for ONNX Runtime and OpenVINO: time, memory, cold start and size.

Each way runs in new processes, in turn. A process detects in an image file first, then in the same image in memory.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from .detect import PHOTOGRAPH, build_with_scores
from .measuring import MIB, ROOT, Comparison, Settings

SUFFIXES = {"PyTorch": ".safetensors", "ours, ONNX Runtime": ".onnx", "ours, OpenVINO": ".xml"}
"""The suffix of each way's file."""
DEMO_SIDE = 192  # pixels of the demos' images
QUANTITIES = (
    ("time of a detection", "s"),
    ("peak memory over the bare process", "MiB"),
    ("cold start to the first detection, processor time", "s"),
    ("cold start to the first detection, wall time", "s"),
)


def compare(settings: Settings) -> Iterator[Comparison]:
    with tempfile.TemporaryDirectory() as folder:
        exported = settings.exported or Path(folder)
        exported.mkdir(parents=True, exist_ok=True)
        for architecture in settings.architectures:
            name = f"{architecture}_dpt_nano_digits"
            weights = ROOT / "configs/demo" / f"{name}.safetensors"
            small = replace(settings, height=DEMO_SIDE, width=DEMO_SIDE)
            yield from _compare_files(name, weights, exported, small, repetitions=10)
        for architecture in () if settings.demos_only else settings.architectures:
            name = f"{architecture}_dpt_{settings.size[0]}_1x"
            weights = _make_weights(exported / f"{name}.safetensors", architecture, settings)
            yield from _compare_files(name, weights, exported, settings, repetitions=2)


def _make_weights(file: Path, architecture: str, settings: Settings) -> Path:
    """Write random weights with "sparse" scores, see `detect`, unless the file exists."""
    if not file.exists():
        from safetensors.torch import save_file

        model = build_with_scores("ours", "cpu", architecture, "sparse", settings.size, settings.height, settings.width)
        save_file(model.state_dict(), file)
    return file


def _compare_files(
    name: str, weights: Path, folder: Path, settings: Settings, repetitions: int
) -> Iterator[Comparison]:
    """Export a detector to `folder`, unless the files are there, and compare the ways.

    `repetitions` is the number of timed detections in each process.
    """
    height, width = settings.height, settings.width
    setting = f"{name}, {settings.describe('cpu')}"
    files = {way: weights if way == "PyTorch" else folder / f"{name}{suffix}" for way, suffix in SUFFIXES.items()}
    for file in files.values():
        if not file.exists():
            from dpt_zoo.exporting.exporter import export

            export(name, file, weights=weights)
    image = folder / f"{height}x{width}.png"
    with Image.open(PHOTOGRAPH) as photograph:
        photograph.convert("RGB").resize((width, height)).save(image)
    common: dict[str, Any] = {"scale": (width, height), "score_threshold": 0.05}
    detectors: dict[str, dict[str, Any]] = {
        way: {"model": name, "weights": str(file), **common}
        if way == "PyTorch"
        else {"model": str(file), "num_threads": settings.threads, **common}
        for way, file in files.items()
    }
    runs: dict[str, list[list[Any]]] = {way: [] for way in detectors}
    for _ in range(settings.runs):
        for way, detector in detectors.items():
            runs[way].append(_run_process(detector, image, repetitions, settings.threads))
    for place, (quantity, unit) in enumerate(QUANTITIES):
        values = {way: [value for run in each for value in run[place]] for way, each in runs.items()}
        yield Comparison("export", setting, quantity, unit, values)
    sizes = {way: [sum(each.stat().st_size for each in _parts(file)) / MIB] for way, file in files.items()}
    yield Comparison("export", setting, "size of the files", "MiB", sizes)


def _run_process(detector: dict[str, Any], image: Path, repetitions: int, threads: int) -> list[list[float]]:
    """Return the values of `QUANTITIES` from a new process."""
    content = {"detector": detector, "image": str(image), "runs": repetitions, "started": time.time()}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.first_detection", json.dumps(content)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    values: list[list[float]] = json.loads(done.stdout)
    return values


def _parts(file: Path) -> list[Path]:
    return [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]
