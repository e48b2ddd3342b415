"""Downloading compared with curl, converting, reading compared with MMEngine, and building models."""

import contextlib
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .measuring import MIB, ROOT, Action, Comparison, Settings, run_in_child, time_in_turn, watch_memory

AUTHORS_FILE = ROOT / "tests/reference/authors_format_retinanet_dpt_t_1x.pth.xz"


def compare(settings: Settings) -> Iterator[Comparison]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        yield from _compare_fetching(folder, settings)
        original = folder / "retinanet_dpt_t_1x.pth"
        with lzma.open(AUTHORS_FILE) as packed, original.open("wb") as file:
            shutil.copyfileobj(packed, file)
        yield from _measure_converting(original, settings)
        yield from _compare_reading(original, settings)


def _compare_fetching(folder: Path, settings: Settings) -> Iterator[Comparison]:
    served, target = folder / "served", folder / "fetched"
    with served.open("wb") as file:
        file.write(b"\0")  # random bytes that begin with "<" would be refused as a web page
        for _ in range(settings.megabytes):
            file.write(os.urandom(10**6))
    speeds: dict[str, list[float]] = {"ours": [], "curl, sha256sum": []}
    growths = []
    with _file_server(served) as url:
        shell = f"curl -sS -o {target}.curl {url} && sha256sum {target}.curl"
        for _ in range(settings.runs):
            for path in folder.glob("fetched*"):
                path.unlink()
            seconds, growth = run_in_child(fetch, url=url, target=str(target))
            speeds["ours"].append(settings.megabytes / seconds)
            growths.append(growth)
            start = time.perf_counter()
            subprocess.run(["bash", "-c", shell], check=True, capture_output=True)
            speeds["curl, sha256sum"].append(settings.megabytes / (time.perf_counter() - start))
    setting = f"fetch and hash {settings.megabytes} MB over loopback"
    yield Comparison("weights", setting, "speed", "MB/s", speeds)
    yield Comparison("weights", setting, "growth of the peak memory", "MiB", {"ours": growths})


def fetch(url: str, target: str) -> tuple[float, float]:
    """Download and hash a file; return the seconds, and by how many MiB this process's memory was raised."""
    from dpt_zoo.weights import http

    return _time_and_growth(lambda: http.download(url, http.opener_of(url), Path(target)))


def _measure_converting(original: Path, settings: Settings) -> Iterator[Comparison]:
    target = original.with_suffix(".safetensors")
    runs = [run_in_child(convert_file, original=str(original), target=str(target)) for _ in range(settings.runs)]
    size = target.stat().st_size
    setting = f"convert an authors' file of {original.stat().st_size / 1e6:.0f} MB, {size / 1e6:.0f} MB of it weights"
    yield Comparison("weights", setting, "time", "s", {"ours": [seconds for seconds, _ in runs]})
    shares = {"ours": [growth * MIB / size for _, growth in runs]}
    yield Comparison("weights", setting, "peak memory above `import torch` / weights", "", shares)


def convert_file(original: str, target: str) -> tuple[float, float]:
    """Convert a file; return the seconds, and by how many MiB the memory was raised above `import torch`."""
    import torch  # noqa: F401

    def run() -> None:
        from dpt_zoo.weights.converting import convert

        convert(Path(original), Path(target))

    return _time_and_growth(run)


def _time_and_growth(action: Action) -> tuple[float, float]:
    growth = watch_memory()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start, growth()


def _compare_reading(original: Path, settings: Settings) -> Iterator[Comparison]:
    import dpt_zoo.mmlab  # before mmengine and mmdet

    # isort: split
    from mmengine.config import Config
    from mmengine.runner import load_checkpoint
    from torch import nn

    import dpt_zoo
    from dpt_zoo.manifest.records import get_detector_info
    from dpt_zoo.models.factory import build_detector
    from dpt_zoo.weights.loading import load_weights
    from dpt_zoo.weights.store import adopt, read_trusted_weights

    os.environ["DPT_ZOO_CACHE"] = str(original.parent / "cache")
    checkpoint = get_detector_info("retinanet_dpt_t_1x")
    adopt(checkpoint, original)

    def build() -> nn.Module:
        return build_detector(Config.fromfile(checkpoint.config_path), checkpoint.num_classes)

    model = build()

    def read_cached() -> None:
        path, weights = read_trusted_weights(checkpoint)
        load_weights(model, weights.tensors, path, checkpoint.name)

    runs = 3 * settings.runs
    reading: dict[str, Action] = {
        "ours": read_cached,
        "mmengine, the original": lambda: load_checkpoint(model, str(original), "cpu", logger="silent"),
    }
    setting = f"read weights into a {checkpoint.title}"
    yield Comparison("weights", setting, "time", "s", time_in_turn(reading, runs))
    making: dict[str, Action] = {
        "ours, from the cache": lambda: dpt_zoo.create_model(checkpoint.name),
        "as PyTorch initialises it": build,
    }
    yield Comparison("weights", f"make a {checkpoint.title}", "time", "s", time_in_turn(making, runs))


@contextlib.contextmanager
def _file_server(path: Path) -> Iterator[str]:
    """Serve one file from a new process; yield its URL."""
    command = [sys.executable, "-c", SERVE, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/"
        finally:  # otherwise an error would wait for the server's end
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
