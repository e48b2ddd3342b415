"""A detection run over many images and videos. Results are written while the network processes the next images."""

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
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import DPTZooError, ImageError, InputError
from ..inference.detections import Detections
from ..inference.detector import Detector
from ..inference.inputs import ImageInput, NamedInput, frame_input
from ..utils.files import make_folder
from ..utils.progress import ProgressCallback
from ..video.tracker import Tracker
from ..views.layout import Views
from .image_writer import ImageWriter
from .journal import ImageResult, Journal

if TYPE_CHECKING:
    from ..video.frames import Frame, FrameWriter, VideoReader

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv"}
    | {".ts", ".vob", ".webm", ".wmv"}
)


@dataclass(frozen=True)
class VideoInput(NamedInput):
    """A video file or a camera; the `origin` of a camera is "camera:0".

    Attributes:
        input: the video file's path, or the camera's number.
    """

    input: Path | int


class DetectionRun:
    """Detects objects with `detector` in `views`, and writes results to `journal` and pictures with `image_writer`.

    Attributes:
        num_images: the number of images and frames that are done.
        num_objects: the number of objects in them.
        failures: the errors of the inputs that failed.
    """

    def __init__(
        self, detector: Detector, journal: Journal, image_writer: ImageWriter, views: Views | None = None
    ) -> None:
        self.num_images = 0
        self.num_objects = 0
        self.failures: list[DPTZooError] = []
        self._detector = detector
        self._journal = journal
        self._image_writer = image_writer
        self._views = views

    def detect_images(
        self, images: Sequence[ImageInput], progress: ProgressCallback, on_result: Callable[[Detections], None]
    ) -> None:
        """Detect objects in `images`. The error of an image is added to `failures`, and the run continues.

        `progress` is called after each image, and `on_result` with its detections once they are written.

        Raises:
            OutputError: A result cannot be written. The results before it are unchanged.
        """

        def finish(result: ImageResult) -> None:
            self._record(result)
            on_result(result.detections)

        with _in_background(2, finish) as submit:
            for number, (image, detections) in enumerate(self._detector.detect_each(images, self._views), 1):
                if isinstance(detections, ImageError):
                    self.failures.append(detections)
                else:
                    kept = detections.filter(classes=self._journal.settings.kept_classes)
                    stem = self._journal.stems.new(image.name)
                    submit(ImageResult(image.name, stem, kept, key=image.key), self._image_writer.write)
                progress(number, len(images))

    def detect_video(self, video: VideoInput, progress: ProgressCallback) -> None:
        """Detect objects in the frames of a video, or of a camera until Ctrl-C. An error is added to `failures`.

        The results before damage in a video are kept. `progress` is called after each frame.

        Raises:
            OutputError: A result cannot be written. The whole video has to be processed again.
        """
        from ..video.frames import open_video

        try:
            with open_video(video.input) as reader:
                self._detect_frames(video, reader, progress)
        except (ImageError, InputError) as error:
            self.failures.append(error)

    def _detect_frames(self, video: VideoInput, reader: "VideoReader", progress: ProgressCallback) -> None:
        from ..video.frames import write_video

        detect: Callable[..., Iterator[tuple[ImageInput, Detections | ImageError]]] = self._detector.detect_each
        plot: Callable[[Detections], Image.Image] = Detections.plot
        if name := self._journal.settings.tracker:
            from .trails import Trails

            detect = partial(self._detector.track_each, tracker=Tracker(name, float(reader.rate)))
            plot = Trails(reader.image_size).plot
        frames: deque[Frame] = deque()  # those in the detector
        last: ImageResult | None = None  # its line, which says whether it is the video's last, is written later

        def write(result: ImageResult, frame: "Frame") -> None:
            if write_frame:
                write_frame(frame, np.asarray(plot(result.detections)))
            self._image_writer.write(result)

        def finish(result: ImageResult) -> None:
            nonlocal last
            if last:
                self._record(last)
            last = result

        drawn: AbstractContextManager[FrameWriter | None] = nullcontext()
        if self._image_writer.pictures:
            name = video.name if video.name.lower().endswith(".mp4") else f"{video.name}.mp4"
            path = self._image_writer.folder / "pictures" / name
            make_folder(path.parent)
            drawn = write_video(path, reader)
        inputs = self._read(video, reader, frames)
        with drawn as write_frame, _in_background(1, finish) as submit:
            for number, (image, detections) in enumerate(detect(inputs, views=self._views), 1):
                frame = frames.popleft()
                if isinstance(detections, ImageError):
                    raise detections
                kept = detections.filter(classes=self._journal.settings.kept_classes)
                result = ImageResult(image.name, image.name, kept, frame.index, frame.time, key=video.key)
                submit(result, partial(write, frame=frame))
                progress(number, reader.num_frames)
        if last:
            self._record(replace(last, is_last=True))

    def _read(self, video: VideoInput, reader: "VideoReader", frames: "deque[Frame]") -> Iterator[ImageInput]:
        """Yield a video's frames as inputs, and append them to `frames`."""
        frame = None
        with _ended_by_ctrl_c() if isinstance(video.input, int) else nullcontext(threading.Event()) as is_ended:
            try:
                for frame in reader:
                    frames.append(frame)
                    yield frame_input(frame, video.name, video.origin)
                    if is_ended.is_set():
                        return
            except ImageError as error:
                if frame is None:
                    raise
                self.failures.append(error)

    def _record(self, result: ImageResult) -> None:
        self._journal.append(result)
        self.num_images += 1
        self.num_objects += len(result.detections)


@contextmanager
def _in_background(num_threads: int, finish: Callable[[ImageResult], None]) -> Iterator[Callable[..., None]]:
    """Yield `submit(result, write)`, which calls `write(result)` in another thread.

    `finish` is called in this thread with each written result, in order; at the end of the block with all that are
    left, even after an error. Errors of the other threads are raised in this one.
    """
    waiting = deque[tuple[ImageResult, Future[None]]]()

    def finish_all_but(limit: int) -> None:
        while waiting and (len(waiting) > limit or waiting[0][1].done()):
            result, written = waiting.popleft()
            written.result()
            finish(result)

    def submit(result: ImageResult, write: Callable[[ImageResult], None]) -> None:
        waiting.append((result, pool.submit(write, result)))
        finish_all_but(4)  # limits the images in memory

    with ThreadPoolExecutor(num_threads, thread_name_prefix="dpt-zoo-writer") as pool:
        try:
            yield submit
        finally:
            finish_all_but(0)


@contextmanager
def _ended_by_ctrl_c() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C sets. The next Ctrl-C raises `KeyboardInterrupt` as usual."""
    event = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
