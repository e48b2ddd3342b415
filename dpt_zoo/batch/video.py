"""Video files and cameras, a frame at a time: decoded ahead of the caller's work, written with their times and sound.

PyAV reads and writes files (its wheels carry FFmpeg's libraries; no program is needed), OpenCV reads cameras.
"""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, InputError, OutputError
from ..utils.files import atomic_path

if TYPE_CHECKING:
    import cv2
    from av import AudioStream, Packet, VideoFrame, VideoStream
    from av.container import InputContainer, OutputContainer

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv"}
    | {".ts", ".vob", ".webm", ".wmv"}
)

MP4_SOUND = frozenset({"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"})
"""The codecs of sound that players know in MP4."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video.

    Attributes:
        index: its number, from 0.
        time: seconds since the first frame.
        image: `(H, W, 3)` RGB in 0..255.
    """

    index: int
    time: float
    image: NDArray[np.uint8]


class VideoReader:
    """A video file or a camera, to go over its frames once; a context manager.

    A thread reads the next frames while the caller works on one. A camera goes on until the caller stops.

    Attributes:
        size: (height, width) of every frame, pixels; upright, as the file says that it is to be turned.
        rate: frames a second, on average.
        num_frames: how many there are, by what the file says; None if unknown.
        at_end: whether all frames were read.
    """

    def __init__(self, source: str | Path | int) -> None:
        """Open a file by its path, or a camera by its number.

        Raises:
            ImageError: the file is missing, no video or damaged. Where it is damaged further on, the frames before are
                given, and then this is raised.
            InputError: there is no such camera.
        """
        self.opened = _open_camera(source) if isinstance(source, int) else _open_file(Path(source))
        self.size = self.opened.size
        self.rate = self.opened.rate
        self.num_frames = self.opened.num_frames
        self.at_end = False
        self._frames = self._read()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *error: object) -> None:
        self._frames.close()  # its thread ends, which uses what is closed next
        self.opened.close()

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def _read(self) -> Generator[Frame, None, None]:
        yield from _read_ahead(self.opened.frames, self.opened.num_ahead)
        self.at_end = True


class VideoWriter:
    """A video written frame by frame, with the times and the sound of one that is read; a context manager.

    The file is there when the block ends well, and not at all otherwise. It is an MP4 of H.264 in 4:2:0, which browsers
    and players show. That has only even sides: a video with an odd one is VP9, so that it keeps its size. Sound that
    MP4 can hold is copied as it is, other is encoded as AAC; of several tracks, the one that a player would choose. If
    the reader is not at its end, the sound stops with the pictures.
    """

    def __init__(self, path: Path, like: VideoReader) -> None:
        """Write to `path` what is made of the frames of `like`.

        Raises:
            InputError: `path` does not end in .mp4.
            OutputError: it cannot be written. This is raised where the block begins or ends.
        """
        if path.suffix.lower() != ".mp4":
            raise InputError(f"{path}: videos are written as MP4: give a name that ends in .mp4")
        self._path = path
        self._like = like
        self._time_base = Fraction(1, like.opened.time_base.denominator)  # MP4 counts in whole parts of a second
        self._last = -1
        self._file = self._open()

    def __enter__(self) -> "VideoWriter":
        self._file.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def write(self, frame: Frame, image: NDArray[np.uint8]) -> None:
        """Add an image, `(H, W, 3)` RGB in 0..255 of the video's size, at the time of a frame."""
        from av import VideoFrame

        if image.shape != (*self._like.size, 3):
            raise InputError(f"{self._path}: an image of shape {image.shape} in a video of size {self._like.size}")
        picture = VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        self._last = max(round(frame.time / self._time_base), self._last + 1)  # some files repeat a time
        picture.pts, picture.time_base = self._last, self._time_base
        picture.duration = max(round(1 / self._like.rate / self._time_base), 1)
        self._output.mux(self._pictures.encode(picture))
        self._sound.mux_until(frame.time)

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        import av

        index_first = {"movflags": "+faststart"}  # so that a browser plays it while it is still loading
        with (
            atomic_path(self._path) as partial,
            av.open(f"file:{partial}", "w", format="mp4", options=index_first) as self._output,
            _Sound(self._like.opened, self._output) as self._sound,
        ):
            self._pictures = _add_pictures(self._output, self._like, self._time_base)
            try:
                yield
                if self._last < 0:
                    raise OutputError(f"{self._path}: no frame was written")
                self._output.mux(self._pictures.encode())
                if self._like.at_end:
                    self._sound.mux_until(math.inf)
            except av.FFmpegError as error:
                raise OutputError(f"{self._path} cannot be written: {error.strerror}") from error


