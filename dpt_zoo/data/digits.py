"""Digit scenes: real handwritten digits on textured grounds, to detect and segment. They need no download.

A scene depends on the seed, its split and its number alone: not on how many there are, nor on the process. It is drawn
by whole numbers from NumPy's PCG64, with integer arithmetic and Pillow's filters: NumPy 1.26 to 2.5 and Pillow 10.1 to
13 give the same pixels. The bytes of a PNG file also depend on the compressor that Pillow was built with.
"""

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from pycocotools import mask as coco_mask

from ..errors import DPTZooError, InputError, OutputError
from ..utils.progress import ProgressCallback

CLASSES = tuple("0123456789")

MIN_DIGITS, MAX_DIGITS = 3, 9  # in a scene
MIN_VISIBLE = 0.7  # of a digit's pixels
MIN_CONTRAST = 60  # grey levels between a digit and nine tenths of what it covers
MAX_TURN = 25  # degrees

RECIPE_FILE = "digit_scenes.json"
"""In a finished folder: what it was made with."""

Split = Literal["train", "test"]

_VERSION = 1  # of what is drawn for a seed
_FOLDERS: dict[Split, str] = {"train": "train2017", "test": "val2017"}
_NUM_TRAIN_DIGITS = 1347
_SHARPEN = ImageFilter.Kernel((3, 3), (0, -1, 0, -1, 8, -1, 0, -1, 0), scale=4)


class Digits(NamedTuple):
    """Handwritten digits.

    Attributes:
        images: `(N, 8, 8)` uint8, ink from 0 to 16.
        labels: `(N,)` int64, 0 to 9.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class Scene(NamedTuple):
    """A picture with N digits in it.

    Attributes:
        image: `(H, W, 3)` uint8 RGB.
        masks: `(N, H, W)` bool, where each digit is seen; no pixel is two digits'.
        labels: `(N,)` int64, 0 to 9.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    labels: NDArray[np.int64]


def make_digit_scenes(
    folder: str | Path, *, num_train: int, num_test: int, seed: int = 0, size: int = 192, progress: ProgressCallback | None = None
) -> None:
    """Write scenes in COCO's layout: `train2017/`, `val2017/` and `annotations/instances_{train,val}2017.json`.

    The folder appears when all is in it; one that the same arguments made is left as it is. No digit is in both splits.

    Args:
        folder: where; nothing may be there yet, or an empty folder.
        num_train, num_test: how many scenes; the first of many are the same as those of few.
        seed: of all random choices.
        size: a scene's height and width in pixels.
        progress: takes how many scenes are made, and how many there are to make.

    Raises:
        InputError: an argument cannot be used, or something else is in the folder.
        OutputError: the folder cannot be written.
        DPTZooError: scikit-learn, which the digits come with, is not installed.
    """
    recipe = {"version": _VERSION, "num_train": num_train, "num_test": num_test, "seed": seed, "size": size}
    _check_recipe(recipe)
    folder = Path(folder).resolve()
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        if _is_made(folder, recipe):
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if _is_made(folder, recipe):  # by another process, meanwhile
                return
            shutil.rmtree(partial, ignore_errors=True)  # what a killed one left
            try:
                _write(partial, recipe, progress)
                partial.replace(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}: choose another folder") from error


