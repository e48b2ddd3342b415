"""Send many requests to `dpt-zoo serve` at a time, some of them bad, and compare each answer with a bare detector's.

python scripts/soak_service.py model.onnx --images DIR --seconds 120
"""

import argparse
import contextlib
import http.client
import itertools
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.serve import Service

from dpt_zoo import Detector

BAD = b"this is no image"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", type=Path, help="a file of `dpt-zoo export`")
    add(
        "--images",
        type=Path,
        required=True,
        metavar="DIR",
        help="a folder of PNG images, which are used again and again",
    )
    add("--seconds", type=float, default=120)
    add("--connections", type=int, default=200)
    add("--bad", type=int, default=20, metavar="N", help="of N requests of a connection, one has a bad body")
    add("--workers", type=int, default=1)
    add("--threads", type=int, default=1, help="threads of a detection")
    args = parser.parse_args()
    images = [path.read_bytes() for path in sorted(args.images.glob("*.png"))]
    detector = Detector(args.model, num_threads=args.threads)
    expected = [detector(image).to_json()["objects"] for image in images]
    statuses, seconds, num_wrong = Counter[int](), list[float](), 0

    def ask(client: int) -> None:
        nonlocal num_wrong
        with contextlib.closing(http.client.HTTPConnection(service.url, timeout=120)) as connection:
            for number in itertools.count(client):
                if time.monotonic() > end:
                    return
                is_bad, index = number % args.bad == 0, number % len(images)
                start = time.monotonic()
                connection.request("POST", "/v1/detect", BAD if is_bad else images[index])
                response = connection.getresponse()
                content: Any = json.loads(response.read())
                seconds.append(time.monotonic() - start)
                statuses[response.status] += 1
                if is_bad:
                    num_wrong += response.status != 400
                else:
                    num_wrong += response.status != 200 or content["images"][0]["objects"] != expected[index]

    options = ["--workers", str(args.workers), "--num-threads", str(args.threads)]
    with Service(args.model, options) as service:
        service.ask(images, 32, 1000)  # a warm-up
        memory, end = service.memory(), time.monotonic() + args.seconds
        with ThreadPoolExecutor(args.connections) as pool:
            list(pool.map(ask, range(args.connections)))
        middle, last = np.quantile(seconds, (0.5, 0.99))
        print(f"{sum(statuses.values()):,} requests: {num_wrong} wrong answers, statuses {dict(statuses)}")
        print(f"latency: median {middle:.2f} s, 99th percentile {last:.2f} s")
        print(f"private memory: {memory:.0f} MiB after 1,000 requests, {service.memory():.0f} MiB at the end")


if __name__ == "__main__":
    main()
