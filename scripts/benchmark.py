"""Measure the zoo against its peers, side by side in one run.

python scripts/benchmark.py import
python scripts/benchmark.py backbone
python scripts/benchmark.py train
python scripts/benchmark.py weights
python scripts/benchmark.py evaluate
"""

import argparse
import contextlib
import functools
import io
import json
import lzma
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20
AUTHORS_FILE = ROOT / "tests/reference/authors_format_retinanet_dpt_t_1x.pth.xz"
WAYS = ("explicit", "ours", "checkpointed")
SHAPE = ("size", "height", "width", "threads")
PACKAGES = ("torch", "torchvision", "timm", "mmdet", "faster-coco-eval", "pycocotools")
STEPS = (*SHAPE, "architecture", "steps", "device", "mode")


def benchmark_import(args: argparse.Namespace) -> None:
    """Whole processes: how long the light parts take to start."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import dpt_zoo": [sys.executable, "-c", "import dpt_zoo"],
        "dpt-zoo list": [sys.executable, "-m", "dpt_zoo", "list"],
    }
    run = functools.partial(subprocess.run, cwd=ROOT, check=True, capture_output=True)
    times = _alternate({name: functools.partial(run, command) for name, command in commands.items()}, args.runs)
    base = statistics.median(times["python -c pass"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:16}{_spread(values, 1e3)} ms, {(median - base) * 1e3:6.1f} ms above bare Python")


def benchmark_backbone(args: argparse.Namespace) -> None:
    """One forward pass of the backbone, ours and the explicit way: time in turn, peak memory each in its process."""
    import torch

    torch.set_num_threads(args.threads)
    print(f"DPT-{args.size}, {args.height}x{args.width}, float32, batch 1, {args.threads} threads, {args.runs} runs")
    times = _alternate({kind: _backbone_pass(kind, args) for kind in ("ours", "explicit")}, args.runs)
    peaks = {kind: [_in_child("backbone-peak", kind, args, SHAPE) for _ in range(args.runs)] for kind in times}
    for kind in times:
        print(f"{kind:10}{_spread(times[kind], 1)} s, peak memory over the weights {_spread(peaks[kind], 1 / MIB)} MiB")
    print(f"ours / explicit: time {_ratio(times, 'explicit'):.2f}, memory {_ratio(peaks, 'explicit'):.2f}")


def measure_backbone_peak(args: argparse.Namespace) -> None:
    """Print, in bytes, how far one forward pass raises this process's memory."""
    import torch

    torch.set_num_threads(args.threads)
    forward = _backbone_pass(args.kind, args)
    growth = _watch_memory("cpu")
    forward()
    print(growth())


def _backbone_pass(kind: str, args: argparse.Namespace) -> Callable[[], object]:
    import torch
    from explicit_dpt import make_explicit

    from dpt_zoo.models import DPT

    torch.manual_seed(0)
    model = DPT(args.size).eval()
    if kind == "explicit":
        make_explicit(model)
    image = torch.randn(1, 3, args.height, args.width)

    def forward() -> object:
        with torch.inference_mode():
            return model(image)

    return forward


def benchmark_train(args: argparse.Namespace) -> None:
    """A training step, ours, with gradient checkpointing and the explicit way: each in its process, in turn."""
    import torch

    print(f"{args.architecture}, DPT-{args.size}, {args.height}x{args.width}, batch 1, {args.threads} threads")
    print(f"a step: forward with losses, backward, AdamW; {args.runs} runs of {args.steps} steps after one to warm up")
    print("memory: the peak over the built model, so with gradients, AdamW's state and what the allocator holds back")
    print("explicit: a softmax matrix, a two-step sampler; checkpointed: ours with gradient checkpointing")
    modes = ("float32", "bfloat16", "bfloat16-compiled")
    settings = [("cpu", "float32")] + [("cuda", mode) for mode in modes if torch.cuda.is_available()]
    for args.device, args.mode in settings:
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        peaks: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(args.runs):
            for way in WAYS:
                seconds, peak = _in_child("train-steps", way, args, STEPS)
                times[way] += seconds
                peaks[way].append(peak)
        scale, unit = (1e3, "ms") if args.device == "cuda" else (1, "s")
        print(f"{args.device}, {args.mode}")
        for way in WAYS:
            print(f"  {way:12} {_spread(times[way], scale)} {unit}, memory {_spread(peaks[way], 1 / MIB)} MiB")
        for way in WAYS[1:]:
            ratios = (_ratio(values, "explicit", way) for values in (times, peaks))
            print("  {} / explicit: time {:.2f}, memory {:.2f}".format(way, *ratios))


