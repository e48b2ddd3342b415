"""Use the page and `dpt-zoo detect` for minutes, with good and bad inputs at random, and fail if anything grows.

    python scripts/soak.py --minutes 20 --seed 0

Memory, open files and threads of both processes are printed every minute. At the end, the last third of the run is
compared with the third before it. Every answer must be the expected one, and nothing may be left in temporary folders.
"""

import argparse
import contextlib
import http.client
import io
import multiprocessing
import os
import random
import re
import statistics
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import requests
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import app_client  # noqa: E402
from app_client import App, AppError, Client, ask, running_app  # noqa: E402

MODELS = ("mrcnn_dpt_nano_digits", "retinanet_dpt_nano_digits")
EXAMPLES = sorted((ROOT / "dpt_zoo" / "app" / "examples").glob("*.png"))
WRITTEN = {"run.json", "detections.jsonl", "detections.json", "coco.json", "detections.csv", "labels", "data.yaml"}
WRITTEN |= {"annotations", "labelstudio.json", "labelstudio.xml", "pictures", "crops", "masks"}
NUM_VISITORS = 3  # at the same time
MAX_GROWTH = 0.05  # of the memory, which is never measured exactly
MAX_MORE = 2  # files or threads
MAX_LINES = 60  # of a traceback
app_client.ANSWER_SECONDS = 3600  # the machine may have other work


@dataclass(frozen=True)
class Sample:
    """What a process uses: memory of its own and all memory in MiB, open files, threads."""

    private: float
    resident: float
    files: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> "Sample":
        """Measure a running process."""
        process = Path("/proc", str(pid))
        sizes = dict(line.split(":") for line in (process / "smaps_rollup").read_text().splitlines()[1:])
        kilobytes = {name: int(size.split()[0]) for name, size in sizes.items()}
        private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
        files, threads = (len(list((process / name).iterdir())) for name in ("fd", "task"))
        return cls(private / 1024, kilobytes["Rss"] / 1024, files, threads)


def find_growth(samples: list[Sample]) -> list[str]:
    """Compare the medians of the last third of the samples with those of the third before it."""
    third, growth = len(samples) // 3, []
    for field in fields(Sample):
        before, after = (
            statistics.median(getattr(sample, field.name) for sample in part)
            for part in (samples[third : 2 * third], samples[2 * third :])
        )
        limit = before + MAX_MORE if field.name in ("files", "threads") else before * (1 + MAX_GROWTH)
        print(f"  {field.name}: {before:.0f}, then {after:.0f}")
        if after > limit:
            growth.append(f"{field.name} grew from {before:.0f} to {after:.0f}")
    return growth


def find_left(temporary: Path) -> list[str]:
    """Return the names in a temporary folder, without PyTorch's empty folder and what W&B removes at its end."""
    return [path.name for path in temporary.iterdir() if not re.match("torchinductor_|tmp.*wandb-", path.name)]


# --- Inputs


def make_good(choose: random.Random) -> tuple[bytes, str]:
    """Return the content of an image file, and its suffix."""
    formats = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "GIF": ".gif", "TIFF": ".tif", "BMP": ".bmp"}
    format, mode, file = choose.choice(list(formats)), choose.choice(["RGB", "L", "P", "RGBA"]), io.BytesIO()
    with Image.open(choose.choice(EXAMPLES)) as image:
        side = choose.randint(32, 400)
        picture = image.convert("RGB").resize((side, choose.randint(32, 400)))
    picture = picture.convert("RGB" if format == "JPEG" else mode)
    picture.save(file, format)
    return file.getvalue(), formats[format]


def make_bad(choose: random.Random) -> tuple[bytes, str]:
    """Return content that is no image, or that only begins as one, with the suffix of an image."""
    content, suffix = make_good(choose)
    match choose.randrange(6):
        case 0:
            return content[: choose.randint(1, 64)], suffix
        case 1:
            return b"\xff" * 4 + choose.randbytes(choose.randint(1, 5000)), suffix
        case 2:
            return b"\x89PNG\r\n\x1a\n" + choose.randbytes(500), ".png"
        case 3:
            return b"<html>not found</html>" * choose.randint(1, 50), ".jpg"
        case 4:
            header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)  # 900 megapixels
            return b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + struct.pack(">I", zlib.crc32(header)), ".png"
    return b"GIF89a" + bytes([255] * 7), ".gif"


# --- The page


def visit(app: App, seed: int) -> str:
    """Do one thing on the page, as a new visitor, and return what it was. A wrong answer raises AssertionError."""
    choose = random.Random(seed)
    action = choose.choice(["good"] * 4 + ["bad"] * 3 + ["request"] * 2 + ["leave", "broken upload"])
    if action == "request":
        method, path = choose.choice(["GET", "POST", "PUT"]), choose.choice(["/x", "/gradio_api/file=/etc/passwd", "/"])
        body = choose.choice([None, b"{", choose.randbytes(200)])
        status, _ = ask(app.url, method, path, {"Content-Length": str(len(body or b""))}, body)
        assert 200 <= status < 500, f"{method} {path}: {status}"
        return action
    if action == "broken upload":
        connection = http.client.HTTPConnection(app.url.removeprefix("http://"))
        headers = {"Content-Length": "50000", "Content-Type": "multipart/form-data; boundary=b"}
        connection.request("POST", "/gradio_api/upload", b"--b\r\n", headers)
        connection.close()
        return action
    client, model = Client(app.url), choose.choice(MODELS)
    try:
        if action == "leave":
            content, suffix = make_good(choose)
            client.upload(content, f"image{suffix}")
        elif action == "good":
            content, suffix = make_good(choose)
            client.detect(content, f"image{suffix}", model)
            assert "objects" in client.show(choose.uniform(0.05, 1), [])
        else:
            content, suffix = make_bad(choose)
            with contextlib.suppress(AppError, requests.HTTPError):
                client.detect(content, f"image{suffix}", model)
                raise AssertionError(f"{suffix} file of {len(content)} bytes was accepted: {content[:40]!r}")
    finally:
        client.close()
    return action


