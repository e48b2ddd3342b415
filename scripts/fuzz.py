"""Fuzz a reader of untrusted files, guided by coverage: only the project's own exceptions may leave it.

    pip install atheris
    python scripts/fuzz.py coco --runs 1000000 --corpus /tmp/fuzz/coco

A finding stops the run: its input is written beside the corpus, and its traceback is printed. Several runs can share a
corpus. `--pack` writes the inputs of the corpus that run different code to `tests/fuzzing/`, for a fast test.
"""

import argparse
import contextlib
import io
import json
import logging
import random
import re
import sys
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CORPORA = ROOT / "tests" / "fuzzing"
INSTRUMENTED = ["dpt_zoo", "PIL", "defusedxml", "json"]
"""The packages whose code is observed."""
TOKEN = re.compile(rb"""\"(?:[^"\\]|\\.)*"|<[^>]*>|[\w.+-]+|\s+|.""", re.DOTALL)
"""A text, a tag, a word or a number, white space, or any other byte."""
VALUES = [b"0", b"1", b"-1", b"0.5", b"1e999", b"-1e-9", b"NaN", b"18446744073709551616", b"9" * 400, b"1_0"]
VALUES += [b"null", b"true", b"[]", b"{}", b"[[]]", b'""', b'"\\ud800"', b'"\\u0000"', b'"../x"', b'"~x/y"', b"&x;"]
VALUES += [b"<x>", b"\n", b"\0", b"\xff", b"\xd9\xa1", b"[" * 999, b"\xef\xbb\xbf"]
"""What numbers, texts and lists are replaced by."""
MAX_PACKED = 200_000  # bytes of the inputs of a reader
Step = tuple[str, int, int]
"""A file, and two lines that ran one after the other."""
Reader = Callable[[bytes, Path], None]
"""Reads the bytes of a file. The folder is empty at first, and the same in each call."""

# --- The readers


def read_safetensors(content: bytes, folder: Path) -> None:
    from dpt_zoo.weights.metadata import find_metadata
    from dpt_zoo.weights.reading import read_raw_weights

    path = folder / "model.safetensors"
    # The form that begins with the header's length in eight bytes, then "{": any other start is another reader's.
    content = b"{" + content.removeprefix(b"{")
    path.write_bytes(len(content).to_bytes(8, "little") + content + bytes(16))
    find_metadata(read_raw_weights(path).meta, path)


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
    from dpt_zoo.errors import ImageError
    from dpt_zoo.utils.image_files import read_size
    from dpt_zoo.utils.images import decode_image

    path = folder / "image"
    path.write_bytes(content)
    with contextlib.suppress(ImageError):
        read_size(path)
    decode_image(content, "image", max_pixels=2**20)


def read_coco(content: bytes, folder: Path) -> None:
    from dpt_zoo.data.checks import check_splits
    from dpt_zoo.data.layouts import find_splits

    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / "instances_train.json").write_bytes(content)
    work_dir = folder / "work_dir"
    check_splits(find_splits(folder, work_dir), work_dir=work_dir, jobs=1)


def read_yolo(content: bytes, folder: Path) -> None:
    from dpt_zoo.formats.yolo import read_yolo

    if not (folder / "data.txt").exists():
        _write_yolo(folder)
        (folder / "data.txt").write_text("a\nb\n")  # a list of classes is read in less time than YAML
    (folder / "labels" / "image.txt").write_bytes(content)
    read_yolo(folder / "data.txt")


def read_yolo_description(content: bytes, folder: Path) -> None:
    from dpt_zoo.formats.yolo import read_yolo

    _write_yolo(folder)
    (folder / "data.yaml").write_bytes(content)
    read_yolo(folder / "data.yaml")


def read_voc(content: bytes, folder: Path) -> None:
    from dpt_zoo.formats.voc import read_voc

    (folder / "Annotations").mkdir(exist_ok=True)
    _write_image(folder / "JPEGImages" / "image.png")
    (folder / "Annotations" / "image.xml").write_bytes(content)
    read_voc(folder)


