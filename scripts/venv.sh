# Sourced by demo.sh and test.sh: `use_venv [EXTRA]` makes .venv, installs the project (with that extra) when it is not
# yet there or setup.py has changed since, and activates it. VENV names another environment, PYTHON the Python to use.

use_venv() {
    local venv="${VENV:-.venv}" python="${PYTHON:-python3}" extra="${1:-}" wanted quiet=
    if [ ! -x "$venv/bin/python" ]; then
        "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || {
            echo "Python 3.10 to 3.13 is needed, but $python is $("$python" --version 2>&1): set PYTHON=..." >&2
            return 2
        }
        "$python" -m venv "$venv"
    fi
    # shellcheck disable=SC1091
    . "$venv/bin/activate"
    wanted="$(cksum <setup.py)"
    if ! grep -qsxF -e "$wanted" "$venv/installed-$extra" "$venv/installed-test"; then
        echo "Installing into $venv (PyTorch is large: some minutes the first time) ..."
        [ -t 1 ] || quiet=--quiet # on a terminal, pip shows its progress
        pip install $quiet --disable-pip-version-check --editable ".${extra:+[$extra]}"
        echo "$wanted" >"$venv/installed-$extra"
    fi
}
