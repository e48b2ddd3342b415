"""Run `dpt-zoo reproduce` from a checkout.

python scripts/reproduce_results.py --data-root coco
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dpt_zoo.cli import main

if __name__ == "__main__":
    sys.exit(main(["reproduce", *sys.argv[1:]]))
