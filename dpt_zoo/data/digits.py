"""Digit scenes: real handwritten digits on textured backgrounds, to detect and segment without a download.

A scene depends only on the seed, its split and its number, not on the number of scenes or the process. All random
numbers are integers from NumPy's PCG64; drawing uses integer arithmetic and Pillow's filters. NumPy 1.26 to 2.5 and
Pillow 10.1 to 13 give the same pixels. The bytes of a PNG file also depend on Pillow's compression library.
"""

import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from pycocotools import mask as coco_mask

from ..errors import DPTZooError, InputError, OutputError
from ..utils.files import expand_user
from ..utils.json_files import DAMAGE
from ..utils.progress import ProgressCallback
from ..utils.validation import check_integer

CLASSES = tuple("0123456789")
MIN_DIGITS, MAX_DIGITS = 3, 9  # in a scene
MIN_VISIBLE = 0.7  # of a digit's pixels
MIN_CONTRAST = 60  # grey levels between a digit and nine tenths of what it covers
MAX_TURN = 25  # degrees

DigitSplit = Literal["train", "test"]

_SETTINGS_FILE = "digit_scenes.json"  # in a complete folder: the settings that it was made with
_FOLDERS: dict[DigitSplit, str] = {"train": "train2017", "test": "val2017"}
_SHARPEN = ImageFilter.Kernel((3, 3), (0, -1, 0, -1, 8, -1, 0, -1, 0), scale=4)


class Digits(NamedTuple):
    """Handwritten digits."""

    images: NDArray[np.uint8]  # (N, 8, 8), ink from 0 to 16
    labels: NDArray[np.int64]  # (N,), 0 to 9


class Scene(NamedTuple):
    """An image of N digits."""

    image: NDArray[np.uint8]  # (H, W, 3), RGB
    masks: NDArray[np.bool_]  # (N, H, W), the visible pixels of each digit; masks do not overlap
    labels: NDArray[np.int64]  # (N,), 0 to 9


def make_digit_scenes(
    folder: str | Path,
    *,
    num_train: int,
    num_test: int,
    seed: int = 0,
    size: int = 192,
    progress: ProgressCallback | None = None,
) -> None:
    """Write scenes in COCO's layout: `train2017/`, `val2017/` and `annotations/instances_{train,val}2017.json`.

    The folder appears when it is complete. If it was made before with the same arguments, nothing is done.

    Args:
        folder: a new or empty folder.
        num_train: the number of training scenes, from 1 to 999,999.
        num_test: the number of test scenes, from 1 to 999,999. No digit is in both splits.
        seed: the seed of all random choices, not negative.
        size: the height and width of a scene in pixels, from 64 to 1024.
        progress: called with the number of finished scenes and the total.

    Raises:
        InputError: An argument is invalid, or the folder holds something else.
        OutputError: The folder cannot be written.
        DPTZooError: The package scikit-learn, which contains the digits, is not installed.
    """
    settings = {"version": 1, "num_train": num_train, "num_test": num_test, "seed": seed, "size": size}
    ranges = {"num_train": (1, 999_999), "num_test": (1, 999_999), "seed": (0, 2**63 - 1), "size": (64, 1024)}
    for name, (minimum, maximum) in ranges.items():
        check_integer(name, settings[name], minimum, maximum)
        settings[name] = int(settings[name])  # JSON cannot hold NumPy's integers
    folder = expand_user(folder).resolve()
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        if _is_complete(folder, settings):
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if _is_complete(folder, settings):  # another process has made it
                return
            shutil.rmtree(partial, ignore_errors=True)  # of a killed process
            try:
                _write(partial, settings, progress)
                partial.replace(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}: choose another folder") from error