def read_digits(split: Split) -> Digits:
    """Read scikit-learn's 1,797 digits: the first 1,347 to train with, the last 450 to test with.

    They come writer by writer, so most of those to test with are by hands that the others do not show. Source: E.
    Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.

    Raises:
        DPTZooError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DPTZooError("the digits come with scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    part = slice(_NUM_TRAIN_DIGITS) if split == "train" else slice(_NUM_TRAIN_DIGITS, None)
    return Digits(digits.images[part].astype(np.uint8), digits.target[part].astype(np.int64))


def digit_scene(rng: np.random.Generator, digits: Digits, size: int = 192) -> Scene:
    """Draw a scene of `size` by `size` pixels with 3 to 9 whole digits.

    Upright, a digit's 8 rows take 1/8 to 5/12 of the height (24 to 80 pixels of 192), small ones more often; it is
    stretched sideways by 3/4 to 5/4 and turned by up to 25 degrees. Later digits lie on earlier ones, but at least 7/10
    of each are seen, and nine tenths of what a digit covers are 60 grey levels or more from its colour.
    """
    image = _draw_ground(rng, size)
    count = int(rng.integers(MIN_DIGITS, MAX_DIGITS + 1))
    labels: list[int] = []
    owners = np.full((size, size), count)  # whose a pixel is; `count` is nobody
    areas, visible = np.zeros(count), np.zeros(count)  # in pixels: of all of a digit, and of what is seen of it
    while len(labels) < count:  # what does not fit is drawn anew
        choice = rng.integers(len(digits.labels))
        alpha = _draw_digit(rng, digits.images[choice], size)
        left, top = (int(rng.integers(size - extent + 1)) for extent in alpha.size)
        box = (left, top, left + alpha.width, top + alpha.height)
        mask = np.asarray(alpha) >= 128
        covered = np.asarray(image.crop(box).convert("L"))[mask].astype(int)
        color = _draw_color(rng, int(covered.mean()))
        if np.mean(abs(covered - _grey(color)) < MIN_CONTRAST) > 0.1:
            continue
        window = owners[top : top + alpha.height, left : left + alpha.width]
        hidden = np.bincount(window[mask], minlength=count)[:count]
        if np.any(visible - hidden < MIN_VISIBLE * areas):
            continue
        image.paste(color, box, alpha)
        window[mask] = len(labels)
        visible -= hidden
        areas[len(labels)] = visible[len(labels)] = np.count_nonzero(mask)
        labels.append(digits.labels[choice])
    return Scene(np.array(image), owners == np.arange(count)[:, None, None], np.array(labels))


def _draw_ground(rng: np.random.Generator, size: int) -> Image.Image:
    """A colour under coarse, middle and fine noise, each stretched and tinted in its own way."""
    ground = np.empty((3, size, size), np.int16)
    ground[:] = (rng.integers(30, 226) + rng.integers(-30, 31, 3))[:, None, None]
    for most_cells in (size // 32, size // 12, size // 3):
        cells = rng.integers(2, most_cells + 1, 2)
        noise = Image.fromarray(rng.integers(0, 256, cells, dtype=np.uint8))
        layer = np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC), np.int16) - 128
        ground += layer * rng.integers(-10, 61, (3, 1, 1), dtype=np.int16) >> 8
    return Image.merge("RGB", [Image.fromarray(plane) for plane in ground.clip(0, 255).astype(np.uint8)])


def _draw_digit(rng: np.random.Generator, digit: NDArray[np.uint8], size: int) -> Image.Image:
    """How opaque a digit is, 0 to 255, in some size and position: its edge is about two pixels wide at any size."""
    height = int(rng.integers(size // 8, size * 5 // 12 + 1, 2).min())
    width = height * int(rng.integers(75, 126)) // 100
    degrees = int(rng.integers(-MAX_TURN, MAX_TURN + 1))
    cells = np.zeros((12, 12), np.uint8)
    cells[2:10, 2:10] = 15 * digit
    ink = Image.fromarray(cells).filter(_SHARPEN)  # opens small loops
    ink = ink.resize((width * 12 // 8, height * 12 // 8), Image.Resampling.LANCZOS)
    ink = ink.rotate(degrees, Image.Resampling.BILINEAR, expand=True)
    opacity = ((np.arange(256) - 105) * height // 15 + 128).clip(0, 255).astype(np.uint8)
    alpha = Image.fromarray(opacity[np.asarray(ink)])
    return alpha.crop(alpha.getbbox())


def _draw_color(rng: np.random.Generator, ground: int) -> tuple[int, ...]:
    """A colour that is clearly darker or lighter than a grey level."""
    margin = MIN_CONTRAST + 20
    darker, lighter = max(ground - margin, 0), max(255 - ground - margin, 0)
    level = int(rng.integers(darker + lighter))
    grey = level if level < darker else 255 - (level - darker)
    return tuple((grey + rng.integers(-40, 41, 3)).clip(0, 255).tolist())


def _grey(color: tuple[int, ...]) -> int:
    """A colour's grey level, as in Pillow's mode L."""
    red, green, blue = color
    return (299 * red + 587 * green + 114 * blue) // 1000


def _check_recipe(recipe: dict[str, int]) -> None:
    ranges = {"num_train": (1, 999_999), "num_test": (1, 999_999), "seed": (0, 2**63 - 1), "size": (64, 1024)}
    for name, (least, most) in ranges.items():
        value = recipe[name]
        if not isinstance(value, int) or not least <= value <= most:
            raise InputError(f"{name} must be a whole number from {least} to {most}, not {value!r}")


def _is_made(folder: Path, recipe: dict[str, int]) -> bool:
    """Whether the folder holds what the recipe makes; if not, it can be made there.

    Raises:
        InputError: something else is there.
    """
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = dict(json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise InputError(f"{folder} is no folder of digit scenes: choose another") from None
    if found != recipe:
        wanted = ", ".join(f"{name} {value}" for name, value in recipe.items() if found.get(name) != value)
        raise InputError(f"{folder} holds digit scenes, but not with {wanted}: remove it, or choose another folder")
    return True


def _write(folder: Path, recipe: dict[str, int], progress: ProgressCallback | None) -> None:
    """Write all of it into a new folder, and see it on the disk."""
    counts: dict[Split, int] = {"train": recipe["num_train"], "test": recipe["num_test"]}
    done, total = 0, sum(counts.values())
    (folder / "annotations").mkdir(parents=True)
    for stream, (split, count) in enumerate(counts.items()):
        digits = read_digits(split)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        (folder / _FOLDERS[split]).mkdir()
        for image_id in range(1, count + 1):
            rng = np.random.Generator(np.random.PCG64([recipe["seed"], stream, image_id]))
            scene = digit_scene(rng, digits, recipe["size"])
            height, width, _ = scene.image.shape
            name = f"{image_id:06d}.png"
            images.append({"id": image_id, "file_name": name, "width": width, "height": height})
            annotations += _annotate(scene, image_id, len(annotations) + 1)
            picture = Image.fromarray(scene.image)
            picture.save(folder / _FOLDERS[split] / name, compress_type=zlib.Z_RLE)  # quick, and no larger than others
            done += 1
            if progress:
                progress(done, total)
        content = {
            "info": {"description": f"Digit scenes, {split} split", **recipe},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)],
        }
        (folder / "annotations" / f"instances_{_FOLDERS[split]}.json").write_text(json.dumps(content))
    (folder / RECIPE_FILE).write_text(json.dumps(recipe))
    if hasattr(os, "sync"):
        os.sync()  # once, rather than for each of thousands of files


def _annotate(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """COCO's records of the digits in a scene, their masks as compressed RLE."""
    records = []
    for index, rle in enumerate(coco_mask.encode(np.asfortranarray(scene.masks.transpose(1, 2, 0)))):
        records.append(
            {
                "id": first_id + index,
                "image_id": image_id,
                "category_id": int(scene.labels[index]) + 1,
                "bbox": coco_mask.toBbox(rle).tolist(),  # xywh
                "area": int(coco_mask.area(rle)),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                "iscrowd": 0,
            }
        )
    return records
