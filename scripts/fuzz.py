"""Fuzz a reader of untrusted files, guided by coverage: only the project's own exceptions may leave it.

    pip install atheris
    python scripts/fuzz.py coco --runs 1000000 --corpus /tmp/fuzz/coco

A finding stops the run: its input is written beside the corpus, and its traceback is printed. `--pack` writes those
inputs of the corpus that reach different code to `tests/fuzzing/`, where a fast test reads each of them again.
"""

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORPORA = ROOT / "tests" / "fuzzing"
Reader = Callable[[bytes, Path], None]
"""Reads the bytes of a file. The folder is empty at first, and the same in each call."""

# --- The readers


def read_safetensors(content: bytes, folder: Path) -> None:
    from dpt_zoo.weights.reading import read_raw_weights

    path = folder / "model.safetensors"
    # The form that begins with the header's length in eight bytes: nearly any other start is refused at once.
    path.write_bytes(len(content).to_bytes(8, "little") + content + bytes(16))
    read_raw_weights(path)


def read_checkpoint(content: bytes, folder: Path) -> None:
    """Read a pickle as the one in a checkpoint with one storage of 16 bytes."""
    from dpt_zoo.weights.reading import read_raw_weights

    path = folder / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(16))
        archive.writestr("archive/version", "3\n")
    read_raw_weights(path)


def read_image(content: bytes, folder: Path) -> None:
    from dpt_zoo.utils.image_files import read_size
    from dpt_zoo.utils.images import decode_image

    path = folder / "image"
    path.write_bytes(content)
    read_size(path)
    decode_image(content, "image", max_pixels=2**20)


def read_coco(content: bytes, folder: Path) -> None:
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / "instances_train.json").write_bytes(content)
    _check_data(folder)


def read_yolo(content: bytes, folder: Path) -> None:
    _write_yolo(folder)
    (folder / "labels" / "image.txt").write_bytes(content)
    _check_data(folder)


def read_yolo_description(content: bytes, folder: Path) -> None:
    _write_yolo(folder)
    (folder / "data.yaml").write_bytes(content)
    _check_data(folder)


def read_voc(content: bytes, folder: Path) -> None:
    (folder / "Annotations").mkdir(exist_ok=True)
    _write_image(folder / "JPEGImages" / "image.png")
    (folder / "Annotations" / "image.xml").write_bytes(content)
    _check_data(folder)


def read_cache_record(content: bytes, folder: Path) -> None:
    from dpt_zoo.weights.cache import CacheEntry, list_entries

    (folder / "mrcnn_dpt_t_1x.json").write_bytes(content)
    CacheEntry(folder, "mrcnn_dpt_t_1x").is_unchanged()
    list_entries(folder)


def read_journal(content: bytes, folder: Path) -> None:
    """Read the first line as a run's settings and the others as its results."""
    from dpt_zoo.batch.journal import Journal, RunSettings

    settings, _, results = content.partition(b"\n")
    (folder / "run.json").write_bytes(settings)
    (folder / "detections.jsonl").write_bytes(results)
    with Journal(folder, RunSettings("model", "0" * 64, ("a", "b"), ("a",), 0.5), resume=True) as journal:
        for _ in journal:
            pass


def _check_data(folder: Path) -> None:
    from dpt_zoo.data.checks import check_splits
    from dpt_zoo.data.layouts import find_splits

    work_dir = folder / "work_dir"
    check_splits(find_splits(folder, work_dir), work_dir=work_dir, jobs=1)


def _write_yolo(folder: Path) -> None:
    _write_image(folder / "images" / "image.png")
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "data.yaml").write_text("train: images\nnames: [a, b]\n")


def _write_image(path: Path) -> None:
    from PIL import Image

    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6)).save(path)


READERS: dict[str, Reader] = {
    "safetensors": read_safetensors,
    "checkpoint": read_checkpoint,
    "image": read_image,
    "coco": read_coco,
    "yolo": read_yolo,
    "yolo_description": read_yolo_description,
    "voc": read_voc,
    "cache_record": read_cache_record,
    "journal": read_journal,
}

# --- Valid inputs to start from


def seeds(name: str) -> Iterator[bytes]:
    """Yield inputs that a reader accepts."""
    if name == "safetensors":
        tensor = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
        yield json.dumps({"__metadata__": {"format": "pt"}, "module.weight": tensor}).encode()
    elif name == "checkpoint":
        yield from _pickles()
    elif name == "image":
        yield from _images()
    elif name == "coco":
        yield from _coco_files()
    elif name == "yolo":
        yield b"0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.9 0.1 0.5 0.9\n"
    elif name == "yolo_description":
        yield b"path: .\ntrain: images\nval: [images]\nnc: 2\nnames:\n  0: a\n  1: b\n"
        yield b"train: ../images/image.png\nnames: ['a', 'b']\n"
    elif name == "voc":
        box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>6</ymax></bndbox>"
        size = "<size><width>8</width><height>6</height></size>"
        yield f"<annotation>{size}<object><name>a</name>{box}</object></annotation>".encode()
    elif name == "cache_record":
        hashes = {"sha256": None, "num_bytes": None, "tensors_sha256": "0" * 64}
        record = {"format": 2, "location": "https://a/b", "recorded": "2026-01-01", **hashes, "stamp": [1, 2, 3]}
        yield json.dumps(record).encode()
    elif name == "journal":
        yield from _journals()


