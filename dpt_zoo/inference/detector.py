"""A model, ready to be called with images."""

import timeit
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, overload

import cv2
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from .. import mmlab  # noqa: F401  (before mmdet)
from ..errors import ImageError, InputError
from ..models.factory import create_model
from .detections import Detections
from .inputs import ImageInput, find_inputs, is_single

READERS = 2
"""Threads that read, decode and resize images while the network runs."""


class Detector:
    """A detector to be called with images.

    Attributes:
        classes: the names of what it finds.
        score_threshold: the least score of an object to be reported.
        model: the MMDetection model.

    Args:
        model: one of `list_models(include_demos=True)`, or a model made by `create_model`.
        weights: see `create_model`; for a name only.
        score_threshold: the least score of an object to be reported, in [0, 1].
        device: see `create_model`; for a name only.
        amp: compute in half precision where that is safe: on a GPU, or on a processor that multiplies bfloat16
            faster than float32.
        compile: compile the backbone with `torch.compile`; the first images take longer.
        scale: the longest and the shortest side that images are resized to fit, pixels; by default the recipe's own,
            which is (1333, 800) for the authors' models.
        batch_size: images given to the network at once, of those that are of one size once resized. What is found does
            not depend on it.

    Raises:
        InputError: an argument cannot be used, or as `create_model` does.
        WeightsError: as `create_model` does.
    """

    def __init__(
        self,
        model: str | nn.Module,
        *,
        weights: str | Path | None = None,
        score_threshold: float = 0.3,
        device: str | torch.device = "auto",
        amp: bool = False,
        compile: bool = False,
        scale: tuple[int, int] | None = None,
        batch_size: int = 1,
    ) -> None:
        if not 0 <= score_threshold <= 1:
            raise InputError(f"score_threshold must be from 0 to 1, not {score_threshold}")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        if scale is not None and (len(scale) != 2 or min(scale) < 1):
            raise InputError(f"scale must be two lengths in pixels, such as (1333, 800), not {scale}")
        made: Any = create_model(model, weights=weights, device=device) if isinstance(model, str) else model
        self.model = made
        self.classes: tuple[str, ...] = tuple(made.dataset_meta["classes"])
        self.score_threshold = score_threshold
        self._batch_size = batch_size
        self._amp = amp
        if amp and next(made.parameters()).device.type == "cpu" and not _bfloat16_is_faster():
            raise InputError(
                "amp needs a GPU, or a processor that multiplies bfloat16 faster than float32, unlike this"
            )
        if compile:
            made.backbone.compile()
        self._resize, self._pack = _build_pipeline(made.cfg, scale)

    @overload
    def __call__(  # type: ignore[overload-overlap]  # bytes and arrays are iterable, too
        self, images: bytes | Image.Image | NDArray[Any] | Tensor
    ) -> Detections: ...

    @overload
    def __call__(self, images: str | Path) -> Any: ...

    @overload
    def __call__(self, images: Iterable[Any]) -> Iterator[Detections]: ...

    def __call__(self, images: Any) -> Any:
        """Detect objects in images.

        Args:
            images: a path, an address (https://...), a PIL image, an array `(H, W, 3)` RGB, a tensor `(3, H, W)`, or
                an image file's bytes; or several: a folder, a pattern ("photos/*.jpg"), a list or an iterator of all
                these. See `images.to_pixels` for arrays and tensors of other shapes and types.

        Returns:
            Of one image its detections; of several an iterator, in their order, which gives each as soon as it is
            ready. Meanwhile the next ones are read.

        Raises:
            ImageError: one cannot be read; those before it have been given.
            InputError: a folder has no images, or nothing matches a pattern.
        """
        found = _raise_errors(self.detect_each(find_inputs(images)))
        return next(found) if is_single(images) else found

    def detect_each(self, inputs: Iterable[ImageInput]) -> Iterator[tuple[ImageInput, Detections | ImageError]]:
        """Detect objects in images, of which some may be bad.

        Args:
            inputs: the images, as `find_inputs` finds them.

        Returns:
            Each image with its detections, or with what is wrong with it, in their order. Memory holds those that are
            being read and the current batch.
        """
        prepared = self._prepare_ahead(inputs)
        while batch := list(islice(prepared, self._batch_size)):
            yield from self._detect(batch)

    def _prepare_ahead(self, sources: Iterable[ImageInput]) -> Iterator["_Prepared"]:
        """Prepare images in threads, a few more than are asked for."""
        pool = ThreadPoolExecutor(READERS, thread_name_prefix="dpt-zoo-reader")
        pending = deque[Any]()
        try:
            for source in sources:
                pending.append(pool.submit(self._prepare, source))
                if len(pending) > max(READERS, self._batch_size):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, source: ImageInput) -> "_Prepared":
        try:
            image = source.read()
        except ImageError as error:
            return _Prepared(source, error)
        try:
            return _Prepared(source, image, self._resize({"img": image[..., ::-1], "img_id": 0}))
        except (cv2.error, ZeroDivisionError):
            height, width = image.shape[:2]
            text = f"{source.origin}: {width}x{height} pixels cannot be resized: one side would vanish"
            return _Prepared(source, ImageError(text))

    def _detect(self, batch: list["_Prepared"]) -> list[tuple[ImageInput, Detections | ImageError]]:
        """Run the network on a batch; images that would be padded beyond what they are alone go apart."""
        found: dict[int, Detections] = {}
        groups: dict[tuple[int, ...], list[int]] = {}
        divisor = self.model.data_preprocessor.pad_size_divisor
        for index, each in enumerate(batch):
            if each.resized is not None:
                shape = tuple(-(-side // divisor) for side in each.resized["img"].shape[:2])
                groups.setdefault(shape, []).append(index)
        for indices in groups.values():
            found |= dict(zip(indices, self._predict([batch[index] for index in indices]), strict=True))
        return [(each.source, found.get(index, each.image)) for index, each in enumerate(batch)]

    def _predict(self, batch: list["_Prepared"]) -> list[Detections]:
        """Run the network on images that are of one size once padded."""
        from .pytorch_backend import predict

        packed = [self._pack(each.resized) for each in batch]
        data = {key: [each[key] for each in packed] for key in ("inputs", "data_samples")}
        with torch.no_grad():
            predicted = predict(self.model, data, self.score_threshold, self._amp)
        return [
            Detections(
                boxes=objects.bboxes.float().cpu().numpy(),
                scores=objects.scores.float().cpu().numpy(),
                labels=objects.labels.cpu().numpy(),
                classes=self.classes,
                image_size=each.image.shape[:2],
                rles=rles,
                image=each.image,
                path=each.source.origin,
            )
            for each, (objects, rles) in zip(batch, predicted, strict=True)
        ]


@cache
def _bfloat16_is_faster() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32: measured, since some can, but more slowly."""
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(512, 512, dtype=dtype)
        times[dtype] = min(timeit.repeat(lambda: matrix @ matrix, number=1, repeat=10))  # noqa: B023  (called at once)
    return times[torch.bfloat16] < times[torch.float32]


@dataclass(frozen=True)
class _Prepared:
    """An image as it is and as it is resized, or what is wrong with it."""

    source: ImageInput
    image: Any
    resized: dict[str, Any] | None = None


def _build_pipeline(cfg: Any, size: tuple[int, int] | None) -> tuple[Any, Any]:
    """The recipe's own preparation of an image that is in memory: what resizes it, and what makes tensors of it.

    The latter is not for the readers: a thread that uses PyTorch gets worker threads of its own, whose waiting takes
    the processors from the network (a third of its speed on two cores).
    """
    from mmcv.transforms import Compose
    from mmdet.utils import get_test_pipeline_cfg

    _load, *transforms, pack = (dict(transform) for transform in get_test_pipeline_cfg(cfg))
    if size is not None:
        transforms = [{**each, "scale": tuple(size)} if each["type"] == "Resize" else each for each in transforms]
    return Compose([{"type": "LoadImageFromNDArray"}, *transforms]), Compose([pack])


def _raise_errors(found: Iterable[tuple[ImageInput, Detections | ImageError]]) -> Iterator[Detections]:
    for _, each in found:
        if isinstance(each, ImageError):
            raise each
        yield each
