"""The process that `export` measures: from its start to a detector's first detection, then to more of them."""

import json
import sys
import time

from .measuring import time_in_turn, watch_memory


def main() -> None:
    content = json.loads(sys.argv[1])
    growth = watch_memory()
    from dpt_zoo import Detector

    detect = Detector(**content["detector"])
    pixels = detect(content["image"]).image
    processor, wall = time.process_time(), time.time() - content["started"]
    (times,) = time_in_turn({"": lambda: detect(pixels)}, content["runs"]).values()
    print(json.dumps([times, [growth()], [processor], [wall]]))


if __name__ == "__main__":
    main()
