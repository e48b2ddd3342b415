"""Model cards in Markdown, made from the manifest's records by the template `model_card.md.j2`. Imports no torch."""

from pathlib import Path

from .._version import __version__
from ..utils import markdown
from .locations import LocalFile, Location
from .records import TASK_TITLES, Classifier, DemoDetector, Metrics, PublishedDetector, data_path


def card(record: PublishedDetector | DemoDetector | Classifier, *, location: str | None = None) -> str:
    """Return the model card of a model: purpose, training, results, limits, use, and the origin of the weights.

    Args:
        record: a record of the manifest.
        location: location of a detector's published copy, as for `weights=`. The card then begins with metadata for
            the Hugging Face Hub.
    """
    import jinja2  # here, so that `dpt-zoo list` starts without it

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.trim_blocks = environment.lstrip_blocks = True
    return environment.get_template("model_card.md.j2").render(
        record=record,
        location=location,
        version=__version__,
        titles=TASK_TITLES,
        table=markdown.table,
        urls=[_show_location(each) for each in record.locations],
        metric_rows=None if isinstance(record, Classifier) else _metric_rows(record.metrics),
    )


def _metric_rows(metrics: Metrics) -> list[list[str]]:
    names = list(next(iter(metrics.values())))
    rows = ([TASK_TITLES[task], *(str(row.get(name, "-")) for name in names)] for task, row in metrics.items())
    return [["", *names], *rows]


def _show_location(location: Location) -> str:
    if isinstance(location, LocalFile):  # shipped with the project: the same text on every machine
        return f"`{location.path.relative_to(data_path('')).as_posix()}`"
    return location.url
