"""`python -m dpt_zoo.download --all` runs `dpt-zoo download --all`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main(["download", *sys.argv[1:]]))
