"""The page on detecting: its code and commands run, and its tables are complete and have nothing else."""

import inspect
import os
import re
import shlex
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from reference_data import ROOT
from running import Run

from dpt_zoo import Detections, Detector
from dpt_zoo.cli.detect import FORMATS
from dpt_zoo.data.digits import make_digit_scenes

PAGE = (ROOT / "docs" / "inference.md").read_text()
MODEL = "mrcnn_dpt_nano_digits"


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: photos/, photo.jpg and film.mp4 of digit scenes."""
    folder = tmp_path_factory.mktemp("user")
    make_digit_scenes(folder / "digits", num_train=1, num_test=3)
    (folder / "digits" / "val2017").rename(folder / "photos")
    scenes = [Image.open(path) for path in sorted((folder / "photos").iterdir())]
    scenes[0].save(folder / "photo.jpg", quality=95)
    with av.open(str(folder / "film.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 192, 192, "yuv420p"
        for scene in scenes:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(scene), "rgb24")))
        film.mux(stream.encode(None))
    return folder


def test_python(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    exec("\n".join(blocks("python")), {})
    out, err = capsys.readouterr()
    assert not err
    lines = out.splitlines()
    images = [f"photos/00000{number}.png" for number in (1, 2, 3)]
    assert [line.split()[0] for line in lines] == [*images, *["film.mp4"] * 3]
    assert (folder / "detections.png").is_file()
    assert (folder / "detections.csv").read_text().startswith(",name,label,score,x1,y1,x2,y2")


def test_shell(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands, in this process: a new one would load PyTorch each time."""
    monkeypatch.chdir(folder)
    first, explain, many, _app = blocks("bash")
    for line in (first + explain + many).splitlines():
        piped, _, command = line.rpartition(" | ")
        name, *arguments = shlex.split(command)
        assert name == "dpt-zoo"
        with Path(piped.removeprefix("cat ") or os.devnull).open() as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            status, _, err = run(*arguments)
        assert (status, err) == (0, ""), line
    assert (folder / "detections" / "pictures" / "photo.jpg").is_file()
    assert (folder / "patches.png").is_file() and (folder / "digit.png").is_file()
    written = {path.name for path in (folder / "out").iterdir()}
    assert written == {"run.json", "detections.jsonl", "coco.json", "detections.csv", "pictures", "crops", "masks"}
    assert not (folder / "sevens" / "pictures").exists()
    assert len((folder / "piped" / "detections.jsonl").read_text().splitlines()) == 1
    assert (folder / "filmed" / "pictures" / "film.mp4").is_file()
    assert (folder / "tracked" / "mot" / "film.mp4.txt").is_file()


def test_app() -> None:
    assert blocks("bash")[3] == "dpt-zoo app\n"  # tests/app runs it


def test_the_folders_table(run: Run, folder: Path, tmp_path: Path) -> None:
    """A run with all options of the table writes all files of the table."""
    rows = table("in the folder")
    options = [option for row in rows for option in re.findall(r"`(--(?:format|save)[^`]*)`", row[1])]
    formats = [option.split()[1] for option in options if option.startswith("--format")]
    others = [option for option in options if not option.startswith("--format")]
    status, _, err = run(
        *("detect", folder / "film.mp4", "--model", MODEL, "--work-dir", tmp_path / "out", "--track"),
        *("--format", *formats, *others),
    )
    assert (status, err) == (0, "")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {name.rstrip("/") for row in rows for name in names(row[0])} == written


def test_every_option_is_documented(run: Run) -> None:
    usage = run("detect", "--help")[1]
    assert set(re.findall(r"--[a-z][a-z-]+", section("dpt-zoo detect"))) == set(
        re.findall(r"--[a-z][a-z-]+", usage)
    ) - {"--help"}
    assert set(re.findall(r"`--format (\w+)", PAGE)) == set(FORMATS)


def test_every_argument_is_documented() -> None:
    documented = dict(name.split("=") for row in table("argument") for name in names(row[0]))
    parameters = inspect.signature(Detector.__init__).parameters
    assert documented.keys() == parameters.keys() - {"self", "model"}
    for name, value in documented.items():
        assert not value or value == "True" or eval(value) == parameters[name].default


def test_all_of_detections_is_documented() -> None:
    documented = {re.split(r"\W", name)[0] for row in table("") for name in names(row[0])}
    public = {*Detections.__dataclass_fields__, *(name for name in vars(Detections) if not name.startswith("_"))}
    assert documented == public


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def section(heading: str) -> str:
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def table(first_column: str) -> list[list[str]]:
    """Return the cells of each row of the table whose first column has this title."""
    (rows,) = re.findall(rf"^\| ?{first_column} ?\|.*\n\|-.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows.splitlines()]


def names(cell: str) -> list[str]:
    """Return the parts of a cell that are formatted as code."""
    return re.findall("`([^`]+)`", cell)
