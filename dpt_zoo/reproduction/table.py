"""The results table: the published metrics of each detector beside the measured ones, and its plot."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..analysis.metrics import NAMES, TASKS
from ..evaluation.report import render
from ..evaluation.result import Evaluation
from ..manifest.records import ARCHITECTURE_TITLES, SCHEDULE_TITLES, TASK_TITLES, DemoDetector, PublishedDetector
from ..utils.files import open_atomic
from ..utils.markdown import table
from ..utils.text import format_percent, plural

Detector = PublishedDetector | DemoDetector
Column = tuple[str, str]  # a task and the name of a metric


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
    """A metric in percent, published and measured; None if it is undefined on the measured data."""

    published: float
    measured: float | None

    @property
    def tenths(self) -> int | None:
        """The difference in tenths of a percent point, exact: both sides are rounded first."""
        return None if self.measured is None else round(10 * round(self.measured, 1)) - round(10 * self.published)

    @property
    def matches(self) -> bool:
        """Whether the difference is at most 0.1."""
        return self.tenths is not None and abs(self.tenths) <= 1


@dataclass(frozen=True)
class Row:
    """A detector with its evaluation, or with the error if it failed, or with neither if it was not evaluated yet."""

    record: Detector
    evaluation: Evaluation | None = None
    error: str | None = None

    @property
    def cells(self) -> dict[Column, Cell]:
        """The published metrics, with the measured ones if there are any."""
        measured: Mapping[Any, Mapping[str, float | None]] = self.evaluation.metrics if self.evaluation else {}
        return {
            (task, name): Cell(published, measured.get(task, {}).get(name))
            for task, metrics in self.record.metrics.items()
            for name, published in metrics.items()
        }

    @property
    def summary(self) -> str:
        """The average precisions, or the reason why there are none."""
        if self.evaluation is None:
            return f"failed: {self.error}" if self.error else "not evaluated yet"
        return ", ".join(
            f"{TASK_TITLES[task]} AP {format_percent(cell.measured)} (published: {cell.published})"
            for (task, name), cell in self.cells.items()
            if name == "mAP"
        )

    @property
    def caveat(self) -> str | None:
        """The reason why the metrics cannot be compared with the published ones; None if they can."""
        if self.evaluation is None:
            return None
        if self.evaluation.skipped:
            return f"{plural(len(self.evaluation.skipped), 'image')} skipped"
        data = COCO if isinstance(self.record, PublishedDetector) else DIGITS
        measured = self.evaluation.num_images, self.evaluation.annotations["sha256"]
        return None if measured == data[1:] else f"the data are not {data.name}"


@dataclass(frozen=True)
class ResultsTable:
    """All results so far, with the options of the evaluations."""

    rows: dict[str, Row]  # by the detectors' names
    options: Mapping[str, Any]  # with a "limit", this is not a reproduction

    @property
    def caveat(self) -> str | None:
        """The reason why this is not a reproduction; None if it is one."""
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
            text = f"This is not a reproduction: {self.caveat}."
        elif self.num_different:
            text = f"{self.num_different} of {num_cells} metrics differ by more than 0.1 from the published ones."
        else:
            text = f"All {num_cells} metrics are within 0.1 of the published ones."
        if self.num_failed:
            text += f" {self.num_failed} of {num_rows} detectors failed."
        if num_left:
            text += f" {num_left} of {num_rows} detectors are not evaluated yet."
        return text

    def write(self, folder: Path) -> None:
        """Write `results.md`, `results.json` and `results.png`.

        Raises:
            OutputError: A file cannot be written. The existing file is unchanged.
        """
        records = [row.record for row in self.rows.values()]
        is_reproduction = self.caveat is None
        tables = metrics_tables(records, lambda record, column: _show(self.rows[record.name], column, is_reproduction))
        markdown = render(Path(__file__).with_name("results.md.j2"), results=self, tables=tables)
        content = {
            "is_reproduction": is_reproduction,
            "caveat": self.caveat,
            "summary": self.summary,
            "options": dict(self.options),
            "detectors": {name: _row_to_json(row, is_reproduction) for name, row in self.rows.items()},
        }
        with open_atomic(folder / "results.md") as file:
            file.write(markdown.encode())
        with open_atomic(folder / "results.json") as file:
            file.write(f"{json.dumps(content, indent=2, default=str)}\n".encode())
        _plot(self, folder / "results.png")

    def _cells(self) -> list[Cell]:
        return [cell for row in self.rows.values() if row.evaluation for cell in row.cells.values()]


def metrics_tables(records: Sequence[Detector], show: Callable[[Detector, Column], str]) -> str:
    """Return a Markdown table for each method: `records` as rows, published metrics as columns, and cells by `show`."""
    tables = []
    for architecture in ARCHITECTURE_TITLES:
        rows = [record for record in records if record.architecture == architecture]
        if not rows:
            continue
        published = {(task, name) for record in rows for task, metrics in record.metrics.items() for name in metrics}
        columns = [column for column in itertools.product(TASKS, NAMES) if column in published]
        has_schedule = any(isinstance(record, PublishedDetector) for record in rows)
        header = ["name", "method", "parameters", *["schedule"] * has_schedule]
        header += [f"{TASK_TITLES[task]} AP" if name == "mAP" else name for task, name in columns]
        cells = []
        for record in rows:
            schedule = [_schedule(record) or "-"] * has_schedule
            model = [f"`{record.name}`", record.network, f"{record.num_params / 1e6:.1f} M", *schedule]
            cells.append([*model, *(show(record, column) for column in columns)])
        tables.append(table(header, cells, f"llr{'l' * has_schedule}{'r' * len(columns)}"))
    return "\n\n".join(tables)


def _show(row: Row, column: Column, is_reproduction: bool) -> str:
    if column not in row.cells:
        return "-"
    if row.evaluation is None:
        return "failed" if row.error else "not yet"
    cell = row.cells[column]
    shown = f"{format_percent(cell.measured)} ({cell.published:.1f})"
    if not is_reproduction:
        return shown
    difference = "" if cell.tenths is None else f" {cell.tenths / 10:+.1f}"
    return f"{shown}{difference} {'✓' if cell.matches else '✗'}"


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


COLORS = {("retinanet", "bbox"): "tab:blue", ("mask_rcnn", "bbox"): "tab:red", ("mask_rcnn", "segm"): "tab:green"}
STYLES = {"": "o-", "1x": "o-", "MS+3x": "s--"}  # by the schedule


def _plot(results: ResultsTable, path: Path) -> None:
    """Plot AP by parameters and by time, with a line for each method, schedule and task."""
    from matplotlib.figure import Figure

    figure = Figure((12, 5.5), dpi=110, layout="constrained")
    title = f"NOT A REPRODUCTION: {results.caveat}" if results.caveat else "measured; crosses are published"
    figure.suptitle(title, color="red" if results.caveat else "black")
    by_size, by_time = figure.subplots(1, 2, sharey=True)
    by_size.set(xlabel="parameters, millions", ylabel="AP, percent")
    by_time.set(xlabel="seconds per image")
    for (architecture, schedule, task), rows in _lines(results).items():
        cells = [row.cells[task, "mAP"] for row in rows]
        sizes = [row.record.num_params / 1e6 for row in rows]
        times = [row.evaluation.seconds_per_image for row in rows if row.evaluation]
        style: dict[str, Any] = {"color": COLORS[architecture, task]}
        method = ARCHITECTURE_TITLES[rows[0].record.architecture]
        style["label"] = f"{method} {schedule}".rstrip() + f", {TASK_TITLES[task]} AP"
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


def _lines(results: ResultsTable) -> dict[tuple[str, str, str], list[Row]]:
    """Return the evaluated detectors by method, schedule and task, the smallest first."""
    lines: dict[tuple[str, str, str], list[Row]] = {}
    for row in sorted(results.rows.values(), key=lambda row: row.record.num_params):
        for task in row.record.metrics if row.evaluation else ():
            lines.setdefault((row.record.architecture, _schedule(row.record), task), []).append(row)
    return lines


def _schedule(record: Detector) -> str:
    return SCHEDULE_TITLES[record.schedule] if isinstance(record, PublishedDetector) else ""
