"""`dpt-zoo detect`: objects in images and videos."""

import argparse
import functools
import itertools
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..utils.progress import progress_bar
from .printing import BAD_INPUT

if TYPE_CHECKING:
    from ..batch.journal import RunSettings
    from ..batch.runner import Run, Video
    from ..inference import Detections, Detector
    from ..inference.inputs import ImageInput

FORMATS = ("json", "jsonl", "coco", "csv", "yolo", "voc", "labelstudio")
_FOLDER = "detections"
_OUTPUTS = (
    *("run.json", "detections.jsonl", "detections.json", "coco.json", "detections.csv", "labels", "data.yaml"),
    *("annotations", "labelstudio.json", "labelstudio.xml", "pictures", "crops", "masks"),
)
"""All that a run may write into its folder."""
_MOST_LINES = 20
"""Images that are told one by one."""


def add_commands(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    detect = commands.add_parser(
        "detect",
        help="find objects in images and videos",
        description="Each image is a line of DIR/detections.jsonl as soon as it is done; formats are made from it.",
    )
    detect.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="image or video files, folders of images, patterns, https://..., - (standard input), camera:0",
    )
    detect.add_argument("--model", required=True, metavar="NAME", help="one of `dpt-zoo list`")
    detect.add_argument(
        "--weights", metavar="FILE", help="a path, https://... or hf://org/repo/file (default: the zoo's own)"
    )
    detect.add_argument(
        "--out", type=Path, metavar="DIR", help="default: detections, or if that has a run, detections-2, ..."
    )
    detect.add_argument("--resume", action="store_true", help="go on with DIR, or with the last of the default ones")
    detect.add_argument("--score-threshold", type=float, default=0.3, metavar="S", help="default: %(default)s")
    detect.add_argument("--classes", nargs="+", metavar="CLASS", help="keep only these")
    detect.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=["json"],
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)}; default: json",
    )
    detect.add_argument("--no-images", action="store_true", help="draw no pictures and no videos")
    detect.add_argument("--save-crops", action="store_true", help="cut out each object")
    detect.add_argument("--save-masks", action="store_true", help="write each image's masks as a PNG of their numbers")
    detect.add_argument("--size", nargs=2, type=int, metavar=("LONG", "SHORT"), help="resize images to fit, pixels")
    detect.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at a time; default: %(default)s")
    detect.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; default: a GPU where there is one")
    detect.add_argument(
        "--amp", action="store_true", help="half precision where that is safe, on a GPU or where bfloat16 is faster"
    )
    detect.add_argument("--compile", action="store_true", help="compile the backbone")
    detect.set_defaults(run=run_detect)


def run_detect(args: argparse.Namespace) -> int:
    """Detect objects in images and videos; bad ones are told at the end, and the others are done."""
    from ..batch.exporters import WRITERS
    from ..batch.image_writer import Saver
    from ..batch.journal import Journal
    from ..batch.runner import Run
    from ..inference import Detector

    images, videos = _find(args.sources)
    folder = _choose_folder(args.out, args.resume)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: no folder can be made there: {error.strerror}") from error
    detector = Detector(
        args.model,
        weights=args.weights,
        score_threshold=args.score_threshold,
        device=args.device,
        amp=args.amp,
        compile=args.compile,
        scale=args.size and tuple(args.size),
        batch_size=args.batch_size,
    )
    if args.save_masks and not detector.model.with_mask:
        raise InputError(f"--save-masks: {args.model} finds boxes only")
    saver = Saver(folder, pictures=not args.no_images, crops=args.save_crops, masks=args.save_masks)
    with Journal(folder, _settings(detector, args), resume=args.resume) as journal:
        run = Run(detector, journal, saver)
        start = time.perf_counter()
        try:
            _detect(
                run,
                [image for image in images if not journal.has(image.name, image.origin)],
                [video for video in videos if not journal.has(video.name, video.origin)],
            )
        except KeyboardInterrupt:
            done = f"{_count(run.num_images, 'image')} done"
            print(f"dpt-zoo: interrupted, {done}: to go on, add --out {folder} --resume", file=sys.stderr)
            raise
        seconds = time.perf_counter() - start
        for name in args.format:
            if write := WRITERS[name]:
                write(journal, folder)
    rate = f" ({run.num_images / seconds:.1f} images/s)" if run.num_images else ""
    done = f"{_count(run.num_images, 'image')}, {_count(run.num_objects, 'object')} in {seconds:.1f} s{rate}"
    print(f"{done}\n{folder}: {', '.join(name for name in _OUTPUTS if (folder / name).exists())}")
    return _tell_failures(run)


