"""Write the manifest's tables of published metrics into a README: python scripts/update_readme_tables.py [README]

Each is between `<!-- table: NAME -->` and `<!-- end of table -->`; the names are retinanet, mask_rcnn and demos.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dpt_zoo.errors import DPTZooError, InputError  # noqa: E402
from dpt_zoo.manifest.records import ARCHITECTURE_TITLES, read_manifest  # noqa: E402
from dpt_zoo.reproduction.table import metrics_tables  # noqa: E402
from dpt_zoo.utils.files import open_atomic  # noqa: E402
from dpt_zoo.utils.text import format_percent  # noqa: E402


def update_tables(readme: Path) -> None:
    """Write the tables into a README.

    Raises:
        InputError: The file cannot be read, or lacks the place of a table.
        OutputError: The file cannot be written. It is unchanged.
    """
    try:
        text = readme.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{readme} cannot be read ({error}): name a Markdown file") from error
    manifest = read_manifest()
    published = manifest.published_detectors.values()
    places = {name: [record for record in published if record.architecture == name] for name in ARCHITECTURE_TITLES}
    end = "<!-- end of table -->"
    sections: list[tuple[str, Sequence[Any]]] = [*places.items(), ("demos", list(manifest.demos.values()))]
    for name, records in sections:
        begin = f"<!-- table: {name} -->"
        tables = metrics_tables(
            records,
            lambda record, column: format_percent(record.metrics.get(column[0], {}).get(column[1])),
        )
        text, count = re.subn(f"{begin}((?!<!--).)*{end}", f"{begin}\n\n{tables}\n\n{end}", text, flags=re.DOTALL)
        if count != 1:
            raise InputError(f"{readme} needs one line {begin} and, after it, one line {end}: add them")
    with open_atomic(readme) as file:
        file.write(text.encode())


if __name__ == "__main__":
    try:
        update_tables(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "README.md")
    except DPTZooError as error:
        sys.exit(f"{error}")
