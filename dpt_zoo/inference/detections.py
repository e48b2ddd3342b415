"""What a detector found in one image."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from ..errors import InputError
from ..utils.images import write_picture

if TYPE_CHECKING:
    import pandas as pd
    import supervision as sv

RLE = Mapping[str, Any]
"""A mask as pycocotools compresses it: "size" (height, width) and "counts" (bytes)."""

_LONGEST_COMPACT = 1 << 15
"""Pixels of an image's side, for supervision's compressed masks."""

COCO_CATEGORY_IDS = tuple(index for index in range(1, 91) if index not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""COCO's ids of its 80 classes: ten numbers between 1 and 90 are not in use."""


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image, by descending score.

    They are chosen by indexing: `found[0.5]` has those with at least this score, `found["dog"]` those of this class,
    and integers, slices, arrays of integers or of booleans choose as in NumPy.

    Attributes:
        boxes: `(N, 4)` float32 xyxy, pixels of the image.
        scores: `(N,)` float32 in [0, 1].
        labels: `(N,)` int64, indices into `classes`.
        classes: the names of all classes that the model knows.
        image_size: (height, width) of the image, pixels.
        rles: `(N,)` masks of the image's size, or None from a model without masks.
        image: `(H, W, 3)` uint8 RGB, the image; None where it was not kept.
        path: where the image came from: a path, a URL, or "image-3" for one that was in memory.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    rles: Sequence[RLE] | None = None
    image: NDArray[np.uint8] | None = None
    path: str | None = None

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.classes[label] for label in self.labels]

    @cached_property
    def masks(self) -> NDArray[np.bool_] | None:
        """`(N, H, W)` bool, made when first asked for; None from a model without masks."""
        if self.rles is None:
            return None
        masks = np.zeros((len(self), *self.image_size), bool)
        for mask, rle in zip(masks, self.rles, strict=True):
            mask[:] = coco_mask.decode(rle)
        return masks

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator["Detections"]:
        """Each object by itself."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, which: float | str | slice | ArrayLike) -> "Detections":
        """Those of the objects that are chosen; see the class.

        Raises:
            InputError: no class has this name, or a threshold is outside [0, 1].
            IndexError: there are not so many objects.
        """
        indices = self._choose(which)
        rles = None if self.rles is None else [self.rles[index] for index in indices]
        chosen = (self.boxes[indices], self.scores[indices], self.labels[indices])
        return Detections(*chosen, self.classes, self.image_size, rles, self.image, self.path)

    def plot(self) -> Image.Image:
        """The image with each object's mask, box, name and score drawn on it.

        Raises:
            InputError: the image was not kept.
        """
        from .drawing import draw

        return draw(self._require_image(), self)

    def show(self) -> None:
        """Show the drawn image in a window of the system's viewer. Notebooks show it without being told."""
        self.plot().show()

    def save(self, path: str | Path) -> None:
        """Write the drawn image, as JPEG or PNG by the path's suffix.

        Raises:
            InputError: the suffix is another, or the image was not kept.
            OutputError: the file cannot be written.
        """
        write_picture(Path(path), self.plot())

    def crop(self) -> list[Image.Image]:
        """Each object cut out by its box, widened to whole pixels; at least one pixel large.

        Raises:
            InputError: the image was not kept.
        """
        picture, (height, width) = Image.fromarray(self._require_image()), self.image_size
        crops = []
        for x1, y1, x2, y2 in self.boxes.tolist():
            left, top = min(max(int(x1), 0), width - 1), min(max(int(y1), 0), height - 1)
            right, bottom = min(max(int(np.ceil(x2)), left + 1), width), min(max(int(np.ceil(y2)), top + 1), height)
            crops.append(picture.crop((left, top, right, bottom)))
        return crops

    def resize(self, image_size: tuple[int, int]) -> "Detections":
        """Return the same objects in the image resized to (height, width), pixels.

        Boxes are scaled, masks are resized by nearest neighbour, and the image, if it was kept, bicubically.
        """
        height, width = image_size
        scale = np.divide((width, height) * 2, self.image_size[::-1] * 2, dtype=np.float32)

        def resize_mask(rle: RLE) -> RLE:
            mask = Image.fromarray(coco_mask.decode(rle))
            return encode_mask(np.asarray(mask.resize((width, height), Image.Resampling.NEAREST)))

        return replace(
            self,
            boxes=self.boxes * scale,
            image_size=image_size,
            rles=None if self.rles is None else [resize_mask(rle) for rle in self.rles],
            image=self.image
            if self.image is None
            else np.asarray(Image.fromarray(self.image).resize((width, height), Image.Resampling.BICUBIC)),
        )

    def to_json(self) -> dict[str, Any]:
        """The objects as what JSON can hold: "path", "width", "height" and of each object "name", "label", "score",
        "box" (xyxy, pixels) and, where there are masks, "mask" (COCO's compressed RLE).
        """
        height, width = self.image_size
        objects: list[dict[str, Any]] = [
            {"name": name, "label": int(label), "score": float(score), "box": box.tolist()}
            for name, label, score, box in zip(self.names, self.labels, self.scores, self.boxes, strict=True)
        ]
        for record, rle in zip(objects, self.rles or (), strict=False):
            record["mask"] = _printable(rle)
        return {"path": self.path, "width": width, "height": height, "objects": objects}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], classes: Sequence[str]) -> "Detections":
        """What `to_json` gave, without the image.

        Args:
            content: what it gave.
            classes: the names of the classes that the labels count.
        """
        objects = content["objects"]
        has_masks = any("mask" in record for record in objects)
        return cls(
            boxes=np.array([record["box"] for record in objects], np.float32).reshape(-1, 4),
            scores=np.array([record["score"] for record in objects], np.float32),
            labels=np.array([record["label"] for record in objects], np.int64),
            classes=tuple(classes),
            image_size=(content["height"], content["width"]),
            rles=[{**record["mask"], "counts": record["mask"]["counts"].encode()} for record in objects]
            if has_masks
            else None,
            path=content["path"],
        )

    def to_coco(self, image_id: int | str, category_ids: Sequence[int | None] | None = None) -> list[dict[str, Any]]:
        """COCO's results format: one record per object, boxes as xywh, masks as compressed RLE.

        Args:
            image_id: the image's.
            category_ids: of each class; objects of a class without one are left out. By default COCO's own classes
                have COCO's (1 to 90, with gaps), any others 1, 2, 3, ...
        """
        category_ids = coco_category_ids(self.classes) if category_ids is None else category_ids
        records = []
        for index, (box, score, label) in enumerate(zip(self.boxes, self.scores, self.labels, strict=True)):
            if category_ids[label] is None:
                continue
            x1, y1, x2, y2 = box.tolist()
            record: dict[str, Any] = {
                "image_id": image_id,
                "category_id": category_ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(score),
            }
            if self.rles is not None:
                record["segmentation"] = _printable(self.rles[index])
            records.append(record)
        return records

    def to_dataframe(self) -> "pd.DataFrame":
        """A row for each object: name, label, score, x1, y1, x2, y2 and, where there are masks, their area in pixels.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise InputError("a table needs pandas: pip install pandas") from error
        columns: dict[str, Any] = {"name": self.names, "label": self.labels, "score": self.scores}
        columns |= dict(zip(("x1", "y1", "x2", "y2"), self.boxes.T, strict=True))
        if self.rles is not None:
            columns["area"] = [int(coco_mask.area(rle)) for rle in self.rles]
        return pd.DataFrame(columns)

    def to_supervision(self) -> "sv.Detections":
        """The same for supervision's tools; masks stay compressed there (`sv.CompactMask`), but of huge images."""
        import supervision as sv

        masks: Any = self.rles
        if masks is not None:
            is_huge = max(self.image_size) > _LONGEST_COMPACT
            masks = self.masks if is_huge else sv.CompactMask.from_coco_rle(masks, self._mask_boxes(), self.image_size)
        return sv.Detections(
            xyxy=self.boxes,
            mask=masks,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def _choose(self, which: Any) -> NDArray[np.intp]:
        """The indices of the objects that are meant."""
        if isinstance(which, str):
            if which not in self.classes:
                raise InputError(f"there is no class {which!r}: the model knows {', '.join(self.classes)}")
            return np.flatnonzero(self.labels == self.classes.index(which))
        if isinstance(which, float | np.floating):
            if not 0 <= which <= 1:
                raise InputError(f"a score threshold is from 0 to 1, not {which}")
            return np.flatnonzero(self.scores >= which)
        if isinstance(which, Sequence) and not len(which):
            return np.empty(0, np.intp)
        return np.atleast_1d(np.arange(len(self))[which])

    def _mask_boxes(self) -> NDArray[np.float64]:
        """`(N, 4)` xyxy of the pixels that the masks have, both ends included."""
        boxes = np.array([coco_mask.toBbox(rle) for rle in self.rles or ()]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2] - 1
        return boxes

    def _require_image(self) -> NDArray[np.uint8]:
        if self.image is None:
            raise InputError("the image was not kept: give it with dataclasses.replace(detections, image=...)")
        return self.image

    def _repr_png_(self) -> bytes | None:
        """The drawn image, for notebooks."""
        if self.image is None:
            return None
        file = io.BytesIO()
        self.plot().save(file, "PNG")
        return file.getvalue()

    def __repr__(self) -> str:
        height, width = self.image_size
        objects = ", ".join(f"{name} {score:.2f}" for name, score in zip(self.names, self.scores, strict=True))
        return f"<Detections in {self.path or 'an image'} ({width}x{height}): {objects or 'nothing'}>"


def encode_mask(mask: NDArray[Any]) -> RLE:
    """Compress a mask `(H, W)` of booleans or of 0 and 1."""
    rle: RLE = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return rle


def coco_category_ids(classes: Sequence[str]) -> Sequence[int]:
    """The ids that COCO gives its own 80 classes, 1 to 90 with gaps; of other classes 1, 2, 3, ..."""
    from mmdet.datasets import CocoDataset

    from .. import mmlab  # noqa: F401  (before mmdet)

    is_coco = tuple(classes) == CocoDataset.METAINFO["classes"]
    return COCO_CATEGORY_IDS if is_coco else range(1, len(classes) + 1)


def _printable(rle: RLE) -> dict[str, Any]:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
