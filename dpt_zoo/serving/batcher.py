"""The queue between requests and detectors: images of one size are detected in batches."""

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DPTZooError, ImageError
from ..inference.detections import Detections
from ..inference.detector import Detector
from ..inference.inputs import ImageInput
from ..inference.limits import Limits
from ..utils.images import decode_image
from ..views.layout import Views

READERS = 2
"""Threads that decode images while the network runs."""
MAX_DELAY = 0.005
"""Longest time in seconds that an image waits for others of its size, while others are being decoded."""
MAX_DECODED = 64_000_000
"""Pixels of the decoded images in the queue from which on no further image is decoded."""

logger = logging.getLogger(__name__)


class QueueFullError(DPTZooError):
    """The queue has no place for the images of a request."""


class ClosedError(DPTZooError):
    """The service stops, and no longer detects."""


@dataclass(frozen=True)
class EncodedImage:
    """An image as a client sent it.

    Attributes:
        name: its name in answers and errors.
        content: the bytes of the image file.
    """

    name: str
    content: bytes


@dataclass(frozen=True)
class Options:
    """What a client chose for its images. Only images with equal options share a batch.

    Attributes:
        model: the name of the model.
        limits: what limits the objects. The score threshold is not None.
        views: the parts of an image in which to detect.
        keep_image: whether the detections keep the image, to draw it.
    """

    model: str
    limits: Limits
    views: Views = field(default_factory=Views)
    keep_image: bool = False


@dataclass(eq=False)
class _Job:
    """An image on its way through the queue."""

    image: EncodedImage
    options: Options
    future: "Future[Detections]"
    is_being_read: bool = False
    pixels: NDArray[np.uint8] | None = None  # decoded
    is_running: bool = False

    @property
    def is_ready(self) -> bool:
        return self.pixels is not None and not self.is_running

    @property
    def batch_key(self) -> Any:
        """What the images of a batch have in common."""
        assert self.pixels is not None
        return self.pixels.shape, self.options


