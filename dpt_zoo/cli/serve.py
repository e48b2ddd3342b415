"""`dpt-zoo serve`: detect objects for other programs, over HTTP."""

import argparse
from typing import Any

from .printing import show


def add_commands(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    serve = commands.add_parser(
        "serve",
        help="detect objects for other programs, over HTTP",
        description="Serve detectors over HTTP: POST images to /v1/detect. /openapi.json describes all routes. If the "
        "environment has DPT_ZOO_API_KEYS (keys separated by commas), each request needs one.",
    )
    add = serve.add_argument
    models = "detectors of `dpt-zoo list`, or files of `dpt-zoo export`; the first one is the default"
    add("models", nargs="+", metavar="MODEL", help=models)
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, only for this machine)")
    add("--port", type=int, default=8000, metavar="N", help="default: %(default)s; 0: any free port")
    add("--workers", type=int, metavar="N", help="processes, each with its own models (default: one for each device)")
    devices = "cpu, cuda:0, cuda:1, ..., one for each worker (default: a GPU if there is one)"
    add("--device", nargs="+", default=["auto"], metavar="D", help=devices)
    threads = "threads of a detection (default: half of a worker's cores for exported files, all for PyTorch)"
    add("--num-threads", type=int, metavar="N", help=threads)
    batch = "most images processed at once (default: 1 where two detections run at a time, otherwise 8)"
    add("--batch-size", type=int, metavar="N", help=batch)
    score = "the lowest score, unless a request says otherwise (default: %(default)s)"
    add("--score-threshold", type=float, default=0.3, metavar="S", help=score)
    limits = serve.add_argument_group("limits")
    add = limits.add_argument
    queue = "images of a worker that wait or are processed; more are refused (default: %(default)s)"
    add("--max-queue", type=int, default=256, metavar="N", help=queue)
    add("--max-images", type=int, default=16, metavar="N", help="images of a request (default: %(default)s)")
    add("--max-megabytes", type=int, default=32, metavar="N", help="size of a request (default: %(default)s)")
    pixels = "millions of pixels of an image (default: %(default)s)"
    add("--max-megapixels", type=int, default=50, metavar="N", help=pixels)
    views = "slices of an image, at each scale (default: %(default)s)"
    add("--max-views", type=int, default=64, metavar="N", help=views)
    add("--timeout", type=float, default=30, metavar="S", help="seconds to answer in (default: %(default)s)")
    hosts = "fetch images at URLs of these hosts, and of no others (default: none)"
    add("--allow-url-host", nargs="+", default=[], metavar="HOST[:PORT]", help=hosts)
    serve.set_defaults(run=run_serve)


def run_serve(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    from ..serving.settings import Settings, name_models
    from ..serving.workers import serve

    settings = Settings(
        models=name_models(args.models),
        score_threshold=args.score_threshold,
        batch_size=args.batch_size,
        num_threads=args.num_threads,
        max_queue=args.max_queue,
        max_images=args.max_images,
        max_bytes=args.max_megabytes << 20,
        max_pixels=args.max_megapixels * 1_000_000,
        max_views=args.max_views,
        timeout=args.timeout,
        url_hosts=tuple(host.lower() for host in args.allow_url_host),
    )
    place = {"host": args.host, "port": args.port, "devices": args.device, "workers": args.workers}
    serve(settings, **place, ready=lambda url: show(f"{url} (stop with Ctrl-C)"))
    return 0
