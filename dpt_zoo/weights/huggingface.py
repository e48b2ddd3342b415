"""Files of the Hugging Face Hub, fetched by its own client, which is imported only when it is used."""

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DPTZooError, FetchError, OutputError
from ..manifest.locations import HubFile
from ..utils.files import check_space
from ..utils.progress import ProgressCallback
from .http import measure

if TYPE_CHECKING:
    from huggingface_hub.utils.tqdm import tqdm


def fetch_from_hub(source: HubFile, folder: Path, progress: ProgressCallback | None = None) -> Path:
    """Download a file of the Hub into `folder` and return its path there.

    Where the Hub is, who asks, and whether it may be asked at all are the client's own settings: HF_ENDPOINT, HF_TOKEN
    or `hf auth login`, HF_HUB_OFFLINE. Within a call the client goes on where a connection broke. A later call uses
    what is complete in `folder`, and starts anew with what is not.

    Args:
        folder: a folder that nobody else uses at the time; the client keeps its notes in it, too.
        progress: is told the bytes that came, and the file's size.

    Raises:
        FetchError: the file cannot be had, or what came is not what the Hub has.
        OutputError: there is no room for it in `folder`, or it cannot be written.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    with client(lambda error: _fetch_error(error, source, folder)):
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.rglob("*.incomplete"):  # the client neither uses nor removes what a killed run left
            partial.unlink()
        url = hf_hub_url(source.repo, source.file, revision=source.revision)
        promised = get_hf_file_metadata(url, retry_on_errors=True)
        if promised.commit_hash is None or promised.etag is None:
            raise FetchError("what answers in the Hub's place is no Hub: check HF_ENDPOINT, and this machine's network")
        check_space(folder, promised.size or 0)
        path = Path(
            hf_hub_download(
                source.repo,
                source.file,
                revision=promised.commit_hash,  # what is committed meanwhile shall not mix with it
                local_dir=folder,
                tqdm_class=_bar_class(progress or (lambda done, total: None), promised.size),
            )
        )
        _check_hash(path, promised.etag)
    return path


@contextlib.contextmanager
def client(explain: Callable[[Exception], DPTZooError]) -> Iterator[None]:
    """Call the Hub's client in this block: what it logs is not shown, and `explain` turns its errors into ours."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    handlers = tuple(logging.getLogger("huggingface_hub").handlers)
    thread = threading.get_ident()

    def is_of_another_thread(record: logging.LogRecord) -> bool:
        return record.thread != thread

    for handler in handlers:
        handler.addFilter(is_of_another_thread)
    try:
        yield
    except DPTZooError:
        raise
    except (LocalEntryNotFoundError, RuntimeError) as error:  # these may wrap the one that tells
        raise explain(error.__cause__ if isinstance(error.__cause__, Exception) else error) from error
    except Exception as error:  # the client changed its HTTP library twice, and hf_xet has errors of its own
        raise explain(error) from error
    finally:
        for handler in handlers:
            handler.removeFilter(is_of_another_thread)


def status_of(error: Exception) -> int | None:
    """The HTTP status with which the Hub refused, or None if it did not."""
    from huggingface_hub.errors import HfHubHTTPError

    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def reason(error: Exception) -> str:
    """Why the client failed, in one line."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so that the Hub may not be asked"
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, HfHubHTTPError):
        said = " ".join((error.server_message or "").split())
        text = f"the Hub answered {error.response.status_code} {error.response.reason_phrase}{said and f': {said}'}"
    return text


def _fetch_error(error: Exception, source: HubFile, folder: Path) -> DPTZooError:
    from huggingface_hub import errors

    if isinstance(error, OSError) and error.errno:
        return OutputError(f"{folder} cannot be written: {error.strerror}: choose another folder")
    if isinstance(error, errors.GatedRepoError):
        return FetchError(f"{source.repo} is gated: accept its terms on its page of the Hub, then run `hf auth login`")
    if isinstance(error, errors.RevisionNotFoundError):
        return FetchError(f"{source.repo} has no revision {source.revision!r} on the Hub")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return FetchError(f"{source.repo} has no file {source.file!r} in its revision {source.revision!r} on the Hub")
    if isinstance(error, errors.RepositoryNotFoundError) or status_of(error) == 401:
        return FetchError(
            f"the Hub has no repository {source.repo}, or it is private: check its name, or run `hf auth login`"
        )
    return FetchError(f"the download from the Hub failed: {reason(error)}")


def _check_hash(path: Path, etag: str) -> None:
    """Refuse a large file that is not what the Hub has; of small ones the Hub tells no SHA-256."""
    if not re.fullmatch("[0-9a-f]{64}", etag):
        return
    found = measure(path).sha256
    if found != etag:
        path.unlink()
        raise FetchError(f"what came from the Hub is damaged: its SHA-256 is {found}, not {etag}")


def _bar_class(progress: ProgressCallback, total: int | None) -> type["tqdm"]:
    """What the client shall take for its progress bar: it shows nothing, and reports."""
    from huggingface_hub.utils.tqdm import tqdm

    furthest = 0

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            # With Xet there are two, one for what came and one for what is written, and the first knows no end.
            nonlocal furthest
            self.n += n or 0
            furthest = max(furthest, int(self.n))
            progress(furthest if total is None else min(furthest, total), total)

    return Bar
