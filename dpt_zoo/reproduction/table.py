"""The results table: what is published of each detector, for the README, and what was measured beside it."""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..manifest.records import (
    ARCHITECTURE_TITLES,
    SCHEDULE_TITLES,
    Architecture,
    DemoDetector,
    PublishedDetector,
    read_manifest,
)
from ..utils.files import open_atomic

Record = PublishedDetector | DemoDetector

Column = tuple[str, str]
"""What a table's column has: "bbox" or "segm", and a figure's name."""

MAIN_COLUMNS: dict[Column, str] = {
    ("bbox", "mAP"): "box AP",
    ("bbox", "AP50"): "AP50",
    ("bbox", "AP75"): "AP75",
    ("segm", "mAP"): "mask AP",
    ("segm", "AP50"): "AP50",
    ("segm", "AP75"): "AP75",
}
SIZE_COLUMNS: dict[Column, str] = {
    ("bbox", "APs"): "box APs",
    ("bbox", "APm"): "APm",
    ("bbox", "APl"): "APl",
    ("segm", "APs"): "mask APs",
    ("segm", "APm"): "APm",
    ("segm", "APl"): "APl",
}


@dataclass(frozen=True)
class DataSet:
    """What published figures are of.

    Attributes:
        name: in words.
        num_images: how many images it has.
        annotations_sha256: of its annotation file.
    """

    name: str
    num_images: int
    annotations_sha256: str


# The hash is as many public repositories record it, one of them of the official archive; it was not measured here.
COCO = DataSet("COCO val2017", 5000, "e8c7f7908f1d7278341fae127d0da654f102f11bd7b21d8aeefa635b8c810b6f")
DIGITS = DataSet(
    "the 500 digit scenes of seed 0", 500, "586ad5431b8d0b25d19780a7d2af362683d291e8ab23acd4b955a0dc8bb975c4"
)


# --- The README's tables


def write_tables(readme: Path) -> None:
    """Write the manifest's tables into a README, each between `<!-- table: NAME -->` and `<!-- end of table -->`.

    Raises:
        InputError: the file cannot be read, or does not have one place for each table.
        OutputError: it cannot be written; it is as it was.
    """
    try:
        text = readme.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{readme} cannot be read: {error}: name a Markdown file") from error
    manifest = read_manifest()
    end = "<!-- end of table -->"
    for name, records in (("published", manifest.published_detectors), ("demos", manifest.demos)):
        begin = f"<!-- table: {name} -->"
        table = _figures_table([*records.values()], MAIN_COLUMNS, lambda *cell: _show(_published(*cell)))
        text, count = re.subn(f"{begin}((?!<!--).)*{end}", f"{begin}\n\n{table}\n\n{end}", text, flags=re.DOTALL)
        if count != 1:
            raise InputError(f"{readme} needs one line {begin}, and after it {end}, for that table to be between them")
    with open_atomic(readme) as file:
        file.write(text.encode())


# --- What was measured, beside what is published


@dataclass(frozen=True)
class Cell:
    """A figure in percent, published and measured; the latter is None if there was nothing to measure it on."""

    published: float
    measured: float | None

    @property
    def tenths(self) -> int | None:
        """The difference in tenths, both rounded to one decimal before: a whole number, which is exact."""
        return None if self.measured is None else round(10 * round(self.measured, 1)) - round(10 * self.published)

    @property
    def holds(self) -> bool:
        """Whether the difference is at most 0.1."""
        return self.tenths is not None and abs(self.tenths) <= 1


@dataclass(frozen=True)
class Row:
    """A detector, and the content of its `evaluation.json`, or why it failed; neither, if it was not evaluated yet."""

    record: Record
    evaluation: dict[str, Any] | None = None
    error: str | None = None

    @property
    def cells(self) -> dict[Column, Cell]:
        """The figures that are published of it."""
        figures = self.evaluation["metrics"] if self.evaluation else {}
        return {
            (task, name): Cell(published, figures.get(task, {}).get(name))
            for task, name in MAIN_COLUMNS | SIZE_COLUMNS
            if (published := _published((task, name), self.record)) is not None
        }

    @property
    def summary(self) -> str:
        """Its average precisions, or why there are none, in a few words."""
        if self.evaluation is None:
            return f"failed: {self.error}" if self.error else "not evaluated yet"
        return ", ".join(
            f"{MAIN_COLUMNS[task, name]} {_show(cell.measured)} (published: {cell.published})"
            for (task, name), cell in self.cells.items()
            if name == "mAP"
        )

    @property
    def seconds(self) -> float | None:
        """How long detecting took for an image; None if that is not known."""
        if self.evaluation is None or self.evaluation["seconds"]["detecting"] is None:
            return None
        return self.evaluation["seconds"]["detecting"] / self.evaluation["num_images"]

    @property
    def caveat(self) -> str | None:
        """Why its figures cannot be held against the published ones; None if they can."""
        if self.evaluation is None:
            return None
        if self.evaluation["skipped"]:
            return f"{len(self.evaluation['skipped']):,} images were skipped"
        data = COCO if isinstance(self.record, PublishedDetector) else DIGITS
        found = self.evaluation["num_images"], self.evaluation["annotations"]["sha256"]
        return None if found == (data.num_images, data.annotations_sha256) else f"the data are not {data.name}"


