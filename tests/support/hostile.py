"""What hostile weights files are made of."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Sequence
from typing import Any

# --- Objects


class Call:
    """Pickles as a call, made by whoever unpickles it; then its state is set."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.reduced

    def __call__(self) -> None:
        """Be callable, so that pickle takes a call's result for a function to call."""


# --- Pickles, by operation: each of these functions gives the bytes that push one object


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def sequence(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + sequence(*arguments) + b"R"


def dictionary(**entries: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def namespace(**entries: bytes) -> bytes:
    return name("argparse", "Namespace") + b")\x81" + dictionary(**entries) + b"b"


def tensor(
    kind: str = "FloatStorage", numel: int = 1, shape: Sequence[int] | None = None, stride: Sequence[int] = (1,)
) -> bytes:
    """A tensor in the storage "0" of `numel` elements: all of it, unless it claims another `shape`."""
    storage = sequence(text("storage"), name("torch", kind), text("0"), text("cpu"), number(numel), b"N") + b"Q"
    sizes = (sequence(*map(number, each)) for each in (shape or [numel], stride))
    return call(name("torch._utils", "_rebuild_tensor_v2"), storage, number(0), *sizes, b"\x89", b"}")


# --- Files

LEGACY_START: list[Any] = [0x1950A86A20F9469CFC6C, 1001, {}]
"""What comes before the content in a file of the legacy form: a magic number, a version, a system."""


def legacy_file(content: bytes, data: bytes = bytes(4)) -> bytes:
    """A file as `torch.save` wrote before PyTorch 1.6; `data` is what the storage "0" holds, as float32."""
    header = b"".join(pickle.dumps(each, 2) for each in LEGACY_START)
    keys = pickle.dumps(["0"], 2)
    return header + b"\x80\x02" + content + b"." + keys + struct.pack("<q", len(data) // 4) + data


def zip_file(content: bytes, data: bytes = bytes(4), **options: Any) -> bytes:
    """A file as `torch.save` writes, but for `options` of the zip archive."""
    # A storage is referred to without the None at the end that it has in the legacy form.
    content = content.replace(b"NtQ", b"tQ")
    entries = {"data.pkl": b"\x80\x02" + content + b".", "byteorder": b"little", "data/0": data, "version": b"3\n"}
    return archive({f"archive/{key}": value for key, value in entries.items()}, **options)


def archive(entries: dict[str, bytes], **options: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as opened:
        for key, value in entries.items():
            opened.writestr(key, value)
    return file.getvalue()


def safetensors_file(header: Any, data: bytes = bytes(8), length: int | None = None) -> bytes:
    """A safetensors file; `header` is JSON, or the bytes in its place, and may claim another `length`."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data
