"""Model cards in Markdown, made from the manifest's records by the template `model_card.md.j2`. Imports no torch."""

from pathlib import Path
from typing import Any

from .._version import __version__
from ..utils import markdown
from .locations import LocalFile, Location
from .metadata import WeightsMetadata
from .records import TASK_TITLES, Classifier, DemoDetector, Metrics, PublishedDetector, data_path

HUB_LICENSES = {
    *("agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc0-1.0"),
    *("gpl-2.0", "gpl-3.0", "isc", "lgpl-3.0", "mit", "mpl-2.0", "unlicense"),
}
"""Licences that the Hub knows; it calls all others "other"."""


def card(record: PublishedDetector | DemoDetector | Classifier, *, location: str | None = None) -> str:
    """Return the model card of a model: purpose, training, results, limits, use, and the origin of the weights.

    Args:
        record: a record of the manifest.
        location: location of a detector's published copy, as for `weights=`. The card then begins with metadata for
            the Hugging Face Hub.
    """
    return _render(
        "model_card.md.j2",
        record=record,
        location=location,
        urls=[_show_location(each) for each in record.locations],
        metric_rows=None if isinstance(record, Classifier) else _metric_rows(record.metrics),
    )


def own_card(metadata: WeightsMetadata, *, location: str, tensors_sha256: str) -> str:
    """Return the model card of a detector that a user trained, with metadata for the Hugging Face Hub.

    Args:
        metadata: what its weights say about it.
        location: location of the published copy, "hf://org/name".
        tensors_sha256: digest of the weights.
    """
    return _render(
        "own_model_card.md.j2",
        metadata=metadata,
        location=location,
        tensors_sha256=tensors_sha256,
        metric_rows=_metric_rows(metadata.metrics) if metadata.metrics else None,
        is_known_license=metadata.license.lower() in HUB_LICENSES,
    )


def _render(template: str, **context: Any) -> str:
    import jinja2  # here, so that `dpt-zoo list` starts without it

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters["escape"] = markdown.escape
    shared = {"version": __version__, "titles": TASK_TITLES, "table": markdown.table}
    return environment.get_template(template).render(**shared, **context)


def _metric_rows(metrics: Metrics) -> list[list[str]]:
    names = list(next(iter(metrics.values())))
    rows = ([TASK_TITLES[task], *(str(row.get(name, "-")) for name in names)] for task, row in metrics.items())
    return [["", *names], *rows]


def _show_location(location: Location) -> str:
    if isinstance(location, LocalFile):  # shipped with the project: the same text on every machine
        return f"`{location.path.relative_to(data_path('')).as_posix()}`"
    return location.url