def measure_train_steps(args: argparse.Namespace) -> None:
    """Print the seconds of each training step, and in bytes how far they raised this process's memory."""
    import torch

    torch.set_num_threads(args.threads)
    step = _train_step(args)
    growth = _watch_memory(args.device)
    seconds = _alternate({"step": step}, args.steps)["step"]
    print(json.dumps([seconds, growth()]))


def _train_step(args: argparse.Namespace) -> Callable[[], object]:
    import dpt_zoo.mmlab  # before mmengine and mmdet

    # isort: split
    import torch
    from explicit_dpt import make_explicit
    from mmdet.testing import demo_mm_inputs
    from mmengine.optim import AmpOptimWrapper, OptimWrapper

    import dpt_zoo

    torch.manual_seed(0)
    name = f"{args.architecture}_dpt_{args.size[0]}_1x"
    model: Any = dpt_zoo.create_model(name, pretrained=False, device=args.device).train()
    if args.kind == "explicit":
        make_explicit(model.backbone)
    model.backbone.gradient_checkpointing = args.kind == "checkpointed"
    if args.mode == "bfloat16-compiled":
        model.backbone.compile()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    optimizer = OptimWrapper(adamw) if args.mode == "float32" else AmpOptimWrapper(optimizer=adamw, dtype="bfloat16")
    images = demo_mm_inputs(1, (3, args.height, args.width), num_items=[8], num_classes=80, with_mask=True)

    def step() -> None:
        model.train_step(images, optimizer)
        if args.device == "cuda":
            torch.cuda.synchronize()

    return step