class Batcher:
    """Detects the objects in images that arrive one by one. Its threads run until `close`.

    Args:
        replicas: the detectors by name, several times: each replica is used by one thread, and only by this object.
        batch_size: most images in a batch.
        max_images: most images in the queue, including those that are being detected.
        max_pixels: most pixels of an image.
        max_views: most views of an image, because each takes the time of a whole image.
        on_queue: called with the number of images in the queue when it changes.
        on_batch: called with the name of a model and the number of images before a batch runs.
    """

    def __init__(
        self,
        replicas: Sequence[Mapping[str, Detector]],
        *,
        batch_size: int,
        max_images: int,
        max_pixels: int,
        max_views: int,
        on_queue: Callable[[int], object] = lambda num_images: None,
        on_batch: Callable[[str, int], object] = lambda model, num_images: None,
    ) -> None:
        self._batch_size = batch_size
        self._max_images, self._max_pixels, self._max_views = max_images, max_pixels, max_views
        self._on_queue, self._on_batch = on_queue, on_batch
        self._jobs: dict[Future[Detections], _Job] = {}  # in the order of their arrival
        self._lock = threading.RLock()
        self._may_decode, self._may_detect = threading.Condition(self._lock), threading.Condition(self._lock)
        self._is_closed = False
        runners = [partial(self._run_batches, replica) for replica in replicas]
        targets: list[Callable[[], None]] = [*runners, *[self._decode_images] * READERS]
        self._threads = [threading.Thread(target=target, daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def submit(self, images: Sequence[EncodedImage], options: Options) -> list["Future[Detections]"]:
        """Put `images` with the same `options` into the queue: all or none.

        Returns:
            For each image, its future detections, or an `ImageError` if it cannot be read. Cancelling a future that
            has not begun to run frees its place.

        Raises:
            QueueFullError: There are not enough places.
            ClosedError: `close` was called.
        """
        jobs = [_Job(image, options, Future()) for image in images]
        with self._lock:
            if self._is_closed:
                raise ClosedError("the service is stopping")
            if len(self._jobs) + len(jobs) > self._max_images:
                raise QueueFullError(f"the queue is full: it has at most {self._max_images:,} images")
            for job in jobs:
                self._jobs[job.future] = job
                job.future.add_done_callback(self._remove)
            self._on_queue(len(self._jobs))
            self._may_decode.notify(len(jobs))
        return [job.future for job in jobs]

    def close(self) -> None:
        """End the threads. Images that wait get a `ClosedError`."""
        with self._lock:
            self._is_closed = True
            waiting = [job for job in self._jobs.values() if not job.is_running]
            self._may_decode.notify_all()
            self._may_detect.notify_all()
        for job in waiting:
            _finish(job, ClosedError("the service is stopping"))

    def _remove(self, future: "Future[Detections]") -> None:
        """Free the place of an image that has its result, or is no longer wanted."""
        with self._lock:
            del self._jobs[future]
            self._on_queue(len(self._jobs))
            self._may_decode.notify()  # where MAX_DECODED was reached

    def _decode_images(self) -> None:
        """Decode the images in the queue, in order."""
        while job := self._take_encoded():
            try:
                pixels = decode_image(job.image.content, job.image.name, self._max_pixels)
                self._check_views(job, pixels)
            except Exception as error:
                _finish(job, error)
            else:
                with self._lock:
                    job.pixels = pixels
                    self._may_detect.notify_all()

    def _check_views(self, job: _Job, pixels: NDArray[np.uint8]) -> None:
        count = job.options.views.count(pixels.shape[:2])
        if count > self._max_views:
            limit = f"at most {self._max_views:,} are accepted: use larger slices"
            raise ImageError(f"{job.image.name}: it would be detected in {count:,} views, {limit}")

    def _take_encoded(self) -> _Job | None:
        """Wait for an image to decode, and return it, or None at the end."""

        def find() -> _Job | None:
            num_pixels = sum(job.pixels.size // 3 for job in self._jobs.values() if job.pixels is not None)
            encoded = (job for job in self._jobs.values() if not job.is_being_read)
            return next(encoded, None) if num_pixels <= MAX_DECODED else None

        with self._lock:
            self._may_decode.wait_for(lambda: self._is_closed or find())
            job = None if self._is_closed else find()
            if job:
                job.is_being_read = True
            return job

    def _run_batches(self, replica: Mapping[str, Detector]) -> None:
        """Detect the objects in the images that have been decoded, with one replica."""
        while batch := self._take_batch():
            if len(batch) > 1:
                self._run(batch, replica)
            for job in batch:
                if not job.future.done():  # alone, or the batch failed: others must not fail with one of its images
                    self._run([job], replica)

    def _take_batch(self) -> list[_Job]:
        """Wait for images of one size, and return them, or nothing at the end."""

        def find() -> list[_Job]:
            ready = (job for job in self._jobs.values() if job.is_ready)
            if (first := next(ready, None)) is None:
                return []
            others = (job for job in ready if job.batch_key == first.batch_key)
            return [first, *islice(others, self._batch_size - 1)]

        def is_complete() -> bool:
            return len(find()) == self._batch_size or all(job.pixels is not None for job in self._jobs.values())

        with self._lock:
            while not self._is_closed:
                self._may_detect.wait_for(lambda: self._is_closed or find())
                self._may_detect.wait_for(lambda: self._is_closed or is_complete(), MAX_DELAY)
                batch = [job for job in find() if job.future.set_running_or_notify_cancel()]
                for job in batch:
                    job.is_running = True
                if batch:
                    return batch
        return []

    def _run(self, batch: Sequence[_Job], replica: Mapping[str, Detector]) -> None:
        """Run a detector of a replica on a batch. If it fails for a single image, this is the result."""
        options = batch[0].options
        detector = replica[options.model]
        self._on_batch(options.model, len(batch))
        inputs = [ImageInput(job.image.name, job.image.name, partial(_pixels, job)) for job in batch]
        try:
            detector.limits = options.limits
            for job, (_, result) in zip(batch, detector.detect_each(inputs, options.views), strict=True):
                if isinstance(result, Detections):
                    result = replace(result, image=job.pixels if options.keep_image else None)
                _finish(job, result)
        except Exception as error:
            if len(batch) == 1:
                _finish(batch[0], error)
            else:
                logger.warning("a batch failed, its images are detected one by one: %r", error)


def _pixels(job: _Job) -> NDArray[np.uint8]:
    assert job.pixels is not None
    return job.pixels


def _finish(job: _Job, result: Detections | Exception) -> None:
    """Set the result of an image, unless it was cancelled."""
    with contextlib.suppress(InvalidStateError):
        if isinstance(result, Detections):
            job.future.set_result(result)
        else:
            job.future.set_exception(result)
