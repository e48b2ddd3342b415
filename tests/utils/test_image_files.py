"""Image files are found, and measured as they are read."""

from pathlib import Path

import pytest
from PIL import Image
from reference_data import PHOTO

from dpt_zoo.errors import ImageError
from dpt_zoo.utils.image_files import find_images, read_size
from dpt_zoo.utils.images import load_image

ORIENTATION = 0x0112


def test_find_images(tmp_path: Path) -> None:
    expected = ["a.jpg", "b.PNG", "c/d.avif", "c/e.tga", "f.jfif", "g.ico"]
    others = [".h.jpg", "._a.jpg", "i.txt", "j.eps", ".k/l.jpg", "__MACOSX/._a.jpg", "c/@eaDir/d.jpg", "#recycle/m.jpg"]
    for name in expected + others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "c")
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] == expected


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_the_size_in_the_header_is_that_of_the_pixels(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.open(PHOTO).convert("RGB").resize((40, 30)).save(tmp_path / f"image.{suffix}", exif=exif)
    assert read_size(tmp_path / f"image.{suffix}") == load_image(tmp_path / f"image.{suffix}").shape[:2]


def test_the_size_of_a_format_that_is_not_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "image.jpg", "EPS")
    for read in (read_size, load_image):
        with pytest.raises(ImageError):
            read(tmp_path / "image.jpg")
