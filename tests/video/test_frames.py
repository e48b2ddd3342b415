"""Videos: frames are those that OpenCV reads, and are written with the times and the sound of the input."""

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from numpy.typing import NDArray

from dpt_zoo.batch.runner import VIDEO_SUFFIXES
from dpt_zoo.errors import ImageError, InputError, OutputError
from dpt_zoo.video.frames import Frame, open_video, write_video

SIZE = (48, 64)
RATE = 25
SOUND_RATE = 48_000
TONE = 440


def picture(index: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Make an image with a red band above, a green one below and, between them, a blue one on the left and noise.

    A white square moves by 2 pixels per frame. No two turned or mirrored versions of the image are alike.
    """
    image = np.random.default_rng(index).integers(20, 36, (*size, 3), np.uint8)
    image[:, : size[1] // 2] = (40, 40, 200)
    image[: size[0] // 4] = (200, 40, 40)
    image[-(size[0] // 4) :] = (40, 160, 40)
    left = 2 * index % max(size[1] - 8, 1)
    image[size[0] // 2 - 4 : size[0] // 2 + 4, left : left + 8] = 255
    return image


def make_video(
    path: Path,
    codec: str = "libx264",
    *,
    size: tuple[int, int] = SIZE,
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: Sequence[int] = range(20),
    time_base: Fraction = Fraction(1, RATE),
    rotation: int = 0,
    aspect: Fraction = Fraction(1),
    sound: str = "",
    tone: tuple[float, float] = (0, 0.8),
) -> Path:
    """Write `picture(0)`, `picture(1)`, ... at some times, and a tone that sounds from one second to another."""
    with av.open(str(path), "w", options={"movflags": "+faststart"} if path.suffix == ".mp4" else {}) as output:
        video: Any = output.add_stream(codec, RATE, options or {}, time_base=time_base)
        video.width, video.height, video.pix_fmt = size[1], size[0], pixels
        video.codec_context.sample_aspect_ratio = aspect
        if rotation:
            video.set_display_rotation(rotation)
        if sound:
            output.mux(list(encode_tone(output.add_stream(sound, SOUND_RATE), *tone)))
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(index, size), "rgb24")
            frame.pts, frame.time_base = time, time_base
            output.mux(video.encode(frame))
        output.mux(video.encode())
    return path


def encode_tone(track: Any, begin: float, end: float) -> Iterator[Any]:
    for first in range(round(begin * SOUND_RATE), round(end * SOUND_RATE), 960):
        wave = np.sin(2 * np.pi * TONE / SOUND_RATE * np.arange(first, first + 960))
        samples = np.repeat((wave * 2**14).astype(np.int16), 2)[None]
        frame = av.AudioFrame.from_ndarray(samples, "s16", "stereo")
        frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, first, Fraction(1, SOUND_RATE)
        yield from track.encode(frame)
    yield from track.encode()


def frames_of(path: Path) -> list[Frame]:
    with open_video(path) as video:
        return list(video)


def frames_by_opencv(path: Path) -> list[NDArray[np.uint8]]:
    capture = cv2.VideoCapture(str(path))
    images = []
    while (read := capture.read())[0]:
        images.append(np.asarray(read[1][..., ::-1], np.uint8))
    return images


def number_of(image: NDArray[np.uint8]) -> int:
    """Which picture this is, by the place of its square."""
    bright = image[image.shape[0] // 2].min(axis=1) > 128
    return int(bright.argmax()) // 2


def copy_video(source: Path, target: Path, stop_after: int | None = None) -> Path:
    with open_video(source) as video, write_video(target, video) as write:
        for frame in video:
            write(frame, frame.image)
            if frame.index + 1 == stop_after:
                break
    return target


def distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other).mean())


def assert_shows(image: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
    """Check that an encoded image is the expected one, and neither turned nor mirrored.

    Encoding changes a value by 3 to 6 on average, which depends on the codec's version and threads. A mirrored image
    differs by 30 or more.
    """
    assert distance(image, expected) < 15
    if min(expected.shape[:2]) > 2:
        for mirrored in (expected[::-1], expected[:, ::-1], expected[::-1, ::-1]):
            assert distance(image, mirrored) > distance(image, expected) + 10


# Reading


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("video.mp4", "libx264", "yuv420p"),
        ("video.mov", "mjpeg", "yuvj420p"),
        ("video.mkv", "libx264", "yuv444p"),
        ("video.webm", "libvpx-vp9", "yuv420p"),
        ("video.avi", "mpeg4", "yuv420p"),
        ("video.ts", "libx264", "yuv420p"),
        ("video.mpg", "mpeg2video", "yuv420p"),
        ("ten bits.mp4", "libx264", "yuv420p10le"),
        ("Fähre 船.mp4", "libx264", "yuv420p"),
    ],
)
def test_frames_are_opencvs(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    path = make_video(tmp_path / name, codec, pixels=pixels)
    with open_video(path) as video:
        assert (video.image_size, video.rate) == (SIZE, Fraction(RATE))
        assert video.num_frames is not None and abs(video.num_frames - 20) <= 3
        frames = list(video)
    assert [frame.index for frame in frames] == list(range(20))
    assert [frame.time for frame in frames] == pytest.approx([index / RATE for index in range(20)], abs=1e-3)
    for frame, expected in zip(frames, frames_by_opencv(path), strict=True):
        assert frame.image.dtype == np.uint8 and frame.image.flags.c_contiguous
        assert distance(frame.image, expected) < 5  # two conversions from YUV
        assert_shows(frame.image, picture(frame.index))
        assert number_of(frame.image) == frame.index


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_frames_are_upright(tmp_path: Path, rotation: int) -> None:
    path = make_video(tmp_path / "video.mp4", rotation=rotation, aspect=Fraction(4, 3))
    upright = np.rot90(picture(0), rotation // 90)
    with open_video(path) as video:
        assert video.image_size == upright.shape[:2]
        assert_shows(next(iter(video)).image, upright)
    assert_shows(frames_by_opencv(path)[0], upright)

    copy = copy_video(path, tmp_path / "copy.mp4")
    assert_shows(frames_of(copy)[0].image, upright)
    with av.open(str(copy)) as container:
        assert container.streams.video[0].sample_aspect_ratio == (Fraction(4, 3) if rotation == 180 else Fraction(3, 4))


@pytest.mark.parametrize("name", ["video.mp4", "video.mkv", "video.ts"])
def test_times_are_the_files(tmp_path: Path, name: str) -> None:
    times = [500, 540, 600, 1000, 1010, 3000]
    path = make_video(tmp_path / name, times=times, time_base=Fraction(1, 1000))
    expected = [(time - 500) / 1000 for time in times]
    assert [frame.time for frame in frames_of(path)] == pytest.approx(expected, abs=1e-4)
    copy = copy_video(path, tmp_path / "copy.mp4")
    assert [frame.time for frame in frames_of(copy)] == pytest.approx(expected, abs=1e-4)


def test_one_frame(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mp4", times=[0])
    copy = copy_video(path, tmp_path / "copy.mp4")
    assert [frame.time for frame in frames_of(copy)] == [0]
    assert len(frames_by_opencv(copy)) == 1


def test_a_name_that_looks_like_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_video(tmp_path / "12:30.mp4")
    monkeypatch.chdir(tmp_path)
    copy = copy_video(Path("12:30.mp4"), Path("http:12:30.mp4"))
    assert len(frames_of(copy)) == 20


def test_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(make_video(tmp_path / "video.mp4"))
    assert len(frames_of(tmp_path / "link.mp4")) == 20


def no_video(path: Path, kind: str) -> None:
    """Make something at the path that is no video."""
    match kind:
        case "folder":
            path.mkdir()
        case "empty":
            path.touch()
        case "text":
            path.write_text("no video at all\n" * 100)
        case "subtitles":
            path.write_text("1\n00:00:01,000 --> 00:00:02,000\nno video at all\n\n" * 10)
        case "addresses":
            path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1/1.ts\n#EXT-X-ENDLIST\n")
        case "no index":
            whole = make_video(path.with_name("whole.mov"))  # whose index is at its end
            path.write_bytes(whole.read_bytes()[:-200])
        case "sound":
            with av.open(str(path), "w") as output:
                output.mux(list(encode_tone(output.add_stream("aac", SOUND_RATE), 0, 1)))
        case "sound with a cover":
            with av.open(str(path), "w") as output:
                cover: Any = output.add_stream("mjpeg", 1)
                cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
                cover.disposition = Disposition.attached_pic
                output.mux(list(encode_tone(output.add_stream("aac", SOUND_RATE), 0, 1)))
                output.mux(cover.encode(av.VideoFrame.from_ndarray(picture(0), "rgb24")))
                output.mux(cover.encode())
        case "no frame":
            with av.open(str(path), "w", format="avi") as output:
                output.add_stream("mpeg4", RATE)
                output.start_encoding()


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("missing", "there is no such file"),
        ("folder", "this is a folder"),
        ("empty", "the file is empty"),
        ("text", "not a video of a known format"),
        ("subtitles", "there is no video in this file"),
        ("addresses", "not a video of a known format"),
        ("no index", "cut off before its index"),
        ("sound", "there is no video in this file"),
        ("sound with a cover", "there is no video in this file"),
        ("no frame", "there is no frame in this video"),
    ],
)
def test_one_clear_line(tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str, complaint: str) -> None:
    path = tmp_path / "video.mp4"
    no_video(path, kind)
    with pytest.raises(ImageError, match=complaint) as raised:
        open_video(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def inside_a_key_frame(path: Path) -> int:
    """Return a byte offset in a key frame near the middle of a video; a cut between frames cannot be detected."""
    with av.open(str(path)) as video:
        key_frames = [packet for packet in video.demux(video=0) if packet.is_keyframe and packet.pos]
    middle = key_frames[len(key_frames) // 2]
    assert middle.pos is not None
    return middle.pos + middle.size // 2


@pytest.mark.parametrize(
    ("name", "codec", "damage"),
    [
        ("video.mp4", "libx264", "cut"),
        ("video.mkv", "libx264", "cut"),
        ("video.ts", "libx264", "cut"),
        ("video.mp4", "libx264", "noise"),
        ("video.mov", "mjpeg", "noise"),
        ("video.ts", "libx264", "noise"),
    ],
)
def test_damage_in_the_middle(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, codec: str, damage: str
) -> None:
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = make_video(tmp_path / name, codec, pixels=pixels, times=range(100), options={"g": "10", "qmax": "5"})
    content = path.read_bytes()
    place = inside_a_key_frame(path)
    before, after = content[:place], content[place:]
    path.write_bytes(before if damage == "cut" else before + bytes(range(100)) * 8 + after[800:])
    frames = []
    with open_video(path) as video, pytest.raises(ImageError, match="damaged or cut off after") as raised:
        for frame in video:
            frames.append(frame)
    assert f"after {len(frames)} frames, at about {len(frames) / RATE:.1f} s" in str(raised.value)
    assert 20 < len(frames) < 80
    # Of the picture that breaks off, some decoders give what they have.
    assert all(number_of(frame.image) == frame.index % 28 for frame in frames[:-1])
    assert capfd.readouterr() == ("", "")


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("dpt-zoo-video")]


def test_reading_ahead_stops_with_the_caller(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mp4", times=range(100))
    with open_video(path) as video:
        for frame in video:
            assert len(reading_threads()) == 1
            if frame.index == 10:
                break
        assert next(iter(video)).index == 11  # as with a file, what was not read is still there
        assert not video.at_end
    assert not reading_threads()

    with pytest.raises(ZeroDivisionError), open_video(path) as video:
        for frame in video:
            1 // (5 - frame.index)
    assert not reading_threads()


@pytest.mark.slow
def test_memory_does_not_grow(tmp_path: Path) -> None:
    """Copy 400 frames of 320x240; the last 300 would need 69 MB if they were kept."""
    path = make_video(tmp_path / "video.mp4", size=(240, 320), times=range(400), options={"preset": "ultrafast"})
    code = """
import resource, sys
from pathlib import Path
from dpt_zoo.video.frames import open_video, write_video

with open_video(sys.argv[1]) as video, write_video(Path(sys.argv[2]), video) as write:
    for frame in video:
        write(frame, frame.image)
        if frame.index in (100, 399):
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, path, tmp_path / "copy.mp4"], capture_output=True, text=True, check=True
    )
    early, late = map(int, ran.stdout.split())
    assert late - early < 30


