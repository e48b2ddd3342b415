"""The settings of the service."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..utils.validation import check_fraction, check_integer

API_KEYS = "DPT_ZOO_API_KEYS"
"""The environment variable with the keys that clients may use, separated by commas. Without it, no key is needed."""

GRACE_SECONDS = 8
"""Longest time after SIGTERM to answer what was accepted. All processes end within 10 seconds."""


@dataclass(frozen=True)
class Settings:
    """The settings of each worker.

    Attributes:
        models: the models, by the names that clients use: detectors of the zoo, or exported files.
        score_threshold: the lowest score of an object, unless a request says otherwise, in [0, 1].
        batch_size: most images that the network processes at once; None for one with several replicas, otherwise eight.
            Several images take about as long as one by one on a CPU, and one that arrives waits for the end of all.
        num_threads: the number of threads of a detection; None for all cores of the worker, or half
            of them where two images are detected at a time.
        max_queue: most images that wait or are being detected.
        max_images: most images of a request.
        max_bytes: most bytes of a request's body, and of an image at a URL.
        max_pixels: most pixels of an image.
        max_views: most views of an image: its slices, at each scale.
        timeout: seconds after which a request is answered with 503.
        url_hosts: the hosts of URLs that are fetched: "example.com", or with a port, "example.com:8080".
    """

    models: dict[str, str]
    score_threshold: float = 0.3
    batch_size: int | None = None
    num_threads: int | None = None
    max_queue: int = 256
    max_images: int = 16
    max_bytes: int = 32 << 20
    max_pixels: int = 50_000_000
    max_views: int = 64
    timeout: float = 30
    url_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fraction("score_threshold", self.score_threshold)
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size, 1)
        for name in ("max_queue", "max_images", "max_bytes", "max_pixels", "max_views"):
            check_integer(name, getattr(self, name), 1)
        if self.max_images > self.max_queue:
            raise InputError(f"max_queue must be at least max_images, {self.max_images}, not {self.max_queue}")
        if not self.timeout > 0:
            raise InputError(f"timeout must be a number of seconds above 0, not {self.timeout!r}")

    def choose_batch_size(self, num_replicas: int) -> int:
        """Return `batch_size`, or what it is by default with `num_replicas`."""
        return self.batch_size or (8 if num_replicas == 1 else 1)


def name_models(models: Sequence[str]) -> dict[str, str]:
    """Return `models` by the names that clients use: a file's name has no folder and no suffix.

    Raises:
        InputError: Two models have the same name.
    """
    named: dict[str, str] = {}
    for model in models:
        name = Path(model).stem
        if name in named:
            raise InputError(f"two models would have the name {name}: rename one of the files")
        named[name] = model
    return named


def read_api_keys() -> tuple[str, ...]:
    """Return the keys that clients may use, from the environment.

    Raises:
        InputError: The variable is there, but has an empty key.
    """
    if API_KEYS not in os.environ:
        return ()
    keys = tuple(key.strip() for key in os.environ[API_KEYS].split(","))
    if not all(keys):
        raise InputError(f"{API_KEYS} has an empty key: remove the variable to need no key")
    return keys
