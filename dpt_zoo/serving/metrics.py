"""Metrics for Prometheus. In several processes, each writes its own to a folder, and any of them answers for all."""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that names the folder. prometheus_client reads it when it is imported."""
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one process.

    Attributes:
        requests: answered requests, by route and status.
        latency: seconds from the headers of a request to the end of its answer, by route.
        errors: refused requests and unreadable images, by kind.
        queue: images in the queue.
        batches: sizes of batches, by model.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        labels = ["route"]
        self.requests = Counter("dpt_zoo_requests", "Answered requests", [*labels, "status"], registry=registry)
        self.latency = Histogram(
            "dpt_zoo_request_seconds", "Time to answer", labels, buckets=SECONDS, registry=registry
        )
        self.errors = Counter("dpt_zoo_errors", "Refused requests and unreadable images", ["kind"], registry=registry)
        self.queue = Gauge(
            "dpt_zoo_queue_images", "Images in the queue", registry=registry, multiprocess_mode="livesum"
        )
        self.batches = Histogram(
            "dpt_zoo_batch_images", "Images in a batch", ["model"], buckets=IMAGES, registry=registry
        )

    def render(self) -> bytes:
        """Return the metrics of all processes in Prometheus's text format."""
        registry = self._registry
        if FOLDER in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry)