def _in_child(subcommand: str, kind: str, args: argparse.Namespace, names: Sequence[str]) -> Any:
    """Run a hidden subcommand with the same options in a process of its own; return what it prints, from JSON."""
    options = [f"--{name}={getattr(args, name)}" for name in names]
    command = [sys.executable, __file__, subcommand, kind, *options]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def benchmark_weights(args: argparse.Namespace) -> None:
    """Fetching against curl, reading against MMEngine, the memory of both fetching and converting, and building."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        _benchmark_fetching(folder, args)
        original = folder / "retinanet_dpt_t_1x.pth"
        with lzma.open(AUTHORS_FILE) as packed, original.open("wb") as file:
            shutil.copyfileobj(packed, file)
        _benchmark_converting(original, args)
        _benchmark_reading(original, args)


def _benchmark_fetching(folder: Path, args: argparse.Namespace) -> None:
    served, target = folder / "served", folder / "fetched"
    with served.open("wb") as file:
        for _ in range(args.megabytes):
            file.write(os.urandom(10**6))
    with _file_server(served) as url:
        ours = [sys.executable, "-c", FETCH, url, str(target)]
        shell = f"curl -sS -o {target}.curl {url} && sha256sum {target}.curl"
        times: dict[str, list[float]] = {"ours": [], "curl": []}
        growths = []
        for _ in range(args.runs):
            for path in folder.glob("fetched*"):
                path.unlink()
            seconds, growth = json.loads(subprocess.run(ours, check=True, capture_output=True, text=True).stdout)
            times["ours"].append(seconds)
            growths.append(growth)
            start = time.perf_counter()
            subprocess.run(["bash", "-c", shell], check=True, capture_output=True)
            times["curl"].append(time.perf_counter() - start)
    speeds = {kind: [args.megabytes / each for each in values] for kind, values in times.items()}
    print(f"fetch and hash {args.megabytes} MB over loopback, {args.runs} runs")
    print(f"  ours{_spread(speeds['ours'], 1)} MB/s, peak memory growth {_spread(growths, 1 / MIB)} MiB")
    print(f"  curl, sha256sum{_spread(speeds['curl'], 1)} MB/s")
    print(f"  ours / curl: speed {_ratio(speeds, 'curl'):.2f}")


def _benchmark_converting(original: Path, args: argparse.Namespace) -> None:
    target = original.with_suffix(".safetensors")
    command = [sys.executable, "-c", CONVERT, str(original), str(target)]
    results = []
    for _ in range(args.runs):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results.append(json.loads(done.stdout))
    size = target.stat().st_size
    print(f"convert an authors' file of {original.stat().st_size / 1e6:.0f} MB, {size / 1e6:.0f} MB of it weights")
    print(f"  {_spread([seconds for seconds, _ in results], 1)} s")
    print(f"  peak memory above `import torch` / weights: {_spread([peak / size for _, peak in results], 1)}")


def _benchmark_reading(original: Path, args: argparse.Namespace) -> None:
    import dpt_zoo.mmlab  # before mmengine and mmdet

    # isort: split
    from mmengine.runner import load_checkpoint

    import dpt_zoo
    from dpt_zoo.factory import build_detector
    from dpt_zoo.weights.loading import load_weights
    from dpt_zoo.weights.store import adopt, read_trusted

    os.environ["DPT_ZOO_CACHE"] = str(original.parent / "cache")
    checkpoint = dpt_zoo.get_checkpoint("retinanet_dpt_t_1x")
    adopt(checkpoint, original)
    model = build_detector(checkpoint, checkpoint.num_classes)

    def read_cached() -> None:
        path, state = read_trusted(checkpoint)
        load_weights(model, state, path, checkpoint.name)

    def build() -> None:
        build_detector(checkpoint, checkpoint.num_classes)

    runs = 3 * args.runs
    times = _alternate(
        {"ours": read_cached, "mmengine": lambda: load_checkpoint(model, str(original), "cpu", logger="silent")}, runs
    )
    print(f"read weights into a {checkpoint.title}, {runs} runs")
    print(f"  ours, cached          {_spread(times['ours'], 1e3)} ms")
    print(f"  mmengine, the original{_spread(times['mmengine'], 1e3)} ms")
    print(f"  ours / mmengine: time {_ratio(times, 'mmengine'):.2f}")
    times = _alternate({"create": lambda: dpt_zoo.create_model(checkpoint.name), "build": build}, runs)
    print(f"make a {checkpoint.title}, {runs} runs")
    print(f"  create_model, cached   {_spread(times['create'], 1e3)} ms")
    print(f"  the network alone, as PyTorch initialises it{_spread(times['build'], 1e3)} ms")


def benchmark_evaluate(args: argparse.Namespace) -> None:
    """COCO's figures of boxes and of masks, ours and by pycocotools: each in its process, in turn."""
    print(f"{args.images} images with {args.detections} detections each, {args.runs} runs")
    print("time: from the files to the figures; memory: the peak over the bare process; both with what is imported")
    with tempfile.TemporaryDirectory() as args.folder:
        _make_results(Path(args.folder), args.images, args.detections)
        for args.metric in ("bbox", "segm"):
            times: dict[str, list[float]] = {"ours": [], "pycocotools": []}
            peaks: dict[str, list[float]] = {"ours": [], "pycocotools": []}
            figures = {}
            for _ in range(args.runs):
                for kind in times:
                    seconds, peak, figures[kind] = _in_child("evaluate-once", kind, args, ("folder", "metric"))
                    times[kind].append(seconds)
                    peaks[kind].append(peak)
            print(args.metric)
            for kind in times:
                print(f"  {kind:12}{_spread(times[kind], 1)} s, memory {_spread(peaks[kind], 1 / MIB)} MiB")
            ratios = 1 / _ratio(times, "pycocotools"), _ratio(peaks, "pycocotools")
            print("  ours / pycocotools: speed {:.2f}, memory {:.2f}".format(*ratios))
            difference = max(abs(one - other) for one, other in zip(*figures.values(), strict=True))
            print(f"  mAP {figures['ours'][0]:.4f}, the largest difference in the twelve figures {difference:.0e}")


def measure_evaluation(args: argparse.Namespace) -> None:
    """Print the seconds, in bytes how far this process's memory was raised, and the figures, from 0 to 1."""
    evaluate = {"ours": _our_figures, "pycocotools": _their_figures}[args.kind]
    growth = _watch_memory("cpu")
    start = time.perf_counter()
    figures = evaluate(args.folder / "annotations.json", args.folder / f"{args.metric}.json", args.metric)
    print(json.dumps([time.perf_counter() - start, growth(), figures]))