def _add_pictures(output: "OutputContainer", like: VideoReader, time_base: Fraction) -> "VideoStream":
    from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

    height, width = like.size
    if height % 2 or width % 2:
        codec, options = "libvpx-vp9", {"crf": "24", "deadline": "realtime", "cpu-used": "8", "row-mt": "1"}
    else:
        codec, options = "libx264", {"crf": "20", "preset": "veryfast"}
    stream: Any = output.add_stream(codec, like.rate, options, time_base=time_base)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.codec_context.sample_aspect_ratio = like.opened.pixel_aspect
    stream.color_range, stream.colorspace = ColorRange.MPEG, Colorspace.ITU709
    stream.color_primaries, stream.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


class _Sound:
    """The sound of a file on its way into another one, piece by piece; a context manager."""

    def __init__(self, source: "_Video", output: "OutputContainer") -> None:
        self._output = output
        self._packets = _sound_packets(source, output)
        self._next = next(self._packets, None)  # its track has to be there before the first picture

    def __enter__(self) -> "_Sound":
        return self

    def __exit__(self, *error: object) -> None:
        self._packets.close()

    def mux_until(self, seconds: float) -> None:
        while self._next is not None and (self._next.pts or 0) * self._next.time_base < seconds:
            self._output.mux(self._next)
            self._next = next(self._packets, None)


def _sound_packets(source: "_Video", output: "OutputContainer") -> Generator["Packet[AudioStream]", None, None]:
    """The sound for a new track of the output, from the first frame on; damaged sound ends where the damage is."""
    import av

    if source.path is None:
        return
    with _open_container(source.path) as container, contextlib.suppress(av.FFmpegError):
        stream = container.streams.best("audio")
        if stream is None or stream.codec_context is None:
            return
        shift = round(source.start / stream.time_base)
        if stream.codec_context.codec.canonical_name in MP4_SOUND:
            yield from _copy_sound(container, stream, shift, output)
        else:
            yield from _encode_sound(container, stream, shift, output)


def _copy_sound(
    container: "InputContainer", stream: "AudioStream", shift: int, output: "OutputContainer"
) -> Iterator["Packet[AudioStream]"]:
    track = output.add_stream_from_template(stream)
    last: float = -math.inf
    for packet in container.demux(stream):
        if packet.dts is not None and packet.dts > last:  # MP4 has no place for others
            last = packet.dts
            packet.dts = packet.pts = packet.dts - shift
            packet.stream = track
            yield packet


def _encode_sound(
    container: "InputContainer", stream: "AudioStream", shift: int, output: "OutputContainer"
) -> Iterator["Packet[AudioStream]"]:
    import av

    rates = av.Codec("aac", "w").audio_rates or []
    track = output.add_stream("aac", stream.rate if stream.rate in rates else 48_000)
    track.layout = "mono" if stream.channels == 1 else "stereo"
    for frame in container.decode(stream):
        if frame.pts is not None:
            frame.pts -= shift
        yield from track.encode(frame)
    yield from track.encode()


@dataclass(frozen=True)
class _Video:
    """A file or a camera that is open."""

    frames: Iterator[Frame]
    close: Callable[[], None]
    size: tuple[int, int]
    rate: Fraction
    num_frames: int | None = None
    num_ahead: int = 1  # more, and a camera would show the past
    time_base: Fraction = Fraction(1, 90_000)
    pixel_aspect: Fraction = Fraction(1)
    path: Path | None = None
    start: Fraction = Fraction(0)  # the time of the first frame by the file's own clock, seconds


def _open_file(path: Path) -> _Video:
    from av.stream import Disposition

    container = _open_container(path)
    stream: Any = container.streams.best("video")
    if stream is None or stream.codec_context is None or stream.disposition & Disposition.attached_pic:
        raise ImageError(f"{path}: there is no video in this file, or none of a known codec")
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    pictures = _decode(container, stream, path, rate)
    first = next(pictures, None)
    if first is None:
        raise ImageError(f"{path}: there is no frame in this video")
    start = (first.pts or 0) * stream.time_base
    is_turned = bool(first.rotation % 180)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return _Video(
        frames=_to_frames(chain([first], pictures), stream, start, rate),
        close=container.close,
        size=(stream.width, stream.height) if is_turned else (stream.height, stream.width),
        rate=rate,
        num_frames=stream.frames or round(_duration(container) * rate) or None,
        num_ahead=4,
        time_base=stream.time_base,
        pixel_aspect=1 / aspect if is_turned else aspect,
        path=path,
        start=start,
    )


