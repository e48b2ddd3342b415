"""`dpt-zoo detect`: detect objects in images and videos."""

import argparse
import itertools
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..utils.files import make_folder
from ..utils.progress import progress_bar
from ..utils.text import plural, printable
from .printing import BAD_INPUT, complain, show

if TYPE_CHECKING:
    from ..batch.runner import DetectionRun, VideoInput
    from ..inference.detections import Detections
    from ..inference.inputs import ImageInput

FORMATS = ("json", "jsonl", "coco", "csv", "yolo", "voc", "labelstudio", "mot")
TRACKERS = ("bytetrack", "botsort", "cbiou", "ocsort", "sort")
SHARED = ("max_detections", "nms_iou", "class_agnostic_nms", "amp")
VIEWS = ("slice_size", "slice_overlap", "whole_image", "tta")
"""The options on which the results of a run depend: arguments of the detector, and of `Views`."""
OPTIONS = ("weights", "device", "compile", "batch_size", "max_pixels", "num_threads")
"""The other arguments of the detector."""
_OUTPUTS = (  # all that a run may write to its folder
    *("run.json", "detections.jsonl", "detections.json", "coco.json", "detections.csv", "labels", "data.yaml"),
    *("annotations", "labelstudio.json", "labelstudio.xml", "mot", "pictures", "crops", "masks"),
)


def add_commands(commands: Any) -> None:
    """Add the subcommand to argparse's `commands`."""
    detect = commands.add_parser(
        "detect",
        help="detect objects in images and videos",
        description="Detect objects in images and videos, and write the results to a folder. Each result is written "
        "as soon as it is ready. An interrupted run can be resumed.",
    )
    add = detect.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="images, videos, folders, patterns, URLs, - (stdin), camera:0")
    model = "a detector of `dpt-zoo list`, weights that say what they are, or a file of `dpt-zoo export`: .onnx or .xml"
    add("--model", required=True, metavar="NAME|FILE", help=model)
    add("--work-dir", type=Path, metavar="DIR", help="folder for the results (default: detections, detections-2, ...)")
    add("--resume", action="store_true", help="continue the run in --work-dir, or in the last default folder")
    track = f"follow the objects of videos: {', '.join(TRACKERS)} (default: {TRACKERS[0]})"
    add("--track", nargs="?", const=TRACKERS[0], choices=TRACKERS, metavar="TRACKER", help=track)
    add("--slice-size", type=int, metavar="PIXELS", help="detect in overlapping square slices of large images")
    overlap = "the part of a slice that it shares with the next (default: %(default)s)"
    add("--slice-overlap", type=float, default=0.2, metavar="PART", help=overlap)
    add("--whole-image", action="store_true", help="with slices, detect in the image as a whole, too")
    tta = "test-time augmentation: detect at three scales, which takes about four times as long"
    add("--tta", action="store_true", help=tta)
    limit = "the largest image to accept (default: 178956970): a small file can fill the memory"
    add("--max-pixels", type=int, metavar="N", help=limit)
    add("--classes", nargs="+", metavar="CLASS", help="keep only these classes")
    formats = f"{', '.join(FORMATS)} (default: json)"
    add("--format", nargs="+", choices=FORMATS, default=["json"], metavar="FORMAT", help=formats)
    add("--no-pictures", action="store_true", help="do not draw pictures and videos")
    add("--save-crops", action="store_true", help="write a picture of each object")
    add("--save-masks", action="store_true", help="write a PNG with the object number of each pixel for each image")
    add_detector_options(add)
    detect.set_defaults(run=run_detect)


def add_detector_options(add: Callable[..., object]) -> None:
    """Add the options that are arguments of `Detector`, except the model, with argparse's `add_argument`."""
    add("--weights", metavar="W", help="path, https://... or hf://org/repo/file (default: the model's own)")
    score = (
        "the lowest score (default: %(default)s), or `tuned` for those that `dpt-zoo evaluate` wrote into the weights"
    )
    add("--score-threshold", type=_parse_threshold, default=0.3, metavar="S", help=score)
    add("--max-detections", type=int, metavar="N", help="the most objects of an image (default: the model's, 100)")
    add("--nms-iou", type=float, metavar="IOU", help="IoU above which one of two is kept (default: the model's, 0.5)")
    add("--class-agnostic-nms", action="store_true", help="compare objects of different classes, too")
    add("--scale", nargs=2, type=int, metavar=("LONG", "SHORT"), help="resize images to fit these sides (pixels)")
    batch_size = "images processed at once (default: 1, or that of an exported file)"
    add("--batch-size", type=int, metavar="N", help=batch_size)
    devices = "cpu, cuda, cuda:1, or another device of an exported file's runtime (default: a GPU if there is one)"
    add("--device", default="auto", help=devices)
    add(
        "--num-threads",
        type=int,
        metavar="N",
        help="threads of an exported file's runtime (default: one for each core)",
    )
    add("--amp", action="store_true", help="use half precision; needs a GPU, or a CPU with fast bfloat16")
    add("--compile", action="store_true", help="compile the backbone")


