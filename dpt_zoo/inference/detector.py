"""A detection model that is called with images."""

import logging
import timeit
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..errors import ImageError, InputError
from ..models.factory import create_model
from ..utils.validation import check_fraction, check_integer
from .detections import Detections
from .inputs import ImageInput, find_input, find_inputs
from .pytorch_backend import build_pipeline, eval_mode, predict

READERS = 2
"""Threads that read, decode and resize images while the network runs."""
ImageLike = str | Path | bytes | bytearray | Image.Image | NDArray[Any] | Tensor
"""A path, a URL, an image file's bytes, a PIL image, an array `(H, W, 3)` RGB or a tensor `(3, H, W)` RGB."""
DETECTOR_ATTRIBUTES = ("cfg", "dataset_meta", "data_preprocessor", "backbone", "neck")

logger = logging.getLogger(__name__)


class Detector:
    """A detection model that is called with images.

    Args:
        model: a name from `list_models(include_demos=True)`, or a model from `create_model`, which is not changed: it
            stays on its device, and it is in eval mode only during a call.
        weights: a path or a URL of other weights, see `create_model`; by default the zoo's own. Only for a name.
        score_threshold: the lowest score of an object to return, in [0, 1].
        device: "cpu", "cuda", "cuda:1", ..., or by default "auto" for a GPU if there is one. Only for a name.
        amp: compute in half precision where that is safe. It needs a GPU, or a CPU with fast bfloat16.
        compile: compile the backbone with `torch.compile`; the first images take longer.
        scale: maximum longer and shorter side of resized images, in pixels; by default the config's, e.g. (1333, 800).
        batch_size: the number of images of one size that the network processes at once. It does not change detections.

    Attributes:
        model: the MMDetection model.
        classes: the names of all classes of the model.
        score_threshold: the lowest score of an object that is returned.

    Raises:
        InputError: An argument is not supported.
        FetchError, OutputError, WeightsError: The weights cannot be downloaded, stored or loaded; see `create_model`.
    """

    def __init__(
        self,
        model: str | nn.Module,
        *,
        weights: str | Path | None = None,
        score_threshold: float = 0.3,
        device: str | torch.device | None = None,
        amp: bool = False,
        compile: bool = False,
        scale: tuple[int, int] | None = None,
        batch_size: int = 1,
    ) -> None:
        check_fraction("score_threshold", score_threshold)
        check_integer("batch_size", batch_size, 1)
        if scale is not None and (
            np.shape(scale) != (2,) or not all(isinstance(side, Integral) and side > 0 for side in scale)
        ):
            raise InputError(f"scale must be two lengths in pixels, such as (1333, 800), not {scale!r}")
        if isinstance(model, str):
            self.model: Any = create_model(model, weights=weights, device="auto" if device is None else device)
        elif not isinstance(model, nn.Module) or not all(hasattr(model, name) for name in DETECTOR_ATTRIBUTES):
            given = f"an object of type {type(model).__name__}"
            raise InputError(f"model must be a name or a detector from dpt_zoo.create_model, not {given}")
        elif weights is not None or device is not None:
            name = "device" if weights is None else "weights"
            raise InputError(f"{name} can be given only with a model's name: pass it to dpt_zoo.create_model instead")
        else:
            self.model = model
        self.classes: tuple[str, ...] = tuple(self.model.dataset_meta["classes"])
        self.score_threshold = score_threshold
        self._batch_size = batch_size
        self._amp = amp
        if amp and next(self.model.parameters()).device.type == "cpu" and not _bfloat16_is_faster():
            raise InputError("amp needs a GPU, or a CPU on which bfloat16 is faster than float32: leave it out")
        self._compiled_backbone = torch.compile(self.model.backbone) if compile else None
        self._resize, self._pack = build_pipeline(self.model.cfg, scale)

    def __call__(self, image: ImageLike) -> Detections:
        """Detect the objects in one image.

        Args:
            image: a path, a URL (https://...), a PIL image, an array `(H, W, 3)` RGB, a tensor `(3, H, W)` RGB, or an
                image file's bytes. See `utils.images.to_pixels` for other shapes and types.

        Raises:
            ImageError: The image cannot be read.
            InputError: A folder, a pattern, a list or an iterator was given: use `stream` for these.
        """
        ((_, result),) = self._detect([self._prepare(find_input(image))])
        if isinstance(result, ImageError):
            raise result
        return result

    def stream(
        self, inputs: ImageLike | Iterable[ImageLike], on_error: Literal["raise", "skip"] = "raise"
    ) -> Iterator[Detections]:
        """Detect the objects in many images, and yield the detections of each image in order, as soon as possible.

        Args:
            inputs: a folder, a pattern ("photos/*.jpg"), or an iterable of images, folders and patterns, read ahead.
            on_error: "raise", or "skip" to log a warning for an image that cannot be read, and continue.

        Raises:
            ImageError: An image cannot be read; the images before it have been yielded.
            InputError: A folder has no images, nothing matches a pattern, or `on_error` has another value.
        """
        if on_error not in ("raise", "skip"):
            raise InputError(f"on_error must be 'raise' or 'skip', not {on_error!r}")
        results = self.detect_each(find_inputs(inputs))  # outside the generator: an empty folder raises immediately

        def checked() -> Iterator[Detections]:
            for _, result in results:
                if isinstance(result, Detections):
                    yield result
                elif on_error == "raise":
                    raise result
                else:
                    logger.warning("skipped: %s", result)

        return checked()

    def detect_each(self, inputs: Iterable[ImageInput]) -> Iterator[tuple[ImageInput, Detections | ImageError]]:
        """Detect the objects in images that `find_inputs` found, some of which may be unreadable.

        Yields:
            Each input, in order, with its detections or the error from reading it. Only a few images are in memory.
        """
        prepared = self._prepare_ahead(inputs)
        while batch := list(islice(prepared, self._batch_size)):
            yield from self._detect(batch)

    def _prepare_ahead(self, inputs: Iterable[ImageInput]) -> Iterator["_Prepared"]:
        """Prepare images in threads, a few images ahead."""
        pool = ThreadPoolExecutor(READERS, thread_name_prefix="dpt-zoo-reader")
        pending = deque[Any]()
        try:
            for input in inputs:
                pending.append(pool.submit(self._prepare, input))
                if len(pending) > max(READERS, self._batch_size):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, input: ImageInput) -> "_Prepared":
        try:
            image = input.read()
        except ImageError as error:
            return _Prepared(input, error)
        try:
            return _Prepared(input, image, self._resize({"img": image[..., ::-1], "img_id": 0}))
        except (cv2.error, ZeroDivisionError):
            height, width = image.shape[:2]
            reason = f"{width}x{height} pixels cannot be resized: the shorter side would have no pixels"
            return _Prepared(input, ImageError(f"{input.origin}: {reason}"))

    def _detect(self, batch: list["_Prepared"]) -> list[tuple[ImageInput, Detections | ImageError]]:
        """Run the network on a batch, separately for each padded size: more padding would change the detections."""
        detections: dict[int, Detections] = {}
        groups: dict[tuple[int, ...], list[int]] = {}
        divisor = self.model.data_preprocessor.pad_size_divisor
        for index, each in enumerate(batch):
            if each.resized is not None:
                shape = tuple(-(-side // divisor) for side in each.resized["img"].shape[:2])
                groups.setdefault(shape, []).append(index)
        for indices in groups.values():
            detections |= zip(indices, self._predict([batch[index] for index in indices]), strict=True)
        return [(each.input, detections.get(index, each.image)) for index, each in enumerate(batch)]

    def _predict(self, batch: list["_Prepared"]) -> list[Detections]:
        """Run the network on images that have one size once they are padded."""
        packed = [self._pack(each.resized) for each in batch]
        data = {key: [each[key] for each in packed] for key in ("inputs", "data_samples")}
        with eval_mode(self.model):
            predictions = predict(self.model, data, self.score_threshold, self._amp, self._compiled_backbone)
        return [
            Detections(
                boxes=objects.bboxes.float().cpu().numpy(),
                scores=objects.scores.float().cpu().numpy(),
                labels=objects.labels.cpu().numpy(),
                classes=self.classes,
                image_size=each.image.shape[:2],
                rles=rles,
                image=each.image,
                path=each.input.origin,
            )
            for each, (objects, rles) in zip(batch, predictions, strict=True)
        ]


class _Prepared(NamedTuple):
    """An image in its original size and resized, or the error from reading or resizing it."""

    input: ImageInput
    image: Any
    resized: dict[str, Any] | None = None


@cache
def _bfloat16_is_faster() -> bool:
    """Measure whether this CPU multiplies bfloat16 faster than float32; not every CPU with bfloat16 does."""
    matrices = (torch.ones(512, 512, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    float32, bfloat16 = (min(timeit.repeat(partial(torch.mm, each, each), number=1, repeat=10)) for each in matrices)
    return bfloat16 < float32