def _open_container(path: Path) -> "InputContainer":
    import av

    try:
        if path.is_dir():
            raise ImageError(f"{path}: this is a folder: name a video in it")
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty")
        # A name may look like an address ("12:30.mp4"), and a file may name addresses: neither is fetched.
        return av.open(f"file:{path}", options={"protocol_whitelist": "file"})
    except FileNotFoundError as error:
        raise ImageError(f"{path}: there is no such file") from error
    except OSError as error:
        raise ImageError(f"{path}: the file cannot be read: {error.strerror}") from error
    except av.FFmpegError as error:
        raise ImageError(f"{path}: this is no video of a known format, or it was cut off before its index") from error


def _duration(container: "InputContainer") -> Fraction:
    """What the file says of its length, seconds; 0 if nothing."""
    import av

    return Fraction(container.duration or 0, av.time_base)


class _DamageError(Exception):
    """What is read is not what was written."""


def _decode(container: "InputContainer", stream: "VideoStream", path: Path, rate: Fraction) -> Iterator["VideoFrame"]:
    """The pictures of a file; of a damaged one those before the damage, then an ImageError that tells where it is."""
    import av

    num_frames = 0
    try:
        for picture in _decode_packets(container, stream):
            yield picture
            num_frames += 1
    except (av.FFmpegError, _DamageError) as error:
        seconds = float(num_frames / rate)
        raise ImageError(f"{path}: damaged or cut off after {num_frames} frames, at about {seconds:.1f} s") from error


def _decode_packets(container: "InputContainer", stream: "VideoStream") -> Iterator["VideoFrame"]:
    import av

    end = Fraction(0)
    for packet in container.demux():
        if packet.pts is not None:
            end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
        if packet.stream is not stream:
            continue
        try:
            if packet.is_corrupt:
                raise _DamageError
            pictures = stream.decode(packet)
        except (av.FFmpegError, _DamageError):
            held_back = stream.decode(None)  # for the order of the pictures, which is not that of the packets
            yield from (picture for picture in held_back if (picture.pts or 0) < (packet.pts or 0))
            raise
        for picture in pictures:
            if picture.is_corrupt:
                raise _DamageError
            yield picture
    if container.format.name.startswith(("mov", "matroska")) and end + 1 < _duration(container):
        raise _DamageError  # these tell their length well, and may end early without another sign


def _to_frames(
    pictures: Iterator["VideoFrame"], stream: "VideoStream", start: Fraction, rate: Fraction
) -> Iterator[Frame]:
    width, height = stream.width, stream.height  # some files change theirs midway
    for index, picture in enumerate(pictures):
        seconds = index / rate if picture.pts is None else picture.pts * (stream.time_base or 1) - start
        image = picture.to_ndarray(format="rgb24", width=width, height=height)
        upright = np.rot90(image, picture.rotation // 90)
        yield Frame(index, float(seconds), np.ascontiguousarray(upright, dtype=np.uint8))


def _open_camera(number: int) -> _Video:
    import cv2

    if number < 0:  # OpenCV crashes
        raise InputError(f"camera {number}: cameras have numbers from 0")
    log_level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it tells all that it tried, in many lines
    try:
        camera = cv2.VideoCapture(number)
        is_read, picture = camera.read()
    finally:
        cv2.utils.logging.setLogLevel(log_level)
    if not is_read:
        raise InputError(f"camera {number} gives no picture: it is not there, in use or not allowed; 0 is the first")
    camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest picture, where the system can
    return _Video(
        frames=_camera_frames(camera, number),
        close=camera.release,
        size=(picture.shape[0], picture.shape[1]),
        rate=Fraction(max(camera.get(cv2.CAP_PROP_FPS), 0)).limit_denominator(1001) or Fraction(30),
    )


def _camera_frames(camera: "cv2.VideoCapture", number: int) -> Iterator[Frame]:
    start = None
    for index in count():
        is_read, picture = camera.read()
        if not is_read:
            raise ImageError(f"camera {number} gave no more pictures after {index}: see that it is connected")
        now = time.monotonic()
        start = start or now
        yield Frame(index, now - start, np.ascontiguousarray(picture[..., ::-1], dtype=np.uint8))


def _read_ahead(items: Iterator[Frame], num_ahead: int) -> Generator[Frame, None, None]:
    """Take items in a thread, a few before they are asked for."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="dpt-zoo-video")
    try:
        ahead = deque(pool.submit(next, items, None) for _ in range(num_ahead))
        while frame := ahead.popleft().result():
            ahead.append(pool.submit(next, items, None))
            yield frame
    finally:
        pool.shutdown(cancel_futures=True)