# Writing


@pytest.mark.parametrize("size", [(48, 64), (47, 65), (48, 65), (47, 64), (2, 2), (1, 1), (540, 960)])
def test_sizes_are_kept(tmp_path: Path, size: tuple[int, int]) -> None:
    path = make_video(tmp_path / "video.mkv", "ffv1", size=size, pixels="bgr0", times=range(3))
    copy = copy_video(path, tmp_path / "copy.mp4")
    with av.open(str(copy)) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == size
        assert stream.codec_context.name == ("vp9" if size[0] % 2 or size[1] % 2 else "h264")
        assert (stream.average_rate, stream.frames) == (RATE, 3)
    assert len(frames_by_opencv(copy)) == 3
    for frame, by_opencv in zip(frames_of(copy), frames_by_opencv(copy), strict=True):
        assert_shows(frame.image, picture(frame.index, size))
        assert_shows(by_opencv, picture(frame.index, size))


def test_what_is_written_is_what_was_given(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mp4")
    with open_video(path) as video, write_video(tmp_path / "copy.mp4", video) as write:
        for frame in video:
            write(frame, frame.image[:, ::-1])
    for frame in frames_of(tmp_path / "copy.mp4"):
        assert_shows(frame.image, picture(frame.index)[:, ::-1])


def sound_of(path: Path) -> tuple[str, float, NDArray[np.float32]]:
    """The codec of a video's sound, its beginning in seconds after the first picture, and its samples."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler("flt", "mono", SOUND_RATE)
        frames = list(container.decode(stream))
        samples = [each.to_ndarray()[0] for frame in frames for each in resampler.resample(frame)]
    with open_video(path) as video:
        begin = float(frames[0].time - video.start)
    return stream.codec_context.codec.canonical_name, begin, np.concatenate(samples)


@pytest.mark.parametrize(
    ("name", "codec", "sound", "written"),
    [
        ("video.mp4", "libx264", "aac", "aac"),
        ("video.ts", "libx264", "aac", "aac"),
        ("video.avi", "mpeg4", "libmp3lame", "mp3"),
        ("video.webm", "libvpx-vp9", "libopus", "opus"),
        ("video.mkv", "libx264", "flac", "flac"),
        ("video.mkv", "libx264", "ac3", "ac3"),
        ("video.mov", "libx264", "pcm_s16le", "aac"),
        ("video.avi", "mpeg4", "pcm_s16le", "aac"),
        ("video.mpg", "mpeg2video", "mp2", "aac"),
    ],
)
def test_sound_is_kept(tmp_path: Path, name: str, codec: str, sound: str, written: str) -> None:
    path = make_video(tmp_path / name, codec, sound=sound)
    copy = copy_video(path, tmp_path / "copy.mp4")
    _, begin, samples = sound_of(path)
    codec_written, begin_written, samples_written = sound_of(copy)
    assert codec_written == written
    assert begin_written == pytest.approx(begin, abs=0.03)
    assert len(samples_written) == pytest.approx(len(samples), abs=0.05 * SOUND_RATE)
    spectrum = np.abs(np.fft.rfft(samples_written))
    assert spectrum.argmax() * SOUND_RATE / len(samples_written) == pytest.approx(TONE, abs=2)
    assert np.abs(samples_written).max() == pytest.approx(np.abs(samples).max(), rel=0.2)


@pytest.mark.parametrize(("name", "sound"), [("video.mp4", "aac"), ("video.mkv", "flac")])
def test_sound_is_copied_to_the_bit(tmp_path: Path, name: str, sound: str) -> None:
    path = make_video(tmp_path / name, sound=sound)
    copy = copy_video(path, tmp_path / "copy.mp4")
    packets = []
    for each in path, copy:
        with av.open(str(each)) as container:
            packets.append([bytes(packet) for packet in container.demux(audio=0) if packet.size])
    assert packets[0] == packets[1]


@pytest.mark.parametrize("first_picture", [0, 10])
@pytest.mark.parametrize(("name", "sound"), [("video.mkv", "flac"), ("video.ts", "aac"), ("video.mov", "pcm_s16le")])
def test_sound_and_pictures_stay_together(tmp_path: Path, name: str, sound: str, first_picture: int) -> None:
    """A tone that begins at 0.6 s, and pictures that begin at 0 s or 0.4 s."""
    path = make_video(tmp_path / name, sound=sound, tone=(0.6, 1.0), times=range(first_picture, first_picture + 20))
    _, begin, samples = sound_of(copy_video(path, tmp_path / "copy.mp4"))
    onset = begin + (np.abs(samples) > 0.1).argmax() / SOUND_RATE
    assert onset == pytest.approx(0.6 - first_picture / RATE, abs=0.02)  # half a frame


@pytest.mark.parametrize(("stop_after", "seconds"), [(None, 3.0), (20, 0.8)])
def test_sound_ends_where_the_caller_stops(tmp_path: Path, stop_after: int | None, seconds: float) -> None:
    path = make_video(tmp_path / "video.mp4", sound="aac", tone=(0, 3), times=range(50))
    _, _, samples = sound_of(copy_video(path, tmp_path / "copy.mp4", stop_after))
    assert len(samples) / SOUND_RATE == pytest.approx(seconds, abs=0.1)


def test_the_part_before_damage_can_be_kept(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mp4", times=range(100), sound="aac", tone=(0, 4))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    num_frames = 0
    with open_video(path) as video, write_video(tmp_path / "copy.mp4", video) as write, pytest.raises(ImageError):
        for frame in video:
            write(frame, frame.image)
            num_frames += 1
    assert len(frames_of(tmp_path / "copy.mp4")) == num_frames > 10


def test_nothing_is_left_of_an_unfinished_video(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mp4")
    folder = tmp_path / "written"
    folder.mkdir()
    with (
        pytest.raises(KeyboardInterrupt),
        open_video(path) as video,
        write_video(folder / "copy.mp4", video) as write,
    ):
        for frame in video:
            write(frame, frame.image)
            if frame.index == 10:
                assert not (folder / "copy.mp4").exists()
                raise KeyboardInterrupt
    assert list(folder.iterdir()) == []


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files, which FFmpeg meets as it meets a full disk."""
    path = make_video(tmp_path / "video.mp4", times=range(100))
    (tmp_path / "written").mkdir()
    code = """
import resource, sys
from pathlib import Path
from dpt_zoo.errors import OutputError
from dpt_zoo.video.frames import open_video, write_video

resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    with open_video(sys.argv[1]) as video, write_video(Path(sys.argv[2]), video) as write:
        for frame in video:
            write(frame, frame.image)
except OutputError as error:
    print(error)
"""
    copy = tmp_path / "written" / "copy.mp4"
    ran = subprocess.run([sys.executable, "-c", code, path, copy], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(f"{copy} cannot be written: ") and ran.stdout.count("\n") == 1
    assert list(copy.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "error", "complaint"),
    [("copy.avi", InputError, "ends in .mp4"), ("missing/copy.mp4", OutputError, "cannot be written")],
)
def test_where_no_video_can_be_written(tmp_path: Path, name: str, error: type[Exception], complaint: str) -> None:
    with (
        open_video(make_video(tmp_path / "video.mp4")) as video,
        pytest.raises(error, match=complaint),
        write_video(tmp_path / name, video),
    ):
        pass


def test_what_is_no_frame_of_the_video(tmp_path: Path) -> None:
    with open_video(make_video(tmp_path / "video.mp4")) as video:
        with (
            pytest.raises(InputError, match=r"an image of shape \(48, 65, 3\) in a video of size \(48, 64\)"),
            write_video(tmp_path / "copy.mp4", video) as write,
        ):
            write(next(iter(video)), picture(0, (48, 65)))
        with pytest.raises(OutputError, match="no frame was written"), write_video(tmp_path / "copy.mp4", video):
            pass
    assert not (tmp_path / "copy.mp4").exists()


# Cameras


@pytest.mark.parametrize(("number", "complaint"), [(77, "gives no picture"), (-1, "cameras have numbers from 0")])
def test_no_camera(capfd: pytest.CaptureFixture[str], number: int, complaint: str) -> None:
    level = cv2.utils.logging.getLogLevel()
    with pytest.raises(InputError, match=f"camera {number}.* {complaint}"):
        open_video(number)
    assert capfd.readouterr() == ("", "")
    assert cv2.utils.logging.getLogLevel() == level


def test_a_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV opens a file as it opens a camera: here the file is the camera, which is disconnected at its end."""
    path = make_video(tmp_path / "video.mp4")
    camera = cv2.VideoCapture(str(path))
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: camera)
    frames = []
    with open_video(3) as video, write_video(tmp_path / "copy.mp4", video) as write:
        assert (video.image_size, video.rate, video.num_frames) == (SIZE, Fraction(RATE), None)
        with pytest.raises(ImageError, match="camera 3 gave no picture after 19 frames"):
            for frame in video:
                write(frame, frame.image)
                frames.append(frame)
    assert not camera.isOpened()
    assert [frame.index for frame in frames] == list(range(19))
    assert_shows(frames[0].image, picture(1))
    times = [frame.time for frame in frames]
    assert times[0] == 0 and times == sorted(times)
    written = frames_of(tmp_path / "copy.mp4")
    assert [frame.time for frame in written] == pytest.approx(times, abs=1e-3)


def test_suffixes() -> None:
    assert {".mp4", ".mov", ".mkv", ".webm", ".avi"} <= VIDEO_SUFFIXES
    assert ".gif" not in VIDEO_SUFFIXES