def _find(sources: Sequence[str]) -> tuple[list["ImageInput"], list["Video"]]:
    """The images, and the videos and cameras, that are meant."""
    from ..batch.runner import Video
    from ..batch.video import VIDEO_SUFFIXES
    from ..inference.inputs import ImageInput, find_inputs, is_url
    from ..utils.images import decode_image

    cameras = {name: int(name.partition(":")[2]) for name in sources if re.fullmatch(r"camera:\d+", name)}
    images, videos = [], []
    for source in find_inputs([name for name in sources if name != "-" and name not in cameras]):
        if Path(source.origin).suffix.lower() in VIDEO_SUFFIXES and not is_url(source.origin):
            videos.append(Video(source.name, source.origin, Path(source.origin)))
        else:
            images.append(source)
    if "-" in sources:
        origin = "standard input"
        images.append(ImageInput("stdin", origin, functools.partial(decode_image, sys.stdin.buffer.read(), origin)))
    videos += [Video(name.replace(":", "-"), name, number) for name, number in cameras.items()]
    return images, videos


def _choose_folder(out: Path | None, resume: bool) -> Path:
    """The run's folder; one in which nothing is overwritten."""
    from ..batch.journal import has_run

    if out is None:
        numbered = (Path(f"{_FOLDER}-{number}" if number > 1 else _FOLDER) for number in itertools.count(1))
        runs = list(itertools.takewhile(has_run, numbered))
        out = runs[-1] if resume and runs else Path(f"{_FOLDER}-{len(runs) + 1}" if runs else _FOLDER)
    if has_run(out):
        if not resume:
            raise InputError(f"{out} holds an earlier run: add --resume to go on with it, or name another --out")
    elif taken := [name for name in _OUTPUTS if (out / name).exists()]:
        raise InputError(f"{out / taken[0]} is there, and of no run of this command: name another --out")
    return out


def _settings(detector: "Detector", args: argparse.Namespace) -> "RunSettings":
    from ..batch.journal import RunSettings
    from ..weights.digests import tensors_sha256

    unknown = [name for name in args.classes or () if name not in detector.classes]
    if unknown:
        raise InputError(f"--classes: {args.model} knows no {unknown[0]!r}, only {', '.join(detector.classes)}")
    return RunSettings(
        model=args.model,
        weights=tensors_sha256({name: tensor.cpu() for name, tensor in detector.model.state_dict().items()}),
        classes=detector.classes,
        kept=tuple(args.classes or detector.classes),
        score_threshold=args.score_threshold,
        size=args.size and tuple(args.size),
        amp=args.amp,
    )


def _detect(run: "Run", images: Sequence["ImageInput"], videos: Sequence["Video"]) -> None:
    """Detect objects in what is left; a few images are told one by one, for many there is a bar."""
    if len(images) <= _MOST_LINES:
        run.detect_images(images, progress=lambda done, total: None, tell=_tell)
    else:
        with progress_bar("images") as progress:
            run.detect_images(images, progress, tell=lambda found: None)
    for video in videos:
        with progress_bar("frames") as progress:
            run.detect_video(video, progress)


def _tell(found: "Detections") -> None:
    from ..utils.text import printable

    counts = Counter(found.names).most_common()
    objects = ", ".join(f"{count} {name}" for name, count in counts) or "nothing"
    print(printable(f"{found.path}: {objects}"), flush=True)


def _tell_failures(run: "Run") -> int:
    from ..utils.text import printable

    if not run.failures:
        return 0
    print(f"dpt-zoo: {_count(len(run.failures), 'source')} failed:", file=sys.stderr)
    for error in run.failures:
        print(f"  {printable(str(error))}", file=sys.stderr)
    return BAD_INPUT


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
