"""A detection run over many images and videos: results are written while the network processes the next images."""

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType

import numpy as np

from ..errors import DPTZooError, ImageError, InputError
from ..inference.detections import Detections
from ..inference.detector import Detector
from ..inference.inputs import ImageInput
from ..utils.files import make_folder
from ..utils.progress import ProgressCallback
from .image_writer import ImageWriter
from .journal import ImageResult, Journal
from .video import Frame, FrameWriter, VideoReader, open_video, write_video

_WRITERS = 2  # threads that draw, encode and write pictures
_MOST_WAITING = 4  # images whose pictures are not yet written


@dataclass(frozen=True)
class VideoInput:
    """A video file or a camera.

    Attributes:
        name: a relative POSIX path for the files written for it.
        origin: the path, or "camera:0", as the results have it.
        input: the video file's path, or the camera's number.
    """

    name: str
    origin: str
    input: Path | int


class DetectionRun:
    """Detects objects in images and videos, and writes the results.

    Args:
        detector: the detector.
        journal: receives each image's detections of the classes that its settings keep.
        image_writer: writes the pictures.

    Attributes:
        num_images: the number of images and frames that are done.
        num_objects: the number of objects in them.
        failures: the errors of the other images.
    """

    def __init__(self, detector: Detector, journal: Journal, image_writer: ImageWriter) -> None:
        self.num_images = 0
        self.num_objects = 0
        self.failures: list[DPTZooError] = []
        self._detector = detector
        self._journal = journal
        self._image_writer = image_writer
        self._kept = [label for label, name in enumerate(detector.classes) if name in journal.settings.kept_classes]

    def detect_images(
        self, images: Sequence[ImageInput], progress: ProgressCallback, on_result: Callable[[Detections], None]
    ) -> None:
        """Detect objects in images. An image's error is added to `failures`, and the run continues.

        Args:
            images: the images.
            progress: called with the numbers of processed and of all images.
            on_result: called with each image's detections once they are written.

        Raises:
            OutputError: A result cannot be written. The results before it are unchanged.
        """

        def finish(result: ImageResult) -> None:
            self._record(result)
            on_result(result.detections)

        with _in_background(_WRITERS, finish) as submit:
            for number, (image, detections) in enumerate(self._detector.detect_each(images), 1):
                if isinstance(detections, ImageError):
                    self.failures.append(detections)
                else:
                    result = ImageResult(image.name, self._journal.new_stem(image.name), self._filter(detections))
                    submit(result, self._image_writer.write)
                progress(number, len(images))

    def detect_video(self, video: VideoInput, progress: ProgressCallback) -> None:
        """Detect objects in a video's frames, or in a camera's until Ctrl-C.

        The video's error is added to `failures`. If it is damaged, the results before the damage count.

        Args:
            video: the video.
            progress: called with the number of processed frames and, if known, of all.

        Raises:
            OutputError: A result cannot be written. The video has to be processed again as a whole.
        """
        try:
            with open_video(video.input) as reader:
                self._detect_frames(video, reader, progress)
        except (ImageError, InputError) as error:
            self.failures.append(error)

    def _detect_frames(self, video: VideoInput, reader: VideoReader, progress: ProgressCallback) -> None:
        frames = deque[Frame]()  # those in the detector
        last: ImageResult | None = None  # its line is written when it is known whether another frame follows

        def write(result: ImageResult, frame: Frame) -> None:
            if write_frame:
                write_frame(frame, np.asarray(result.detections.plot()))
            self._image_writer.write(result)

        def finish(result: ImageResult) -> None:
            nonlocal last
            if last:
                self._record(last)
            last = result

        inputs = self._read(video, reader, frames)
        with self._open_writer(video, reader) as write_frame, _in_background(1, finish) as submit:
            for number, (image, detections) in enumerate(self._detector.detect_each(inputs), 1):
                frame = frames.popleft()
                if isinstance(detections, ImageError):
                    raise detections
                result = ImageResult(image.name, image.name, self._filter(detections), frame.index, frame.time)
                submit(result, partial(write, frame=frame))
                progress(number, reader.num_frames)
        if last:
            self._record(replace(last, is_last=True))

    def _read(self, video: VideoInput, reader: VideoReader, frames: deque[Frame]) -> Iterator[ImageInput]:
        """Yield a video's frames as inputs, and append them to `frames`."""
        is_camera = isinstance(video.input, int)
        frame = None
        with _ended_by_ctrl_c() if is_camera else nullcontext(threading.Event()) as is_ended:
            try:
                for frame in reader:
                    frames.append(frame)
                    yield ImageInput(f"{video.name}/{frame.index:06d}", video.origin, partial(getattr, frame, "image"))
                    if is_ended.is_set():
                        return
            except ImageError as error:
                if frame is None:
                    raise
                self.failures.append(error)

    def _open_writer(self, video: VideoInput, reader: VideoReader) -> AbstractContextManager[FrameWriter | None]:
        """Open the drawn video `pictures/NAME.mp4`, if pictures are written."""
        if not self._image_writer.pictures:
            return nullcontext()
        name = video.name if video.name.lower().endswith(".mp4") else f"{video.name}.mp4"
        path = self._image_writer.folder / "pictures" / name
        make_folder(path.parent)
        return write_video(path, reader)

    def _filter(self, detections: Detections) -> Detections:
        """Return the objects of the classes to keep."""
        return detections[np.isin(detections.labels, self._kept)]

    def _record(self, result: ImageResult) -> None:
        self._journal.append(result)
        self.num_images += 1
        self.num_objects += len(result.detections)


@contextmanager
def _in_background(num_threads: int, finish: Callable[[ImageResult], None]) -> Iterator[Callable[..., None]]:
    """Provide a function that takes a result and the function that writes it in a thread, with any error raised here.

    `finish` is called with each written result, in order and in this thread; with all when the block ends in any way.
    """
    waiting = deque[tuple[ImageResult, Future[None]]]()

    def finish_all_but(limit: int) -> None:
        while waiting and (len(waiting) > limit or waiting[0][1].done()):
            result, written = waiting.popleft()
            written.result()
            finish(result)

    def submit(result: ImageResult, write: Callable[[ImageResult], None]) -> None:
        waiting.append((result, pool.submit(write, result)))
        finish_all_but(_MOST_WAITING)

    with ThreadPoolExecutor(num_threads, thread_name_prefix="dpt-zoo-writer") as pool:
        try:
            yield submit
        finally:
            finish_all_but(0)


@contextmanager
def _ended_by_ctrl_c() -> Iterator[threading.Event]:
    """Provide an event that the first Ctrl-C sets; the next Ctrl-C raises `KeyboardInterrupt` as usual."""
    event = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