def run_detect(args: argparse.Namespace) -> int:
    """Detect objects, and write the results. The errors of inputs are printed at the end."""
    from ..batch.exporters import WRITERS
    from ..batch.image_writer import ImageWriter
    from ..batch.journal import Journal, RunSettings
    from ..batch.runner import DetectionRun, VideoInput
    from ..inference.detector import Detector
    from ..inference.inputs import ImageInput
    from ..views.layout import Views

    images, videos = _find_inputs(args.inputs, args.max_pixels)
    if args.track and images:
        raise InputError(f"--track: {images[0].origin} is not a video")
    if "mot" in args.format and not args.track:
        raise InputError("--format mot: this format is for tracks: add --track")
    views = {name: getattr(args, name) for name in VIEWS}
    folder = _choose_folder(args.work_dir, args.resume)
    make_folder(folder, "--work-dir")
    shared = {name: getattr(args, name) for name in SHARED} | {"scale": args.scale and tuple(args.scale)}
    options = {name: getattr(args, name) for name in OPTIONS}
    detector = Detector(args.model, score_threshold=args.score_threshold, **shared, **options)
    if args.save_masks and not detector.has_masks:
        raise InputError(f"--save-masks: {args.model} has no masks: choose a Mask R-CNN")
    for name in args.classes or ():
        if name not in detector.classes:
            raise InputError(f"--classes: {args.model} has no class {name!r}, only {', '.join(detector.classes)}")
    settings = RunSettings(
        model=args.model,
        weights=detector.weights_sha256,
        classes=detector.classes,
        kept_classes=tuple(args.classes or detector.classes),
        score_threshold=detector.score_thresholds or detector.score_threshold,
        tracker=args.track,
        **shared,
        **views,
    )
    image_writer = ImageWriter(folder, not args.no_pictures, crops=args.save_crops, masks=args.save_masks)
    with Journal(folder, settings, resume=args.resume) as journal:
        run = DetectionRun(detector, journal, image_writer, Views(**views))
        left = journal.select([*images, *videos])
        images = [each for each in left if isinstance(each, ImageInput)]
        videos = [each for each in left if isinstance(each, VideoInput)]
        start = time.perf_counter()
        try:
            _detect(run, images, videos)
        except KeyboardInterrupt:
            done = f"{plural(run.num_images, 'image')} done"
            complain(f"interrupted, {done}: to continue, add --work-dir {folder} --resume")
            raise
        seconds = time.perf_counter() - start
        for name in args.format:
            if write := WRITERS[name]:
                write(journal, folder)
    rate = f" ({run.num_images / seconds:.1f} images/s)" if run.num_images else ""
    show(f"{plural(run.num_images, 'image')}, {plural(run.num_objects, 'object')} in {seconds:.1f} s{rate}")
    show(f"{folder}: {', '.join(name for name in _OUTPUTS if (folder / name).exists())}")
    if not run.failures:
        return 0
    failures = [f"{plural(len(run.failures), 'input')} failed:", *(printable(str(each)) for each in run.failures)]
    complain("\n  ".join(failures))
    return BAD_INPUT


def _parse_threshold(text: str) -> float | str:
    return text if text == "tuned" else float(text)


def _find_inputs(names: Sequence[str], max_pixels: int | None) -> tuple[list["ImageInput"], list["VideoInput"]]:
    """Return the images, and the videos with the cameras."""
    from ..batch.runner import VIDEO_SUFFIXES, VideoInput
    from ..inference.inputs import find_inputs, is_url, stream_input
    from ..utils.images import MAX_PIXELS

    cameras = {name: int(name.partition(":")[2]) for name in names if re.fullmatch(r"camera:\d+", name)}
    images, videos = [], []
    for image in find_inputs([name for name in names if name != "-" and name not in cameras], max_pixels or MAX_PIXELS):
        path = Path(image.origin)
        if path.suffix.lower() in VIDEO_SUFFIXES and not is_url(image.origin):
            videos.append(VideoInput(image.name, image.origin, path))
        else:
            images.append(image)
    if "-" in names:
        images.append(stream_input(sys.stdin.buffer, "stdin", "standard input"))
    videos += [VideoInput(name.replace(":", "-"), name, number) for name, number in cameras.items()]
    return images, videos


def _choose_folder(work_dir: Path | None, resume: bool) -> Path:
    """Return the run's folder, where nothing is overwritten."""
    from ..batch.journal import has_run

    if work_dir is None:
        default, numbers = Path("detections"), itertools.count(2)
        last: Path | None = None
        while has_run(default):
            last, default = default, Path(f"detections-{next(numbers)}")
        work_dir = last if resume and last else default
    if has_run(work_dir):
        if not resume:
            raise InputError(f"{work_dir} holds an earlier run: add --resume to continue it, or use another --work-dir")
    elif taken := [name for name in _OUTPUTS if os.path.lexists(work_dir / name)]:
        raise InputError(f"{work_dir / taken[0]} exists, but is not from a run: use another --work-dir")
    return work_dir


def _detect(run: "DetectionRun", images: Sequence["ImageInput"], videos: Sequence["VideoInput"]) -> None:
    """Process the inputs. Print the results of up to 20 images, or show a progress bar for more."""
    if len(images) <= 20:
        run.detect_images(images, progress=lambda done, total: None, on_result=_print_result)
    else:
        with progress_bar("images") as progress:
            run.detect_images(images, progress, on_result=lambda detections: None)
    for video in videos:
        with progress_bar("frames") as progress:
            run.detect_video(video, progress)


def _print_result(detections: "Detections") -> None:
    counts = Counter(detections.names).most_common()
    objects = ", ".join(f"{count} {name}" for name, count in counts) or "nothing"
    show(printable(f"{detections.path}: {objects}"))
