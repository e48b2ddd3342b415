"""`python -m dpt_zoo` runs the `dpt-zoo` command."""

import sys

from .cli import main

sys.exit(main())