def _our_figures(annotations: Path, found: Path, kind: Any) -> list[float]:
    from dpt_zoo.evaluation.figures import Truth

    def records() -> Iterator[dict[str, Any]]:  # read when they are asked for, as an evaluation does
        yield from json.loads(found.read_text())

    figures = Truth(annotations).compare(records(), kind).figures
    return [-1 if value is None else value / 100 for value in figures.values()]


def _their_figures(annotations: Path, found: Path, kind: str) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        run = COCOeval(truth, truth.loadRes(str(found)), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return [float(value) for value in run.stats]


def _make_results(folder: Path, num_images: int, num_detections: int) -> None:
    """Write a COCO file, and COCO results of boxes and of masks that are like a detector's, the same each time.

    About 7 objects of 80 classes are in an image, of all sizes. They are found more or less well and more or less
    surely, several times, and often as another class.
    """
    import numpy as np
    from pycocotools import mask as masks

    rng = np.random.default_rng(0)
    height, width, num_classes = 480, 640, 80
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)

    def outline(centers: Any, sizes: Any) -> tuple[list[Any], list[Any], list[Any]]:
        """The boxes, polygons and masks of blobs."""
        radii = rng.uniform(0.4, 0.5, (len(centers), len(angles), 1))
        points = centers[:, None] + sizes[:, None] * radii * directions
        points = np.clip(points, 0, (width, height)).round(2)
        boxes = np.concatenate([points.min(1), np.ptp(points, 1)], axis=1)
        polygons = points.reshape(len(points), -1).tolist()
        return boxes.tolist(), polygons, masks.frPyObjects(polygons, height, width)

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: dict[str, list[dict[str, Any]]] = {"bbox": [], "segm": []}
    for id in range(1, num_images + 1):
        images.append({"id": id, "file_name": f"{id:012}.jpg", "height": height, "width": width})
        count = 1 + rng.poisson(6)
        centers = rng.uniform(0, (width, height), (count, 2))
        sizes = rng.lognormal(3.8, 1, (count, 1)) * rng.lognormal(0, 0.3, (count, 2))
        labels = rng.integers(1, num_classes + 1, count)
        for box, polygon, mask, label in zip(*outline(centers, sizes), labels.tolist(), strict=True):
            record = {"id": len(annotations) + 1, "image_id": id, "category_id": label, "bbox": box}
            area, crowd = float(masks.area(mask)), int(rng.random() < 0.01)
            annotations.append({**record, "segmentation": [polygon], "area": area, "iscrowd": crowd})

        chosen = rng.integers(count, size=num_detections)
        errors = rng.exponential(0.2, (num_detections, 1))
        centers = centers[chosen] + errors * sizes[chosen] * rng.normal(size=(num_detections, 2))
        sizes = sizes[chosen] * np.exp(errors * rng.normal(size=(num_detections, 2)))
        others = rng.integers(1, num_classes + 1, num_detections)
        labels = np.where(rng.random(num_detections) < 0.7, labels[chosen], others)
        scores = rng.random(num_detections) * np.exp(-3 * errors[:, 0])
        blobs = outline(np.clip(centers, 1, (width - 1, height - 1)), sizes)
        for box, _, mask, label, score in zip(*blobs, labels.tolist(), scores.tolist(), strict=True):
            record = {"image_id": id, "category_id": label, "score": score}
            code = {"size": [height, width], "counts": mask["counts"].decode()}
            results["bbox"].append({**record, "bbox": box})
            results["segm"].append({**record, "segmentation": code})
    categories = [{"id": id, "name": f"class {id}"} for id in range(1, num_classes + 1)]
    contents = {"annotations": {"images": images, "annotations": annotations, "categories": categories}, **results}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@contextlib.contextmanager
def _file_server(path: Path) -> Iterator[str]:
    """Serve one file from a process of its own; yield its address."""
    command = [sys.executable, "-c", SERVE, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/"
        process.terminate()


SERVE = """
import http.server, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with open(sys.argv[1], "rb") as file:
            self.send_response(200)
            self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
            self.end_headers()
            self.connection.sendfile(file)

    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""

MEASURE = """
import json, pathlib, sys, time

def memory(field):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[field].split()[0]) * 1024

def measure(action):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start = memory("VmRSS"), time.perf_counter()
    action()
    print(json.dumps([time.perf_counter() - start, memory("VmHWM") - before]))
