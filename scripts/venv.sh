# Sourced by demo.sh and test.sh. `use_venv [EXTRA]` creates .venv, installs the project with that extra unless it is
# installed and setup.py is unchanged, and activates it. VENV names another environment, PYTHON the Python to use.

use_venv() {
    local venv="${VENV:-.venv}" python="${PYTHON:-python3}" extra="${1:-}" wanted quiet=
    if [ ! -x "$venv/bin/python" ]; then
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
            echo "Python 3.10 or later is required, but $python is $("$python" --version 2>&1): set PYTHON=..." >&2
            return 2
        }
        "$python" -m venv "$venv"
    fi
    # shellcheck disable=SC1091
    . "$venv/bin/activate"
    wanted="$(cksum <setup.py)"
    if ! grep -qsxF -e "$wanted" "$venv/installed-$extra" "$venv/installed-test"; then
        echo "Installing into $venv (this takes some minutes the first time, because PyTorch is large) ..."
        [ -t 1 ] || quiet=--quiet # on a terminal, pip shows its progress
        pip install $quiet --disable-pip-version-check --editable ".${extra:+[$extra]}"
        keep_headless_opencv "$quiet"
        echo "$wanted" >"$venv/installed-$extra"
    fi
}

# MMEngine requires OpenCV's desktop build, which a machine without graphics libraries (a container) cannot import; this
# project requires the headless build. Both write the folder cv2, so only the headless one may stay.
keep_headless_opencv() {
    local version='import importlib.metadata as metadata; print(metadata.version("opencv-python-headless"))'
    if pip show --quiet opencv-python 2>/dev/null; then
        version="$(python -c "$version")"
        pip uninstall --quiet --yes opencv-python
        pip install ${1:+"$1"} --disable-pip-version-check --force-reinstall --no-deps "opencv-python-headless==$version"
    fi
}
