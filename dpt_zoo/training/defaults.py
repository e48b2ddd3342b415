"""The settings of a fine-tuning run that nobody gave: chosen from the data, the config and the memory.

The choices are functions of `Facts` alone, and each comes with its reason.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.checks import CheckedSplit
from ..errors import InputError
from ..utils.files import open_atomic
from ..utils.text import plural

MIN_STEPS_IN_EPOCH = 16
"""Steps in an epoch for which small data sets get small batches."""
MIN_STEPS, MIN_EPOCHS, MAX_EPOCHS = 600, 12, 50
FINE_TUNING_FACTOR = 0.5
"""The learning rate of trained weights, relative to that of the config, which starts from a classifier."""
MEMORY_SHARE = 0.7
"""The share of the free memory that a step may use: images have different sizes and numbers of objects."""
MAX_ENLARGEMENT = 2.0
"""Larger images show nothing new, and take time."""
MIN_OBJECT = 16.0
"""Pixels at the network's input that most objects should have. In COCO, at the authors' scale, nine of ten have."""
MAX_GROWTH = 2.0
"""How much larger than in the config images may be, to reach `MIN_OBJECT`."""

FILE = "choices.json"

Scale = tuple[int, int]


@dataclass(frozen=True)
class Memory:
    """Memory on the device of a process, in bytes.

    Attributes:
        needed: what a training step with one image adds to what the process uses.
        free: what is left for it.
    """

    needed: int
    free: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the choices depend on.

    Attributes:
        num_images: number of images to train on.
        image_size: height and width of a typical image, in pixels.
        object_size: square root of a small object's box area in pixels of the image; nine tenths are larger.
        lr: the learning rate of the config, for `base_batch_size` images in a step.
        base_batch_size: number of images in a step of the config.
        scale: maximum longer and shorter side of a resized image in the config, in pixels; None leaves it as it is.
        num_processes: number of training processes.
        accumulate: number of batches in a step.
        memory: the measured memory, or None if it is unknown.
    """

    num_images: int
    image_size: tuple[int, int]
    object_size: float
    lr: float
    base_batch_size: int
    scale: Scale | None
    num_processes: int = 1
    accumulate: int = 1
    memory: Memory | None = None


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Settings of a run. None is not chosen yet or, in a config that is trained as it is, the config's.

    Attributes:
        batch_size: number of images in a batch of one process.
        lr: the highest learning rate.
        epochs: number of passes over the data.
        scale: maximum longer and shorter side of a resized image, in pixels.
    """

    batch_size: int | None = None
    lr: float | None = None
    epochs: int | None = None
    scale: Scale | None = None

    def or_else(self, others: "Choices") -> "Choices":
        """Return these choices, and the `others` where there is none."""
        return replace(others, **{name: value for name, value in asdict(self).items() if value is not None})

    def save(self, work_dir: Path) -> None:
        """Write the choices into the folder of a run, which `read_choices` reads when it is resumed.

        Raises:
            OutputError: The folder cannot be written.
        """
        with open_atomic(work_dir / FILE) as file:
            file.write(json.dumps(asdict(self)).encode())


def read_choices(work_dir: Path) -> Choices:
    """Return the choices of a run; none if it has none yet.

    Raises:
        InputError: The file is damaged.
    """
    path = work_dir / FILE
    if not path.is_file():
        return Choices()
    try:
        content = json.loads(path.read_bytes())
        scale = content["scale"] and (int(content["scale"][0]), int(content["scale"][1]))
        return Choices(**{**content, "scale": scale})
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(f"{path} is damaged: remove it, and give the options that it would choose") from error


def measure_data(data: CheckedSplit, *, keep_empty: bool) -> dict[str, Any]:
    """Return the facts about `data`, by the names in `Facts`; `keep_empty` counts images without objects."""
    height, width = np.median(np.array(data.image_sizes), axis=0)
    return {
        "num_images": data.num_images - (0 if keep_empty else data.num_empty_images),
        "image_size": (round(height), round(width)),
        "object_size": float(np.quantile(data.object_sizes, 0.1)),
    }


def choose(facts: Facts, given: Choices) -> tuple[Choices, dict[str, str]]:
    """Choose by the `facts` what was not `given`. Return all choices, and a line of text with each new one's reason."""
    reasons: dict[str, str] = {}
    scale = None
    if facts.scale is not None:
        scale, reason = _choose_scale(facts, facts.scale)
        reasons["scale"] = f"images of up to {scale[0]}x{scale[1]} pixels: {reason}"
    batch_size, of_batch_size = _choose_batch_size(facts)
    batch_size = given.batch_size or batch_size
    epochs, of_epochs = _choose_epochs(facts, batch_size)
    lr, of_lr = _choose_lr(facts, batch_size)
    reasons |= {
        "batch_size": f"batch size {batch_size}: {of_batch_size}",
        "epochs": f"{epochs} epochs: {of_epochs}",
        "lr": f"learning rate {lr:.2g}: {of_lr}",
    }
    chosen = Choices(batch_size=batch_size, lr=lr, epochs=epochs, scale=scale)
    return given.or_else(chosen), {name: line for name, line in reasons.items() if getattr(given, name) is None}


