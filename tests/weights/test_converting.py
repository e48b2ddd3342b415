"""Converting is exact to the bit in both directions, reproducible to the byte, and takes little memory."""

import io
import json
import os
import pickle
import pickletools
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_data import ROOT, read_json
from safetensors import safe_open
from torch import Tensor

from dpt_zoo.errors import InputError, OutputError, WeightsError
from dpt_zoo.weights.converting import convert, write_mmdet2, write_safetensors
from dpt_zoo.weights.digests import tensors_sha256
from dpt_zoo.weights.reading import Weights, read_weights

ARCHITECTURES = ["retinanet_dpt_t", "mask_rcnn_dpt_t"]
META: dict[str, Any] = {"epoch": 12, "CLASSES": ["person", "café"], "config": "model = dict(\n)", "seed": None}
TENSORS = {"weight": torch.arange(6.0).view(2, 3), "scale": torch.tensor(0.1), "count": torch.tensor([3])}
WEIGHTS = Weights(TENSORS, META, "pth")


def random_bits(architecture: str) -> dict[str, Tensor]:
    """All tensors of an architecture, in every bit pattern that numbers have, with infinities and all kinds of NaN."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape, dtype in read_json(f"schema_{architecture}.json")["state_dict"]:
        kind = getattr(torch, dtype.removeprefix("torch."))
        count = torch.Size(shape).numel() * kind.itemsize
        state[name] = torch.empty(count, dtype=torch.uint8).random_(generator=generator).view(kind).view(shape)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_there_and_back_bit_for_bit(architecture: str, tmp_path: Path) -> None:
    state = random_bits(architecture)
    digest = tensors_sha256(state)
    source, between, back = (tmp_path / name for name in ("a.pth", "b.safetensors", "c.pth"))
    torch.save({"meta": META, "state_dict": state}, source)
    convert(source, between)
    convert(between, back, to="mmdet2")
    for path in (between, back):
        weights = read_weights(path)
        assert tensors_sha256(weights.tensors) == digest
        assert weights.meta == META
        path.unlink()
    source.unlink()


# --- safetensors


WRITE = """
import sys, torch
from pathlib import Path
from dpt_zoo.weights.converting import write_safetensors
from dpt_zoo.weights.reading import Weights
names = sys.argv[2].split(",")
tensors = {name: torch.full((2, 3), float(len(name))) for name in names}
write_safetensors(Weights(tensors, {name: [name] for name in names}, "pth"), Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_equal_weights_give_equal_bytes_in_any_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, names in enumerate(["one,three,twenty,x", "x,twenty,three,one"]):
        monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path / f"{index}.safetensors"), names])
        exec(WRITE, {})
    command = [sys.executable, "-c", WRITE, str(tmp_path / "2.safetensors"), "one,three,twenty,x"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "1"}, check=True)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_the_meta_is_text_that_any_reader_of_safetensors_finds(tmp_path: Path) -> None:
    write_safetensors(WEIGHTS, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata.keys() == {"dpt_zoo.meta"}
    assert json.loads(metadata["dpt_zoo.meta"]) == META


def test_half_rounds_what_has_a_fraction(tmp_path: Path) -> None:
    tensors = {**TENSORS, "double": torch.tensor([1e-9, torch.inf, torch.nan], dtype=torch.float64)}
    write_safetensors(Weights(tensors, META, "pth"), tmp_path / "a.safetensors", half=True)
    halved = read_weights(tmp_path / "a.safetensors").tensors
    assert torch.equal(halved["count"], TENSORS["count"])
    for name in ("weight", "scale", "double"):
        torch.testing.assert_close(halved[name], tensors[name].half(), rtol=0, atol=0, equal_nan=True)


def test_half_of_a_number_that_is_too_large(tmp_path: Path) -> None:
    large = Weights({"scale": torch.tensor([65_520.0])}, {}, "pth")
    with pytest.raises(OutputError, match="scale has numbers too large for float16"):
        write_safetensors(large, tmp_path / "a.safetensors", half=True)
    assert not list(tmp_path.iterdir())


# --- MMDetection 2


class Recorder(pickle.Unpickler):
    """Unpickles, but notes the names of functions, and gives their arguments in place of calling them."""

    def __init__(self, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled))
        self.names: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.names.add(f"{module}.{name}")
        return OrderedDict if name == "OrderedDict" else lambda *arguments: arguments

    def persistent_load(self, reference: Any) -> Any:
        return reference


def test_a_file_for_mmdet2_is_what_torch_1_7_reads(tmp_path: Path) -> None:
    halves = {**TENSORS, "half": torch.ones(2).half(), "brain": torch.ones(2).bfloat16()}
    write_mmdet2(Weights(halves, META, "safetensors"), tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        pickled = archive.read("archive/data.pkl")
        assert archive.read("archive/version") == b"3\n"  # it reads 1 to 5
    assert max(operation.proto for operation, _, _ in pickletools.genops(pickled)) == 2
    recorder = Recorder(pickled)
    content = recorder.load()
    assert recorder.names == {
        "collections.OrderedDict",
        "torch.FloatStorage",
        "torch.LongStorage",
        "torch._utils._rebuild_tensor_v2",
    }
    # Its `_rebuild_tensor_v2` takes six arguments; that of later versions may be given a seventh.
    assert all(len(arguments) == 6 for arguments in content["state_dict"].values())


META_FOR_MMDET2: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "MMDetection 2": (META, {**META, "CLASSES": ("person", "café")}),
    "MMDetection 3": ({"dataset_meta": {"classes": ["a"]}}, {"dataset_meta": {"classes": ["a"]}, "CLASSES": ("a",)}),
    "none": ({}, {}),
}