def read_digits(split: DigitSplit) -> Digits:
    """Read scikit-learn's 1,797 digits: the first 1,347 for training, the last 450 for testing.

    They are sorted by writer, so most test digits are in handwriting that is not in the training split. Source: E.
    Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.

    Raises:
        DPTZooError: The package scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DPTZooError("the digits are part of scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    chosen = slice(1347) if split == "train" else slice(1347, None)
    return Digits(digits.images[chosen].astype(np.uint8), digits.target[chosen].astype(np.int64))


def digit_scene(rng: np.random.Generator, digits: Digits, size: int = 192) -> Scene:
    """Draw a scene of `size` x `size` pixels with 3 to 9 complete `digits` and the random numbers of `rng`.

    An upright digit's 8 rows take 1/8 to 5/12 of the height (24 to 80 pixels of 192), small sizes more often. It is
    scaled sideways by 3/4 to 5/4 and rotated by up to 25 degrees. Later digits cover earlier ones, but at least 7/10 of
    each stay visible, and nine tenths of the pixels that a digit covers differ from its colour by 60 grey levels.
    """
    image = _draw_ground(rng, size)
    count = int(rng.integers(MIN_DIGITS, MAX_DIGITS + 1))
    labels: list[int] = []
    owners = np.full((size, size), count)  # the index of each pixel's digit; `count` is the background
    areas, visible = np.zeros(count), np.zeros(count)  # of each digit, in pixels
    while len(labels) < count:  # a digit that does not fit is drawn again
        choice = rng.integers(len(digits.labels))
        alpha = _draw_digit(rng, digits.images[choice], size)
        left, top = (int(rng.integers(size - extent + 1)) for extent in alpha.size)
        box = (left, top, left + alpha.width, top + alpha.height)
        mask = np.asarray(alpha) >= 128
        covered = np.asarray(image.crop(box).convert("L"))[mask].astype(int)
        color = _draw_color(rng, int(covered.mean()))
        grey = np.dot(color, (299, 587, 114)) // 1000  # as in Pillow's mode L
        if np.mean(abs(covered - grey) < MIN_CONTRAST) > 0.1:
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
    """Draw a colour under coarse, medium and fine noise, each with its own stretch and tint."""
    ground = np.empty((3, size, size), np.int16)
    ground[:] = (rng.integers(30, 226) + rng.integers(-30, 31, 3))[:, None, None]
    for most_cells in (size // 32, size // 12, size // 3):
        cells = rng.integers(2, most_cells + 1, 2)
        noise = Image.fromarray(rng.integers(0, 256, cells, dtype=np.uint8))
        layer = np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC), np.int16) - 128
        ground += layer * rng.integers(-10, 61, (3, 1, 1), dtype=np.int16) >> 8
    return Image.merge("RGB", [Image.fromarray(plane) for plane in ground.clip(0, 255).astype(np.uint8)])


def _draw_digit(rng: np.random.Generator, digit: NDArray[np.uint8], size: int) -> Image.Image:
    """Draw a digit's opacity (0 to 255) in a random size and rotation, with an edge of about two pixels."""
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
    """Draw a colour that is clearly darker or lighter than the grey level `ground`."""
    margin = MIN_CONTRAST + 20
    darker, lighter = max(ground - margin, 0), max(255 - ground - margin, 0)
    level = int(rng.integers(darker + lighter))
    grey = level if level < darker else 255 - (level - darker)
    return tuple((grey + rng.integers(-40, 41, 3)).clip(0, 255).tolist())


def _is_complete(folder: Path, settings: dict[str, int]) -> bool:
    """Return whether the folder was made with these settings. False means that it is missing or empty."""
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        made_with = dict(json.loads((folder / _SETTINGS_FILE).read_text(encoding="utf-8")))
    except (OSError, *DAMAGE):
        raise InputError(f"{folder} is not a folder of digit scenes: choose another folder") from None
    if made_with != settings:
        wanted = ", ".join(f"{name} {value}" for name, value in settings.items() if made_with.get(name) != value)
        raise InputError(f"{folder} holds digit scenes, but not with {wanted}: remove it, or choose another folder")
    return True


def _write(folder: Path, settings: dict[str, int], progress: ProgressCallback | None) -> None:
    size, done, total = settings["size"], 0, settings["num_train"] + settings["num_test"]
    (folder / "annotations").mkdir(parents=True)
    for stream, (split, folder_name) in enumerate(_FOLDERS.items()):
        digits = read_digits(split)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        (folder / folder_name).mkdir()
        for image_id in range(1, settings[f"num_{split}"] + 1):
            rng = np.random.Generator(np.random.PCG64([settings["seed"], stream, image_id]))
            scene = digit_scene(rng, digits, size)
            name = f"{image_id:06d}.png"
            images.append({"id": image_id, "file_name": name, "width": size, "height": size})
            annotations += annotate(scene, image_id, len(annotations) + 1)
            Image.fromarray(scene.image).save(folder / folder_name / name, compress_type=zlib.Z_RLE)  # fast and small
            done += 1
            if progress:
                progress(done, total)
        content = {
            "info": {"description": f"Digit scenes, {split} split", **settings},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)],
        }
        (folder / "annotations" / f"instances_{folder_name}.json").write_text(json.dumps(content))
    (folder / _SETTINGS_FILE).write_text(json.dumps(settings))
    if hasattr(os, "sync"):
        os.sync()  # once, instead of for each of thousands of files


def annotate(scene: Scene, image_id: int, first_id: int) -> Iterator[dict[str, Any]]:
    """Yield the COCO annotations of a `scene`, with compressed RLE masks, for `image_id`; ids start at `first_id`."""
    for index, rle in enumerate(coco_mask.encode(np.asfortranarray(scene.masks.transpose(1, 2, 0)))):
        yield {
            "id": first_id + index,
            "image_id": image_id,
            "category_id": int(scene.labels[index]) + 1,
            "bbox": coco_mask.toBbox(rle).tolist(),
            "area": int(coco_mask.area(rle)),
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
            "iscrowd": 0,
        }
