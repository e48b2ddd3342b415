"""The journal of a detection run, and the pictures that it writes of each image."""

import itertools
import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from detection_runs import SETTINGS, detections_in, frames_of, result_of, write
from PIL import Image

from dpt_zoo.batch.image_writer import ImageWriter
from dpt_zoo.batch.journal import ImageResult, Journal
from dpt_zoo.errors import InputError, OutputError
from dpt_zoo.inference.inputs import NamedInput, make_unique


class TestJournal:
    def test_it_gives_back_what_it_was_given(self, tmp_path: Path) -> None:
        given = [result_of("a.jpg"), *frames_of("clip.mp4", 2), result_of("caf\udce9.jpg")]
        journal = write(tmp_path, given)
        for before, after in zip(given, journal, strict=True):
            assert after.to_json() == before.to_json()
            assert after.detections.masks is not None and after.detections.names == ["a/../dog", "cat"]
        with pd.option_context("mode.string_storage", "python"):  # Arrow stores no names that are not UTF-8
            lines = pd.read_json(tmp_path / "detections.jsonl", lines=True)
        assert lines["name"].tolist()[:2] == ["a.jpg", "clip.mp4/000000"]
        assert json.loads((tmp_path / "run.json").read_text())["score_threshold"] == 0.3

    def test_resuming_knows_what_is_done(self, tmp_path: Path) -> None:
        write(tmp_path, [result_of("a.jpg"), *frames_of("clip.mp4", 2)])
        journal = write(tmp_path, [result_of("b.jpg")], resume=True)
        done, left = ["/data/a.jpg", "/data/../data/clip.mp4"], ["/other/a.jpg", "/data/b.jpg"]
        inputs = [NamedInput(Path(path).name, path) for path in [*left, *done]]
        assert [(each.name, each.origin) for each in journal.select(inputs)] == [
            ("a-2.jpg", left[0]),
            ("b.jpg", left[1]),
        ]
        assert [result.name for result in journal] == ["a.jpg", "clip.mp4/000000", "clip.mp4/000001", "b.jpg"]

    @pytest.mark.parametrize("rest", [b'{"name": "b', b"{"], ids=["begun", "hardly begun"])
    def test_a_half_written_line_does_not_count(self, tmp_path: Path, rest: bytes) -> None:
        write(tmp_path, [result_of("a.jpg")])
        with (tmp_path / "detections.jsonl").open("ab") as file:
            file.write(rest)
        journal = write(tmp_path, [result_of("b.jpg")], resume=True)
        assert [result.name for result in journal] == ["a.jpg", "b.jpg"]

    def test_a_video_counts_when_it_is_whole(self, tmp_path: Path) -> None:
        write(tmp_path, [result_of("a.jpg"), *frames_of("clip.mp4", 3)[:2]])
        journal = write(tmp_path, frames_of("clip.mp4", 3), resume=True)
        assert [each.name for each in journal.select([NamedInput("clip.mp4", "/data/clip.mp4")])] == ["clip.mp4"]
        assert [result.frame for result in journal] == [None, 0, 1, 2]

    def test_resuming_nothing_begins(self, tmp_path: Path) -> None:
        assert len(list(write(tmp_path, [result_of("a.jpg")], resume=True))) == 1

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"model": "retinanet"}, "model mrcnn instead of retinanet"),
            ({"weights": "1" * 64}, "other weights"),
            ({"score_threshold": 0.5}, "score_threshold 0.3 instead of 0.5"),
            ({"kept_classes": ("cat",)}, "kept_classes ['cat', 'a/../dog'] instead of ['cat']"),
            ({"scale": (640, 480), "amp": True}, "scale None instead of [640, 480], amp False instead of True"),
        ],
    )
    def test_a_run_with_other_settings_is_not_resumed(
        self, tmp_path: Path, change: dict[str, object], complaint: str
    ) -> None:
        write(tmp_path, [result_of("a.jpg")])
        complete = f"{tmp_path} holds a run with {complaint}: use the same settings, or another folder"
        with pytest.raises(InputError, match=f"^{re.escape(complete)}$"):
            Journal(tmp_path, replace(SETTINGS, **change), resume=True)  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["run.json", "detections.jsonl"])
    def test_a_damaged_run_is_not_resumed(self, tmp_path: Path, name: str) -> None:
        write(tmp_path, [result_of("a.jpg")])
        (tmp_path / name).write_text("[1]\n")
        with pytest.raises(InputError, match=rf"{name}.*: use another folder"):
            Journal(tmp_path, SETTINGS, resume=True)

    @pytest.mark.parametrize(
        "change",
        [
            *({"stem": stem} for stem in ("../../a", "/etc/a", "a/../../b", "a\0", "\ud800", None)),
            *({"name": 7}, {"key": 7}, {"frame": "1"}, {"frame": 1, "time": []}, {"objects": [{"score": 10**400}]}),
            *({"width": 1e999}, {"path": {}}, {"has_masks": True, "objects": [{}]}),
            {"has_tracks": True, "objects": [], "frame": 1},
        ],
        ids=repr,
    )
    def test_a_line_that_no_run_wrote(self, tmp_path: Path, change: dict[str, Any]) -> None:
        write(tmp_path, [result_of("a.jpg")])
        path = tmp_path / "detections.jsonl"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}) + "\n")
        with pytest.raises(InputError, match=r"jsonl, line 1: this is no image's result"):
            Journal(tmp_path, SETTINGS, resume=True)

    @pytest.mark.parametrize(
        ("name", "new", "old"),
        [("run.json", "kept_classes", "kept"), ("run.json", "scale", "size"), ("detections.jsonl", "path", "source")],
    )
    def test_a_run_of_an_earlier_version_is_refused(self, tmp_path: Path, name: str, new: str, old: str) -> None:
        write(tmp_path, [result_of("a.jpg")])
        path = tmp_path / name
        path.write_text(path.read_text().replace(f'"{new}"', f'"{old}"'))
        before = path.read_bytes()
        with pytest.raises(InputError, match=rf"{name}.*: use another folder") as raised:
            Journal(tmp_path, SETTINGS, resume=True)
        assert "\n" not in str(raised.value) and path.read_bytes() == before

    def test_an_image_that_is_given_twice_is_done_once(self, tmp_path: Path) -> None:
        given = [NamedInput(*each) for each in (("a.jpg", "/data/a.jpg"), ("b.jpg", "b"), ("a-2.jpg", "/data/./a.jpg"))]
        with Journal(tmp_path, SETTINGS) as journal:
            assert [each.name for each in journal.select(given)] == ["a.jpg", "b.jpg"]

    @pytest.mark.parametrize("order", list(itertools.permutations("abc")), ids="".join)
    @pytest.mark.parametrize("num_done", range(4))
    def test_any_order_of_inputs(self, tmp_path: Path, order: Sequence[str], num_done: int) -> None:
        def inputs(folders: Iterable[str]) -> list[NamedInput]:
            return list(make_unique(NamedInput("x.png", f"/{folder}/x.png") for folder in folders))

        def result(input: NamedInput) -> ImageResult:
            return ImageResult(input.name, input.name, detections_in(input.origin), key=input.key)

        write(tmp_path, [result(each) for each in inputs("abc")[:num_done]])
        with Journal(tmp_path, SETTINGS, resume=True) as journal:
            for each in journal.select(inputs(order)):
                journal.append(result(each))
            results = list(journal)
        assert {each.detections.path for each in results} == {"/a/x.png", "/b/x.png", "/c/x.png"}
        assert len({each.name for each in results}) == len(results) == 3

    def test_one_process_at_a_time(self, tmp_path: Path) -> None:
        with Journal(tmp_path, SETTINGS) as journal:
            journal.append(result_of("a.jpg"))
            for resume in (True, False):
                with pytest.raises(
                    InputError, match=f"^{re.escape(str(tmp_path))} is in use by another run: .*"
                ) as raised:
                    Journal(tmp_path, SETTINGS, resume=resume)
                assert "\n" not in str(raised.value)
            assert len(list(journal)) == 1
        with pytest.raises(InputError, match="other weights"):
            Journal(tmp_path, replace(SETTINGS, weights="1"), resume=True)
        assert len(list(write(tmp_path, [result_of("b.jpg")], resume=True))) == 2
        assert {path.name for path in tmp_path.iterdir()} == {"run.json", "detections.jsonl"}

    @pytest.mark.parametrize("is_replaced", [False, True])
    def test_a_folder_that_was_removed(self, tmp_path: Path, is_replaced: bool) -> None:
        folder = tmp_path / "run"
        folder.mkdir()
        with Journal(folder, SETTINGS) as journal:
            journal.append(result_of("a.jpg"))
            folder.rename(tmp_path / "moved")
            if is_replaced:
                write_again = tmp_path / "run"
                write_again.mkdir()
                write(write_again, [])
            with pytest.raises(OutputError, match="was removed during the run, and its results are lost"):
                journal.append(result_of("b.jpg"))
            with pytest.raises(OutputError, match="was removed"):
                list(journal)

    def test_many_stems_of_one_beginning(self, tmp_path: Path) -> None:
        with Journal(tmp_path, SETTINGS) as journal:
            start = time.process_time()
            stems = {journal.stems.new(f"{'x' * 160}{number}.png") for number in range(20_000)}
        assert len(stems) == 20_000 and time.process_time() - start < 10  # minutes, if it is quadratic

    def test_many_classes(self) -> None:
        classes = tuple(f"class {number}" for number in range(10_000))
        found = replace(detections_in("a.jpg"), classes=classes)
        start = time.process_time()
        for _ in range(20):
            assert len(found.filter(classes=classes)) == 2
        assert time.process_time() - start < 10  # minutes, if it is quadratic

    def test_stems_are_unambiguous(self, tmp_path: Path) -> None:
        names = ["a.jpg", "a.webp", "A.JPG", "b/a.jpg", "a.jpg", "../../c.png", ".hidden", f"{'é' * 300}.png"]
        with Journal(tmp_path, SETTINGS) as journal:
            stems = [journal.stems.new(name) for name in names]
        assert stems[:-1] == ["a", "a.webp", "A.JPG", "b/a", "a.jpg-2", "c", ".hidden"]
        assert 100 < len(os.fsencode(stems[-1])) < 200