def _choose_batch_size(facts: Facts) -> tuple[int, str]:
    """Choose a power of two: the config's images in a step, or fewer for small data sets and small memory."""
    others = facts.num_processes * facts.accumulate
    wanted = min(facts.base_batch_size, facts.num_images // MIN_STEPS_IN_EPOCH) // others
    reason = f"{plural(facts.num_images, 'image')} in steps of at most {facts.base_batch_size}"
    if facts.memory is not None:
        wanted = min(wanted, int(MEMORY_SHARE * facts.memory.free / facts.memory.needed))
        needed, free = (f"{size / 2**30:.2f} GiB" for size in (facts.memory.needed, facts.memory.free))
        reason += f"; an image needs {needed}, {free} are free"
    return 2 ** int(math.log2(max(wanted, 1))), reason


def _choose_epochs(facts: Facts, batch_size: int) -> tuple[int, str]:
    steps = math.ceil(facts.num_images / (batch_size * facts.num_processes * facts.accumulate))
    epochs = min(max(math.ceil(MIN_STEPS / steps), MIN_EPOCHS), MAX_EPOCHS)
    return epochs, f"{plural(epochs * steps, 'step')}"


def _choose_lr(facts: Facts, batch_size: int) -> tuple[float, str]:
    """Scale the config's with the square root of the images in a step, as suits Adam (arXiv 2205.10287)."""
    images = batch_size * facts.num_processes * facts.accumulate
    lr = FINE_TUNING_FACTOR * facts.lr * min(1.0, math.sqrt(images / facts.base_batch_size))
    reason = f"the config's {facts.lr:.2g} for {facts.base_batch_size} images in a step, scaled to {images}"
    return lr, f"{reason}, and halved for trained weights"


def _choose_scale(facts: Facts, scale: Scale) -> tuple[Scale, str]:
    """Choose the config's scale, for which the weights were trained, unless the data are too different."""
    long, short = scale
    factor = min(long / max(facts.image_size), short / min(facts.image_size))  # from the image to the input
    small = f"small objects of {facts.object_size:.0f} pixels"
    if facts.object_size * factor < MIN_OBJECT:
        growth, reason = min(MIN_OBJECT / (facts.object_size * factor), MAX_GROWTH), f"larger, for {small}"
    elif factor > MAX_ENLARGEMENT:
        enlargement = max(MAX_ENLARGEMENT, MIN_OBJECT / facts.object_size)
        growth, reason = min(enlargement / factor, 1.0), "smaller, because the images are small"
    else:
        height, width = facts.image_size
        growth, reason = 1.0, f"as the detector was trained, with {small} in images of {width}x{height}"
    return (round(long * growth), round(short * growth)), reason
