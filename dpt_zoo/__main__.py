"""`python -m dpt_zoo` is the `dpt-zoo` command."""

import sys

from .cli import main

sys.exit(main())