class TestImageWriter:
    @pytest.mark.parametrize(
        ("name", "kind"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "JPEG"), ("a.png", "PNG"), ("a", "JPEG")]
    )
    def test_pictures(self, tmp_path: Path, name: str, kind: str) -> None:
        ImageWriter(tmp_path).write(ImageResult(name, "b/a", detections_in(name, image=True)))
        (path,) = (tmp_path / "pictures" / "b").iterdir()
        assert path.name == ("a.png" if kind == "PNG" else "a.jpg")
        with Image.open(path) as picture:
            assert (picture.format, picture.size) == (kind, (60, 40))
            assert (np.asarray(picture) != 100).any()
        assert [each.name for each in tmp_path.iterdir()] == ["pictures"]

    def test_a_picture_that_jpeg_cannot_hold_is_a_png(self, tmp_path: Path) -> None:
        nothing = detections_in("a.jpg")[:0]
        long = replace(nothing, rles=None, image_size=(1, 66_000), image=np.zeros((1, 66_000, 3), np.uint8))
        ImageWriter(tmp_path).write(ImageResult("a.jpg", "a", long))
        assert (tmp_path / "pictures" / "a.png").is_file()

    def test_crops(self, tmp_path: Path) -> None:
        ImageWriter(tmp_path, pictures=False, crops=True).write(
            ImageResult("b/a.png", "b/a", detections_in("a", image=True))
        )
        crops = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*.jpg")}
        assert set(crops) == {"crops/cat/b/a-2.jpg", "crops/a_.._dog/b/a-1.jpg"}
        with Image.open(crops["crops/cat/b/a-2.jpg"]) as crop:
            assert crop.size == (20, 10)

    def test_masks(self, tmp_path: Path) -> None:
        ImageWriter(tmp_path, pictures=False, masks=True).write(
            ImageResult("a.png", "a", detections_in("a", image=True))
        )
        with Image.open(tmp_path / "masks" / "a.png") as picture:
            numbers = np.asarray(picture)
        assert numbers.dtype == np.uint16 and numbers.shape == (40, 60)
        assert (numbers == 1).sum() == 20 * 30 and (numbers == 2).sum() == 10 * 20 - 5 * 5  # the dog is before the cat
        assert numbers[17, 22] == 1 and numbers[12, 22] == 2 and numbers[0, 0] == 0

    def test_a_frame_has_no_picture_of_its_own(self, tmp_path: Path) -> None:
        frame = ImageResult(
            "clip.mp4/000000", "clip.mp4/000000", detections_in("clip.mp4", image=True), frame=0, time=0.0
        )
        ImageWriter(tmp_path, masks=True).write(frame)
        assert [each.relative_to(tmp_path).as_posix() for each in tmp_path.rglob("*.*g")] == [
            "masks/clip.mp4/000000.png"
        ]

    def test_what_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "pictures").touch()
        with pytest.raises(OutputError, match="pictures cannot be made: File exists"):
            ImageWriter(tmp_path).write(ImageResult("a.png", "a", detections_in("a", image=True)))