@dataclass(frozen=True)
class ResultsTable:
    """All that is known so far.

    Attributes:
        rows: by the detectors' names.
        settings: how they are evaluated, for the record; with a "limit", this is no reproduction.
    """

    rows: dict[str, Row]
    settings: Mapping[str, Any]

    @property
    def caveat(self) -> str | None:
        """Why this is no reproduction; None if it is one."""
        if self.settings["limit"] is not None:
            return f"only the first {self.settings['limit']:,} images count"
        if not self._cells():
            return "nothing was evaluated"
        return next(filter(None, (row.caveat for row in self.rows.values())), None)

    @property
    def num_failed(self) -> int:
        """How many detectors could not be evaluated."""
        return sum(row.error is not None for row in self.rows.values())

    @property
    def num_missed(self) -> int:
        """How many figures do not hold; none, if this is no reproduction."""
        return 0 if self.caveat else sum(not cell.holds for cell in self._cells())

    @property
    def summary(self) -> str:
        """What became of it, in a few sentences."""
        num_rows, num_cells = len(self.rows), len(self._cells())
        num_left = sum(row.evaluation is None for row in self.rows.values()) - self.num_failed
        if self.caveat:
            sentences = [f"This is no reproduction: {self.caveat}."]
        elif self.num_missed:
            sentences = [f"{self.num_missed} of {num_cells} figures differ by more than 0.1 from what is published."]
        else:
            sentences = [f"All {num_cells} figures are within 0.1 of what is published."]
        if self.num_failed:
            sentences.append(f"{self.num_failed} of {num_rows} detectors failed.")
        if num_left:
            sentences.append(f"{num_left} of {num_rows} detectors are not evaluated yet.")
        return " ".join(sentences)

    def write(self, folder: Path) -> None:
        """Write `results.md`, `results.json` and `results.png`.

        Raises:
            OutputError: one cannot be written; it is as it was.
        """
        content = {
            "results.md": _markdown(self),
            "results.json": f"{json.dumps(_content(self), indent=2, default=str)}\n",
        }
        for name, text in content.items():
            with open_atomic(folder / name) as file:
                file.write(text.encode())
        _plot(self, folder / "results.png")

    def _cells(self) -> list[Cell]:
        return [cell for row in self.rows.values() if row.evaluation for cell in row.cells.values()]


# --- As Markdown

_TableColumn = tuple[str, str, Callable[[Any], str]]
"""A title, an alignment, and what gives the text for a row's subject."""


def _markdown(results: ResultsTable) -> str:
    rows = list(results.rows.values())
    title, verdict = "The published results, measured again", ", their difference, and ✓ if it is at most 0.1, else ✗"
    if results.caveat:
        title, verdict = "No reproduction of the published results", ""

    def show(column: Column, record: Record) -> str:
        return _show_cell(column, results.rows[record.name], with_verdict=results.caveat is None)

    parts = [
        f"# {title}",
        results.summary,
        _figures_table([row.record for row in rows], MAIN_COLUMNS, show),
        f"In percent: measured, in brackets published{verdict}.",
    ]
    sized = [row.record for row in rows if row.cells.keys() & SIZE_COLUMNS.keys()]
    if sized:
        parts += ["## By the objects' size", _figures_table(sized, SIZE_COLUMNS, show)]
    if results.num_failed:
        parts += ["## Failed", "\n".join(f"- `{row.record.name}`: {row.error}" for row in rows if row.error)]
    evaluated = [row for row in rows if row.evaluation]
    if evaluated:
        parts += ["## How it was measured", _runs_table(evaluated), "![AP against parameters and time](results.png)"]
    return "\n\n".join(parts) + "\n"


def _show_cell(column: Column, row: Row, *, with_verdict: bool) -> str:
    if column not in row.cells:
        return "-"
    if row.evaluation is None:
        return "failed" if row.error else "not yet"
    cell = row.cells[column]
    shown = f"{_show(cell.measured)} ({cell.published:.1f})"
    if not with_verdict:
        return shown
    difference = "" if cell.tenths is None else f" {cell.tenths / 10:+.1f}"
    return f"{shown}{difference} {'✓' if cell.holds else '✗'}"


def _show(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:.1f}"


def _figures_table(
    records: Sequence[Record], columns: Mapping[Column, str], show: Callable[[Column, Record], str]
) -> str:
    """A row for each detector; `columns` are titles, `show` gives what is in a cell."""
    known: list[_TableColumn] = [
        ("name", "---", lambda record: f"`{record.name}`"),
        ("method", "---", lambda record: record.network),
        ("parameters", "---:", lambda record: f"{record.num_params / 1e6:.1f} M"),
    ]
    if any(isinstance(record, PublishedDetector) for record in records):
        known.append(("schedule", "---", lambda record: _schedule(record) or "-"))
    known += [(title, "---:", functools.partial(show, column)) for column, title in columns.items()]
    return _table(records, known)


