# Sourced by demo.sh and test.sh: `use_venv EXTRA` makes .venv, installs the project with that extra when it is not
# yet there or setup.py has changed since, and activates it.

use_venv() {
    local python="${PYTHON:-python3}" extra="$1" wanted
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "Python 3.10 or later is needed, $python is $("$python" --version 2>&1): set PYTHON=/path/to/python" >&2
        return 2
    }
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    # shellcheck disable=SC1091
    . .venv/bin/activate
    wanted="$(cksum <setup.py)"
    if [ "$(cat ".venv/installed-$extra" 2>/dev/null)" != "$wanted" ]; then
        echo "Installing into .venv (PyTorch is large: some minutes the first time) ..."
        pip install --quiet --disable-pip-version-check --editable ".[$extra]"
        echo "$wanted" >".venv/installed-$extra"
    fi
}
