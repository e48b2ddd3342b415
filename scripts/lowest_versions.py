"""Print the lowest versions of the packages that users install and that fit together, as constraints. Needs uv."""

import re
import subprocess
from pathlib import Path

SETUP = Path(__file__).resolve().parents[1] / "setup.py"


def main() -> None:
    """Resolve setup.py's requirements with uv and print `name==version` lines of the direct ones."""
    command = ["uv", "pip", "compile", str(SETUP), "--extra=all", "--resolution=lowest-direct", "-q", "--no-header"]
    resolved = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    packages = re.split(r"^(?=\S)", resolved, flags=re.MULTILINE)
    print(*(package.split()[0] for package in packages if "dpt-zoo (" in package), sep="\n")


if __name__ == "__main__":
    main()