def _runs_table(rows: Sequence[Row]) -> str:
    """What each detector was evaluated on, and how fast it was."""
    return _table(
        rows,
        [
            ("name", "---", lambda row: f"`{row.record.name}`"),
            ("images", "---:", lambda row: f"{row.evaluation['num_images']:,}"),
            ("seconds per image", "---:", lambda row: "-" if row.seconds is None else f"{row.seconds:.3f}"),
            ("processes", "---:", lambda row: str(row.evaluation["processes"])),
            ("device", "---", lambda row: row.evaluation["device"]),
            ("PyTorch", "---", lambda row: row.evaluation["versions"]["torch"]),
        ],
    )


def _table(subjects: Sequence[Any], columns: Sequence[_TableColumn]) -> str:
    titles, alignments, texts = zip(*columns, strict=True)
    rows = [titles, *([text(subject) for text in texts] for subject in subjects)]
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, f"|{'|'.join(alignments)}|", *body])


# --- As JSON


def _content(results: ResultsTable) -> dict[str, Any]:
    return {
        "is_reproduction": results.caveat is None,
        "caveat": results.caveat,
        "summary": results.summary,
        "settings": dict(results.settings),
        "detectors": {
            name: _row_content(row, with_verdicts=results.caveat is None) for name, row in results.rows.items()
        },
    }


def _row_content(row: Row, *, with_verdicts: bool) -> dict[str, Any]:
    cells: dict[str, dict[str, Any]] = {}
    for (task, name), cell in row.cells.items():
        content: dict[str, Any] = {"published": cell.published, "measured": cell.measured}
        if with_verdicts and row.evaluation:
            content |= {"difference": None if cell.tenths is None else cell.tenths / 10, "holds": cell.holds}
        cells.setdefault(task, {})[name] = content
    known = row.evaluation or {}
    facts = {key: value for key, value in known.items() if key not in ("metrics", "per_class", "mistakes")}
    return {"error": row.error, "cells": cells, "seconds_per_image": row.seconds, **facts}


# --- As a picture

COLORS = {("retinanet", "bbox"): "tab:blue", ("mask_rcnn", "bbox"): "tab:red", ("mask_rcnn", "segm"): "tab:green"}
STYLES = {"": "o-", "1x": "o-", "MS+3x": "s--"}
"""By the schedule."""


def _plot(results: ResultsTable, path: Path) -> None:
    """Draw AP against parameters and against time, with a line for each method, schedule, and boxes or masks."""
    from matplotlib.figure import Figure

    figure = Figure((12, 5.5), dpi=110, layout="constrained")
    if results.caveat:
        figure.suptitle(f"NO REPRODUCTION: {results.caveat}", color="red")
    else:
        figure.suptitle("as measured; crosses are as published")
    by_size, by_time = figure.subplots(1, 2, sharey=True)
    by_size.set(xlabel="parameters, millions", ylabel="AP, percent")
    by_time.set(xlabel="seconds per image")
    for (architecture, schedule, task), rows in _lines_of(results).items():
        title = f"{ARCHITECTURE_TITLES[architecture]} {schedule}".rstrip()
        cells = [row.cells[task, "mAP"] for row in rows]
        sizes, times = [row.record.num_params / 1e6 for row in rows], [row.seconds for row in rows]
        if results.caveat is None:
            by_size.plot(sizes, [cell.published for cell in cells], "x", color="black", zorder=3)
        for axes, places in ((by_size, sizes), (by_time, times)):
            axes.plot(
                places,
                [cell.measured for cell in cells],
                STYLES[schedule],
                color=COLORS[architecture, task],
                label=f"{title}, {MAIN_COLUMNS[task, 'mAP']}",
            )
            for row, place, cell in zip(rows, places, cells, strict=True):
                if place is not None and cell.measured is not None:
                    name = row.record.size[0].upper()
                    axes.annotate(name, (place, cell.measured), (-10, 5), textcoords="offset points", fontsize=8)
    for axes in (by_size, by_time):
        axes.grid(color="#dddddd")
    if by_time.lines:
        by_time.legend(loc="upper left", bbox_to_anchor=(1, 1), title="N, T, S, M: DPT-Nano to -Medium")
    with open_atomic(path) as file:
        figure.savefig(file, format="png")


def _lines_of(results: ResultsTable) -> dict[tuple[Architecture, str, str], list[Row]]:
    """The evaluated detectors of the same method, schedule and task, by their sizes."""
    lines: dict[tuple[Architecture, str, str], list[Row]] = {}
    for row in sorted(results.rows.values(), key=lambda row: row.record.num_params):
        for task, name in row.cells:
            if row.evaluation and name == "mAP":
                lines.setdefault((row.record.architecture, _schedule(row.record), task), []).append(row)
    return lines


# --- What the manifest says


def _published(column: Column, record: Record) -> float | None:
    """A figure as the authors published it, or of a demo as this project measured it; None where there is none."""
    task, name = column
    figures = record.metrics
    return figures.get(task, {}).get(name)


def _schedule(record: Record) -> str:
    return SCHEDULE_TITLES[record.schedule] if isinstance(record, PublishedDetector) else ""
