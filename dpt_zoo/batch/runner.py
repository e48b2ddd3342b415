"""A run over many images and videos: what is found goes to a folder while the network is at the next ones."""

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from .image_writer import Saver
from .journal import ImageResult, Journal
from .video import Frame, VideoReader, VideoWriter

_WRITERS = 2
"""Threads that draw, encode and write pictures."""
_MOST_WAITING = 4
"""Images that may wait for their pictures to be written."""


@dataclass(frozen=True)
class Video:
    """A video file or a camera.

    Attributes:
        name: a relative POSIX path for what is written of it.
        origin: what messages call it.
        source: the file, or the camera's number.
    """

    name: str
    origin: str
    source: Path | int


class Run:
    """Detects objects in images and videos, and writes what it finds.

    Args:
        detector: it finds the objects.
        journal: takes a line for each image; of the objects, it has those whose classes its settings keep.
        saver: writes the pictures.

    Attributes:
        num_images: images and frames that were done.
        num_objects: objects in them.
        failures: what was wrong with the other images.
    """

    def __init__(self, detector: Detector, journal: Journal, saver: Saver) -> None:
        self.num_images = 0
        self.num_objects = 0
        self.failures: list[DPTZooError] = []
        self._detector = detector
        self._journal = journal
        self._saver = saver
        self._kept = [label for label, name in enumerate(detector.classes) if name in journal.settings.kept]

    def detect_images(
        self, images: Sequence[ImageInput], progress: ProgressCallback, tell: Callable[[Detections], None]
    ) -> None:
        """Detect objects in images. What is wrong with one is noted, and the others are done.

        Args:
            images: the images.
            progress: told how many were looked at.
            tell: given what was found in each, once it is written.

        Raises:
            OutputError: something cannot be written; what was written before stands.
        """

        def finish(entry: ImageResult) -> None:
            self._record(entry)
            tell(entry.found)

        with _in_background(_WRITERS, finish) as submit:
            for number, (source, found) in enumerate(self._detector.detect_each(images), 1):
                if isinstance(found, ImageError):
                    self.failures.append(found)
                else:
                    entry = ImageResult(source.name, self._journal.new_stem(source.name), self._choose(found))
                    submit(entry, self._saver.save)
                progress(number, len(images))

    def detect_video(self, video: Video, progress: ProgressCallback) -> None:
        """Detect objects in a video's frames, or in a camera's until Ctrl-C.

        What is wrong with it is noted; if it is damaged further on, what was found before that counts.

        Args:
            video: the video.
            progress: told how many frames were looked at.

        Raises:
            OutputError: something cannot be written; the video counts as not begun.
        """
        try:
            with VideoReader(video.source) as reader:
                self._detect_frames(video, reader, progress)
        except (ImageError, InputError) as error:
            self.failures.append(error)

    def _detect_frames(self, video: Video, reader: VideoReader, progress: ProgressCallback) -> None:
        frames = deque[Frame]()  # those that the detector is at
        held: ImageResult | None = None  # the last frame's line is written when the video is whole

        def save(entry: ImageResult, frame: Frame) -> None:
            if writer:
                writer.write(frame, np.asarray(entry.found.plot()))
            self._saver.save(entry)

        def finish(entry: ImageResult) -> None:
            nonlocal held
            if held:
                self._record(held)
            held = entry

        with self._open_writer(video, reader) as writer, _in_background(1, finish) as submit:
            for number, (source, found) in enumerate(self._detector.detect_each(self._read(video, reader, frames)), 1):
                frame = frames.popleft()
                if isinstance(found, ImageError):
                    raise found
                entry = ImageResult(source.name, source.name, self._choose(found), frame.index, frame.time)
                submit(entry, partial(save, frame=frame))
                progress(number, reader.num_frames)
        if held:
            self._record(replace(held, is_last=True))

    def _read(self, video: Video, reader: VideoReader, frames: deque[Frame]) -> Iterator[ImageInput]:
        """A video's frames as images; they are also put into `frames`."""
        is_camera = isinstance(video.source, int)
        frame = None
        with _ended_by_ctrl_c() if is_camera else contextlib.nullcontext(threading.Event()) as is_ended:
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

    def _open_writer(self, video: Video, reader: VideoReader) -> contextlib.AbstractContextManager[VideoWriter | None]:
        """The drawn video `pictures/NAME.mp4`, if pictures are written."""
        if not self._saver.pictures:
            return contextlib.nullcontext()
        name = video.name if video.name.lower().endswith(".mp4") else f"{video.name}.mp4"
        path = self._saver.folder / "pictures" / name
        make_folder(path.parent)
        return VideoWriter(path, reader)

    def _choose(self, found: Detections) -> Detections:
        """The objects of the classes that are kept."""
        return found[np.isin(found.labels, self._kept)]

    def _record(self, entry: ImageResult) -> None:
        self._journal.append(entry)
        self.num_images += 1
        self.num_objects += len(entry.found)


_Submit = Callable[[ImageResult, Callable[[ImageResult], None]], None]


@contextlib.contextmanager
def _in_background(num_threads: int, finish: Callable[[ImageResult], None]) -> Iterator[_Submit]:
    """Give a function that takes entries, and what saves each in a thread; `finish` is then called here, in order.

    When the block ends, however it does, those that were taken are finished. What fails in a thread is raised here.
    """
    waiting = deque[tuple[ImageResult, Future[None]]]()

    def finish_all_but(limit: int) -> None:
        while waiting and (len(waiting) > limit or waiting[0][1].done()):
            entry, saved = waiting.popleft()
            saved.result()
            finish(entry)

    def submit(entry: ImageResult, save: Callable[[ImageResult], None]) -> None:
        waiting.append((entry, pool.submit(save, entry)))
        finish_all_but(_MOST_WAITING)

    with ThreadPoolExecutor(num_threads, thread_name_prefix="dpt-zoo-writer") as pool:
        try:
            yield submit
        finally:
            finish_all_but(0)


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Iterator[threading.Event]:
    """Give an event that the first Ctrl-C sets; the next one interrupts as ever."""
    event = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
