"""The service beside the bare detector: images per second, processor time, latency and memory.

The clients run on the same cores as the service: on a machine with few cores, processor time says more than speed.
"""

import contextlib
import http.client
import itertools
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dpt_zoo.utils.environment import usable_cores

from .measuring import ROOT, Comparison, Settings, run_in_child

THREADS = max(1, len(usable_cores()) // 2)
WAYS = {
    f"one worker with two detections at a time, {THREADS} threads each": ([], 1),
    f"two workers with {THREADS} threads each, batches up to 8": (
        ["--workers", "2", "--num-threads", str(THREADS), "--batch-size", "8"],
        8,
    ),
}
"""The options of the service, and its batch size. All have as many detections at a time, with as many threads."""
CLIENTS = 32
SCENES = 64
TICK = os.sysconf("SC_CLK_TCK")


def compare(settings: Settings) -> Iterator[Comparison]:
    from dpt_zoo.data.digits import make_digit_scenes

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_digit_scenes(folder / "digits", num_train=1, num_test=SCENES)
        images = [path.read_bytes() for path in sorted((folder / "digits" / "val2017").glob("*.png"))]
        for architecture in settings.architectures:
            model = (settings.exported or folder) / f"{architecture}_dpt_nano_digits.onnx"
            if not model.exists():
                from dpt_zoo.exporting.exporter import export

                export(model.stem, model)
            for way in WAYS:
                yield from _compare_service(model, images, way, settings)


def _compare_service(model: Path, images: list[bytes], way: str, settings: Settings) -> Iterator[Comparison]:
    """Compare a service with two processes that only call a detector."""
    options, batch_size = WAYS[way]
    setting = f"{model.stem}, 192x192, {way}"
    values: dict[str, dict[str, list[float]]] = {}
    with Service(model, options) as service:
        service.ask(images, CLIENTS, SCENES)  # a warm-up
        memory = service.memory()
        for _ in range(settings.runs):
            alone = service.ask(images, 1, min(settings.images, 100))
            start, used = time.perf_counter(), service.processor_time()
            service.ask(images, CLIENTS, settings.images)
            speed = settings.images / (time.perf_counter() - start)
            measured = {
                "speed": {"ours, service": speed},
                "processor time of an image": {
                    "ours, service": (service.processor_time() - used) / settings.images,
                },
                "latency of one client, median": {"ours, service": float(np.median(alone))},
                "latency at half of the speed, 99th percentile": {
                    "ours, service": float(np.quantile(service.ask_at(speed / 2, images, settings.images), 0.99)),
                },
            }
            bare = run_bare(model, images, batch_size, settings.images)
            measured["speed"]["ours, Detector"], measured["processor time of an image"]["ours, Detector"] = bare
            for quantity, ways in measured.items():
                for way, value in ways.items():
                    values.setdefault(quantity, {}).setdefault(way, []).append(value)
        values["memory after all requests over that after the first"] = {"ours, service": [service.memory() - memory]}
    units = {"speed": "images/s", "memory": "MiB"}
    for quantity, by_way in values.items():
        yield Comparison("serve", setting, quantity, units.get(quantity.split()[0], "s"), by_way)


class Service:
    """`dpt-zoo serve` with an exported `model` and options, and clients of it.

    Attributes:
        url: its host and port.
    """

    def __init__(self, model: Path, options: Sequence[str] = ()) -> None:
        command = [sys.executable, "-m", "dpt_zoo", "serve", str(model), "--port", "0", "--max-queue", "1000", *options]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        assert self._process.stdout
        self.url = self._process.stdout.readline().partition(" ")[0].removeprefix("http://")

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def ask(self, images: Sequence[bytes], num_clients: int, num_requests: int) -> list[float]:
        """Let clients send requests, each one after another, and return the seconds of each request."""
        numbers, lock = iter(range(num_requests)), threading.Lock()

        def ask_in_turn(client: int) -> list[float]:
            times: list[float] = []
            with contextlib.closing(http.client.HTTPConnection(self.url)) as connection:
                while True:
                    with lock:
                        number = next(numbers, None)
                    if number is None:
                        return times
                    times.append(_ask(connection, images[number % len(images)]))

        with ThreadPoolExecutor(num_clients) as pool:
            return list(itertools.chain.from_iterable(pool.map(ask_in_turn, range(num_clients))))

    def ask_at(self, rate: float, images: Sequence[bytes], num_requests: int) -> list[float]:
        """Send requests at random times, `rate` in a second on average, and return the seconds of each request."""
        free: list[http.client.HTTPConnection] = []
        chance, due = random.Random(0), time.perf_counter()

        def ask(number: int, due: float) -> float:
            connection = free.pop() if free else http.client.HTTPConnection(self.url)
            _ask(connection, images[number % len(images)])
            free.append(connection)
            return time.perf_counter() - due

        with ThreadPoolExecutor(256) as pool:
            futures = []
            for number in range(num_requests):
                due += chance.expovariate(rate)
                time.sleep(max(0, due - time.perf_counter()))
                futures.append(pool.submit(ask, number, due))
            return [future.result() for future in futures]

    def processor_time(self) -> float:
        """Return the seconds of processor time that all processes have used."""
        ticks = 0
        for process in self._processes():
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / TICK

    def memory(self) -> float:
        """Return the private memory of all processes, in MiB."""
        texts = [Path(f"/proc/{process}/smaps_rollup").read_text() for process in self._processes()]
        return sum(int(size) for text in texts for size in re.findall(r"Private_\w+: +(\d+) kB", text)) / 1024

    def _processes(self) -> list[int]:
        process = self._process.pid
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return [process, *map(int, children)]


def _ask(connection: http.client.HTTPConnection, image: bytes) -> float:
    """Send an image, and return the seconds until its answer."""
    start = time.perf_counter()
    connection.request("POST", "/v1/detect", image)
    response = connection.getresponse()
    body = response.read()
    assert response.status == 200, body
    return time.perf_counter() - start


def run_bare(model: Path, images: list[bytes], batch_size: int, num_images: int) -> tuple[float, float]:
    """Return the images per second of two processes with a bare detector, and their processor time for an image."""
    arguments = {"model": str(model), "images": images, "batch_size": batch_size, "num_images": num_images // 2}
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(run_in_child, stream_images, **arguments) for _ in range(2)]
        results = [future.result() for future in futures]
    return sum(speed for speed, _ in results), sum(seconds for _, seconds in results) / 2


def stream_images(model: str, images: list[bytes], batch_size: int, num_images: int) -> tuple[float, float]:
    """Return a detector's images per second, and its processor time for an image."""
    from dpt_zoo import Detector

    detector = Detector(model, num_threads=THREADS, batch_size=batch_size)
    for _ in detector.stream(images):  # a warm-up
        pass
    start, used = time.perf_counter(), time.process_time()
    for _ in detector.stream(itertools.islice(itertools.cycle(images), num_images)):
        pass
    return num_images / (time.perf_counter() - start), (time.process_time() - used) / num_images
