"""The results table: the published metrics of each detector beside the measured ones."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..evaluation.metrics import NAMES, TASKS
from ..evaluation.report import render
from ..evaluation.result import Evaluation
from ..manifest.records import (
    ARCHITECTURE_TITLES,
    SCHEDULE_TITLES,
    TASK_TITLES,
    Architecture,
    DemoDetector,
    PublishedDetector,
)
from ..utils.files import open_atomic
from ..utils.markdown import table
from ..utils.text import format_percent, plural

Detector = PublishedDetector | DemoDetector
Column = tuple[str, str]
"""A task and the name of a metric."""


class DataSet(NamedTuple):
    """The data that published metrics were measured on."""

    name: str
    num_images: int
    annotations_sha256: str


# Many public repositories record this hash, one of them for the official archive; it was not measured here.
COCO = DataSet("COCO val2017", 5000, "e8c7f7908f1d7278341fae127d0da654f102f11bd7b21d8aeefa635b8c810b6f")
DIGITS = DataSet(
    "the 500 digit scenes of seed 0", 500, "586ad5431b8d0b25d19780a7d2af362683d291e8ab23acd4b955a0dc8bb975c4"
)


@dataclass(frozen=True)
class Cell:
    """A metric in percent, published and measured; the latter is None if there was nothing to measure it on."""

    published: float
    measured: float | None

    @property
    def tenths(self) -> int | None:
        """The difference in tenths of a percent point, each side rounded before: a whole number, which is exact."""
        return None if self.measured is None else round(10 * round(self.measured, 1)) - round(10 * self.published)

    @property
    def matches(self) -> bool:
        """Whether the difference is at most 0.1."""
        return self.tenths is not None and abs(self.tenths) <= 1


@dataclass(frozen=True)
class Row:
    """A detector with its evaluation, or with the reason why it failed; with neither, it was not evaluated yet."""

    record: Detector
    evaluation: Evaluation | None = None
    error: str | None = None

    @property
    def cells(self) -> dict[Column, Cell]:
        """The published metrics with the measured ones."""
        measured: Mapping[Any, Mapping[str, float | None]] = self.evaluation.metrics if self.evaluation else {}
        return {
            (task, name): Cell(published, measured.get(task, {}).get(name))
            for task, metrics in self.record.metrics.items()
            for name, published in metrics.items()
        }

    @property
    def summary(self) -> str:
        """The average precisions, or why there are none, in a few words."""
        if self.evaluation is None:
            return f"failed: {self.error}" if self.error else "not evaluated yet"
        return ", ".join(
            f"{TASK_TITLES[task]} AP {format_percent(cell.measured)} (published: {cell.published})"
            for (task, name), cell in self.cells.items()
            if name == "mAP"
        )

    @property
    def caveat(self) -> str | None:
        """Why the metrics cannot be compared with the published ones; None if they can."""
        if self.evaluation is None:
            return None
        if self.evaluation.skipped:
            return f"{plural(len(self.evaluation.skipped), 'image')} skipped"
        data = COCO if isinstance(self.record, PublishedDetector) else DIGITS
        measured = self.evaluation.num_images, self.evaluation.annotations["sha256"]
        return None if measured == data[1:] else f"the data are not {data.name}"


@dataclass(frozen=True)
class ResultsTable:
    """All results so far.

    Attributes:
        rows: by the detectors' names.
        options: the options of the evaluations; with a "limit", this is not a reproduction.
    """

    rows: dict[str, Row]
    options: Mapping[str, Any]

    @property
    def caveat(self) -> str | None:
        """Why this is not a reproduction; None if it is one."""
        if self.options["limit"] is not None:
            return f"only the first {plural(self.options['limit'], 'image')} were evaluated"
        if not self._cells():
            return "nothing was evaluated"
        return next(filter(None, (row.caveat for row in self.rows.values())), None)

    @property
    def num_failed(self) -> int:
        """The number of detectors that could not be evaluated."""
        return sum(row.error is not None for row in self.rows.values())

    @property
    def num_different(self) -> int:
        """The number of metrics that do not match; 0 if this is not a reproduction."""
        return 0 if self.caveat else sum(not cell.matches for cell in self._cells())

    @property
    def summary(self) -> str:
        """The outcome in a few sentences."""
        num_rows, num_cells = len(self.rows), len(self._cells())
        num_left = sum(row.evaluation is None for row in self.rows.values()) - self.num_failed
        if self.caveat:
            sentences = [f"This is not a reproduction: {self.caveat}."]
        elif self.num_different:
            sentences = [
                f"{self.num_different} of {num_cells} metrics differ by more than 0.1 from the published ones."
            ]
        else:
            sentences = [f"All {num_cells} metrics are within 0.1 of the published ones."]
        if self.num_failed:
            sentences.append(f"{self.num_failed} of {num_rows} detectors failed.")
        if num_left:
            sentences.append(f"{num_left} of {num_rows} detectors are not evaluated yet.")
        return " ".join(sentences)

    def write(self, folder: Path) -> None:
        """Write `results.md`, `results.json` and `results.png`.

        Raises:
            OutputError: One cannot be written. The existing file is unchanged.
        """
        with open_atomic(folder / "results.md") as file:
            file.write(_to_markdown(self).encode())
        with open_atomic(folder / "results.json") as file:
            file.write(f"{json.dumps(_to_json(self), indent=2, default=str)}\n".encode())
        _plot(self, folder / "results.png")

    def _cells(self) -> list[Cell]:
        return [cell for row in self.rows.values() if row.evaluation for cell in row.cells.values()]


# --- Markdown


def metrics_tables(records: Sequence[Detector], show: Callable[[Detector, Column], str]) -> str:
    """Return Markdown tables with a row for each detector, one table for each method, with all published metrics.

    Args:
        records: the detectors.
        show: returns the text of a cell.
    """
    tables = []
    for architecture in ARCHITECTURE_TITLES:
        rows = [record for record in records if record.architecture == architecture]
        columns = [
            (task, name) for task in TASKS for name in NAMES if any(name in r.metrics.get(task, {}) for r in rows)
        ]
        has_schedule = any(isinstance(record, PublishedDetector) for record in rows)
        header = ["name", "method", "parameters", *["schedule"] * has_schedule]
        titles = [f"{TASK_TITLES[task]} AP" if name == "mAP" else name for task, name in columns]
        cells = [
            [
                f"`{record.name}`",
                record.network,
                f"{record.num_params / 1e6:.1f} M",
                *[_schedule(record) or "-"] * has_schedule,
                *(show(record, column) for column in columns),
            ]
            for record in rows
        ]
        if rows:
            tables.append(table([*header, *titles], cells, f"llr{'l' * has_schedule}{'r' * len(columns)}"))
    return "\n\n".join(tables)


def _to_markdown(results: ResultsTable) -> str:
    records = [row.record for row in results.rows.values()]
    with_verdict = results.caveat is None
    tables = metrics_tables(records, lambda record, column: _show(results.rows[record.name], column, with_verdict))
    return render(Path(__file__).with_name("results.md.j2"), results=results, tables=tables)


def _show(row: Row, column: Column, with_verdict: bool) -> str:
    if column not in row.cells:
        return "-"
    if row.evaluation is None:
        return "failed" if row.error else "not yet"
    cell = row.cells[column]
    shown = f"{format_percent(cell.measured)} ({cell.published:.1f})"
    if not with_verdict:
        return shown
    difference = "" if cell.tenths is None else f" {cell.tenths / 10:+.1f}"
    return f"{shown}{difference} {'✓' if cell.matches else '✗'}"


# --- JSON


def _to_json(results: ResultsTable) -> dict[str, Any]:
    return {
        "is_reproduction": results.caveat is None,
        "caveat": results.caveat,
        "summary": results.summary,
        "options": dict(results.options),
        "detectors": {name: _row_to_json(row, results.caveat is None) for name, row in results.rows.items()},
    }


def _row_to_json(row: Row, is_reproduction: bool) -> dict[str, Any]:
    cells: dict[str, dict[str, Any]] = {}
    for (task, name), cell in row.cells.items():
        verdict: dict[str, Any] = {}
        if is_reproduction and row.evaluation:
            verdict = {"difference": None if cell.tenths is None else cell.tenths / 10, "matches": cell.matches}
        cells.setdefault(task, {})[name] = dataclasses.asdict(cell) | verdict
    content = {"error": row.error, "cells": cells}
    if row.evaluation:
        run = dataclasses.asdict(row.evaluation) | {"seconds_per_image": row.evaluation.seconds_per_image}
        content |= {key: value for key, value in run.items() if key not in ("metrics", "per_class")}
    return content


# --- Plot

COLORS = {("retinanet", "bbox"): "tab:blue", ("mask_rcnn", "bbox"): "tab:red", ("mask_rcnn", "segm"): "tab:green"}
STYLES = {"": "o-", "1x": "o-", "MS+3x": "s--"}
"""By the schedule."""


def _plot(results: ResultsTable, path: Path) -> None:
    """Plot AP by parameters and by time, with a line for each method, schedule and task."""
    from matplotlib.figure import Figure

    figure = Figure((12, 5.5), dpi=110, layout="constrained")
    if results.caveat:
        figure.suptitle(f"NOT A REPRODUCTION: {results.caveat}", color="red")
    else:
        figure.suptitle("measured; crosses are published")
    by_size, by_time = figure.subplots(1, 2, sharey=True)
    by_size.set(xlabel="parameters, millions", ylabel="AP, percent")
    by_time.set(xlabel="seconds per image")
    for (architecture, schedule, task), rows in _lines(results).items():
        cells = [row.cells[task, "mAP"] for row in rows]
        sizes = [row.record.num_params / 1e6 for row in rows]
        times = [row.evaluation.seconds_per_image for row in rows if row.evaluation]
        style: dict[str, Any] = {"color": COLORS[architecture, task]}
        style["label"] = f"{ARCHITECTURE_TITLES[architecture]} {schedule}".rstrip() + f", {TASK_TITLES[task]} AP"
        if results.caveat is None:
            by_size.plot(sizes, [cell.published for cell in cells], "x", color="black", zorder=3)
        for axes, places in ((by_size, sizes), (by_time, times)):
            axes.plot(places, [cell.measured for cell in cells], STYLES[schedule], **style)
            for row, place, cell in zip(rows, places, cells, strict=True):
                if cell.measured is not None:
                    name = row.record.size[0].upper()
                    axes.annotate(name, (place, cell.measured), (-10, 5), textcoords="offset points", fontsize=8)
    for axes in (by_size, by_time):
        axes.grid(color="#dddddd")
    if by_time.lines:
        by_time.legend(loc="upper left", bbox_to_anchor=(1, 1), title="N, T, S, M: DPT-Nano to -Medium")
    with open_atomic(path) as file:
        figure.savefig(file, format="png")


def _lines(results: ResultsTable) -> dict[tuple[Architecture, str, str], list[Row]]:
    """Return the evaluated detectors of the same method, schedule and task, by their sizes."""
    lines: dict[tuple[Architecture, str, str], list[Row]] = {}
    for row in sorted(results.rows.values(), key=lambda row: row.record.num_params):
        for task in row.record.metrics if row.evaluation else ():
            lines.setdefault((row.record.architecture, _schedule(row.record), task), []).append(row)
    return lines


def _schedule(record: Detector) -> str:
    return SCHEDULE_TITLES[record.schedule] if isinstance(record, PublishedDetector) else ""
