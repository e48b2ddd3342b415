"""A detection model that is called with images."""

import copy
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeGuard, TypeVar, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DependencyError, ImageError, InputError
from ..runtimes.graph_metadata import GraphMetadata
from ..utils.images import MAX_PIXELS
from ..utils.validation import check_integer
from ..utils.windows import ArrayWindows, WindowReader
from ..video.tracker import LOWEST_SCORE, Tracker, TrackerLike
from ..views.layout import View, Views
from ..views.objects import Objects
from ..views.scales import fuse
from ..views.slices import NMS_IOU, merge, place
from .backend import Backend, Resized
from .detections import Detections
from .inputs import ImageInput, find_input, find_inputs, open_frames
from .limits import Limits

if TYPE_CHECKING:
    import torch

    from ..explaining.patches import Explanation

MAX_KEPT = 50_000_000
"""Pixels of an image that is kept with its detections in slices. Larger ones would fill the memory of a stream."""
LOWEST_AT_A_SCALE = 0.05
"""The lowest score of an object at each of several scales, as in the authors' configs."""
READERS = 2
"""Threads that read, decode and resize images while the network runs."""
ImageLike = Union[str, Path, bytes, bytearray, Image.Image, NDArray[Any], "torch.Tensor"]
"""A path, a URL, an image file's bytes, a PIL image, an array `(H, W, 3)` RGB or a tensor `(3, H, W)` RGB."""
EXPORTED_SUFFIXES = (".onnx", ".xml")
"""Files of `dpt_zoo.export` that a detector runs: with ONNX Runtime, and with OpenVINO."""

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class Detector:
    """A detection model that is called with images.

    Args:
        model: a name from `list_models(include_demos=True)`; a weights file that says which model it is for, or
            `hf://org/repo` (see `create_model`); a file from `dpt_zoo.export`, which needs no PyTorch: .onnx for ONNX
            Runtime, or .xml for OpenVINO; or a model from `create_model`, which is not changed: it stays on its device,
            and it is in eval mode only during a call.
        weights: a path or a URL of other weights, see `create_model`; by default the zoo's own. Only for a name.
        score_threshold: the lowest score of an object to return, in [0, 1]; "tuned" for that of each class which
            `evaluate(..., tune_thresholds="f1")` wrote into the weights. A file was exported with a lowest one.
        max_detections: the largest number of objects to return of an image; by default that of the config, or of the
            file: 100 for COCO. A larger number takes more time and memory. A file returns at most its own.
        nms_iou: of two boxes of a class with a higher IoU, in [0, 1], only the one with the higher score is returned;
            by default that of the config, 0.5 for COCO. A file has its own.
        class_agnostic_nms: compare boxes of different classes, too. A file has its own.
        device: "cpu", "cuda", "cuda:1", ..., or by default "auto" for a GPU if there is one. An exported file can also
            use the other devices of its runtime, such as "openvino:GPU". Not for a model from `create_model`.
        amp: compute in half precision where that is safe. It needs a GPU, or a CPU with fast bfloat16. Not for a file.
        compile: compile the backbone with `torch.compile`; the first images take longer. Not for a file.
        scale: maximum longer and shorter side of resized images, in pixels; by default the config's, e.g. (1333, 800).
        batch_size: the number of images of one size that the network processes at once: by default 1, or that of a file
            exported with a fixed one. It does not change detections.
        max_pixels: the largest image to accept, by default 178,956,970 pixels. A small file can unpack to an image that
            fills the memory.
        num_threads: the number of threads of an exported file's runtime; by default one for each core. Only for a file.

    Attributes:
        model: the MMDetection model; None for an exported file.
        metadata: what an exported file says about itself; None for an MMDetection model.
        classes: the names of all classes of the model.
        has_masks: whether objects have masks.
        score_threshold: the lowest score of an object that is returned.
        score_thresholds: the lowest score of an object of each class, if they are tuned, else None.
        max_detections, nms_iou, class_agnostic_nms: those of the arguments.

    Raises:
        InputError: An argument is not supported.
        DependencyError: A package that this model needs is not installed.
        FetchError, OutputError, WeightsError: The weights cannot be downloaded, stored or loaded; see `create_model`.
    """

    def __init__(
        self,
        model: "str | Path | torch.nn.Module",
        *,
        weights: str | Path | None = None,
        score_threshold: float | Literal["tuned"] = 0.3,
        max_detections: int | None = None,
        nms_iou: float | None = None,
        class_agnostic_nms: bool = False,
        device: "str | torch.device | None" = None,
        amp: bool = False,
        compile: bool = False,
        scale: tuple[int, int] | None = None,
        batch_size: int | None = None,
        max_pixels: int | None = None,
        num_threads: int | None = None,
    ) -> None:
        threshold = None if score_threshold == "tuned" else score_threshold
        limits = Limits(threshold, max_detections, nms_iou, class_agnostic_nms)
        for name, value in (("batch_size", batch_size), ("max_pixels", max_pixels), ("num_threads", num_threads)):
            if value is not None:
                check_integer(name, value, 1)
        if scale is not None:
            is_pair = np.shape(scale) == (2,) and all(isinstance(side, Real) and side > 0 for side in scale)
            if not is_pair or any(side != int(side) for side in scale):
                raise InputError(f"scale must be two lengths in pixels, such as (1333, 800), not {scale!r}")
            scale = (int(scale[0]), int(scale[1]))
        self.model: Any = None
        self.metadata: GraphMetadata | None = None
        self._backend: Backend
        if is_exported(model):
            from .exported_backend import ExportedBackend

            for name, is_given in (("weights", weights is not None), ("amp", amp), ("compile", compile)):
                if is_given:
                    raise InputError(f"{name} is not for an exported file: export the model with what it should have")
            exported = ExportedBackend(
                Path(model), device=device, scale=scale, batch_size=batch_size, num_threads=num_threads
            )
            self.metadata, self._backend = exported.metadata, exported
        else:
            if num_threads is not None:
                raise InputError("num_threads is only for exported files: use torch.set_num_threads for PyTorch")
            try:
                from .pytorch_backend import PyTorchBackend
            except ModuleNotFoundError as error:
                text = f'{error.name}, which is not installed: pip install "dpt-zoo[torch]", or use an exported file'
                raise DependencyError(f"this model needs {text}") from error
            backend = PyTorchBackend(
                model, weights=weights, device=device, amp=amp, compile=compile, scale=scale, batch_size=batch_size
            )
            self.model, self._backend = backend.model, backend
        self.check(limits, Views())
        self.classes = self._backend.classes
        self.has_masks = self._backend.has_masks
        self.score_thresholds: tuple[float, ...] | None = None
        if threshold is None:
            self.score_thresholds = self._find_tuned()
            threshold = min(self.score_thresholds)
        self.score_threshold = float(threshold)
        self.max_detections = max_detections
        self.nms_iou = nms_iou
        self.class_agnostic_nms = class_agnostic_nms
        self._max_pixels = MAX_PIXELS if max_pixels is None else int(max_pixels)

    @property
    def limits(self) -> Limits:
        """What limits the objects: the attributes of these names. Setting it changes them."""
        return Limits(self.score_threshold, self.max_detections, self.nms_iou, self.class_agnostic_nms)

    @limits.setter
    def limits(self, limits: Limits) -> None:
        for name, value in vars(limits).items():
            setattr(self, name, value)

    def check(self, limits: Limits, views: Views) -> None:
        """Check that this detector can be used so; one on PyTorch always can.

        Args:
            limits: what limits the objects.
            views: the parts and scales of an image in which to detect.

        Raises:
            InputError: An exported file cannot follow them. The text says how to export the model.
        """
        self._backend.check(limits, views)

    @classmethod
    def from_pretrained(cls, repo: str, *, revision: str = "main", **options: Any) -> "Detector":
        """Return a detector that `dpt-zoo publish` uploaded to the Hugging Face Hub.

        Args:
            repo: the repository, "org/name".
            revision: a branch, a tag or a commit.
            options: the other arguments of `Detector`.

        Raises:
            InputError: The name of the repository or another argument is invalid.
            FetchError: The weights cannot be downloaded.
            OutputError: The weights cannot be stored.
            WeightsError: The repository is not of this project, or its weights are damaged.
        """
        return cls(f"hf://{repo}@{revision}", **options)

    @property
    def weights_sha256(self) -> str:
        """The digest of the weights, see `weights.digests.tensors_sha256`."""
        return self._backend.weights_sha256

    def _find_tuned(self) -> tuple[float, ...]:
        """Return the thresholds in the model's file."""
        if self.metadata is not None:
            thresholds: Sequence[float] | None = self.metadata.score_thresholds
        else:
            thresholds = self.model.dataset_meta.get("score_thresholds")
        if thresholds is None:
            raise InputError("score_threshold='tuned': tune the thresholds of this model by `dpt-zoo evaluate` first")
        return tuple(thresholds)

    def __call__(
        self,
        image: ImageLike,
        *,
        slice_size: int | None = None,
        slice_overlap: float = 0.2,
        whole_image: bool = False,
        tta: bool = False,
    ) -> Detections:
        """Detect the objects in one image.

        Args:
            image: a path, a URL (https://...), a PIL image, an array `(H, W, 3)` RGB, a tensor `(3, H, W)` RGB, or an
                image file's bytes. See `utils.images.to_pixels` for other shapes and types.
            slice_size: detect in overlapping square slices with sides of this number of pixels, at least 32, and merge
                the objects; `max_detections` is then that of a slice. A TIFF file is read slice by slice if its tiles
                or strips allow it. It is then not kept as the `image` of the detections, and neither is an image with
                more than 50 million pixels.
            slice_overlap: the least part of a slice's side that it shares with the next one, from 0 to 0.9. Objects
                that are not longer than this are whole in a slice.
            whole_image: detect in the image as a whole, too, for objects that are larger than slices.
            tta: test-time augmentation: detect at three scales, and fuse boxes, masks and scores. It takes about four
                times as long.

        Raises:
            ImageError: The image cannot be read.
            InputError: A folder, a pattern, a list or an iterator was given: use `stream` for these. Or an option is
                out of its range.
        """
        views = Views(slice_size, slice_overlap, whole_image, tta)
        ((_, result),) = self.detect_each([find_input(image, self._max_pixels)], views)
        if isinstance(result, ImageError):
            raise result
        return result

    def explain(self, image: ImageLike, object: int | None = None) -> "Explanation":
        """Return where the network looks in an image: the patches that its DePatch stages predict.

        Args:
            image: the image, as for a call.
            object: the index of a detected object, to find out which patches its score depends on. Needs about as much
                memory as training on one image.

        Raises:
            ImageError: The image cannot be read.
            InputError: The model is an exported file, or there is no such object.
        """
        if self.metadata is not None:
            raise InputError("explain needs the network, which an exported file hides: use the model it was made from")
        from ..explaining.patches import Explanation
        from .pytorch_backend import PyTorchBackend

        assert isinstance(self._backend, PyTorchBackend)
        prepared = self._prepare(find_input(image, self._max_pixels))
        ((_, detections),) = self._detect([prepared])
        if isinstance(detections, ImageError):
            raise detections
        assert prepared.resized is not None
        if object is not None:
            check_integer("object", object, 0)
            if object >= len(detections):
                raise InputError(f"object is {object}, but {len(detections)} objects were detected, counted from 0")
        stages = self._backend.explain(prepared.resized, detections, object)
        return Explanation(detections, stages, object)

    def stream(
        self,
        inputs: ImageLike | Iterable[ImageLike],
        on_error: Literal["raise", "skip"] = "raise",
        *,
        slice_size: int | None = None,
        slice_overlap: float = 0.2,
        whole_image: bool = False,
        tta: bool = False,
    ) -> Iterator[Detections]:
        """Detect the objects in many images, and yield the detections of each image in order, as soon as possible.

        Args:
            inputs: a folder, a pattern ("photos/*.jpg"), or an iterable of images, folders and patterns, read ahead.
            on_error: "raise", or "skip" to log a warning for an image that cannot be read, and continue.
            slice_size: the side of slices, in pixels, as for one image.
            slice_overlap: the part of a slice that it shares with the next one, as for one image.
            whole_image: detect in each image as a whole, too, as for one image.
            tta: detect at three scales, as for one image.

        Raises:
            ImageError: An image cannot be read; the images before it have been yielded.
            InputError: A folder has no images, nothing matches a pattern, or an option has another value.
        """
        if on_error not in ("raise", "skip"):
            raise InputError(f"on_error must be 'raise' or 'skip', not {on_error!r}")
        views = Views(slice_size, slice_overlap, whole_image, tta)
        found = find_inputs(inputs, self._max_pixels)  # outside the generator: an empty folder raises immediately
        results = self.detect_each(found, views)

        def checked() -> Iterator[Detections]:
            for _, result in results:
                if isinstance(result, Detections):
                    yield result
                elif on_error == "raise":
                    raise result
                else:
                    logger.warning("skipped: %s", result)

        return checked()

    def track(
        self,
        video: ImageLike | int | Iterable[ImageLike],
        tracker: TrackerLike = "bytetrack",
        *,
        slice_size: int | None = None,
        slice_overlap: float = 0.2,
        whole_image: bool = False,
        tta: bool = False,
    ) -> Iterator[Detections]:
        """Detect the objects in the frames of one video, and follow them: the detections have `track_ids`.

        Objects below the score threshold, from 0.1 on, can continue a track, but are not returned.

        Args:
            video: a video file's path; a camera's number, from 0; or frames, as for `stream`: a folder, a pattern, or
                an iterable of images.
            tracker: "bytetrack", "botsort", "cbiou", "ocsort" or "sort"; or a tracker of the package `trackers` that
                no other video uses at the same time, which is reset first.
            slice_size: the side of slices, in pixels, as for one image.
            slice_overlap: the part of a slice that it shares with the next one, as for one image.
            whole_image: detect in each frame as a whole, too, as for one image.
            tta: detect at three scales, as for one image.

        Yields:
            The detections of each frame, in order, as soon as possible. Only a few frames are in memory.

        Raises:
            ImageError: The video or a frame cannot be read; the frames before it have been yielded.
            InputError: There are no frames, or an option has another value.
            DependencyError: The package of the extra "track" is not installed, or that of "video" for a video file.
        """
        views = Views(slice_size, slice_overlap, whole_image, tta)
        with open_frames(video, self._max_pixels) as (frames, rate):
            for _, result in self.track_each(frames, Tracker(tracker, rate), views):
                if isinstance(result, ImageError):
                    raise result
                yield result

    def track_each(
        self, frames: Iterable[ImageInput], tracker: Tracker, views: Views | None = None
    ) -> Iterator[tuple[ImageInput, Detections | ImageError]]:
        """Detect the objects in the frames of one video, and follow them.

        Args:
            frames: the frames, in order.
            tracker: follows the objects. It gets them from the score 0.1 on, if an exported file returns them.
            views: the parts of each frame in which to detect; by default the whole frame.

        Yields:
            Each frame with its detections or the error from reading it, as `detect_each`.
        """
        sensitive = copy.copy(self)
        sensitive.score_threshold, sensitive.score_thresholds = self._lowered_threshold(LOWEST_SCORE), None
        for frame, result in sensitive.detect_each(frames, views):
            if isinstance(result, Detections):
                tracked = tracker(result)
                result = tracked[self._pass_threshold(tracked.scores, tracked.labels)]
            yield frame, result

    def detect_each(
        self, inputs: Iterable[ImageInput], views: Views | None = None
    ) -> Iterator[tuple[ImageInput, Detections | ImageError]]:
        """Detect the objects in many images, and read the next ones in the background.

        Args:
            inputs: the images.
            views: the parts of each image in which to detect, and the scales; by default the whole image at one scale.

        Returns:
            Each input, in order, with its detections or the error from reading it. Only a few images are in memory.

        Raises:
            InputError: This detector cannot detect in such views.
        """
        views = Views() if views is None else views
        self.check(self.limits, views)
        if views.are_several:
            return ((input, self._detect_views(input, views)) for input in inputs)
        return self._detect_images(inputs)

    def _detect_images(self, inputs: Iterable[ImageInput]) -> Iterator[tuple[ImageInput, Detections | ImageError]]:
        prepared = self._ahead(self._prepare, inputs)
        while batch := list(islice(prepared, self._backend.batch_size)):
            yield from self._detect(batch)

    def _detect_views(self, input: ImageInput, views: Views) -> Detections | ImageError:
        """Detect the objects in several views of an image, and merge them."""
        limits = self.limits
        if views.tta:  # an object's mean score at all scales may pass the threshold
            limits = replace(limits, score_threshold=self._lowered_threshold(LOWEST_AT_A_SCALE))
        found: dict[View, Objects] = {}
        try:
            with closing(input.open() if views.slice_size else ArrayWindows(input.read())) as reader:
                prepared = self._ahead(partial(self._prepare_view, input, reader), views.of(reader.size))
                while batch := list(islice(prepared, self._backend.batch_size)):
                    found |= self._detect_batch(batch, limits)
        except ImageError as error:
            return error
        parts = []
        for window in views.windows(reader.size):
            scales = [found[View(window, zoom)] for zoom in views.zooms]
            objects = self._select(fuse(scales) if views.tta else scales[0])
            parts.append((window, place(objects, window, reader.size)))
        nms_iou = NMS_IOU if self.nms_iou is None else self.nms_iou
        objects = merge(parts, reader.size, nms_iou, self.class_agnostic_nms)
        image = reader.image if isinstance(reader, ArrayWindows) and reader.image.size <= 3 * MAX_KEPT else None
        return self._to_detections(input, objects, reader.size, image)

    def _prepare_view(self, input: ImageInput, reader: WindowReader, view: View) -> tuple[View, Resized]:
        return view, self._resize(input, reader.read(view.window), view.zoom)

    def _ahead(self, prepare: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Prepare items in threads, a few ahead. A single one needs no thread."""
        items = iter(items)
        first = list(islice(items, 2))
        if len(first) < 2:
            yield from map(prepare, first)
            return
        pool = ThreadPoolExecutor(READERS, thread_name_prefix="dpt-zoo-reader")
        pending = deque[Any]()
        try:
            for item in chain(first, items):
                pending.append(pool.submit(prepare, item))
                if len(pending) > max(READERS, self._backend.batch_size):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, input: ImageInput) -> "_Prepared":
        try:
            image = input.read()
            return _Prepared(input, image, self._resize(input, image))
        except ImageError as error:
            return _Prepared(input, error)

    def _resize(self, input: ImageInput, image: NDArray[np.uint8], zoom: float = 1) -> Resized:
        try:
            return self._backend.resize(image, zoom)
        except ValueError as error:
            height, width = image.shape[:2]
            raise ImageError(f"{input.origin}: {width}x{height} pixels cannot be resized: {error}") from error

    def _detect(self, batch: list["_Prepared"]) -> list[tuple[ImageInput, Detections | ImageError]]:
        """Return the detections of a batch of images."""
        resized = [(index, each.resized) for index, each in enumerate(batch) if each.resized]
        found = self._detect_batch(resized, self.limits)
        return [
            (each.input, self._to_detections(each.input, self._select(found[index]), each.image.shape[:2], each.image))
            if index in found
            else (each.input, each.image)
            for index, each in enumerate(batch)
        ]

    def _detect_batch(self, batch: Iterable[tuple[Item, Resized]], limits: Limits) -> dict[Item, Objects]:
        """Run the network on a batch, separately for each padded size. Each image comes with an item of the caller."""
        groups: dict[tuple[int, int], list[tuple[Item, Resized]]] = {}
        for item, resized in batch:
            groups.setdefault(resized.padded_size, []).append((item, resized))
        found: dict[Item, Objects] = {}
        for group in groups.values():
            items, images = zip(*group, strict=True)
            found |= zip(items, self._backend.predict(images, limits), strict=True)
        return found

    def _lowered_threshold(self, score: float) -> float:
        """Return a threshold of at most `score`, or of the lowest score of an exported file, if this is higher."""
        lowest = max(score, self.metadata.lowest_score if self.metadata else 0)
        return min(lowest, self.score_threshold)

    def _pass_threshold(self, scores: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return for each object whether it has at least the threshold of its class."""
        thresholds = np.broadcast_to(self.score_thresholds or self.score_threshold, len(self.classes))
        return scores >= thresholds.astype(np.float32)[labels]

    def _select(self, objects: Objects) -> Objects:
        """Return the objects of at least the threshold of their class, as many as may be returned of a window."""
        kept = np.flatnonzero(self._pass_threshold(objects.scores, objects.labels))
        return objects.select(kept[: self.max_detections or self._backend.max_detections])

    def _to_detections(
        self, input: ImageInput, objects: Objects, image_size: tuple[int, int], image: NDArray[np.uint8] | None
    ) -> Detections:
        boxes, scores, labels, rles = objects
        return Detections(boxes, scores, labels, self.classes, image_size, rles, image, input.origin)


class _Prepared(NamedTuple):
    """An image in its original size and resized, or the error from reading or resizing it."""

    input: ImageInput
    image: Any
    resized: Resized | None = None


def is_exported(model: object) -> TypeGuard[str | Path]:
    """Return whether a model is given by the path of a file from `dpt_zoo.export`."""
    return isinstance(model, str | Path) and Path(model).suffix.lower() in EXPORTED_SUFFIXES
