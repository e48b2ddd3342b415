"""The published accuracies of the ImageNet classifiers, measured again. Does not import PyTorch."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..evaluation.accuracy import Accuracy
from ..manifest.records import Classifier, read_manifest
from ..utils.files import hash_file, lock_folder, make_folder, open_atomic
from ..utils.markdown import table
from .runner import ReproductionOptions, run_worker

NUM_IMAGES = 50_000
"""The number of ImageNet's validation images, which the published accuracies are for."""


@dataclass(frozen=True)
class ClassifierRow:
    """A classifier with its accuracy, or with the error if its evaluation failed."""

    record: Classifier
    accuracy: Accuracy | None = None
    error: str | None = None

    @property
    def matches(self) -> bool:
        """Whether top-1 accuracy on all images differs by at most 0.1 from the published one, both rounded."""
        if self.accuracy is None or self.accuracy.num_images != NUM_IMAGES:
            return False
        return abs(round(10 * self.accuracy.top1) - round(10 * self.record.metrics["top1"])) <= 1

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        published = f"{self.record.metrics['top1']:.1f}"
        if self.accuracy is None:
            return (f"`{self.record.name}`", published, f"failed: {self.error}", "", "", "")
        measured = (f"{self.accuracy.top1:.2f}", f"{self.accuracy.top5:.2f}", f"{self.accuracy.num_images:,}")
        is_whole = self.accuracy.num_images == NUM_IMAGES
        verdict = ("yes" if self.matches else "no") if is_whole else f"not all {NUM_IMAGES:,} images"
        return (f"`{self.record.name}`", published, *measured, verdict)


@dataclass(frozen=True)
class ClassifierResults:
    """The rows of the classifiers, and the file of their table."""

    rows: tuple[ClassifierRow, ...]
    path: Path

    @property
    def table(self) -> str:
        """The rows as a table of Markdown."""
        header = ("model", "published top-1", "top-1", "top-5", "images", "within 0.1")
        return table(header, [row.cells for row in self.rows], "lrrrrl")

    @property
    def all_match(self) -> bool:
        """Whether all classifiers were evaluated, and match."""
        return all(row.matches for row in self.rows)

    def write(self) -> None:
        """Write the table, and everything that was measured as JSON beside it."""
        with open_atomic(self.path) as file:
            file.write(f"{self.table}\n".encode())
        content = {
            row.record.name: {
                "published": row.record.metrics,
                "measured": dataclasses.asdict(row.accuracy) if row.accuracy else None,
                "error": row.error,
            }
            for row in self.rows
        }
        with open_atomic(self.path.with_suffix(".json")) as file:
            file.write(f"{json.dumps(content, indent=2)}\n".encode())


def reproduce_classifiers(
    names: Sequence[str], options: ReproductionOptions, report: Callable[[str], None] = lambda line: None
) -> ClassifierResults:
    """Evaluate classifiers one after the other, each in its own processes, and write their table.

    Earlier evaluations in `options.work_dir` with the same options are used. `names` are names of classifiers, by
    default all three; `report` is called with a line before and after each evaluation.

    Raises:
        InputError: A name is not that of a classifier, an option is only for detectors, or another run uses
            `options.work_dir`.
        OutputError: The results cannot be written.
    """
    if options.format != "pytorch" or options.skip_missing:
        raise InputError("format and skip_missing are for detectors: leave them out")
    classifiers = read_manifest().classifiers
    if unknown := [name for name in names if name not in classifiers]:
        raise InputError(f"{unknown[0]!r} is not a classifier: choose from {', '.join(classifiers)}")
    rows: list[ClassifierRow] = []
    make_folder(options.work_dir, "work_dir")
    with lock_folder(options.work_dir):
        for number, name in enumerate(names or classifiers, 1):
            report(f"{name}: {number} of {len(names or classifiers)}")
            rows.append(_evaluate(classifiers[name], options))
            report(" ".join(filter(None, rows[-1].cells)))
        results = ClassifierResults(tuple(rows), options.work_dir / "classifiers.md")
        results.write()
    return results


def _evaluate(record: Classifier, options: ReproductionOptions) -> ClassifierRow:
    folder = options.work_dir / record.name
    make_folder(folder, "work_dir")
    if (earlier := Accuracy.read(folder)) and _is_current(earlier, options):
        return ClassifierRow(record, earlier)
    passed = {name: getattr(options, name) for name in ("limit", "batch_size", "workers", "amp")}
    arguments = {"model": record.name, "data_root": str(options.data_root), "work_dir": str(folder), "resume": True}
    arguments |= {name: value for name, value in passed.items() if value is not None}
    if error := run_worker(arguments, options.processes):
        return ClassifierRow(record, error=error.removeprefix(f"{record.name}: "))
    return ClassifierRow(record, Accuracy.read(folder))


def _is_current(earlier: Accuracy, options: ReproductionOptions) -> bool:
    """Return whether an earlier evaluation has the same options, data and weights."""
    weights = Path(earlier.weights["path"])
    return (
        earlier.limit == options.limit
        and earlier.amp == options.amp
        and Path(earlier.data_root).is_relative_to(options.data_root.absolute())
        and (not weights.is_file() or hash_file(weights).hexdigest() == earlier.weights["sha256"])
    )
