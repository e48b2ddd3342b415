"""Read and write video files with PyAV, which includes FFmpeg's libraries, and read cameras with OpenCV."""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, count
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.container import InputContainer, OutputContainer
from av.stream import Disposition
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray

from ..errors import ImageError, InputError, OutputError
from ..utils.files import atomic_path


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a video.

    Attributes:
        index: the frame's number, from 0.
        time: seconds since the first frame.
        image: `(H, W, 3)` RGB in 0..255, upright.
    """

    index: int
    time: float
    image: NDArray[np.uint8]


FrameWriter = Callable[[Frame, NDArray[np.uint8]], None]


@dataclass(eq=False)
class VideoReader:
    """An open video file or camera. Use it as a context manager, and iterate over its frames once.

    A thread reads the next frames while the caller processes one. The frames of a camera do not end.

    Attributes:
        image_size: (height, width) of every frame, pixels.
        rate: frames per second, on average.
        num_frames: the number of frames according to the file; None if unknown.
        time_base: the unit of the file's times, seconds.
        pixel_aspect: the width of a pixel divided by its height.
        path: the file; None for a camera.
        start: the time of the first frame on the file's own clock, seconds.
        at_end: whether all frames were read.
    """

    frames: Iterator[Frame]
    close: Callable[[], None]
    image_size: tuple[int, int]
    rate: Fraction
    num_frames: int | None = None
    time_base: Fraction = Fraction(1, 90_000)
    pixel_aspect: Fraction = Fraction(1)
    path: Path | None = None
    start: Fraction = Fraction(0)
    at_end: bool = False

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="dpt-zoo-video")
        self._ahead = deque[Future[Frame | None]]()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)  # its thread uses the file
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        while len(self._ahead) < (4 if self.path else 1):  # more frames of a camera would be late
            self._ahead.append(self._pool.submit(next, self.frames, None))
        while frame := self._ahead.popleft().result():
            self._ahead.append(self._pool.submit(next, self.frames, None))
            yield frame
        self.at_end = True


def open_video(video: str | Path | int) -> VideoReader:
    """Open a video file by its path, or a camera by its number.

    If a file is damaged, iteration yields the frames before the damage and then raises `ImageError`.

    Raises:
        ImageError: The file is missing, damaged or not a video.
        InputError: The camera does not exist or cannot be used.
    """
    return _open_camera(video) if isinstance(video, int) else _open_file(Path(video))


@contextlib.contextmanager
def write_video(path: Path, reader: VideoReader) -> Iterator[FrameWriter]:
    """Write an MP4 file with the size, times and sound of the video that `reader` reads to `path`.

    The block receives a function that adds an image, `(H, W, 3)` RGB in 0..255, at the time of a frame. The file is
    created when the block ends without an error. The codec is H.264 in 4:2:0, which browsers and players support, or
    VP9 if a side is odd. FFmpeg's default sound track is copied if MP4 supports it, and otherwise encoded as AAC. If
    the reader is not at its end, the sound stops with the last frame.

    Raises:
        InputError: The path does not end in .mp4, or the size of an image is not that of the video.
        OutputError: The file cannot be written, or no frame was written.
    """
    if path.suffix.lower() != ".mp4":
        raise InputError(f"{path}: videos are written as MP4: choose a name that ends in .mp4")
    time_base = Fraction(1, reader.time_base.denominator)  # MP4 requires the numerator 1
    last_time = -1
    next_packet: Any = None

    def write(frame: Frame, image: NDArray[np.uint8]) -> None:
        nonlocal last_time
        if image.shape != (*reader.image_size, 3):
            raise InputError(f"{path}: an image of shape {image.shape} in a video of size {reader.image_size}")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        last_time = max(round(frame.time / time_base), last_time + 1)  # some files repeat a time
        picture.pts, picture.time_base = last_time, time_base
        picture.duration = max(round(1 / reader.rate / time_base), 1)
        output.mux(stream.encode(picture))
        write_sound(until=frame.time)

    def write_sound(until: float) -> None:
        nonlocal next_packet
        while next_packet is not None and (next_packet.pts or 0) * next_packet.time_base < until:
            output.mux(next_packet)
            next_packet = next(sound, None)

    options = {"movflags": "+faststart"}  # the index comes first, so that a browser can play while it loads
    with (
        atomic_path(path) as partial,
        av.open(f"file:{partial}", "w", format="mp4", options=options) as output,
        contextlib.closing(_read_sound(reader, output)) as sound,
    ):
        next_packet = next(sound, None)  # adds the sound track, which must precede the first frame
        stream = _add_video_stream(output, reader, time_base)
        try:
            yield write
            if last_time < 0:
                raise OutputError(f"{path}: no frame was written")
            output.mux(stream.encode())
            if reader.at_end:
                write_sound(until=math.inf)
        except av.FFmpegError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def _add_video_stream(output: OutputContainer, reader: VideoReader, time_base: Fraction) -> Any:
    height, width = reader.image_size
    if height % 2 or width % 2:
        codec, options = "libvpx-vp9", {"crf": "24", "deadline": "realtime", "cpu-used": "8", "row-mt": "1"}
    else:
        codec, options = "libx264", {"crf": "20", "preset": "veryfast"}
    stream: Any = output.add_stream(codec, reader.rate, options, time_base=time_base)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.codec_context.sample_aspect_ratio = reader.pixel_aspect
    stream.color_range, stream.colorspace = ColorRange.MPEG, Colorspace.ITU709
    stream.color_primaries, stream.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


def _read_sound(reader: VideoReader, output: OutputContainer) -> Generator[Any, None, None]:
    """Yield the packets of a new sound track, with times since the first frame. Damaged sound ends at the damage."""
    if reader.path is None:
        return
    with _open_container(reader.path) as container, contextlib.suppress(av.FFmpegError):
        stream: Any = container.streams.best("audio")
        if stream is None or stream.codec_context is None:
            return
        shift = round(reader.start / stream.time_base)
        supported = {"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"}  # by players, in MP4
        if stream.codec_context.codec.canonical_name in supported:
            track: Any = output.add_stream_from_template(stream)
            last = -math.inf
            for packet in container.demux(stream):
                if packet.dts is not None and packet.dts > last:  # MP4 requires increasing times
                    last = packet.dts
                    packet.dts = packet.pts = packet.dts - shift
                    packet.stream = track
                    yield packet
            return
        rates = av.Codec("aac", "w").audio_rates or []
        track = output.add_stream("aac", stream.rate if stream.rate in rates else 48_000)
        track.layout = "mono" if stream.channels == 1 else "stereo"
        for frame in container.decode(stream):
            if frame.pts is not None:
                frame.pts -= shift
            yield from track.encode(frame)
        yield from track.encode()


def _open_file(path: Path) -> VideoReader:
    container = _open_container(path)
    stream: Any = container.streams.best("video")
    if stream is None or stream.codec_context is None or stream.disposition & Disposition.attached_pic:
        raise ImageError(f"{path}: there is no video in this file, or its codec is unknown")
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    pictures = _decode(container, stream, path, rate)
    if (first := next(pictures, None)) is None:
        raise ImageError(f"{path}: there is no frame in this video")
    start = (first.pts or 0) * stream.time_base
    width, height = stream.width, stream.height  # later frames of some files have another size
    is_turned = bool(first.rotation % 180)
    aspect = stream.sample_aspect_ratio or Fraction(1)

    def to_frame(index: int, picture: av.VideoFrame) -> Frame:
        seconds = index / rate if picture.pts is None else picture.pts * stream.time_base - start
        image = picture.to_ndarray(format="rgb24", width=width, height=height)
        upright = np.rot90(image, picture.rotation // 90)
        return Frame(index, float(seconds), np.ascontiguousarray(upright, dtype=np.uint8))

    return VideoReader(
        map(to_frame, count(), chain([first], pictures)),
        container.close,
        image_size=(width, height) if is_turned else (height, width),
        rate=rate,
        num_frames=stream.frames or round(Fraction(container.duration or 0, av.time_base) * rate) or None,
        time_base=stream.time_base,
        pixel_aspect=1 / aspect if is_turned else aspect,
        path=path,
        start=start,
    )


def _open_container(path: Path) -> InputContainer:
    try:
        if path.is_dir():
            raise ImageError(f"{path}: this is a folder: name a video in it")
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty")
        # Nothing is downloaded: a name may look like a URL ("12:30.mp4"), and a file may contain URLs.
        return av.open(f"file:{path}", options={"protocol_whitelist": "file"})
    except FileNotFoundError as error:
        raise ImageError(f"{path}: there is no such file") from error
    except OSError as error:
        raise ImageError(f"{path}: the file cannot be read: {error.strerror}") from error
    except av.FFmpegError as error:
        raise ImageError(f"{path}: this is not a video of a known format, or was cut off before its index") from error


class _DamageError(Exception):
    """The data of a file is damaged, but FFmpeg has not raised an error."""


def _decode(container: InputContainer, stream: Any, path: Path, rate: Fraction) -> Iterator[av.VideoFrame]:
    """Yield a file's frames. If it is damaged, raise `ImageError` with the time of the damage."""
    num_frames, end = 0, Fraction(0)
    try:
        for packet in container.demux():
            if packet.pts is not None:
                end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
            for picture in _decode_packet(packet, stream) if packet.stream is stream else ():
                yield picture
                num_frames += 1
        has_exact_duration = container.format.name.startswith(("mov", "matroska"))
        if has_exact_duration and end + 1 < Fraction(container.duration or 0, av.time_base):
            raise _DamageError
    except (av.FFmpegError, _DamageError) as error:
        seconds = float(num_frames / rate)
        raise ImageError(f"{path}: damaged or cut off after {num_frames} frames, at about {seconds:.1f} s") from error


