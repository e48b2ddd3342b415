"""Download the authors' weights, and write their measured hashes and sizes into `weights_manifest.json`.

python scripts/record_weights.py --all
python scripts/record_weights.py mrcnn_dpt_t_1x 'dpt_*'
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpt_zoo.errors import DPTZooError
from dpt_zoo.manifest import records
from dpt_zoo.utils.files import open_atomic
from dpt_zoo.weights.cache import CacheEntry
from dpt_zoo.weights.prefetch import Outcome, download, select_names


def record(outcomes: list[Outcome]) -> list[str]:
    """Write what was measured of the authors' files into the manifest, and return the names of their models.

    Raises:
        OutputError: The manifest cannot be written.
    """
    measured = {}
    for outcome in outcomes:
        provenance = CacheEntry(outcome.path.parent, outcome.name).read_provenance()
        if outcome.error is None and provenance and provenance.sha256:  # None: another form of the weights was fetched
            fields = ("sha256", "num_bytes", "tensors_sha256")
            measured[outcome.name] = {field: getattr(provenance, field) for field in fields}
    write_records(measured)
    return list(measured)


def write_records(changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Change fields of the manifest's records.

    Args:
        changes: the new fields, by the name of the model.

    Raises:
        OutputError: The manifest cannot be written.
    """
    path = records.data_path("weights_manifest.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    for entry in (*content["detectors"], *content["classifiers"], *content["demos"]):
        entry.update(changes.get(entry["name"], {}))
    with open_atomic(path) as file:
        file.write(f"{json.dumps(content, indent=2)}\n".encode())
    records.read_manifest.cache_clear()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models, or patterns such as 'mrcnn*'")
    parser.add_argument("--all", action="store_true", help="all twelve detectors")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="the cache folder; default: $DPT_ZOO_CACHE")
    args = parser.parse_args()
    try:
        outcomes = download(select_names(args.names, args.all), cache_dir=args.cache_dir, jobs=2)
        recorded = record(outcomes)
    except DPTZooError as error:
        print(f"record_weights: {error}", file=sys.stderr)
        return 2
    failed = [outcome.error for outcome in outcomes if outcome.error]
    for failure in failed:
        print(f"record_weights: {failure}", file=sys.stderr)
    print(f"recorded in the manifest: {', '.join(recorded) or 'nothing'}")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
