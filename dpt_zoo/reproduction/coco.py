"""COCO's images and annotations, fetched from its server into the layout that evaluation and training read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ..data.archives import unpack
from ..errors import DataError, FetchError, InputError
from ..utils.files import exists, expand_user, make_folder, remove
from ..utils.progress import ProgressCallback
from ..weights import http

SERVER = "https://s3.amazonaws.com/images.cocodataset.org"
"""COCO's bucket. Its own name, images.cocodataset.org, has no valid certificate."""


@dataclass(frozen=True)
class CocoArchive:
    """A zip archive of COCO, and what is in it."""

    path: str  # on the server
    sha256: str
    num_bytes: int
    folder: str  # in the archive, and in the data set
    num_files: int  # in this folder


ARCHIVES: Mapping[str, CocoArchive] = {
    "coco-train2017": CocoArchive(
        "zips/train2017.zip",
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        19_336_861_798,
        "train2017",
        118_287,
    ),
    "coco-val2017": CocoArchive(
        "zips/val2017.zip",
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        815_585_330,
        "val2017",
        5_000,
    ),
    "coco-annotations": CocoArchive(
        "annotations/annotations_trainval2017.zip",
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        252_907_541,
        "annotations",
        6,
    ),
}
"""The archives by name. Sizes and hashes are those that TensorFlow Datasets records (`url_checksums/coco.txt`)."""


def download_coco(name: str, data_root: Path, *, progress: ProgressCallback | None = None) -> bool:
    """Fetch an archive of COCO and unpack it into `data_root`, unless its folder is there.

    An interrupted download is resumed by the next call. The folder appears when it is complete, and the archive is
    removed. Of several processes, one fetches it, and the others wait.

    Args:
        name: "coco-val2017", "coco-train2017" or "coco-annotations".
        data_root: the folder of the data set, which is created if missing.
        progress: called with the number of received bytes and the total.

    Returns:
        Whether it was fetched.

    Raises:
        InputError: There is no such archive.
        FetchError: It cannot be fetched, or is not the archive that is expected.
        DataError: Its folder exists and has other files.
        OutputError: `data_root` cannot be written, or the disk has too little space.
    """
    if name not in ARCHIVES:
        raise InputError(f"there is no {name!r}: choose among {', '.join(ARCHIVES)}")
    archive, data_root = ARCHIVES[name], expand_user(data_root)
    make_folder(data_root, "data_root")
    with FileLock(data_root / f".{name}.lock"):
        folder = data_root / archive.folder
        if exists(folder):
            num_files = sum(1 for path in folder.iterdir() if path.is_file())
            if num_files < archive.num_files:
                raise DataError(
                    f"{folder} has {num_files:,} of COCO's {archive.num_files:,} files: remove or rename it"
                )
            return False
        part = data_root / f".{name}.zip"
        unpacked = data_root / f".{name}.unpacked"
        remove(unpacked)  # of a process that was killed before the next step was complete
        opener = http.opener_of(f"{SERVER}/{archive.path}")
        received = http.download(name, opener, part, reserve=archive.num_bytes, progress=progress)  # to unpack it
        if received.sha256 != archive.sha256:
            remove(part)
            raise FetchError(
                f"{name}: this is not COCO's archive: its SHA-256 is {received.sha256}, not {archive.sha256}"
            )
        (unpack(part, unpacked) / archive.folder).rename(folder)
        for path in (unpacked, part, http.version_file(part)):
            remove(path)
    return True
