"""The result of a detector for one image."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from ..data.annotation_checks import is_compressed
from ..errors import InputError
from ..utils.images import write_picture
from ..utils.json_files import DAMAGE
from ..utils.validation import check_fraction, check_integer
from ..views.objects import RLE

if TYPE_CHECKING:
    import pandas as pd
    import supervision as sv

# fmt: off
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator",
    "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on

COCO_CATEGORY_IDS = tuple(index for index in range(1, 91) if index not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""The COCO ids of `COCO_CLASSES`: ten numbers from 1 to 90 are not in use."""
MAX_COMPACT_SIDE = 1 << 15
"""Longest side, in pixels, of an image that supervision's compressed masks support."""


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects detected in one image, by descending score.

    Indexing selects objects as in NumPy: with an integer, a slice, integers or a boolean mask. The result is always a
    `Detections`: `detections[1]` has one object. Iterating yields one `Detections` for each object.

    Attributes:
        boxes: `(N, 4)` float32 xyxy, in pixels of the image.
        scores: `(N,)` float32 in [0, 1].
        labels: `(N,)` int64, indices into `classes`.
        classes: the names of all classes of the model.
        image_size: (height, width) of the image, in pixels.
        rles: `(N,)` compressed masks of the image's size; None if the model has no masks.
        image: `(H, W, 3)` uint8 RGB, the image; None if it was not kept.
        path: the path or URL of the image, or a name ("image-3") if it was in memory.
        track_ids: `(N,)` int64, from 1: the same for an object in all frames of a video. -1 for an object that is not
            in a track, or was detected for the first time; None if the objects were not tracked.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    rles: Sequence[RLE] | None = None
    image: NDArray[np.uint8] | None = None
    path: str | None = None
    track_ids: NDArray[np.int64] | None = None

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.classes[label] for label in self.labels]

    @cached_property
    def masks(self) -> NDArray[np.bool_] | None:
        """`(N, H, W)` bool, decoded on first use; None if the model has no masks."""
        if self.rles is None:
            return None
        masks = np.zeros((len(self), *self.image_size), bool)
        for mask, rle in zip(masks, self.rles, strict=True):
            mask[:] = coco_mask.decode(rle)
        return masks

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator["Detections"]:
        return (self[index] for index in range(len(self)))

    def __getitem__(
        self, index: "int | np.integer[Any] | slice | Sequence[int] | NDArray[np.integer[Any] | np.bool_]"
    ) -> "Detections":
        """Select objects as NumPy does; an integer selects a `Detections` of one object.

        Raises:
            InputError: The index is a float, a string or of another type that NumPy does not index with.
            IndexError: An integer is out of range, or a mask has another length than the detections.
        """
        if isinstance(index, list) and not index:
            index = slice(0)  # NumPy would convert it to an array of floats
        if not isinstance(index, slice):
            array = np.asarray(index)
            if array.dtype.kind not in "iub" or array.ndim > 1 or (array.dtype.kind == "b" and array.ndim == 0):
                raise InputError(
                    f"detections are indexed with integers, slices and boolean masks, not {index!r}: "
                    "use detections.filter(min_score=..., classes=...) to select by score or class"
                )
        indices = np.atleast_1d(np.arange(len(self))[index])
        rles = None if self.rles is None else [self.rles[index] for index in indices]
        columns = {name: getattr(self, name)[indices] for name in ("boxes", "scores", "labels")}
        track_ids = None if self.track_ids is None else self.track_ids[indices]
        return replace(self, **columns, rles=rles, track_ids=track_ids)

    def filter(self, min_score: float | None = None, classes: str | Sequence[str] | None = None) -> "Detections":
        """Return the objects that have at least a minimum score and belong to some classes.

        Args:
            min_score: the lowest score to keep, in [0, 1]; None for any.
            classes: the class name or names to keep; None for all.

        Raises:
            InputError: `min_score` is outside [0, 1], or the model has no class of this name.
        """
        keep = np.ones(len(self), bool)
        if min_score is not None:
            check_fraction("min_score", min_score)
            keep &= self.scores >= min_score
        if classes is not None:
            names = [classes] if isinstance(classes, str) else classes
            known, wanted = set(self.classes), set(names)
            if unknown := [name for name in names if name not in known]:
                raise InputError(f"the model has no class {unknown[0]!r}: its classes are {', '.join(self.classes)}")
            keep &= np.isin(self.labels, [label for label, name in enumerate(self.classes) if name in wanted])
        return self[keep]

    def plot(self) -> Image.Image:
        """Return the image with the mask, box, name, score and track's id of each object drawn on it.

        Raises:
            InputError: The image was not kept.
        """
        from .drawing import draw

        return draw(self._require_image(), self)

    def show(self) -> None:
        """Show the drawn image in the system's image viewer. Notebooks show it at the end of a cell without this."""
        self.plot().show()

    def save(self, path: str | Path) -> None:
        """Write the drawn image, as JPEG or PNG by the suffix of the path.

        Raises:
            InputError: The suffix is not .jpg, .jpeg or .png, or the image was not kept.
            OutputError: The file cannot be written.
        """
        write_picture(Path(path), self.plot())

    def crop(self) -> list[Image.Image]:
        """Cut out each object by its box, extended to whole pixels and at least one pixel large.

        Raises:
            InputError: The image was not kept.
        """
        picture, (height, width) = Image.fromarray(self._require_image()), self.image_size
        starts = np.clip(np.floor(self.boxes[:, :2]), 0, (width - 1, height - 1))
        ends = np.clip(np.ceil(self.boxes[:, 2:]), starts + 1, (width, height))
        return [picture.crop(tuple(box)) for box in np.hstack([starts, ends]).astype(int).tolist()]

    def resize(self, image_size: tuple[int, int]) -> "Detections":
        """Return the same objects in the image resized to (height, width), in pixels.

        Boxes are scaled, masks are resized by nearest neighbour, and the image, if it was kept, bicubically.

        Raises:
            InputError: A side is not a positive whole number.
        """
        height, width = image_size
        check_integer("height", height, 1)
        check_integer("width", width, 1)

        size, image, rles = (width, height), self.image, self.rles
        boxes = self.boxes * np.divide(size * 2, self.image_size[::-1] * 2, dtype=np.float32)
        if image is not None:
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        if rles is not None:
            masks = (Image.fromarray(coco_mask.decode(rle)) for rle in rles)
            rles = [encode_mask(np.asarray(mask.resize(size, Image.Resampling.NEAREST))) for mask in masks]
        return replace(self, boxes=boxes, image_size=(height, width), rles=rles, image=image)

    def to_json(self) -> dict[str, Any]:
        """Return everything except the image and the list of classes, as types that JSON has.

        The keys are "path", "width", "height", "has_masks" and "objects", a list of dicts with "name", "label",
        "score", "box" (xyxy, in pixels) and, if there are masks, "mask" (COCO's compressed RLE). If the objects were
        tracked, there are also "has_tracks" and each object's "track_id".
        """
        height, width = map(_plain, self.image_size)
        keys = ("name", "label", "score", "box")
        columns = (self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist())
        objects = [dict(zip(keys, values, strict=True)) for values in zip(*columns, strict=True)]
        for item, rle in zip(objects, () if self.rles is None else self.rles, strict=False):
            item["mask"] = {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
        for item, track_id in zip(objects, () if self.track_ids is None else self.track_ids.tolist(), strict=False):
            item["track_id"] = track_id
        flags = {"has_masks": self.rles is not None, **({} if self.track_ids is None else {"has_tracks": True})}
        return {"path": self.path, "width": width, "height": height, **flags, "objects": objects}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], classes: Sequence[str]) -> "Detections":
        """Return the detections that `to_json` was called on, without the image.

        Args:
            content: the result of `to_json`.
            classes: the names of all classes of the model.

        Raises:
            InputError: `content` has another form.
        """
        try:
            objects, size, path = content["objects"], (content["height"], content["width"]), content["path"]
            labels = [item["label"] for item in objects]
            masks = [item["mask"] for item in objects] if content["has_masks"] else None
            tracks = [item["track_id"] for item in objects] if content.get("has_tracks", False) else None
            with np.errstate(over="ignore"):
                boxes = np.array([item["box"] for item in objects], np.float32).reshape(len(objects), 4)
                scores = np.array([item["score"] for item in objects], np.float32).reshape(len(objects))
            is_valid = (
                all(type(number) is int for number in (*size, *labels, *(tracks or ())))
                and min(size) > 0
                and all(0 <= label < len(classes) for label in labels)
                and all(mask["size"] == [*size] and is_compressed(mask["counts"]) for mask in masks or ())
                and isinstance(path, str | None)
            )
            if not is_valid or not np.isfinite(boxes).all() or not np.isfinite(scores).all():
                raise ValueError("a size, a number, a mask or the path is wrong")
            rles = None if masks is None else [{"size": [*size], "counts": mask["counts"].encode()} for mask in masks]
            track_ids = None if tracks is None else np.array(tracks, np.int64)
            return cls(
                boxes, scores, np.array(labels, np.int64), tuple(classes), size, rles, path=path, track_ids=track_ids
            )
        except DAMAGE as error:
            raise InputError(f"these are not the detections of an image: {error!r}") from error

    def to_coco(self, image_id: int | str, category_ids: Sequence[int | None] | None = None) -> list[dict[str, Any]]:
        """Return COCO's results format: a dict for each object, with its box as xywh and its mask as compressed RLE.

        An object in a track also has its "track_id".

        Args:
            image_id: the id of the image.
            category_ids: the category id of each class; None leaves out its objects. By default COCO's own ids (1 to
                90, with gaps) for COCO's classes, and 1, 2, 3, ... for others.
        """
        category_ids = coco_category_ids(self.classes) if category_ids is None else category_ids
        image_id = _plain(image_id)
        results: list[dict[str, Any]] = []
        for item in self.to_json()["objects"]:
            x1, y1, x2, y2 = item["box"]
            box, category_id = [x1, y1, x2 - x1, y2 - y1], _plain(category_ids[item["label"]])
            if category_id is not None:
                result = {"image_id": image_id, "category_id": category_id, "bbox": box, "score": item["score"]}
                result |= {"segmentation": item["mask"]} if "mask" in item else {}
                results.append(result | ({"track_id": item["track_id"]} if item.get("track_id", -1) > 0 else {}))
        return results

    def to_dataframe(self) -> "pd.DataFrame":
        """Return a pandas table with a row for each object: name, label, score, x1, y1, x2, y2.

        If there are masks, the column "area" has the number of their pixels. If the objects were tracked, there is the
        column "track_id".

        Raises:
            InputError: The package pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise InputError("a table needs pandas: pip install pandas") from error
        columns: dict[str, Any] = {"name": self.names, "label": self.labels, "score": self.scores}
        columns |= dict(zip(("x1", "y1", "x2", "y2"), self.boxes.T, strict=True))
        if self.rles is not None:
            columns["area"] = coco_mask.area(list(self.rles)).astype(np.int64)
        if self.track_ids is not None:
            columns["track_id"] = self.track_ids
        return pd.DataFrame(columns)

    def to_supervision(self) -> "sv.Detections":
        """Return supervision's `sv.Detections`. Masks stay compressed (`sv.CompactMask`), except of huge images.

        Raises:
            InputError: The package supervision is not installed.
        """
        try:
            import supervision as sv
        except ImportError as error:
            raise InputError(f"this needs supervision ({error}): pip install supervision") from error
        masks: Any = self.masks if self.rles is None or max(self.image_size) > MAX_COMPACT_SIDE else None
        if self.rles is not None and masks is None:
            boxes = coco_mask.toBbox(list(self.rles))  # xywh
            boxes[:, 2:] += boxes[:, :2] - 1  # to xyxy, both ends included
            masks = sv.CompactMask.from_coco_rle(self.rles, boxes, self.image_size)
        data: dict[str, Any] = {"class_name": np.array(self.names, dtype=str)}
        return sv.Detections(self.boxes, masks, self.scores, self.labels, tracker_id=self.track_ids, data=data)

    def _require_image(self) -> NDArray[np.uint8]:
        if self.image is None:
            raise InputError("the image was not kept: set it with dataclasses.replace(detections, image=...)")
        return self.image

    def _repr_png_(self) -> bytes | None:
        """Return the drawn image, for notebooks."""
        return None if self.image is None else self.plot()._repr_png_()

    def __repr__(self) -> str:
        height, width = self.image_size
        objects = ", ".join(f"{name} {score:.2f}" for name, score in zip(self.names, self.scores, strict=True))
        return f"<Detections in {self.path or 'an image'} ({width}x{height}): {objects or 'nothing'}>"


def _plain(value: Any) -> Any:
    """Return a NumPy number as Python's, which JSON has; anything else is returned as it is."""
    return value.item() if isinstance(value, np.generic) else value


def encode_mask(mask: NDArray[Any]) -> RLE:
    """Compress a mask `(H, W)` of booleans, or of zeros and ones."""
    rle: RLE = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return rle


def coco_category_ids(classes: Sequence[str]) -> Sequence[int]:
    """Return COCO's ids (1 to 90, with gaps) for its own 80 classes, and 1, 2, 3, ... for other classes."""
    return COCO_CATEGORY_IDS if tuple(classes) == COCO_CLASSES else range(1, len(classes) + 1)