# --- The command


def detect_until(deadline: float, seed: int, folder: Path, faults: "multiprocessing.Queue[str]") -> None:
    """Run `dpt-zoo detect` again and again in this process."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    temporary = folder / "temporary"
    temporary.mkdir()
    tempfile.tempdir = str(temporary)
    os.chdir(folder)
    choose = random.Random(seed)
    while time.monotonic() < deadline:
        try:
            _detect_once(choose, folder)
            left = find_left(temporary)
            assert not left, f"left in the temporary folder: {left}"
        except BaseException as error:
            faults.put(f"detect: {type(error).__name__}: {error}")


def _detect_once(choose: random.Random, folder: Path) -> None:
    from dpt_zoo.cli import main

    with tempfile.TemporaryDirectory(dir=folder) as inputs, tempfile.TemporaryDirectory(dir=folder) as output:
        bad = [choose.random() < 0.3 for _ in range(choose.randint(1, 6))]
        for number, is_bad in enumerate(bad):
            content, suffix = (make_bad if is_bad else make_good)(choose)
            Path(inputs, f"{number}{suffix}").write_bytes(content)
        arguments = [
            "detect",
            inputs,
            "--model",
            choose.choice(MODELS),
            "--work-dir",
            output,
            "--max-pixels",
            "1000000",
        ]
        arguments += ["--format", *choose.sample(["json", "jsonl", "coco", "csv", "yolo", "voc", "labelstudio"], 3)]
        arguments += choose.sample(["--no-pictures", "--save-crops", "--whole-image"], choose.randint(0, 2))
        if choose.random() < 0.3:
            arguments += ["--slice-size", str(choose.randint(64, 300))]
        expected = 2 if any(bad) else 0
        if choose.random() < 0.2:
            bad_options = ["--classes=none", "--batch-size=0", "--weights=missing.pth", "--device=none", "--nms-iou=7"]
            arguments, expected = [*arguments, choose.choice(bad_options)], 2
        if "--whole-image" in arguments and "--slice-size" not in arguments:
            expected = 2
        status = main(arguments)
        assert status == expected, f"{arguments}: {status}, bad inputs: {bad}"
        others = {path.name for path in Path(output).iterdir()} - WRITTEN
        assert not others, f"left in the folder of the run: {others}"


# --- The run


@contextlib.contextmanager
def detecting(deadline: float, seed: int, folder: Path, faults: "multiprocessing.Queue[str]") -> Iterator[int]:
    """Run `detect_until` in a new process, and yield its number."""
    folder.mkdir()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=detect_until, args=(deadline, seed, folder, faults))
    process.start()
    try:
        assert process.pid
        yield process.pid
    finally:
        process.kill()
        process.join()


def main() -> None:
    """Run the soak, and exit with 1 if anything grows or goes wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    choose, done, wrong = random.Random(args.seed), Counter[str](), []
    faults: multiprocessing.Queue[str] = multiprocessing.get_context("spawn").Queue()
    with tempfile.TemporaryDirectory() as base, ThreadPoolExecutor(NUM_VISITORS) as visitors:
        temporary = Path(base, "app")
        temporary.mkdir()
        with running_app(temporary=temporary) as app, contextlib.ExitStack() as stack:
            deadline = time.monotonic() + 60 * args.minutes
            pid = stack.enter_context(detecting(deadline, args.seed, Path(base, "detect"), faults))
            samples: dict[int, list[Sample]] = {app.process.pid: [], pid: []}
            shown = time.monotonic()
            while time.monotonic() < deadline:
                visits = [visitors.submit(visit, app, choose.randrange(2**32)) for _ in range(NUM_VISITORS)]
                for each in visits:
                    try:
                        done[each.result()] += 1
                    except Exception as error:
                        wrong.append(f"page: {type(error).__name__}: {error}")
                for process, taken in samples.items():
                    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                        taken.append(Sample.of(process))
                if time.monotonic() - shown > 60:
                    shown = time.monotonic()
                    print(done.total(), "visits;", *(taken[-1] for taken in samples.values()), flush=True)
            app.stop()
            for index, line in enumerate(app.log):
                if "Traceback" in line:
                    wrong.append("\n  ".join(["the page logs:", *app.log[index : index + MAX_LINES]]))
        wrong += [f"left by the page: {name}" for name in find_left(temporary)]
        while not faults.empty():
            wrong.append(faults.get())
    print("visits:", *(f"{count} {name}" for name, count in sorted(done.items())))
    for name, taken in zip(("the page", "detect"), samples.values(), strict=True):
        print(f"{name}, {len(taken)} samples:")
        wrong += [f"{name}: {line}" for line in find_growth(taken)]
    print(*(wrong or ["nothing grew, and nothing was left behind"]), sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
