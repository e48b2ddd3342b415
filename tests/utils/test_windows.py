"""Images that are read in parts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpt_zoo.errors import ImageError
from dpt_zoo.utils.images import load_image
from dpt_zoo.utils.windows import TiffWindows, Window, open_tiff

HEIGHT, WIDTH = 210, 333
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
LIMIT = 10**9
FORMS: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
    "tiles": (IMAGE, {"tile": (64, 48)}),
    "packed tiles": (IMAGE, {"tile": (64, 64), "compression": "zlib", "predictor": True}),
    "BigTIFF": (IMAGE, {"tile": (128, 128), "bigtiff": True}),
    "strips": (IMAGE, {"rowsperstrip": 17}),
    "RGBA": (np.dstack([IMAGE, IMAGE[..., 0]]), {"tile": (64, 64), "extrasamples": ["unassalpha"]}),
    "grey": (IMAGE[..., 0], {"tile": (64, 64)}),
    "16 bits": (IMAGE.astype(np.uint16) << 8 | 77, {"tile": (64, 64)}),
}


def write(path: Path, image: NDArray[Any], bigtiff: bool = False, **options: Any) -> Path:
    photometric = "minisblack" if image.ndim == 2 else "rgb"
    tifffile.imwrite(path, image, bigtiff=bigtiff, photometric=photometric, **options)
    return path


@pytest.fixture(scope="module", params=FORMS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    image, options = FORMS[request.param]
    return write(tmp_path_factory.mktemp("tiff") / "image.tif", image, **options)


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_a_window_is_a_part_of_the_image(path: Path, data: st.DataObject) -> None:
    x0, y0 = data.draw(st.integers(0, WIDTH - 1)), data.draw(st.integers(0, HEIGHT - 1))
    window = Window(x0, y0, data.draw(st.integers(x0 + 1, WIDTH)), data.draw(st.integers(y0 + 1, HEIGHT)))
    reader = open_tiff(path, LIMIT)
    assert isinstance(reader, TiffWindows) and reader.size == (HEIGHT, WIDTH)
    expected = load_image(path)[window.y0 : window.y1, window.x0 : window.x1]
    assert np.array_equal(reader.read(window), expected)
    reader.close()


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
        {"photometric": "miniswhite"},
        {"extratags": [(274, 3, 1, 6, True)]},
    ],
    ids=["palette", "white is zero", "turned"],
)
def test_other_structures_are_read_as_a_whole(tmp_path: Path, options: dict[str, Any]) -> None:
    tifffile.imwrite(tmp_path / "image.tif", IMAGE[..., 0], tile=(64, 64), **{"photometric": "minisblack", **options})
    assert open_tiff(tmp_path / "image.tif", LIMIT) is None


def test_other_files_are_read_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("no image")
    for name in ("text.tif", "missing.tif", "photo.jpg"):
        assert open_tiff(tmp_path / name, LIMIT) is None


def test_too_many_pixels(path: Path) -> None:
    with pytest.raises(ImageError, match=r"333 x 210 pixels, at most 1,000 are accepted, .*: raise max_pixels if"):
        open_tiff(path, 1000)
    with pytest.raises(ImageError, match="at most 1,000 are accepted"):
        load_image(path, 1000)


def test_damaged_tiles(tmp_path: Path) -> None:
    path = write(tmp_path / "image.tif", IMAGE, tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset, length = file.pages.first.dataoffsets[-1], file.pages.first.databytecounts[-1]
    content = bytearray(path.read_bytes())
    content[offset : offset + length] = bytes(length)
    path.write_bytes(content)
    reader = open_tiff(path, LIMIT)
    assert reader is not None and np.array_equal(reader.read(Window(0, 0, 64, 64)), IMAGE[:64, :64])
    with pytest.raises(ImageError, match=r"image\.tif: the image is damaged"):
        reader.read(Window(WIDTH - 9, HEIGHT - 9, WIDTH, HEIGHT))
    reader.close()


@settings(deadline=None, max_examples=60)
@given(position=st.integers(0, 2**30), value=st.integers(0, 255))
def test_any_damage_is_an_image_error(position: int, value: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write(tmp_path_factory.getbasetemp() / "hostile.tif", IMAGE[:64, :64], tile=(32, 32), compression="zlib")
    content = bytearray(path.read_bytes())
    content[position % 1000 if position % 2 else position % len(content)] = value
    path.write_bytes(content)
    try:
        reader = open_tiff(path, LIMIT)
        if reader is not None:
            reader.read(Window(0, 0, min(64, reader.size[1]), min(64, reader.size[0])))
            reader.close()
    except ImageError as error:
        assert "\n" not in str(error)