def _pickles() -> Iterator[bytes]:
    import torch

    weight = torch.zeros(2, 2)
    for content in ({"weight": weight}, {"state_dict": {"module.weight": weight}, "meta": {"epoch": 1, "a": [1, "b"]}}):
        file = io.BytesIO()
        torch.save(content, file)
        with zipfile.ZipFile(file) as archive:
            yield archive.read("archive/data.pkl")


def _images() -> Iterator[bytes]:
    from PIL import Image

    from dpt_zoo.utils.images import FORMATS

    Image.init()
    for format in FORMATS:
        if format in Image.SAVE:
            file = io.BytesIO()
            with contextlib.suppress(OSError, ValueError):  # the format has no RGB images
                Image.radial_gradient("L").resize((8, 6)).convert("RGB").save(file, format)
                yield file.getvalue()


def _coco_files() -> Iterator[bytes]:
    masks = ([[1, 1, 5, 1, 5, 4]], {"size": [6, 8], "counts": [10, 3, 35]}, {"size": [6, 8], "counts": ":3S1"})
    common = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 3], "area": 6, "iscrowd": 0}
    annotations = [{"id": id, **common, "segmentation": mask} for id, mask in enumerate(masks)]
    images = [{"id": 1, "file_name": "image.png", "width": 8, "height": 6}]
    categories = [{"id": 1, "name": "a", "supercategory": "none"}]
    yield json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()


def _journals() -> Iterator[bytes]:
    import numpy as np

    from dpt_zoo import Detections
    from dpt_zoo.batch.journal import ImageResult, Journal, RunSettings
    from dpt_zoo.inference.detections import encode_mask

    boxes, scores = np.array([[1, 1, 5, 4]], np.float32), np.array([0.5], np.float32)
    objects = (boxes, scores, np.array([0]), ("a", "b"), (6, 8))
    with tempfile.TemporaryDirectory() as folder:
        with Journal(Path(folder), RunSettings("model", "0" * 64, ("a", "b"), ("a",), 0.5)) as journal:
            for index, rles in enumerate((None, [encode_mask(np.ones((6, 8), np.uint8))])):
                journal.append(ImageResult(f"{index}.png", str(index), Detections(*objects, rles), key=f"{index}"))
        settings = json.dumps(json.loads(Path(folder, "run.json").read_bytes())).encode()
        yield settings + b"\n" + Path(folder, "detections.jsonl").read_bytes()


# --- Fuzzing


def read(name: str, content: bytes, folder: Path) -> None:
    """Read `content` with a reader; its errors of the project's own types are expected."""
    from dpt_zoo.errors import DPTZooError

    with contextlib.suppress(DPTZooError):
        READERS[name](content, folder)


def main() -> None:
    """Fuzz one reader."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--corpus", type=Path, required=True, help="the folder of the inputs that reach new code")
    parser.add_argument("--pack", action="store_true", help="write the corpus, minimised, to tests/fuzzing/")
    args = parser.parse_args()
    args.corpus.mkdir(parents=True, exist_ok=True)
    if args.pack:
        _pack(args.reader, args.corpus)
        return
    import atheris

    logging.disable()
    with atheris.instrument_imports(include=["dpt_zoo", "PIL", "yaml", "defusedxml", "json"]):
        import dpt_zoo.batch.journal  # before the first input, so that imports are not measured as its code
        import dpt_zoo.data.layouts
        import dpt_zoo.weights.cache
        import dpt_zoo.weights.reading

        if args.reader == "checkpoint":
            import dpt_zoo.weights.checkpoints  # noqa: F401
    for number, seed in enumerate(seeds(args.reader)):
        (args.corpus / f"seed-{number}").write_bytes(seed)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        options = [f"-runs={args.runs}", "-rss_limit_mb=2048", "-timeout=20", "-max_len=4096", "-print_final_stats=1"]
        options += [f"-artifact_prefix={args.corpus.parent}/finding-{args.reader}-", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *options, str(args.corpus)], lambda data: read(args.reader, data, Path(folder)))
        atheris.Fuzz()


def _pack(reader: str, corpus: Path) -> None:
    """Write the smallest inputs of a corpus, at most 200 and 200 KB."""
    inputs = sorted((path.read_bytes() for path in corpus.iterdir()), key=len)
    CORPORA.mkdir(exist_ok=True)
    size = 0
    with zipfile.ZipFile(CORPORA / f"{reader}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, content in enumerate(inputs[:200]):
            size += len(content)
            if size > 200_000:
                break
            archive.writestr(zipfile.ZipInfo(f"{number:03}"), content)


if __name__ == "__main__":
    main()
