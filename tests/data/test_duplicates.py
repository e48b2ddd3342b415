"""Images that are in two splits are named, although they were compressed and resized again."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from running import Run
from small_data import make_coco

from dpt_zoo.data.checks import CheckedSplit, check_splits
from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.data.duplicates import find_duplicates, make_thumbnail
from dpt_zoo.data.layouts import find_splits
from dpt_zoo.evaluation.data_report import MAX_SIZES, _count_sizes
from dpt_zoo.formats.issues import IssueType
from dpt_zoo.utils.images import load_image

NUM_LEAKS = 10


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digit scenes; ten images of val are also in train, as JPEGs of another quality and size."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    make_digit_scenes(folder, num_train=30, num_test=20, size=96)
    path = folder / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    for number in range(1, NUM_LEAKS + 1):
        with Image.open(folder / "val2017" / f"{number:06}.png") as image:
            width = 96 if number % 2 else 150
            copy = image.convert("RGB").resize((width, width))
            copy.save(folder / "train2017" / f"copy {number:06}.jpg", quality=25 + 7 * number)
        entry = {"id": 10_000 + number, "file_name": f"copy {number:06}.jpg", "width": width, "height": width}
        content["images"].append(entry)
    path.write_text(json.dumps(content))
    return folder


def find_leaks(folder: Path, work_dir: Path) -> tuple[list[str], CheckedSplit]:
    checked = check_splits(find_splits(folder, work_dir), find_leaks=True)
    return [str(issue) for issue in checked[1].issues if issue.type is IssueType.LEAK], checked[1]


def test_all_leaks_are_named_and_nothing_else(digits: Path, tmp_path: Path) -> None:
    leaks, val = find_leaks(digits, tmp_path)
    assert len(leaks) == NUM_LEAKS
    for number, leak in enumerate(leaks, 1):
        assert f"{number:06}.png" in leak and f"copy {number:06}.jpg" in leak
    assert {issue.image_id for issue in val.issues} == set(range(1, NUM_LEAKS + 1))


def test_plain_images_are_not_compared(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        make_coco(tmp_path / "data", split=split)
    assert find_leaks(tmp_path / "data", tmp_path)[0] == []


def compress(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_thumbnails_of_copies_match(quality: int, digits: Path) -> None:
    images = [load_image(path) for path in sorted((digits / "val2017").glob("*.png"))]
    first = np.stack([make_thumbnail(image) for image in images])
    second = np.stack([make_thumbnail(compress(image, quality)) for image in images])
    assert list(find_duplicates(first, second)) == [(number, number) for number in range(len(images))]


def test_the_report_shows_everything(digits: Path, tmp_path: Path, run: Run) -> None:
    (digits / "train2017" / "000001.png").rename(tmp_path / "kept.png")
    try:
        status, _, err = run("check-data", digits, "--report", tmp_path / "report")
    finally:
        (tmp_path / "kept.png").rename(digits / "train2017" / "000001.png")
    assert status == 2 and err.endswith(f"report: {tmp_path}/report/report.md\n")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "| images | 40 | 20 |" in page
    assert "| 96x96 | 35 | 20 |\n| 150x150 | 5 | 0 |\n" in page
    assert "### train2017: missing image (error, 1)" in page
    assert "### val2017: image in two splits (warning, 10)" in page
    pictures = [line.strip()[4:-1] for line in page.splitlines() if line.strip().startswith("![](")]
    assert len(pictures) == NUM_LEAKS
    for picture in (*pictures, "labels_train2017.jpg", "labels_val2017.jpg", "sizes.png"):
        assert load_image(tmp_path / "report" / picture).std() > 10


def test_rare_sizes_of_images_are_counted_together() -> None:
    sizes = [["640x480"] * 3, [*["640x480"] * 2, *(f"{side}x{side}" for side in range(100, 112))]]
    table = _count_sizes(sizes)
    assert next(iter(table)) == "640x480" and len(table) == MAX_SIZES + 1
    assert (table["640x480"], table["100x100"], table["others"]) == ([3, 2], [0, 1], [0, 3])


def test_a_report_of_a_broken_data_set(tmp_path: Path, run: Run) -> None:
    def break_it(content: dict[str, object]) -> None:
        content["annotations"] = [{"image_id": 1, "bbox": "no"}, 5, *content["annotations"]]  # type: ignore[misc]
        content["annotations"][2]["segmentation"] = [[1, 2]]  # type: ignore[index]
        content["categories"].append({"id": [3]})  # type: ignore[attr-defined]

    make_coco(tmp_path / "data", break_it)
    status, _, _ = run("check-data", tmp_path / "data", "--report", tmp_path / "report")
    assert status == 2
    assert "invalid polygon (error, 1)" in (tmp_path / "report" / "report.md").read_text()
    (tmp_path / "data" / "annotations" / "instances_train2017.json").write_text("no JSON")
    status, _, _ = run("check-data", tmp_path / "data", "--report", tmp_path / "report")
    assert status == 2 and "the file is not JSON" in (tmp_path / "report" / "report.md").read_text()
