"""Results as Parquet files: what is written, what other libraries read, and what comes back."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from bulk_data import SETTINGS
from detection_runs import detections_in

from dpt_zoo import Detections
from dpt_zoo.bulk.images import find_image
from dpt_zoo.bulk.plan import Plan, Settings, make_plan
from dpt_zoo.bulk.results import Counts, Results, read_counts, write_part
from dpt_zoo.bulk.storage import Folder
from dpt_zoo.errors import ImageError, InputError
from dpt_zoo.inference.inputs import ImageInput

NAMES = ["1.jpg", "2.jpg", "b/3.jpg", "4.jpg", "5.jpg", "6.jpg"]


def results_of(names: list[str], has_masks: bool = True) -> Iterator[tuple[ImageInput, Detections | ImageError]]:
    """Results of images: every third one is bad, and of the others, every second one has no objects."""
    for index, name in enumerate(names):
        detections = detections_in(f"/data/{name}")
        if not has_masks:
            detections = replace(detections, rles=None)
        result = ImageError(f"/data/{name}: damaged") if index % 3 == 2 else detections[: 2 - 2 * (index % 2)]
        yield find_image(f"/data/{name}"), result


def write(folder: Path, settings: Settings = SETTINGS) -> Plan:
    """Write a finished run."""
    plan = make_plan(Folder(str(folder)), settings, [[f"/data/{name}" for name in NAMES]])
    for index in range(plan.num_parts):
        names = NAMES[settings.images_per_part * index :][: settings.images_per_part]
        write_part(Folder(str(folder)), plan.part_name(index), settings, results_of(names, settings.has_masks))
    return plan


@pytest.mark.parametrize("rows", ["images", "objects"])
@pytest.mark.parametrize("has_masks", [True, False])
def test_what_was_written_comes_back(rows: str, has_masks: bool, tmp_path: Path) -> None:
    write(tmp_path, replace(SETTINGS, rows=rows, has_masks=has_masks))
    results = Results(Folder(str(tmp_path)))
    assert (results.settings.rows, results.count_errors(), results.common_folder()) == (rows, 1, "/data/")
    expected = [*results_of(NAMES[:4], has_masks), *results_of(NAMES[4:], has_masks)]
    for row, (image, result) in zip(results, expected, strict=True):
        assert (row.uri, row.key) == (image.origin, image.key)
        if isinstance(result, Detections):
            assert row.detections is not None and row.detections.to_json() == result.to_json()
        else:
            assert (row.detections, row.error) == (None, str(result))


def test_counts_and_metadata(tmp_path: Path) -> None:
    plan = write(tmp_path)
    first, second = (read_counts(Folder(str(tmp_path)), plan.part_name(index)) for index in range(2))
    assert (first, second) == (Counts(4, 1, 2), Counts(2, 0, 2))
    assert first + second == Counts(6, 1, 4)
    metadata = pq.read_schema(tmp_path / plan.part_name(0)).metadata
    content = json.loads(metadata[b"dpt_zoo"])
    assert (content["model"], content["weights"], content["classes"]) == ("mrcnn", "0" * 64, ["cat", "a/../dog"])


def test_pandas_and_duckdb(tmp_path: Path) -> None:
    write(tmp_path)
    table = pd.read_parquet(tmp_path)
    assert table["uri"].tolist() == [f"/data/{name}" for name in NAMES]
    assert table["error"].notna().tolist() == [False, False, True, False, False, False]
    np.testing.assert_array_equal(np.stack(table["boxes"][0]), detections_in("a").boxes)
    names = f"SELECT unnest(names) AS name FROM '{tmp_path}/*.parquet'"
    query = f"SELECT name, count(*) FROM ({names}) GROUP BY name ORDER BY name"
    assert duckdb.execute(query).fetchall() == [("a/../dog", 2), ("cat", 2)]
    masks = f"SELECT masks[1].counts FROM '{tmp_path}/*.parquet' WHERE len(masks) > 0"
    counts = detections_in("a").to_json()["objects"][0]["mask"]["counts"]
    assert duckdb.execute(masks).fetchall() == [(counts,), (counts,)]


def test_rows_of_objects(tmp_path: Path) -> None:
    write(tmp_path, replace(SETTINGS, rows="objects"))
    table = pd.read_parquet(tmp_path)
    assert table["name"].dropna().tolist() == ["a/../dog", "cat"] * 2
    assert set(table["uri"]) == {f"/data/{name}" for name in NAMES}  # also those without objects, and the bad one
    assert table.loc[table["uri"] == "/data/b/3.jpg", "error"].tolist() == ["/data/b/3.jpg: damaged"]


def test_unfinished_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no results"):
        Results(Folder(str(tmp_path)))
    plan = write(tmp_path)
    (tmp_path / plan.part_name(1)).unlink()
    with pytest.raises(InputError, match="1 of 2 parts are finished"):
        Results(Folder(str(tmp_path)))


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    plan = write(tmp_path)
    path = tmp_path / plan.part_name(0)
    path.write_bytes(path.read_bytes()[:-5])
    for read in (lambda: list(Results(Folder(str(tmp_path)))), lambda: read_counts(Folder(str(tmp_path)), path.name)):
        with pytest.raises(InputError, match=f"{path.name}: it cannot be read"):
            read()