"""

FETCH = f"""{MEASURE}
from dpt_zoo.weights import http
measure(lambda: http.download(sys.argv[1], http.opener_of(sys.argv[1]), pathlib.Path(sys.argv[2])))
"""

CONVERT = f"""{MEASURE}
import torch

def run():
    from dpt_zoo.weights.converting import convert
    convert(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))

measure(run)
"""


def _watch_memory(device: str) -> Callable[[], int]:
    """Begin to watch; the result tells by how many bytes the peak since then is above what is in use now."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        return lambda: torch.cuda.max_memory_allocated() - allocated
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    resident = _memory("VmRSS")
    return lambda: _memory("VmHWM") - resident


def _memory(field: str) -> int:
    """This process's memory in bytes, by Linux's name: "VmRSS" now, "VmHWM" at its peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def _alternate(actions: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of each action over so many runs, in turn, after a warm-up of each."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for run in range(runs + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if run:
                times[name].append(time.perf_counter() - start)
    return times


def _ratio(values: Mapping[str, Sequence[float]], peer: str, kind: str = "ours") -> float:
    return statistics.median(values[kind]) / statistics.median(values[peer])


def _spread(values: Sequence[float], factor: float) -> str:
    low, median, high = (factor * value for value in (min(values), statistics.median(values), max(values)))
    return f"{median:8.2f} ({low:.2f} to {high:.2f})"


def _print_machine() -> None:
    from importlib.metadata import version

    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"{cpu.group(1) if cpu else platform.processor()}, {os.cpu_count()} processors, {platform.system()}")
    print(f"Python {platform.python_version()}, {versions}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="SUBJECT")

    importing = commands.add_parser("import", help=benchmark_import.__doc__)
    importing.add_argument("--runs", type=int, default=9)
    importing.set_defaults(run=benchmark_import)

    shape = argparse.ArgumentParser(add_help=False)
    shape.add_argument("--size", default="small", choices=("tiny", "small", "medium"))
    shape.add_argument("--height", type=int, default=800)
    shape.add_argument("--width", type=int, default=1216)
    shape.add_argument("--threads", type=int, default=2)
    backbone = commands.add_parser("backbone", help=benchmark_backbone.__doc__, parents=[shape])
    backbone.add_argument("--runs", type=int, default=5)
    backbone.set_defaults(run=benchmark_backbone)
    peak = commands.add_parser("backbone-peak", parents=[shape])
    peak.add_argument("kind", choices=("ours", "explicit"))
    peak.set_defaults(run=measure_backbone_peak)

    model = argparse.ArgumentParser(add_help=False, parents=[shape])
    model.add_argument("--architecture", default="retinanet", choices=("retinanet", "mrcnn"))
    model.add_argument("--steps", type=int, default=2, help="timed steps of a process; default: %(default)s")
    train = commands.add_parser("train", help=benchmark_train.__doc__, parents=[model])
    train.add_argument("--runs", type=int, default=3)
    train.set_defaults(run=benchmark_train)
    steps = commands.add_parser("train-steps", parents=[model])
    steps.add_argument("kind", choices=WAYS)
    steps.add_argument("--device", required=True)
    steps.add_argument("--mode", required=True)
    steps.set_defaults(run=measure_train_steps)

    weights = commands.add_parser("weights", help=benchmark_weights.__doc__)
    weights.add_argument("--runs", type=int, default=5)
    weights.add_argument("--megabytes", type=int, default=400, help="size of the file to fetch; default: %(default)s")
    weights.set_defaults(run=benchmark_weights)

    evaluate = commands.add_parser("evaluate", help=benchmark_evaluate.__doc__)
    evaluate.add_argument("--images", type=int, default=5000)
    evaluate.add_argument("--detections", type=int, default=100, help="of an image; default: %(default)s")
    evaluate.add_argument("--runs", type=int, default=3)
    evaluate.set_defaults(run=benchmark_evaluate)
    once = commands.add_parser("evaluate-once")
    once.add_argument("kind", choices=("ours", "pycocotools"))
    once.add_argument("--folder", type=Path, required=True)
    once.add_argument("--metric", required=True)
    once.set_defaults(run=measure_evaluation)

    args = parser.parse_args()
    if args.run not in (measure_backbone_peak, measure_train_steps, measure_evaluation):
        _print_machine()
    args.run(args)


if __name__ == "__main__":
    main()
