"""Fixtures of all tests: an empty cache, the command, weights files, a checkout and a bare Python."""

import ctypes
import gc
import lzma
import os
import shutil
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from benchmarks.measuring import run_in_child
from filelock import FileLock
from quick_python import hurry_mmengine, running_server
from running import Run

import dpt_zoo
from dpt_zoo.cli import main

ROOT = Path(__file__).parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers are the parallelism, for the processes they start too

libc = ctypes.CDLL(None) if sys.platform == "linux" else None
if libc and hasattr(libc, "mallopt"):
    M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
    libc.mallopt(M_MMAP_THRESHOLD, 2**22)  # blocks of 4 MiB return to the system as soon as they are freed
    libc.mallopt(M_ARENA_MAX, 2)  # threads share what is freed


def pytest_collectstart() -> None:
    """Import PyTorch, but not in the process that only distributes the tests."""
    import dpt_zoo.mmlab  # noqa: F401  (so that any test can import mmdet)

    hurry_mmengine()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have one worker run all tests of a module, which share fixtures. Modules with slow tests come first."""
    slow = set()
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
        if item.get_closest_marker("slow"):
            slow.add(item.path)
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Exempt what was imported from garbage collection, which takes half a second otherwise."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def free_memory() -> Iterator[None]:
    """Return the memory of a module's models and images to the system, so that a worker stays small."""
    yield
    from reference_data import rule_model

    rule_model.cache_clear()
    gc.collect()
    gc.freeze()  # what the module imported
    if libc and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty cache instead of the user's own."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("DPT_ZOO_CACHE", str(cache))
    return cache


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command in this process: exit status, standard output, standard error."""

    def run_main(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # from argparse
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_main


@pytest.fixture(scope="session")
def quick_python() -> Iterator[Path]:
    """Return a Python that has already imported PyTorch and MMDetection."""
    with running_server() as program:
        yield program


@pytest.fixture(scope="session")
def rule_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a safetensors file with the rule weights of Mask R-CNN DPT-Tiny."""
    from reference_data import rule_model
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "mrcnn_dpt_t_1x.safetensors"
    save_file(rule_model("mrcnn_dpt_t_1x").state_dict(), path)
    return path


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that exports a demo to ".onnx" or ".xml", once for all workers: tracing takes long."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "exported"
    folder.mkdir(exist_ok=True)

    def export_once(name: str, suffix: str = ".onnx") -> Path:
        path = folder / f"{name}{suffix}"
        onnx_path = path if suffix == ".onnx" else export_once(name)
        with FileLock(f"{path}.lock"):
            if not path.exists() and suffix == ".onnx":
                run_in_child(dpt_zoo.export, model=name, path=path)  # it needs much memory
            elif not path.exists():
                import onnx

                from dpt_zoo.exporting import openvino_file

                (content,) = (each.value for each in onnx.load(onnx_path).metadata_props if each.key == "dpt_zoo")
                openvino_file.convert(onnx_path, content, path)
        return path

    return export_once


@pytest.fixture(scope="session")
def exported_demo(exported: Callable[..., Path]) -> Path:
    """Return the Mask R-CNN demo as an ONNX file."""
    return exported("mrcnn_dpt_nano_digits")


@pytest.fixture(scope="session")
def authors_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of 299 MB, written by MMCV 1.2.7 and torch 1.7.1 with optimizer state and metadata."""
    path = tmp_path_factory.mktemp("authors") / "retinanet_dpt_t_1x.pth"
    with (
        lzma.open(ROOT / "tests" / "reference" / "authors_format_retinanet_dpt_t_1x.pth.xz") as packed,
        path.open("wb") as file,
    ):
        shutil.copyfileobj(packed, file)
    return path


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project as a clone has it, without generated files."""
    folder = tmp_path_factory.mktemp("clone") / "checkout"
    generated = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "site")
    shutil.copytree(ROOT, folder, ignore=generated)
    return folder


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Python with the packages of this one, but without this project."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    site_packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # A folder named in a .pth file is searched for packages, but .pth files in it (of editable installs) are not read.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"
