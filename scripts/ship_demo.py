"""Ship a trained demo: write its weights (float16) and its log to configs/demo/, and its record to the manifest.

python scripts/ship_demo.py mrcnn_dpt_nano_digits TRAINED LOG RESULTS...

RESULTS are JSON files. Together they have the COCO metrics ("metrics", as in an `evaluation.json`) and how the detector
was made ("data", "command", "seed", "versions", "machine", "minutes"; see the manifest's schema). If several files have
the same field, the last one counts. The metrics should be those of float16 weights: evaluate the output of
`dpt-zoo convert TRAINED half.safetensors --half`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from record_weights import write_records

import dpt_zoo
from dpt_zoo.errors import DPTZooError, InputError
from dpt_zoo.manifest.records import read_manifest
from dpt_zoo.utils.files import hash_file, open_atomic
from dpt_zoo.weights.converting import write_safetensors
from dpt_zoo.weights.digests import structure_sha256, tensors_sha256
from dpt_zoo.weights.reading import Weights, read_weights

MADE = ("data", "command", "seed", "versions", "machine", "minutes")


def ship(name: str, trained: Path, log: Path, results: list[Path]) -> None:
    """Write a demo detector's weights, log and record.

    Args:
        name: one of `list(read_manifest().demos)`.
        trained: the detector's weights, in any form that `create_model` reads.
        log: the training log, JSON lines.
        results: JSON files with the metrics and how the detector was made.

    Raises:
        InputError: There is no such demo, or `log` or `results` are incomplete.
        WeightsError: `trained` cannot be used.
        OutputError: A file cannot be written.
    """
    demo = read_manifest().demos.get(name)
    if demo is None:
        raise InputError(f"{name!r} is not a demo: choose one of {', '.join(read_manifest().demos)}")
    made = _read_results(results)
    lines = _read_log(log)
    model: Any = dpt_zoo.create_model(name, weights=trained)
    classes = model.dataset_meta["classes"]
    if len(classes) != demo.num_classes:
        raise InputError(f"{trained} is for {len(classes)} classes, not {demo.num_classes}: give {name}'s own weights")

    shipped = Path(demo.locations[0].url)
    meta = {"dataset_meta": {"classes": classes}}
    write_safetensors(Weights(model.state_dict(), meta, "safetensors"), shipped, half=True)
    with open_atomic(demo.log_path) as file:
        file.write(lines)
    tensors = read_weights(shipped).tensors
    known = {
        "num_params": sum(parameter.numel() for parameter in model.parameters()),
        **made,
        "sha256": hash_file(shipped).hexdigest(),
        "num_bytes": shipped.stat().st_size,
        "tensors_sha256": tensors_sha256(tensors),
        "structure_sha256": structure_sha256(tensors),
    }
    write_records({name: known})
    print(f"{shipped}: {known['num_bytes']:,} bytes, {known['num_params']:,} parameters")
    print(read_manifest().demos[name].summary)


def _read_results(paths: list[Path]) -> dict[str, Any]:
    """Read the metrics, with one decimal as the published ones, and how the detector was made."""
    content: dict[str, Any] = {}
    try:
        for path in paths:
            content |= json.loads(path.read_text(encoding="utf-8"))
        metrics = {task: _average_precisions(values) for task, values in content.get("metrics", {}).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a results file, see the top of this script: {error}") from error
    missing = [field for field in ("metrics", *MADE) if field not in content]
    if missing:
        raise InputError(f"{' '.join(map(str, paths))}: none of them has {', '.join(missing)}")
    return {"metrics": metrics, **{field: content[field] for field in MADE}}


def _average_precisions(values: dict[str, float | None]) -> dict[str, float]:
    """Return the average precisions, without those that had no objects to be measured on."""
    return {
        name: round(value, 1) for name, value in values.items() if name.startswith(("AP", "mAP")) and value is not None
    }


def _read_log(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        for line in content.splitlines():
            json.loads(line)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: it cannot be read as JSON lines: {error}") from error
    return content


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a demo's name, see `dpt-zoo list`")
    parser.add_argument("trained", type=Path, help="its weights")
    parser.add_argument("log", type=Path, help="its training log, JSON lines")
    parser.add_argument("results", type=Path, nargs="+", help="JSON files with the metrics and how it was made")
    args = parser.parse_args()
    try:
        ship(args.name, args.trained, args.log, args.results)
    except DPTZooError as error:
        print(f"ship_demo: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
