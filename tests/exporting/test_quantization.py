"""int8 files: the objects of the float file, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dpt_zoo import Detector
from dpt_zoo.errors import DPTZooError, InputError
from dpt_zoo.exporting import exporter, openvino_file
from dpt_zoo.exporting.quantization import check_gain


@pytest.mark.slow
@pytest.mark.xdist_group("exported")
def test_int8(
    exported: Callable[..., Path],
    scenes: list[NDArray[np.uint8]],
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "retinanet_dpt_nano_digits"
    full = exported(name, ".xml")

    def write(program: object, content: str, path: Path, metadata: object) -> None:
        for suffix in (".xml", ".bin"):
            shutil.copy(full.with_suffix(suffix), path.with_suffix(suffix))

    monkeypatch.setattr(exporter, "trace", lambda *args: None)
    monkeypatch.setattr(openvino_file, "write", write)
    images = tmp_path / "images"
    images.mkdir()
    for index, scene in enumerate(scenes):
        Image.fromarray(scene).save(images / f"{index}.png")

    path = tmp_path / "model.xml"
    status, out, err = run("export", name, path, "--int8", images, "--force")  # it may be slower on this machine
    assert status == 0 and out.startswith(f"{path} (")
    assert "objects are found again" in err and "ms per image instead of" in err
    assert sorted(each.name for each in tmp_path.glob("*model*")) == ["model.bin", "model.xml"]
    assert 3 * path.with_suffix(".bin").stat().st_size < full.with_suffix(".bin").stat().st_size
    detector, expected = Detector(path), Detector(full, score_threshold=0.5)
    assert detector.metadata is not None and expected.metadata is not None
    assert detector.metadata.precision == "int8" and "nncf" in detector.metadata.versions
    assert detector.metadata.weights_sha256 == expected.metadata.weights_sha256
    for scene in (scenes[0], scenes[1][:120, :160]):
        found, reference = detector(scene), expected(scene)
        assert len(reference)
        for each in reference:
            is_near = np.abs(found.boxes - each.boxes).max(1) < 10  # processors round differently
            assert each.labels[0] in found.labels[is_near]


@pytest.mark.parametrize(
    ("counts", "times", "message"),
    [
        ((97, 100), (20.0, 10.0), "only 97.0% of 100 objects are found again, less than 98%"),
        ((100, 100), (10.0, 10.0), "it takes 10.0 ms per image on this machine, and float32 10.0 ms"),
    ],
)
def test_refusal(
    counts: tuple[int, int], times: tuple[float, float], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DPTZooError, match=message):
        check_gain(*counts, *times, force=False)
    check_gain(*counts, *times, force=True)
    assert capsys.readouterr().err.count("int8: ") == 4


def test_no_objects() -> None:
    with pytest.raises(InputError, match="nothing is detected"):
        check_gain(0, 0, 20.0, 10.0, force=True)
