"""The program of a worker's process in which an image named "poison" ends the process, as a crash of a decoder does."""

import os
import signal
from pathlib import Path
from unittest import mock

from dpt_zoo.bulk import images, process
from dpt_zoo.utils.images import load_image


def load(path: Path) -> object:
    """Read an image, or die of it."""
    if "poison" in path.name:
        os.kill(os.getpid(), signal.SIGKILL)
    return load_image(path)


if __name__ == "__main__":
    with mock.patch.object(images, "load_image", load):
        process.main()
