"""Hostile weights files: each is refused in one line, executes nothing, and takes little memory."""

import copy
import copyreg
import functools
import io
import json
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hostile import (
    LEGACY_START,
    archive,
    call,
    dictionary,
    legacy_file,
    name,
    namespace,
    number,
    safetensors_file,
    sequence,
    tensor,
    text,
    zip_file,
)
from reference_data import ROOT
from safetensors.torch import save_file

from dpt_zoo.errors import WeightsError
from dpt_zoo.weights.loading import load_weights
from dpt_zoo.weights.raw_tensors import check_finite
from dpt_zoo.weights.reading import read_raw_weights, read_weights

STATE = dictionary(weight=tensor())
CONTAINERS = {"zip": zip_file, "legacy": legacy_file}
in_both_containers = pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)


def assert_refused(path: Path, complaint: str) -> None:
    with pytest.raises(WeightsError, match=complaint) as raised:
        read_weights(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert str(raised.value).isprintable()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


@in_both_containers
def test_what_the_hostile_files_are_made_of_is_read(container: Callable[[bytes], bytes], path: Path) -> None:
    path.write_bytes(container(dictionary(model=STATE, epoch=number(3), args=namespace(lr=number(1)))))
    weights = read_weights(path)
    assert weights.tensors == {"weight": torch.zeros(1)}
    assert weights.meta == {"epoch": 3, "args": {"lr": 1}}


# --- Code: every way in which a pickle can import and call

SYSTEM = name("posix", "system")
ENCODE = name("_codecs", "encode")
ORDERED = call(name("collections", "OrderedDict"))
HISTORY = name("mmengine.logging.history_buffer", "HistoryBuffer")
IMPORTED_OS = call(name("builtins", "__import__"), text("os"))
EXTENSIONS = {1: ("posix", "system"), 1_000: ("os", "system"), 100_000: ("torch", "os.system")}

ROUTES: dict[str, Callable[[bytes], bytes]] = {
    "GLOBAL, REDUCE": lambda command: call(SYSTEM, command),
    "GLOBAL, REDUCE, by the memo": lambda command: sequence(SYSTEM + b"q\x09", call(b"h\x09", command)),
    "STACK_GLOBAL": lambda command: call(text("posix") + text("system") + b"\x93", command),
    "STACK_GLOBAL, dotted": lambda command: call(text("torch") + text("os.system") + b"\x93", command),
    "INST": lambda command: b"(" + command + b"iposix\nsystem\n",
    "OBJ": lambda command: b"(" + SYSTEM + command + b"o",
    "NEWOBJ": lambda command: new("tuple", new("map", SYSTEM, sequence(command))),
    "NEWOBJ_EX": lambda command: new("tuple", new("map", SYSTEM, sequence(command), end=b"}\x92"), end=b"}\x92"),
    "BUILD, __setstate__": lambda command: namespace(__setstate__=SYSTEM) + command + b"b",
    "EXT1": lambda command: call(b"\x82\x01", command),
    "EXT2": lambda command: call(b"\x83" + (1_000).to_bytes(2, "little"), command),
    "EXT4": lambda command: call(b"\x84" + (100_000).to_bytes(4, "little"), command),
    "a pickle in the pickle": lambda command: call(name("_pickle", "loads"), as_bytes(call(SYSTEM, command) + b".")),
    "eval": lambda command: call(name("builtins", "eval"), text("__import__('os').system"), b"}") + command + b"\x85R",
    "getattr": lambda command: call(call(name("builtins", "getattr"), IMPORTED_OS, text("system")), command),
    "functools.partial": lambda command: call(call(name("functools", "partial"), SYSTEM, command)),
}


def new(kind: str, *arguments: bytes, end: bytes = b"\x81") -> bytes:
    return name("builtins", kind) + sequence(*arguments) + end


def as_bytes(data: bytes) -> bytes:
    return call(ENCODE, text(data.decode("latin1")), text("latin1"))


PLACES: dict[str, Callable[[bytes], bytes]] = {
    "all of it": lambda attack: attack,
    "a tensor": lambda attack: dictionary(weight=tensor(), bias=attack),
    "meta": lambda attack: dictionary(state_dict=STATE, meta=dictionary(config=attack)),
    "args": lambda attack: dictionary(model=STATE, args=namespace(output_dir=attack)),
    "optimizer": lambda attack: dictionary(state_dict=STATE, optimizer=attack),
}


@pytest.fixture
def extensions() -> Iterator[None]:
    """Register the targets of EXT1, EXT2 and EXT4."""
    for code, (module, attribute) in EXTENSIONS.items():
        copyreg.add_extension(module, attribute, code)
    yield
    for code, (module, attribute) in EXTENSIONS.items():
        copyreg.remove_extension(module, attribute, code)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
@in_both_containers
def test_no_code_is_executed(
    container: Callable[[bytes], bytes],
    route: Callable[[bytes], bytes],
    place: Callable[[bytes], bytes],
    path: Path,
    extensions: None,
) -> None:
    marker = path.with_name("marker")
    attack = route(text(f"echo > {marker}"))
    path.write_bytes(container(place(attack)))
    assert_refused(path, "refused, nothing of it was executed")
    assert not marker.exists()
    pickle.loads(b"\x80\x04" + attack + b".")  # the attack does work on whoever unpickles it
    assert marker.exists()


@pytest.mark.parametrize("position", range(5))
def test_no_code_is_executed_from_the_other_pickles_of_a_legacy_file(position: int, path: Path) -> None:
    marker = path.with_name("marker")
    pickles = [pickle.dumps(each, 2) for each in [*LEGACY_START, {}, []]]
    pickles[position] = b"\x80\x02" + call(SYSTEM, text(f"echo > {marker}")) + b"."
    path.write_bytes(b"".join(pickles))
    assert_refused(path, "nothing of it was executed: it asks for posix.system")
    assert not marker.exists()


# --- Things that a pickle has no business with

REFUSED: dict[str, tuple[bytes, str]] = {
    "torch.load": (
        call(name("torch.serialization", "load"), text("other.pth")),
        "it asks for torch.serialization.load",
    ),
    "__import__": (IMPORTED_OS, "it asks for builtins.__import__"),
    "__import__, as Python 2 has it": (call(name("__builtin__", "__import__")), "it asks for builtins.__import__"),
    "memory as it is": (call(name("torch", "FloatTensor"), number(9)), "it asks for torch.FloatTensor"),
    "a function of HistoryBuffer": (call(name("builtins", "getattr"), HISTORY, text("update")), "a call of getattr"),
    "the globals of HistoryBuffer": (
        call(name("builtins", "getattr"), HISTORY, text("__init__.__globals__")),
        "a call of getattr",
    ),
    "a method of another class": (
        call(name("builtins", "getattr"), name("collections", "OrderedDict"), text("min")),
        "a call of getattr",
    ),
    "a HistoryBuffer called": (call(HISTORY, b"]", b"]"), "an instance made from arguments"),
    "a Namespace with arguments": (name("argparse", "Namespace") + text("a") + b"\x85\x81", "made from arguments"),
    "what was made, called": (call(ORDERED), "it calls an object that is not an imported name"),
    "memory seen as objects": (call(name("numpy", "ndarray"), b")", text("O")), "a call of numpy.ndarray"),
    "a type of objects": (call(name("numpy", "dtype"), text("O8")), "a NumPy type that is not a number"),
    "a type of records": (call(name("numpy", "dtype"), text("V8")), "a NumPy type that is not a number"),
    "a codec": (call(ENCODE, text("data"), text("punycode")), "it calls _codecs.encode in an unusual way"),
    "a set, of anything": (call(name("builtins", "set"), b"]"), "it asks for builtins.set"),
    "a counter, of anything": (call(name("collections", "Counter"), b"]"), "it calls collections.Counter"),
    "the state of a tensor": (tensor() + b")b", "it sets the state of an object that has none"),
    "the state of a function": (ENCODE + b"}b", "it sets the state of an object that has none"),
    "PERSID": (b"P0\n", "the pickle operation PERSID"),
    "BINPERSID, a class's source": (
        sequence(text("module"), name("argparse", "Namespace"), text("a.py"), text("")) + b"Q",
        "it refers to a storage in an unknown way",
    ),
    "BINPERSID, no storage's kind": (
        sequence(text("storage"), ENCODE, text("0"), text("cpu"), number(1)) + b"Q",
        "it refers to a storage in an unknown way",
    ),
    "a sparse tensor": (call(name("torch._utils", "_rebuild_sparse_tensor")), "_rebuild_sparse_tensor"),
    "a quantised tensor": (call(name("torch._utils", "_rebuild_qtensor")), "_rebuild_qtensor"),
    "a tensor without memory": (
        call(name("torch._utils", "_rebuild_meta_tensor_no_storage")),
        "_rebuild_meta_tensor_no_storage",
    ),
    "a tensor of another class": (call(name("torch._tensor", "_rebuild_from_type_v2")), "_rebuild_from_type_v2"),
    "a complex tensor": (tensor(kind="ComplexFloatStorage"), "it asks for torch.ComplexFloatStorage"),
}


@pytest.mark.parametrize(("attack", "complaint"), REFUSED.values(), ids=REFUSED)
@in_both_containers
def test_what_no_checkpoint_needs_is_refused(
    container: Callable[[bytes], bytes], attack: bytes, complaint: str, path: Path
) -> None:
    path.write_bytes(container(dictionary(state_dict=STATE, meta=attack)))
    assert_refused(path, f"nothing of it was executed: .*{complaint}")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_other_pickle_protocols_are_refused(protocol: int, path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, path, pickle_protocol=protocol)
    assert_refused(path, "its pickle protocol is|it has the pickle operation")


def test_a_name_that_this_process_allows_elsewhere_is_refused_here(path: Path) -> None:
    path.write_bytes(zip_file(dictionary(state_dict=STATE, meta=call(name("builtins", "print"), text("hello")))))
    allowed = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([print]):
        assert_refused(path, "it asks for builtins.print")
    path.write_bytes(zip_file(STATE))
    read_weights(path)
    assert set(torch.serialization.get_safe_globals()) == set(allowed)


# --- Memory. These files are read one after the other in one process, which has little to spare.


def nested(pairs: int, start: bytes) -> bytes:
    """Lists of ten times the same list of ten times the same list ..."""
    levels = [b"](" + start * 10 + b"eq\x00"]
    levels += [b"](" + bytes([ord("h"), level]) * 10 + b"eq" + bytes([level + 1]) for level in range(pairs)]
    return sequence(*levels)


def claimed(size: int) -> bytes:
    """A zip archive whose last entry claims a size that it does not have."""
    file = io.BytesIO(zip_file(STATE))
    with zipfile.ZipFile(file, "a") as opened:
        opened.getinfo("archive/data/0").file_size = size
        opened.writestr("archive/other", b"")  # so that the index is written anew
    return file.getvalue()


def overlapping(count: int) -> bytes:
    """A zip archive in which many entries lie in the same bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("archive/data.pkl", b"\x80\x02" + STATE + b".")
        opened.writestr("archive/data/0", bytes(2**20))
        for key in range(1, count):
            info = copy.copy(opened.getinfo("archive/data/0"))
            info.filename = f"archive/data/{key}"
            opened.filelist.append(info)
    return file.getvalue()


def in_meta(attack: bytes) -> bytes:
    return dictionary(state_dict=STATE, meta=dictionary(config=attack))


DEEP = b")" + b"\x85" * 290_000
TERABYTE = 2**40
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip: a storage of terabytes": (
        lambda: zip_file(dictionary(weight=tensor(numel=TERABYTE))),
        "it claims 4,398,046,511,104 bytes for a tensor and has fewer",
    ),
    "legacy: a storage of terabytes": (
        lambda: legacy_file(dictionary(weight=tensor(numel=TERABYTE))),
        "it claims 4,398,046,511,104 bytes for tensors and has fewer",
    ),
    "legacy: a storage of more bytes than there are addresses": (
        lambda: legacy_file(dictionary(weight=tensor(numel=2**70))),
        "bytes for tensors and has fewer",
    ),
    "zip: one number, a terabyte of times": (
        lambda: zip_file(dictionary(weight=tensor(shape=(TERABYTE,), stride=(0,)))),
        "weight claims the shape [1099511627776]",
    ),
    "legacy: one number, a terabyte of times": (
        lambda: legacy_file(dictionary(weight=tensor(shape=(TERABYTE,), stride=(0,)))),
        "weight claims the shape [1099511627776]",
    ),
    "zip: past the storage's end": (
        lambda: zip_file(dictionary(weight=tensor(shape=(2**30,)))),
        "the file is damaged",
    ),
    "legacy: past the storage's end": (
        lambda: legacy_file(dictionary(weight=tensor(shape=(2**30,)))),
        "the file is damaged",
    ),
    "a tensor under many names": (
        lambda: zip_file(dictionary(**dict.fromkeys(map(str, range(100)), tensor(numel=10**5))), bytes(4 * 10**5)),
        "its tensors claim 40,000,000 bytes",
    ),
    "bytearray": (
        lambda: zip_file(in_meta(call(name("builtins", "bytearray"), number(10**11)))),
        "it asks for builtins.bytearray",
    ),
    "a codec that doubles, forty times": (
        lambda: zip_file(
            in_meta(functools.reduce(lambda data, _: call(ENCODE, data, text("hex")), range(40), as_bytes(b"ab")))
        ),
        "it calls _codecs.encode in an unusual way",
    ),
    "an array of many dimensions out of few lists": (
        lambda: zip_file(in_meta(call(HISTORY, nested(10, number(1)), b"]"))),
        "an instance made from arguments",
    ),
    "a NumPy array of exabytes": (
        lambda: zip_file(in_meta(numpy_array(2**60))),
        "the file is damaged",
    ),
    "a key so deep that its hash overflows the stack": (
        lambda: zip_file(in_meta(b"}" + DEEP + b"Ns")),
        "it has a key that is neither text nor number",
    ),
    "such a key, in a state": (
        lambda: zip_file(in_meta(ORDERED + b"](" + DEEP + b"N\x86eb")),
        "it sets the state of an object that has none",
    ),
    "such a key, in a call": (
        lambda: zip_file(in_meta(call(name("collections", "OrderedDict"), b"](" + DEEP + b"N\x86e"))),
        "it calls collections.OrderedDict in an unusual way",
    ),
    "tuples so deep that writing them overflows the stack": (lambda: zip_file(in_meta(DEEP)), "the file is damaged"),
    "operations without end": (
        lambda: zip_file(in_meta(b"](" + b"}" * 1_000_000 + b"e")),
        "it has more than 500,000 operations",
    ),
    "a text that aliases blow up": (
        lambda: zip_file(in_meta(nested(15, text("ha")))),
        "its meta has more than 1,048,576 characters",
    ),
    "a list in itself": (lambda: zip_file(in_meta(b"]q\x00h\x00a")), "the file is damaged"),
    "a zip bomb": (
        lambda: zip_file(STATE, bytes(2**26), compression=zipfile.ZIP_DEFLATED),
        "its entries are compressed",
    ),
    "a zip archive of entries in the same place": (lambda: overlapping(1000), "its entries claim more bytes"),
    "a zip archive with an entry of terabytes": (lambda: claimed(TERABYTE), "its entries claim more bytes"),
    "safetensors: a header of exabytes": (lambda: safetensors_file(b"{}", length=2**60), "the header claims"),
    "safetensors: a header of 17 MB": (lambda: safetensors_file(b"{}" + b" " * 17_000_000), "the header claims"),
    "safetensors: a tensor of exabytes": (
        lambda: safetensors_file(entries(weight=("F32", [2**58], 0, 2**60))),
        "the file is damaged",
    ),
    "safetensors: a shape that overflows": (
        lambda: safetensors_file(entries(weight=("F32", [2**32, 2**32, 2], 0, 8))),
        "the file is damaged",
    ),
    "safetensors: JSON of great depth": (lambda: safetensors_file(b'{"weight":' + b"[" * 10**6), "the file is damaged"),
}


def numpy_array(length: int) -> bytes:
    made = call(name("numpy._core.multiarray", "_reconstruct"), name("numpy", "ndarray"), b")", as_bytes(b"b"))
    kind = call(name("numpy", "dtype"), text("f8"))
    return made + sequence(number(1), sequence(number(length)), kind, b"\x89", as_bytes(b"")) + b"b"


def entries(**tensors: tuple[Any, Any, Any, Any]) -> dict[str, Any]:
    return {
        key: {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        for key, (dtype, shape, start, end) in tensors.items()
    }


READ_ALL = """
import json, pathlib, re, resource, sys
import dpt_zoo.weights.checkpoints  # imports PyTorch before the limit is set
from dpt_zoo.errors import WeightsError
from dpt_zoo.weights.reading import read_weights

def kilobytes(key):
    return int(re.search(rf"{key}:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

limit = (kilobytes("VmSize") + 2**20) * 1024
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in map(pathlib.Path, sys.argv[1:]):
    before = kilobytes("VmHWM")
    try:
        answer = str(read_weights(path))
    except WeightsError as error:
        answer = str(error)
    print(json.dumps([path.stem, answer, kilobytes("VmHWM") - before]), flush=True)
"""


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Read each bomb: its number, the answer, and the kilobytes by which the peak memory grew."""
    folder = tmp_path_factory.mktemp("bombs")
    paths = [folder / f"{index}.pth" for index in range(len(BOMBS))]
    for path, (make, _) in zip(paths, BOMBS.values(), strict=True):
        path.write_bytes(make())
    command = [sys.executable, "-c", READ_ALL, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(BOMBS), done.stderr
    return dict(zip(BOMBS, answers, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_take_little_memory(bomb: str, bombs: dict[str, list[Any]]) -> None:
    index, answer, kilobytes = bombs[bomb]
    assert f"{index}.pth: " in answer
    assert BOMBS[bomb][1] in answer
    assert answer.isprintable()
    assert kilobytes < 50_000


# --- Damage


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_damaged_files_are_read_or_refused(form: str, path: Path) -> None:
    content = dictionary(state_dict=dictionary(weight=tensor(numel=4)), meta=namespace(lr=number(1)))
    whole = {
        "zip": zip_file(content, bytes(16)),
        "legacy": legacy_file(content, bytes(16)),
        "safetensors": safetensors_file(entries(a=FLOATS)),
    }
    for seed in range(100):
        random = Random(seed)
        damaged = bytearray(whole[form])
        for _ in range(random.randint(1, 4)):
            start = random.randrange(len(damaged))
            damaged[start : start + random.randint(0, 3)] = random.randbytes(random.randint(0, 3))
        path.write_bytes(damaged)
        try:
            answer = str(read_weights(path).container)
        except WeightsError as error:
            answer = str(error)
        assert answer in ("pth", "safetensors") or answer.startswith(f"{path}: ")
        assert answer.isprintable()


# --- Zip archives that torch.save did not write

ENTRIES = {"archive/data.pkl": b"\x80\x02" + STATE + b".", "archive/data/0": bytes(4)}
ARCHIVES: dict[str, tuple[bytes, str]] = {
    "an entry twice": (
        archive({**ENTRIES, "archive/data/1": b"evil"}).replace(b"archive/data/1", b"archive/data/0"),
        "two of its entries have the same name",
    ),
    "an entry twice, but for its case": (archive({**ENTRIES, "archive/DATA/0": b"evil"}), "have the same name"),
    "a tensor longer than its entry": (
        zip_file(dictionary(weight=tensor(numel=3))),
        "it claims 12 bytes for a tensor",
    ),
    "a tensor in no entry": (archive({"archive/data.pkl": ENTRIES["archive/data.pkl"]}), "it claims 4 bytes"),
    "a tensor in another folder": (
        archive({"archive/data.pkl": ENTRIES["archive/data.pkl"], "other/data/0": bytes(4)}),
        "it claims 4 bytes",
    ),
    "a TorchScript program": (archive({**ENTRIES, "archive/constants.pkl": b""}), "this is a TorchScript program"),
    "a document": (archive({"word/document.xml": b"<w:document/>"}), "this is not a weights file, it is a zip archive"),
    "an empty archive": (archive({}), "this is not a weights file, it is a zip archive"),
}


@pytest.mark.parametrize(("content", "complaint"), ARCHIVES.values(), ids=ARCHIVES)
def test_archives_that_torch_did_not_write(content: bytes, complaint: str, path: Path) -> None:
    path.write_bytes(content)
    assert_refused(path, complaint)


def test_a_tar_archive(path: Path) -> None:
    with tarfile.open(path, "w") as opened:
        for entry in ("storages", "tensors", "pickle"):
            opened.addfile(tarfile.TarInfo(entry))
    assert_refused(path, "this is not a weights file, it is a tar archive")


# --- Safetensors headers that lie

FLOATS = ("F32", [2], 0, 8)
HEADERS: dict[str, tuple[bytes, str]] = {
    "longer than the file": (safetensors_file(entries(a=FLOATS), length=1000), "damaged"),
    "no JSON": (safetensors_file(b"{weight}"), "damaged"),
    "no UTF-8": (safetensors_file(b'{"\xff":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'), "damaged"),
    "tensors that overlap": (safetensors_file(entries(a=FLOATS, b=("F32", [1], 4, 8))), "damaged"),
    "a hole between tensors": (safetensors_file(entries(a=("F32", [1], 0, 4), b=("F32", [1], 6, 10))), "damaged"),
    "a tensor past the end": (safetensors_file(entries(a=("F32", [4], 0, 16))), "damaged"),
    "bytes of no tensor": (safetensors_file(entries(a=FLOATS), bytes(12)), "damaged"),
    "offsets turned round": (safetensors_file(entries(a=("F32", [2], 8, 0))), "damaged"),
    "negative offsets": (safetensors_file(entries(a=("F32", [2], -8, 0))), "damaged"),
    "more elements than bytes": (safetensors_file(entries(a=("F64", [2], 0, 8))), "damaged"),
    "a negative shape": (safetensors_file(entries(a=("F32", [-1, -2], 0, 8))), "damaged"),
    "a shape of fractions": (safetensors_file(entries(a=("F32", [0.5, 4], 0, 8))), "damaged"),
    "an unknown type": (safetensors_file(entries(a=("F33", [2], 0, 8))), "damaged"),
    "a type that weights do not have": (safetensors_file(entries(a=("C64", [1], 0, 8))), "damaged"),
    "a name twice": (
        safetensors_file(b"{" + b",".join([json.dumps(entries(a=FLOATS)).encode()[1:-1]] * 2) + b"}"),
        "a name occurs twice in the header",
    ),
    "metadata that is no text": (safetensors_file({"__metadata__": {"a": 3}, **entries(a=FLOATS)}), "damaged"),
    "our meta, but no JSON": (
        safetensors_file({"__metadata__": {"dpt_zoo.meta": "{"}, **entries(a=FLOATS)}),
        "damaged",
    ),
    "our meta, but no dictionary": (
        safetensors_file({"__metadata__": {"dpt_zoo.meta": "[3]"}, **entries(a=FLOATS)}),
        "damaged",
    ),
}


@pytest.mark.parametrize(("content", "complaint"), HEADERS.values(), ids=HEADERS)
def test_safetensors_headers_that_lie(content: bytes, complaint: str, path: Path) -> None:
    path.write_bytes(content)
    assert_refused(path, complaint)


# --- Tensors that are no model's

TENSORS: dict[str, tuple[bytes, str]] = {
    "a number for a name": (b"}" + number(1) + tensor() + b"s", "1 is not a tensor name"),
    "a line break in a name": (dictionary(**{"a\nb": tensor()}), "is not a tensor name"),
    "half a character in a name": (b"}X\x03\x00\x00\x00\xed\xa0\x80" + tensor() + b"s", "is not a tensor name"),
    "a name with and without its prefix": (
        dictionary(**{"weight": tensor(), "module.weight": tensor()}),
        "weight occurs with and without 'module.'",
    ),
    "a shape of less than nothing": (
        dictionary(weight=tensor(shape=(0, -1), stride=(1, 1))),
        r"weight claims the shape \[0, -1\]",
    ),
    "a size that overflows": (
        dictionary(weight=tensor(shape=(2**62,), stride=(0,))),
        r"weight claims the shape \[4611686018427387904\]",
    ),
    "nothing, of a size that overflows": (
        dictionary(weight=tensor(shape=(0, 2**62), stride=(1, 1))),
        "its tensors claim 18,446,744,073,709,551,616 bytes",
    ),
    "numbers to be negated when read": (
        dictionary(weight=tensor().removesuffix(b"tR") + dictionary(neg=b"\x88") + b"tR"),
        "weight has a type that weights never have",
    ),
}


@pytest.mark.parametrize(("state", "complaint"), TENSORS.values(), ids=TENSORS)
@in_both_containers
def test_tensors_that_no_model_has(
    container: Callable[[bytes], bytes], state: bytes, complaint: str, path: Path
) -> None:
    path.write_bytes(container(dictionary(state_dict=state)))
    assert_refused(path, complaint)


@in_both_containers
def test_a_state_dict_with_methods_of_its_own(container: Callable[[bytes], bytes], path: Path) -> None:
    made = ORDERED + text("weight") + tensor() + b"s"
    methods = {method: name("collections", "OrderedDict") for method in ("items", "keys", "get", "__iter__")}
    path.write_bytes(container(dictionary(state_dict=made + dictionary(**methods) + b"b")))
    assert read_weights(path).tensors == {"weight": torch.zeros(1)}


WEIGHT, BIAS = torch.ones(1, 2), torch.ones(1)
NOT_THE_MODELS: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "not a number": ({"weight": WEIGHT * torch.nan, "bias": BIAS}, "weight holds numbers that are not finite"),
    "infinite": ({"weight": WEIGHT, "bias": -BIAS / 0}, "bias holds numbers that are not finite"),
    "of another type": ({"weight": WEIGHT.long(), "bias": BIAS}, r"weight \(int64\[1, 2\] in the file"),
    "of another shape": ({"weight": WEIGHT.T.contiguous(), "bias": BIAS}, r"weight \(float32\[2, 1\] in the file"),
    "missing": ({"weight": WEIGHT}, r"bias \(not in the file\)"),
    "extra": ({"weight": WEIGHT, "bias": BIAS, "other": torch.ones(1)}, r"other \(not in the model\)"),
}


@pytest.mark.parametrize(("state", "complaint"), NOT_THE_MODELS.values(), ids=NOT_THE_MODELS)
def test_weights_that_are_not_the_models(state: dict[str, torch.Tensor], complaint: str, path: Path) -> None:
    save_file(state, path)
    model = torch.nn.Linear(2, 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=complaint) as raised:
        weights = read_raw_weights(path)
        check_finite(weights.tensors, path)
        load_weights(model, weights.to_torch().tensors, path, "linear")
    assert str(raised.value).startswith(f"{path}: ")
    assert str(raised.value).isprintable()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