def read_cache_record(content: bytes, folder: Path) -> None:
    from dpt_zoo.weights.cache import CacheEntry, list_entries

    entry = CacheEntry(folder, "mrcnn_dpt_t_1x")
    entry.weights.touch()
    entry.provenance_file.write_bytes(content)
    entry.is_unchanged()
    list_entries(folder)


def read_journal(content: bytes, folder: Path) -> None:
    """Read the first line as a run's settings and the others as its results, and write them in other formats."""
    from dpt_zoo.batch.exporters import WRITERS
    from dpt_zoo.batch.journal import Journal, RunSettings

    settings, _, results = content.partition(b"\n")
    (folder / "run.json").write_bytes(settings)
    (folder / "detections.jsonl").write_bytes(results)
    with Journal(folder, RunSettings("model", "0" * 64, ("a", "b"), ("a",), 0.5), resume=True) as journal:
        for name in ("coco", "csv", "voc"):
            if write := WRITERS[name]:
                write(journal, folder)


def _write_yolo(folder: Path) -> None:
    _write_image(folder / "images" / "image.png")
    (folder / "labels").mkdir(exist_ok=True)


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
                Image.radial_gradient("L").resize((16, 16)).convert("RGB").save(file, format)
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
    logging.disable()
    warnings.simplefilter("ignore")
    if args.pack:
        _pack(args.reader, args.corpus)
        return
    import atheris

    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        with atheris.instrument_imports(include=INSTRUMENTED):
            for number, seed in enumerate(seeds(args.reader)):
                (args.corpus / f"seed-{number}").write_bytes(seed)
                read(args.reader, seed, Path(folder))  # so that imports are not observed as code of the first input
        options = [f"-runs={args.runs}", "-rss_limit_mb=2048", "-timeout=3600", "-max_len=4096", "-print_final_stats=1"]
        options += [f"-artifact_prefix={args.corpus.parent}/finding-{args.reader}-"]
        arguments = [sys.argv[0], *options, str(args.corpus)]
        atheris.Setup(arguments, lambda data: read(args.reader, data, Path(folder)), custom_mutator=_mutate)
        atheris.Fuzz()


def _mutate(content: bytes, max_size: int, seed: int) -> bytes:
    """Change bytes, as libFuzzer does, or replace a word or a value by another one, which keeps the file's syntax."""
    import atheris

    choose = random.Random(seed)
    tokens = TOKEN.findall(content)
    if not tokens or choose.random() < 0.3:
        return atheris.Mutate(content, max_size)
    for _ in range(choose.choice([1, 1, 2, 4])):
        tokens[choose.randrange(len(tokens))] = choose.choice([choose.choice(tokens), choose.choice(VALUES), b""])
    return b"".join(tokens)[:max_size]


def _pack(reader: str, corpus: Path) -> None:
    """Write the inputs of a corpus that run code which no smaller one runs, at most 200 KB."""
    CORPORA.mkdir(exist_ok=True)
    known: set[Step] = set()
    size = 0
    with (
        zipfile.ZipFile(CORPORA / f"{reader}.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        tempfile.TemporaryDirectory() as folder,
    ):
        for content in sorted((path.read_bytes() for path in corpus.iterdir()), key=len):
            steps = _trace(reader, content, Path(folder))
            if not steps <= known and size + len(content) <= MAX_PACKED:
                archive.writestr(zipfile.ZipInfo(f"{len(archive.namelist()):03}"), content)
                known |= steps
                size += len(content)


def _trace(reader: str, content: bytes, folder: Path) -> set[Step]:
    """Read `content`, and return the steps from line to line in each file of the `INSTRUMENTED` packages."""
    steps: set[Step] = set()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        code, last = frame.f_code, 0
        if frame.f_globals.get("__name__", "").partition(".")[0] not in INSTRUMENTED:
            return None

        def trace_line(frame: FrameType, event: str, _: object) -> Any:
            nonlocal last
            if event == "line":
                steps.add((code.co_filename, last, frame.f_lineno))
                last = frame.f_lineno
            return trace_line

        return trace_line

    threading.settrace(trace)
    sys.settrace(trace)
    try:
        read(reader, content, folder)
    finally:
        sys.settrace(None)
        threading.settrace(None)
    return steps


if __name__ == "__main__":
    main()
