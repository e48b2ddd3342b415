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

lint() {
    ruff check .
    ruff format --check .
    mypy
    lint-imports
}

log="$(mktemp)" # lint beside the tests, and print its output after theirs
trap 'rm -f "$log"' EXIT
lint >"$log" 2>&1 &
status=0
pytest --numprocesses 2 --dist loadgroup "$@" || status=$?
wait $! || status=$?
cat "$log"
exit "$status"
