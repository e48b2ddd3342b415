"""The accuracy of the ImageNet classifiers."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reference_data import REFERENCE, random_images
from rule_weights import rule_state_dict
from running import Run, start_quickly
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from torch import Tensor

from dpt_zoo.errors import DataError, ImageError, InputError, WeightsError
from dpt_zoo.evaluation import classification
from dpt_zoo.evaluation.accuracy import ACCURACY, Accuracy
from dpt_zoo.evaluation.classification import evaluate_classifier
from dpt_zoo.models import DPTClassifier
from dpt_zoo.reproduction.classifiers import ClassifierRow, reproduce_classifiers
from dpt_zoo.reproduction.runner import ReproductionOptions

WORDNET_IDS = ImageNetInfo().label_names()
CLASSES = (3, 7, 7, 950)  # of the four images
SETTINGS: dict[str, Any] = {"workers": 0, "device": "cpu", "batch_size": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with the rule weights of DPT-Tiny."""
    path = tmp_path_factory.mktemp("classifier") / "dpt_tiny.safetensors"
    save_file(rule_state_dict(DPTClassifier("tiny").state_dict()), path)
    return path


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in ImageNet's layout with four images of different sizes, and a text that is none."""
    root = tmp_path_factory.mktemp("imagenet")
    generator = np.random.default_rng(0)
    for number, label in enumerate(CLASSES):
        folder = root / "val" / WORDNET_IDS[label]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (8, 10, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((300 + 20 * number, 260), Image.Resampling.BICUBIC)
        image.save(folder / f"ILSVRC2012_val_{number:08d}.JPEG")
    (root / "val" / "readme.txt").write_text("not an image")
    (root / "train").mkdir()
    return root


def open_images(root: Path, limit: int | None = None) -> Any:
    return classification._open_images(classification._find_images(root), DPTClassifier("tiny"), limit)


def samples(root: Path, limit: int | None = None) -> list[tuple[int, Tensor, int]]:
    images = open_images(root, limit)
    return [images[number] for number in range(len(images))] if hasattr(images, "__len__") else [*images]


class TestData:
    def test_images_are_transformed_as_the_authors_do(self, imagenet: Path) -> None:
        paths = sorted((imagenet / "val").glob("*/*.JPEG"))
        loaded = samples(imagenet)
        assert [label for _, _, label in loaded] == [*CLASSES]
        for path, (_, pixels, _) in zip(paths, loaded, strict=True):
            image: Image.Image = Image.open(path)
            width, height = image.size
            image = image.resize((round(width * 256 / height), 256), Image.Resampling.BICUBIC)
            left, top = (round((side - 224) / 2) for side in image.size)
            expected = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
            expected = (expected - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
            shifted = [np.roll(expected, shift, 1) for shift in (-1, 0, 1)]  # widths may be rounded differently
            errors = [np.abs(pixels.permute(1, 2, 0).numpy() - each)[:, 8:-8].mean() for each in shifted]
            assert min(errors) < 0.03

    def test_a_tar_file_and_shards_have_the_same_images(self, imagenet: Path, tmp_path: Path) -> None:
        paths = sorted((imagenet / "val").glob("*/*.JPEG"))
        with tarfile.open(tmp_path / "val.tar", "w") as archive:
            for path in paths:
                archive.add(path, path.relative_to(imagenet / "val"))
        shards = tmp_path / "shards"
        shards.mkdir()
        with tarfile.open(shards / "imagenet-val-0000.tar", "w") as archive:
            for number, (path, label) in enumerate(zip(paths, CLASSES, strict=True)):
                for suffix, content in (("jpg", path.read_bytes()), ("cls", str(label).encode())):
                    entry = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
        split = {"num_samples": 4, "filenames": ["imagenet-val-0000.tar"], "shard_lengths": [4], "name": "validation"}
        (shards / "_info.json").write_text(json.dumps({"splits": {"validation": split}}))
        expected = samples(imagenet)
        for root in (imagenet / "val", tmp_path / "val.tar", shards):
            for (_, pixels, label), (_, expected_pixels, expected_label) in zip(samples(root), expected, strict=True):
                assert label == expected_label and torch.equal(pixels, expected_pixels)
        assert len(samples(shards, limit=3)) == 3

    @pytest.mark.parametrize("make", [lambda root: None, lambda root: (root / "val" / "cats").mkdir(parents=True)])
    def test_a_folder_of_something_else(self, make: Callable[[Path], None], tmp_path: Path) -> None:
        make(tmp_path)
        if (tmp_path / "val").exists():
            Image.new("RGB", (300, 300)).save(tmp_path / "val" / "cats" / "1.JPEG")
        with pytest.raises(DataError, match="no images in folders named by ImageNet's WordNet ids, such as n01440764"):
            open_images(tmp_path)


class TestAccuracy:
    def test_the_authors_logits(self, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The images are replaced by the recorded input: the predictions must be those of the recorded logits."""
        recorded = np.load(REFERENCE / "float64_imagenet_dpt_tiny.npz")["logits"]
        order = recorded.argsort(axis=1)[:, ::-1]
        inputs = random_images(7, (2, 3, 224, 224))
        classes = order[0, 0], order[1, 3]  # one is the best, one is among the best five
        for number, label in enumerate(classes):
            folder = tmp_path / "val" / WORDNET_IDS[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (300, 300), (number, 0, 0)).save(folder / f"{number}.png")
        monkeypatch.setattr(
            classification, "create_transform", lambda **_: lambda image: inputs[image.getpixel((0, 0))[0]]
        )
        accuracy = evaluate_classifier(
            "dpt_tiny", data_root=tmp_path, weights=weights, work_dir=tmp_path / "run", **SETTINGS
        )
        assert (accuracy.top1, accuracy.top5, accuracy.num_images) == (50, 100, 2)
        best = {label: top for _, label, top in classification._read_lines(tmp_path / "run")}
        assert best == {label: order[number, :5].tolist() for number, label in enumerate(classes)}

    def test_a_stopped_run_is_resumed(self, weights: Path, imagenet: Path, tmp_path: Path) -> None:
        settings = {"data_root": imagenet, "weights": weights, **SETTINGS}
        whole = evaluate_classifier("dpt_tiny", work_dir=tmp_path / "whole", **settings)
        evaluate_classifier("dpt_tiny", work_dir=tmp_path / "run", limit=3, **settings)
        (lines,) = (tmp_path / "run" / "predictions").glob("*.jsonl")
        lines.write_text("\n".join(lines.read_text().splitlines()[:1]) + "\n[1, 7, [5,")  # killed while it wrote
        resumed = evaluate_classifier("dpt_tiny", work_dir=tmp_path / "run", resume=True, **settings)
        names = ("top1", "top5", "num_images", "weights", "data_root", "limit")
        assert all(getattr(resumed, name) == getattr(whole, name) for name in names)
        runs = [sorted(classification._read_lines(tmp_path / name)) for name in ("run", "whole")]
        assert runs[0] == runs[1] and len(runs[0]) == 4
        assert Accuracy.read(tmp_path / "run") == resumed
        with pytest.raises(InputError, match=r"an evaluation with other data_root and images: choose another work_dir"):
            evaluate_classifier(
                "dpt_tiny", work_dir=tmp_path / "run", resume=True, **settings | {"data_root": imagenet.parent}
            )

    def test_an_unreadable_image_is_named(self, weights: Path, tmp_path: Path) -> None:
        folder = tmp_path / "val" / WORDNET_IDS[0]
        folder.mkdir(parents=True)
        (folder / "broken.JPEG").write_bytes(b"\xff\xd8\xff\xe0 cut")
        with pytest.raises(ImageError, match=r"broken\.JPEG: not a readable image"):
            evaluate_classifier("dpt_tiny", data_root=tmp_path, weights=weights, **SETTINGS)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"model": "resnet50"}, "model must be one of dpt_tiny, dpt_small, dpt_medium"),
            ({"limit": 0}, "limit must be a whole number from 1"),
            ({"batch_size": 0}, "batch_size must be a whole number from 1"),
            ({"workers": -1}, "workers must be a whole number from 0"),
            ({"resume": True}, "resume=True requires work_dir"),
            ({"amp": True}, "amp needs a GPU"),
            ({"data_root": "nowhere"}, "data_root: there is no nowhere"),
            ({"data_root": ""}, "data_root is empty"),
        ],
    )
    def test_wrong_arguments(self, changed: dict[str, Any], message: str, weights: Path, imagenet: Path) -> None:
        settings = {"model": "dpt_tiny", "data_root": imagenet, "weights": weights, **SETTINGS}
        with pytest.raises(InputError, match=message):
            evaluate_classifier(**settings | changed)

    def test_weights_of_another_classifier(self, weights: Path, imagenet: Path) -> None:
        with pytest.raises(WeightsError, match=r"these are not dpt_small's weights, \d+ tensors differ"):
            evaluate_classifier("dpt_small", data_root=imagenet, weights=weights, **SETTINGS)


class TestCommand:
    def test_evaluate(self, weights: Path, imagenet: Path, run: Run) -> None:
        options = ("--weights", weights, "--workers", 0, "--device", "cpu", "--limit", 2)
        status, out, _ = run("evaluate", "dpt_tiny", "--data-root", imagenet, *options)
        assert status == 0
        assert out.split("\n")[0].split() == ["top-1", "top-5", "images"]
        assert out.split("\n")[1].split()[0] == "dpt_tiny" and out.split()[-1] == "2"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ((), "--data-root is required with a classifier"),
            (("--data-root", ".", "--per-class"), "--per-class is not for a classifier"),
            (("--data-root", ".", "--tasks", "bbox"), "--tasks is not for a classifier"),
        ],
    )
    def test_wrong_options(self, options: tuple[str, ...], message: str, run: Run) -> None:
        status, _, err = run("evaluate", "dpt_tiny", *options)
        assert status == 2 and message in err

    @pytest.mark.slow
    @pytest.mark.network
    def test_reproduce_resumes_in_two_processes(
        self,
        weights: Path,
        imagenet: Path,
        tmp_path: Path,
        run: Run,
        quick_python: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("DPT_ZOO_MIRROR", str(weights.parent))
        folder = tmp_path / "run" / "dpt_tiny"
        whole = evaluate_classifier("dpt_tiny", data_root=imagenet, weights=weights, work_dir=folder, **SETTINGS)
        (folder / ACCURACY).unlink()
        (lines,) = (folder / "predictions").glob("*.jsonl")
        predictions = lines.read_text().splitlines()
        lines.write_text(f"{predictions[1]}\n")  # as if it had been stopped

        start_quickly(quick_python, monkeypatch)
        settings = ("reproduce", "--classifiers", "dpt_tiny", "--data-root", imagenet, "--work-dir", tmp_path / "run")
        for _ in range(2):  # the second time, nothing is computed
            status, out, _ = run(*settings, "--processes", 2, "--workers", 0)
            assert status == 1  # these are not ImageNet's images
            assert "| `dpt_tiny` | 77.4 |" in out and "not all 50,000 images" in out
        accuracy = Accuracy.read(folder)
        assert accuracy and accuracy.processes == 2
        assert (accuracy.top1, accuracy.top5, accuracy.num_images) == (whole.top1, whole.top5, 4)
        files = [each.read_text().splitlines() for each in (folder / "predictions").glob("*.jsonl")]
        assert sorted(map(len, files)) == [1, 1, 2]
        assert sorted(line for each in files for line in each) == sorted(predictions)


class TestTable:
    @pytest.mark.parametrize(
        ("top1", "num_images", "expected", "verdict"),
        [
            (77.4321, 50_000, True, "yes"),
            (77.54, 50_000, True, "yes"),
            (77.56, 50_000, False, "no"),
            (77.4, 49_999, False, "not all 50,000 images"),
        ],
    )
    def test_verdicts(self, top1: float, num_images: int, expected: bool, verdict: str) -> None:
        measured: dict[str, Any] = dict.fromkeys(("limit", "amp", "data_root", "weights", "seconds", "processes"))
        accuracy = Accuracy(top1=top1, top5=93.7, num_images=num_images, device="", versions={}, **measured)
        record = classification._find_classifier("dpt_tiny")
        row = ClassifierRow(record, accuracy)
        assert row.matches == expected
        assert row.cells == ("`dpt_tiny`", "77.4", f"{top1:.2f}", "93.70", f"{num_images:,}", verdict)

    def test_a_failure_is_a_row(self, imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dpt_zoo.reproduction.classifiers.run_worker", lambda *_: "dpt_tiny: no memory")
        options = ReproductionOptions(data_root=imagenet, work_dir=tmp_path / "run")
        results = reproduce_classifiers(["dpt_tiny"], options)
        assert "| `dpt_tiny` | 77.4 | failed: no memory |" in results.path.read_text()
        assert not results.all_match
        with pytest.raises(InputError, match="'resnet' is not a classifier"):
            reproduce_classifiers(["resnet"], options)