def _decode_packet(packet: Any, stream: Any) -> Iterator[av.VideoFrame]:
    try:
        if packet.is_corrupt:
            raise _DamageError
        pictures = stream.decode(packet)
    except (av.FFmpegError, _DamageError):
        held_back = stream.decode(None)  # frames and packets are in different orders
        yield from (picture for picture in held_back if (picture.pts or 0) < (packet.pts or 0))
        raise
    for picture in pictures:
        if picture.is_corrupt:
            raise _DamageError
        yield picture


def _open_camera(number: int) -> VideoReader:
    if number < 0:  # OpenCV crashes
        raise InputError(f"camera {number}: cameras have numbers from 0")
    log_level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # OpenCV logs every attempt
    try:
        camera = cv2.VideoCapture(number)
        is_read, picture = camera.read()
    finally:
        cv2.utils.logging.setLogLevel(log_level)
    if not is_read:
        raise InputError(f"camera {number} gives no picture: it is missing, in use or not allowed; the first is 0")
    camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # read the newest picture, if the system supports it
    return VideoReader(
        _read_camera(camera, number),
        camera.release,
        image_size=(picture.shape[0], picture.shape[1]),
        rate=Fraction(max(camera.get(cv2.CAP_PROP_FPS), 0)).limit_denominator(1001) or Fraction(30),
    )


def _read_camera(camera: cv2.VideoCapture, number: int) -> Iterator[Frame]:
    start = None
    for index in count():
        is_read, picture = camera.read()
        if not is_read:
            raise ImageError(f"camera {number} gave no picture after {index} frames: check its connection")
        now = time.monotonic()
        start = start or now
        yield Frame(index, now - start, np.ascontiguousarray(picture[..., ::-1], dtype=np.uint8))
