"""The result of a classifier's evaluation. Does not import PyTorch."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from ..utils.files import open_atomic
from ..utils.json_files import DAMAGE

ACCURACY = "accuracy.json"
"""The file of a finished evaluation in its `work_dir`: an `Accuracy`."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The accuracy of a classifier, with the data, software and hardware of the evaluation.

    Attributes:
        top1: images whose class has the highest score, in percent.
        top5: images whose class is among the five with the highest scores, in percent.
        num_images: the number of evaluated images.
        limit: the largest number of images to evaluate; None for all.
        amp: whether the classifier computed in half precision.
        data_root: the folder or the file of the images.
        weights: the "path" and "sha256" of the weights file.
        seconds: the time of this run, without images of an earlier one.
        processes: the number of processes.
        device: the name of the GPU or the CPU.
        versions: the versions of the software, by name.
    """

    top1: float
    top5: float
    num_images: int
    limit: int | None
    amp: bool
    data_root: str
    weights: dict[str, str]
    seconds: float
    processes: int
    device: str
    versions: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write `accuracy.json`."""
        with open_atomic(folder / ACCURACY) as file:
            file.write(f"{json.dumps(dataclasses.asdict(self), indent=2)}\n".encode())

    @classmethod
    def read(cls, folder: Path) -> "Accuracy | None":
        """Read `accuracy.json`; return None if the file does not exist or has another form."""
        try:
            return cls(**json.loads((folder / ACCURACY).read_bytes()))
        except (OSError, *DAMAGE):
            return None
