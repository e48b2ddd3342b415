#!/usr/bin/env bash
# Make .venv if needed, lint, check types and layers, and run the tests. `--fast` leaves out the tests that are marked
# slow, network or browser. Other arguments go to pytest: scripts/test.sh -k hub
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
use_venv test

if [ "${1:-}" = --fast ]; then
    shift
    set -- -m "not slow and not network and not browser" "$@"
fi
ruff check .
ruff format --check .
mypy
lint-imports
pytest --numprocesses 2 --dist loadgroup "$@"
