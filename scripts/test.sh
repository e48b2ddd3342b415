#!/usr/bin/env bash
# Make .venv if needed, lint, check types, run the tests. Arguments go to pytest: scripts/test.sh -k hub
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
use_venv test

ruff check .
ruff format --check .
mypy
pytest --numprocesses 2 --dist loadgroup "$@"
