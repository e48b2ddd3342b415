"""Ship a trained demo: its weights as float16 and its log in configs/demo/, and what was measured in the manifest.

python scripts/ship_demo.py mrcnn_dpt_nano_digits TRAINED LOG RESULTS...

RESULTS are JSON files, which together have the COCO figures ("metrics", as in an `evaluation.json`) and how the
detector was made ("data", "command", "seed", "versions", "machine", "minutes"; see the manifest's schema); of what is
in several the last counts. The figures should be of float16 weights: evaluate those that
`dpt-zoo convert TRAINED half.safetensors --half` gives.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import dpt_zoo
from dpt_zoo.errors import DPTZooError, InputError
from dpt_zoo.manifest.records import read_manifest, record_measured
from dpt_zoo.utils.files import hash_file, open_atomic
from dpt_zoo.weights.converting import write_safetensors
from dpt_zoo.weights.digests import structure_sha256, tensors_sha256
from dpt_zoo.weights.reading import Weights, read_state_dict

MADE = ("data", "command", "seed", "versions", "machine", "minutes")


def ship(name: str, trained: Path, log: Path, results: list[Path]) -> None:
    """Write a demo detector's weights, log and record.

    Args:
        name: one of `list(read_manifest().demos)`.
        trained: the detector's weights, in any form that `create_model` takes.
        log: the training log, JSON lines.
        results: JSON files with its figures and how it was made.

    Raises:
        InputError: there is no such demo, or `log` or `results` do not have what they should.
        WeightsError: `trained` cannot be used.
        OutputError: something cannot be written.
    """
    demo = read_manifest().demos.get(name)
    if demo is None:
        raise InputError(f"{name!r} is no demo: choose one of {', '.join(read_manifest().demos)}")
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
    tensors = read_state_dict(shipped)
    known = {
        "num_params": sum(parameter.numel() for parameter in model.parameters()),
        **made,
        "sha256": hash_file(shipped).hexdigest(),
        "num_bytes": shipped.stat().st_size,
        "tensors_sha256": tensors_sha256(tensors),
        "structure_sha256": structure_sha256(tensors),
    }
    record_measured({name: known})
    print(f"{shipped}: {known['num_bytes']:,} bytes, {known['num_params']:,} parameters")
    print(read_manifest().demos[name].summary)


def _read_results(paths: list[Path]) -> dict[str, Any]:
    """The figures, with one decimal as the published ones, and how the detector was made."""
    told: dict[str, Any] = {}
    try:
        for path in paths:
            told |= json.loads(path.read_text(encoding="utf-8"))
        measured = {task: _percents(figures) for task, figures in told.get("metrics", {}).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: these are no results, see the top of this script: {error}") from error
    missing = [field for field in ("metrics", *MADE) if field not in told]
    if missing:
        raise InputError(f"{' '.join(map(str, paths))}: {', '.join(missing)} is in none of them")
    return {"measured": measured, **{field: told[field] for field in MADE}}


def _percents(figures: dict[str, float | None]) -> dict[str, float]:
    """The average precisions, of what there was something to measure on for."""
    return {
        name: round(value, 1) for name, value in figures.items() if name.startswith(("AP", "mAP")) and value is not None
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
    parser.add_argument("name", help="one of the demos below `dpt-zoo list`")
    parser.add_argument("trained", type=Path, help="its weights")
    parser.add_argument("log", type=Path, help="its training log, JSON lines")
    parser.add_argument("results", type=Path, nargs="+", help="JSON files: figures, and how it was made")
    args = parser.parse_args()
    try:
        ship(args.name, args.trained, args.log, args.results)
    except DPTZooError as error:
        print(f"ship_demo: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
