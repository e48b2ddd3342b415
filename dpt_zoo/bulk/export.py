"""Export of the results of a data set to the formats of other tools."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..batch.exporters import WRITERS
from ..batch.journal import ImageResult, RunSettings, Stems
from ..errors import InputError
from ..utils.files import make_folder
from .results import Results
from .storage import Folder


def export_dataset(folder: str | Path, work_dir: Path, formats: Sequence[str]) -> int:
    """Export the results of `detect_dataset`, and return the number of images that could not be read.

    Args:
        folder: the address of the results.
        work_dir: the folder to write to.
        formats: names of `batch.exporters.WRITERS`.

    Raises:
        InputError: The folder holds no results of a finished run, or a format is unknown.
        OutputError: A file cannot be written.
    """
    results = Results(Folder(str(folder)))
    run = _ExportedRun(results)
    make_folder(work_dir, "--work-dir")
    for name in formats:
        write = WRITERS.get(name)
        if write is None:
            raise InputError(f"format {name!r} is unknown: choose from {', '.join(WRITERS)}")
        write(run, work_dir)
    return results.count_errors()


class _ExportedRun:
    """The results as those of a detection run. An image's name is what follows the folder that all images share."""

    def __init__(self, results: Results) -> None:
        settings = results.settings
        self._results = results
        self._prefix = len(results.common_folder())
        self.settings = RunSettings(
            model=settings.model,
            weights=settings.weights,
            classes=settings.classes,
            kept_classes=settings.classes,
            score_threshold=settings.options["score_threshold"],
        )

    def __iter__(self) -> Iterator[ImageResult]:
        stems = Stems()
        for row in self._results:
            if row.detections is not None:
                name = row.uri[self._prefix :]
                yield ImageResult(name, stems.new(name), row.detections, key=row.key)