@pytest.mark.parametrize(("meta", "expected"), META_FOR_MMDET2.values(), ids=META_FOR_MMDET2)
def test_mmdet2_finds_the_classes(meta: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    write_mmdet2(Weights(TENSORS, meta, "safetensors"), tmp_path / "a.pth")
    written = torch.load(tmp_path / "a.pth", weights_only=True)
    assert written.keys() == {"meta", "state_dict"}
    assert written["meta"] == expected
    assert {name: tensor.dtype for name, tensor in written["state_dict"].items()} == {
        "weight": torch.float32,
        "scale": torch.float32,
        "count": torch.int64,
    }


def test_half_is_widened_for_mmdet2(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors", half=True)
    convert(tmp_path / "b.safetensors", tmp_path / "c.pth", to="mmdet2")
    back = read_weights(tmp_path / "c.pth").tensors
    assert torch.equal(back["weight"], TENSORS["weight"])
    assert torch.equal(back["scale"], TENSORS["scale"].half().float())


# --- Either


@pytest.mark.parametrize("to", ["safetensors", "mmdet2"])
def test_tensors_that_share_memory_or_lie_apart_in_it(to: Any, tmp_path: Path) -> None:
    numbers = torch.arange(1000.0)
    state = {"tied": numbers[:9], "also": numbers[:9], "part": numbers[5:99], "columns": numbers[:600].view(6, 100).T}
    torch.save(state, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b", to=to)
    back = read_weights(tmp_path / "b").tensors
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_what_does_not_go_together(tmp_path: Path) -> None:
    source, link = tmp_path / "a.pth", tmp_path / "link"
    torch.save(TENSORS, source)
    content = source.read_bytes()
    link.symlink_to(source)
    for target in (source, link, tmp_path / ".." / tmp_path.name / "a.pth"):
        with pytest.raises(InputError, match="is the input file"):
            convert(source, target)
    with pytest.raises(InputError, match="without half"):
        convert(source, tmp_path / "b.pth", to="mmdet2", half=True)
    with pytest.raises(InputError, match="'safetensors' or 'mmdet2', not 'onnx'"):
        convert(source, tmp_path / "b.onnx", to="onnx")  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="no such file"):
        convert(tmp_path / "none.pth", tmp_path / "b")
    with pytest.raises(OutputError, match="No such file"):
        convert(source, tmp_path / "none" / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "link"]
    assert source.read_bytes() == content


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path, output = tmp_path / "a.pth", tmp_path / "b"
    torch.save({"weight": torch.zeros(10**6)}, path)
    output.write_text("old")
    code = """
import resource, sys
from pathlib import Path
from dpt_zoo.errors import OutputError
from dpt_zoo.weights.converting import convert
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
for to in ("safetensors", "mmdet2"):
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]), to=to)
    except OutputError as error:
        print(error)
"""
    printed = subprocess.check_output([sys.executable, "-c", code, str(path), str(output)], cwd=ROOT, text=True)
    assert re.fullmatch(rf"({output} cannot be written: .*File too large.*: choose another folder\n){{2}}", printed)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.pth", "b"]
    assert output.read_text() == "old"


# --- Memory


def peak(code: str, *arguments: Path) -> int:
    """The peak of a process's memory, in bytes, at the end of the code."""
    code += "\nprint(open('/proc/self/status').read())"
    said = subprocess.check_output([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, text=True)
    found = re.search(r"VmHWM:\s+(\d+) kB", said)
    assert found
    return int(found[1]) * 1024


CONVERT = """
import sys
from pathlib import Path
from dpt_zoo.weights.converting import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]))
convert(Path(sys.argv[2]), Path(sys.argv[3]), to="mmdet2")
"""


@pytest.fixture(scope="module")
def bare_torch() -> int:
    return peak("import torch")


@pytest.mark.slow
def test_memory_of_converting_an_authors_file(authors_file: Path, bare_torch: int, tmp_path: Path) -> None:
    weights = sum(tensor.nbytes for tensor in read_weights(authors_file).tensors.values())
    assert peak(CONVERT, authors_file, tmp_path / "b", tmp_path / "c") - bare_torch < 2.5 * weights


@pytest.mark.slow
def test_the_optimiser_is_never_read(bare_torch: int, tmp_path: Path) -> None:
    state = {"weight": torch.zeros(10**6)}
    torch.save({"state_dict": state, "optimizer": torch.zeros(10**8)}, tmp_path / "a.pth")
    assert peak(CONVERT, tmp_path / "a.pth", tmp_path / "b", tmp_path / "c") - bare_torch < 100e6
