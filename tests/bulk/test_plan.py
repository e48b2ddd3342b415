"""Plans: fixed parts that hold each image once, and are never mixed with those of other inputs or settings."""

import json
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bulk_data import SETTINGS
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dpt_zoo.bulk.plan import PLAN, RUN, Plan, PlanReader, SeenKeys, image_key, make_plan, read_plan, wait_for_plan
from dpt_zoo.bulk.sources import Entry, Shard
from dpt_zoo.bulk.storage import Folder
from dpt_zoo.errors import InputError

IMAGES = [f"/data/{index}.png" for index in range(10)]
SHARD = Shard("/data/a.tar")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "out"))


def read_parts(folder: Folder, plan: Plan) -> list[list[str | Shard]]:
    reader = PlanReader(folder)
    return [reader.read(index) for index in range(plan.num_parts)]


def modes(folder: Folder) -> list[int]:
    return [stat.S_IMODE(Path(folder.address, name).stat().st_mode) for name in (PLAN, RUN)]


@settings(deadline=None)
@given(batches=st.lists(st.lists(st.integers(0, 30), max_size=20), max_size=12))
def test_seen_keys_are_a_set(batches: list[list[int]]) -> None:
    seen, expected = SeenKeys(), set[int]()
    for batch in batches:
        is_new = seen.add([image_key(str(value)) for value in batch]).tolist()
        for index, value in enumerate(batch):
            assert is_new[index] == (value not in expected)
            expected.add(value)


@settings(deadline=None)
@given(chunks=st.lists(st.lists(st.integers(0, 40), max_size=15), max_size=8), shards=st.lists(st.integers(0, 7)))
def test_each_image_is_in_one_part(
    chunks: list[list[int]], shards: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = Folder(str(tmp_path_factory.mktemp("plan")))
    entries: list[Entry] = [[f"/data/{value}.png" for value in chunk] for chunk in chunks]
    for number in shards:
        entries.insert(number, Shard(f"/data/{number}.parquet", 2, 4))
    assume(any(isinstance(entry, Shard) or entry for entry in entries))
    plan = make_plan(folder, SETTINGS, entries)
    parts = read_parts(folder, plan)
    images = [each for part in parts for each in part if isinstance(each, str)]
    assert images == list(dict.fromkeys(address for entry in entries if isinstance(entry, list) for address in entry))
    assert plan.num_images == (None if shards else len(images))
    sizes = [len(part) for part in parts if isinstance(part[0], str)]
    assert all(size == SETTINGS.images_per_part for size in sizes[:-1]) and all(sizes)
    assert {each for part in parts for each in part if isinstance(each, Shard)} == {
        entry for entry in entries if isinstance(entry, Shard)
    }
    shutil.rmtree(folder.address)


def test_the_same_inputs_give_the_same_plan(folder: Folder, tmp_path: Path) -> None:
    plan = make_plan(folder, SETTINGS, [IMAGES, SHARD])
    assert [plan.part_name(index)[:12] for index in range(plan.num_parts)] == [f"part-00000{i}-"[:12] for i in range(4)]
    before = {path.name: path.stat().st_mtime_ns for path in Path(folder.address).iterdir()}
    assert make_plan(folder, SETTINGS, [IMAGES[:3], IMAGES[:5], IMAGES[5:], SHARD]) == read_plan(folder) == plan
    assert {path.name: path.stat().st_mtime_ns for path in Path(folder.address).iterdir()} == before
    assert make_plan(Folder(str(tmp_path / "elsewhere")), SETTINGS, [IMAGES, SHARD]) == plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "retinanet"}, "model mrcnn instead of retinanet"),
        ({"weights": "1" * 64}, "other weights"),
        ({"graph": {"precision": "int8"}}, "other graph"),
        ({"classes": ("cat",)}, "other classes"),
        ({"options": {"score_threshold": 0.5, "amp": False}}, r"'score_threshold': 0\.3.* instead of .*0\.5"),
        ({"rows": "objects"}, "rows images instead of objects"),
        ({"images_per_part": 5}, "images_per_part 4 instead of 5"),
    ],
)
def test_other_settings_are_refused(changes: dict[str, Any], message: str, folder: Folder) -> None:
    plan = make_plan(folder, SETTINGS, [IMAGES])
    with pytest.raises(InputError, match=message):
        make_plan(folder, replace(SETTINGS, **changes), [IMAGES])
    assert read_plan(folder) == plan
    other = make_plan(Folder(f"{folder.address}-2"), replace(SETTINGS, **changes), [IMAGES])
    assert other.part_name(0) != plan.part_name(0)


@pytest.mark.parametrize("entries", [[IMAGES[1:]], [IMAGES[::-1]], [[*IMAGES, "/data/new.png"]], [IMAGES, SHARD]])
def test_other_inputs_are_refused(entries: list[Entry], folder: Folder) -> None:
    make_plan(folder, SETTINGS, [IMAGES])
    with pytest.raises(InputError, match="a run with other inputs"):
        make_plan(folder, SETTINGS, entries)


@pytest.mark.parametrize("entries", [[], [[]]])
def test_no_images(entries: list[Entry], folder: Folder) -> None:
    with pytest.raises(InputError, match="there are no images"):
        make_plan(folder, SETTINGS, entries)
    assert read_plan(folder) is None


def test_other_files_are_refused(folder: Folder) -> None:
    Path(folder.address).mkdir()
    Path(folder.address, "table.parquet").touch()
    with pytest.raises(InputError, match="holds Parquet files, but no run"):
        make_plan(folder, SETTINGS, [IMAGES])
    for content in ("", "[]", '{"settings": {}}'):
        Path(folder.address, RUN).write_text(content)
        with pytest.raises(InputError, match="is damaged, or of another version"):
            read_plan(folder)


def test_an_interrupted_plan_leaves_nothing(folder: Folder) -> None:
    def entries() -> Iterator[Entry]:
        yield IMAGES
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_plan(folder, SETTINGS, entries())
    assert not list(Path(folder.address).iterdir())


def test_secrets_stay_with_their_owner(folder: Folder, tmp_path: Path) -> None:
    plan = make_plan(folder, SETTINGS, [["https://user:secret@host/a.png?token=secret"]])
    assert modes(folder)[0] == 0o600
    assert "secret" not in Path(folder.address, RUN).read_text()
    assert read_parts(folder, plan) == [["https://user:secret@host/a.png?token=secret"]]
    open_to_all = Folder(str(tmp_path / "elsewhere"))
    make_plan(open_to_all, SETTINGS, [["https://host/a.png"]])
    assert modes(open_to_all)[0] == modes(open_to_all)[1] == modes(folder)[1]


def test_text_that_parquet_cannot_hold(folder: Folder) -> None:
    with pytest.raises(InputError, match=r"only text in UTF-8"):
        make_plan(folder, SETTINGS, [["/data/\udce9.png"]])


def test_other_ranks_wait_for_the_plan(folder: Folder) -> None:
    known = {"rows": "images", "images_per_part": 4}
    with pytest.raises(InputError, match="there is no plan after 0 s"):
        wait_for_plan(folder, known, 0)
    plan = make_plan(folder, SETTINGS, [IMAGES])
    assert wait_for_plan(folder, known, 0) == plan
    with pytest.raises(InputError, match="images_per_part 4 instead of 9"):
        wait_for_plan(folder, {**known, "images_per_part": 9}, 0)
    assert json.loads(Path(folder.address, RUN).read_text())["digest"] == plan.digest
