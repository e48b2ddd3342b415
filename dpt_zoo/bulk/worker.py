"""What detects in the parts of a run, one after the other."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ImageError, InputError, OutputError
from ..inference.detections import Detections
from ..inference.detector import Detector, is_exported
from ..inference.inputs import ImageInput
from ..utils.dependencies import explain_imports
from ..utils.urls import redact, redact_all
from .images import read_images
from .plan import Plan, PlanReader, check_settings, read_plan
from .results import Counts, read_counts, write_part
from .storage import Folder, is_local

LOCAL_RANK = "LOCAL_RANK"
"""The variable with the number of a worker on its machine, which chooses one of several GPUs."""


class PartError(Exception):
    """A part cannot be done now. Another try, or another machine, may succeed."""


class PartWorker:
    """Detects in the parts of a run. The model is loaded when it is needed.

    Args:
        model: see `Detector`.
        options: the options of `Detector`; "num_threads", by default 1, is also that of PyTorch.
    """

    def __init__(self, model: str, options: Mapping[str, Any]) -> None:
        self._model = model
        self._options = dict(options)
        self._run: tuple[Folder, Plan, PlanReader] | None = None

    @cached_property
    def _detector(self) -> Detector:
        options = {**self._options, "num_threads": self._options.get("num_threads") or 1}
        if not is_exported(self._model):
            with explain_imports():
                import torch
            torch.set_num_threads(options.pop("num_threads"))
            if options.get("device") in (None, "auto", "cuda") and torch.cuda.device_count() > 1:
                options["device"] = f"cuda:{int(os.environ.get(LOCAL_RANK, 0)) % torch.cuda.device_count()}"
        return Detector(self._model, **options)

    def describe(self) -> dict[str, Any]:
        """Return the model's "model", "weights", "graph", "classes" and "has_masks", see `Settings`."""
        detector = self._detector
        graph = detector.metadata and {"format": Path(self._model).suffix.lower(), **asdict(detector.metadata)}
        return {
            "model": detector.metadata.name if detector.metadata else self._model,
            "weights": detector.weights_sha256,
            "graph": graph,
            "classes": detector.classes,
            "has_masks": detector.has_masks,
        }

    def detect(self, address: str, index: int, progress: Callable[[int], None] = lambda done: None) -> Counts:
        """Detect in a part, and write its results, unless they exist.

        Args:
            address: the folder of the results, with the plan.
            index: the part's number.
            progress: called with the number of images that are done in this part.

        Raises:
            InputError: There is no plan, or it is of another model.
            OutputError: The results cannot be written to this machine's disk.
            PartError: The part cannot be done for another reason.
        """
        folder, plan, reader = self._open(address)
        name = plan.part_name(index)
        if folder.has(name):  # its writer ended before it could report it
            return read_counts(folder, name)

        def results() -> Iterator[tuple[ImageInput, Detections | ImageError]]:
            try:
                images = read_images(reader.read(index), plan.settings.column)
                for number, result in enumerate(self._detector.detect_each(images), 1):
                    yield result
                    progress(number)
            except Exception as error:  # also an OSError, which would count as one of the results' file
                raise PartError(redact_all(f"{type(error).__name__}: {error}")) from error

        try:
            return write_part(folder, name, plan.settings, results())
        except OutputError as error:
            if is_local(address):  # such as a full disk, which no other part has room on either
                raise
            raise PartError(str(error)) from error

    def _open(self, address: str) -> tuple[Folder, Plan, PlanReader]:
        if self._run is None:
            folder = Folder(address)
            plan = read_plan(folder)
            if plan is None:
                raise InputError(f"{redact(address)} has no plan here: all machines need to see the same output folder")
            check_settings(folder, plan.settings, self.describe())
            self._run = folder, plan, PlanReader(folder)
        return self._run
