"""A worker in which an image named "poison" ends the process, as the crash of a decoder does, and "held" takes forever.

As a program, it is the process that `dpt_zoo.bulk.process` starts, or with arguments, the command with such workers;
`prepare` is called in each worker of Ray.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from dpt_zoo.bulk import images, process
from dpt_zoo.utils.images import load_image


def prepare() -> None:
    """Let this process die of such an image, and note the death in a file beside it; or wait at the other."""
    setattr(images, "load_image", _load_or_die)  # noqa: B010  (it is imported there)


def _load_or_die(path: Path, *options: Any) -> Any:
    if "poison" in path.name:
        with path.with_name("deaths").open("a") as file:
            file.write(f"{os.getpid()}\n")
        os.kill(os.getpid(), signal.SIGKILL)
    if "held" in path.name:
        path.with_name("reached").touch()
        time.sleep(1000)
    return load_image(path, *options)


if __name__ == "__main__":
    if sys.argv[1:]:
        from dpt_zoo.cli import main

        setattr(process, "PROGRAM", (sys.executable, __file__))  # noqa: B010  (as above)
        sys.exit(main())
    prepare()
    process.main()
