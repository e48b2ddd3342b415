"""The process that `export` measures: from its start to a detector's first detection, then to more of them."""

import json
import sys
import time
from pathlib import Path

from .measuring import time_in_turn, watch_memory


def main() -> None:
    content = json.loads(sys.argv[1])
    growth = watch_memory()
    from dpt_zoo import Detector
    from dpt_zoo.utils.images import load_image

    detect = Detector(**content["detector"])
    detect(content["image"])
    processor, wall = time.process_time(), time.time() - content["started"]
    pixels = load_image(Path(content["image"]))
    (times,) = time_in_turn({"": lambda: detect(pixels)}, content["runs"]).values()
    print(json.dumps([times, [growth()], [processor], [wall]]))


if __name__ == "__main__":
    main()
