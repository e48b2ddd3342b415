"""Training and evaluation read every image as the checks and `Detector` do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset  # noqa: F401  (registers the data set)
from mmengine.config import Config, ConfigDict
from PIL import Image
from reference_data import PHOTO
from small_data import make_coco

from dpt_zoo.data.checks import SplitFiles, check_splits, raise_errors
from dpt_zoo.engine.images import LoadImage, use_own_reader
from dpt_zoo.engine.runner import _Runner
from dpt_zoo.errors import ImageError
from dpt_zoo.utils.images import load_image

KINDS: dict[str, dict[str, Any]] = {
    **{f"plain.{suffix}": {} for suffix in ("jpg", "gif", "webp", "bmp", "tif", "jp2", "tga", "pcx", "ppm", "avif")},
    "plain.ico": {"sizes": [(64, 48)]},
    "animated.gif": {"save_all": True, "append_images": [Image.new("RGB", (64, 48))]},
    "two pictures.jpg": {"format": "MPO", "save_all": True, "append_images": [Image.new("RGB", (64, 48))]},
    **{f"turned.{suffix}": {} for suffix in ("jpg", "png", "webp", "tif", "avif")},
}
MODES = ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"]


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.open(PHOTO).convert("RGB").resize((64, 48))


def save(photo: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    if path.name.startswith("turned"):
        exif[0x0112] = 6
    photo.save(path, **KINDS[path.name], exif=exif)


def read(path: Path) -> Any:
    return LoadImage()({"img_path": str(path)})


@pytest.mark.parametrize("name", KINDS)
def test_formats(photo: Image.Image, tmp_path: Path, name: str) -> None:
    save(photo, tmp_path / name)
    rgb = load_image(tmp_path / name)
    results = read(tmp_path / name)
    assert np.array_equal(results["img"], rgb[..., ::-1]) and results["img"].flags.c_contiguous
    assert results["img_shape"] == results["ori_shape"] == rgb.shape[:2] == ((64, 48) if "turned" in name else (48, 64))
    assert np.abs(rgb.mean((0, 1)) - np.asarray(photo).mean((0, 1))).max() < 30  # it is the photograph


@pytest.mark.parametrize("mode", MODES)
def test_modes(photo: Image.Image, tmp_path: Path, mode: str) -> None:
    name = "image.jpg" if mode == "CMYK" else "image.png"
    (photo.convert("L") if mode == "I;16" else photo).convert(mode).save(tmp_path / name)
    assert np.array_equal(read(tmp_path / name)["img"], load_image(tmp_path / name)[..., ::-1])


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_the_pixels_of_ordinary_files_are_those_of_mmcvs_reader(
    photo: Image.Image, tmp_path: Path, suffix: str
) -> None:
    photo.save(tmp_path / f"image.{suffix}")
    theirs = LoadImageFromFile()({"img_path": str(tmp_path / f"image.{suffix}")})
    ours = read(tmp_path / f"image.{suffix}")
    assert theirs.keys() == ours.keys() and np.array_equal(theirs["img"], ours["img"])


def test_a_damaged_image(tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match="not an image of a known format"):
        read(tmp_path / "image.jpg")


def test_only_a_reader_without_options_is_replaced() -> None:
    def reader(**options: Any) -> dict[str, Any]:
        return {"type": "LoadImageFromFile", **options}

    cfg = Config({"pipeline": [reader(), reader(backend_args=None), {"transforms": ([reader()], [reader()])}]})
    use_own_reader(cfg.pipeline)
    assert str(cfg.pipeline).count("'LoadImage'") == 4 and "LoadImageFromFile" not in str(cfg.pipeline)
    for options in ({"imdecode_backend": "pillow"}, {"to_float32": True}, {"backend_args": {"backend": "petrel"}}):
        settings = [reader(**options)]
        use_own_reader(settings)
        assert settings == [reader(**options)]


def test_a_data_loader_reads_what_the_checks_accept(photo: Image.Image, tmp_path: Path) -> None:
    names = ["plain.tga", "turned.avif", "plain.ico", "plain.pcx"]

    def rename(content: Any) -> None:
        for image, name in zip(content["images"], names, strict=True):
            turned = {"width": 48, "height": 64} if "turned" in name else {}
            image.update(file_name=name, **turned)
        content["annotations"] = [each for each in content["annotations"] if each["image_id"] == 1]

    path = make_coco(tmp_path, rename)
    for name in names:
        save(photo, tmp_path / "train2017" / name)
    raise_errors(*check_splits([SplitFiles("train", path, tmp_path / "train2017")]))
    settings = ConfigDict(
        batch_size=4,
        num_workers=0,
        sampler={"type": "DefaultSampler", "shuffle": False},
        collate_fn={"type": "pseudo_collate"},
        dataset={
            "type": "mmdet.CocoDataset",
            "ann_file": str(path),
            "data_prefix": {"img": f"{tmp_path / 'train2017'}/"},
            "pipeline": [{"type": "LoadImageFromFile"}, {"type": "mmdet.PackDetInputs"}],
            "test_mode": True,
        },
    )
    (batch,) = _Runner.build_dataloader(settings)
    assert [tuple(each.shape) for each in batch["inputs"]] == [(3, 48, 64), (3, 64, 48), (3, 48, 64), (3, 48, 64)]
    assert settings.dataset.pipeline[0].type == "LoadImageFromFile"  # the config is unchanged
