"""Files of the Hugging Face Hub. Its own client fetches them; it is imported when it is used."""

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
from ..utils.urls import redact_all
from .http import measure

if TYPE_CHECKING:
    from huggingface_hub.utils.tqdm import tqdm


def fetch_from_hub(location: HubFile, folder: Path, progress: ProgressCallback | None = None) -> Path:
    """Download a file of the Hub into a folder and return its path there.

    The client's own settings apply: HF_ENDPOINT, HF_TOKEN or `hf auth login`, HF_HUB_OFFLINE. The client resumes a
    broken connection, and uses complete files of an earlier call. No other call may use `folder` at the same time.
    A failed or damaged download raises FetchError. A full or unwritable folder raises OutputError.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    with client(lambda error: _fetch_error(error, location, folder)):
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.rglob("*.incomplete"):  # left by a killed run; the client neither uses nor removes them
            partial.unlink()
        url = hf_hub_url(location.repo, location.file, revision=location.revision)
        metadata = get_hf_file_metadata(url, retry_on_errors=True)
        if metadata.commit_hash is None or metadata.etag is None:
            raise FetchError("the server is not a Hugging Face Hub: check HF_ENDPOINT and this machine's network")
        check_space(folder, metadata.size or 0)
        bar = _bar_class(progress or (lambda done, total: None), metadata.size)
        commit = metadata.commit_hash  # not the branch, which may change during the download
        path = Path(hf_hub_download(location.repo, location.file, revision=commit, local_dir=folder, tqdm_class=bar))
        expected = metadata.etag
        is_sha256 = re.fullmatch("[0-9a-f]{64}", expected)  # small files have another hash
        if is_sha256 and (sha256 := measure(path).sha256) != expected:
            path.unlink()
            raise FetchError(f"the file from the Hub is damaged: its SHA-256 is {sha256}, not {expected}")
    return path


@contextlib.contextmanager
def client(explain: Callable[[Exception], DPTZooError]) -> Iterator[None]:
    """Hide the log of the Hub's client in this block, and raise `explain(error)` for its errors."""
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
    except (LocalEntryNotFoundError, RuntimeError) as error:  # their cause may be the error with the reason
        raise explain(error.__cause__ if isinstance(error.__cause__, Exception) else error) from error
    except Exception as error:  # the client changed its HTTP library twice, and hf_xet has errors of its own
        raise explain(error) from error
    finally:
        for handler in handlers:
            handler.removeFilter(is_of_another_thread)


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of an error, or None if the Hub did not answer."""
    from huggingface_hub.errors import HfHubHTTPError

    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def reason(error: Exception) -> str:
    """Return the reason for a failure of the client, in one line."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, which forbids access to the Hub"
    if not isinstance(error, HfHubHTTPError):
        return redact_all(" ".join(str(error).split())) or type(error).__name__
    message = redact_all(" ".join((error.server_message or "").split()))
    return f"the Hub answered {error.response.status_code} {error.response.reason_phrase}{message and f': {message}'}"


def _fetch_error(error: Exception, location: HubFile, folder: Path) -> DPTZooError:
    from huggingface_hub import errors

    repo = location.repo
    if isinstance(error, OSError) and error.errno:
        return OutputError(f"{folder} cannot be written: {error.strerror}: choose another folder")
    if isinstance(error, errors.GatedRepoError):
        return FetchError(f"{repo} is gated: accept its terms on its page of the Hub, then run `hf auth login`")
    if isinstance(error, errors.RevisionNotFoundError):
        return FetchError(f"{repo} has no revision {location.revision!r} on the Hub")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return FetchError(f"{repo} has no file {location.file!r} in its revision {location.revision!r} on the Hub")
    if isinstance(error, errors.RepositoryNotFoundError) or status_of(error) == 401:
        return FetchError(f"the Hub has no repository {repo}, or it is private: check its name, or run `hf auth login`")
    return FetchError(f"the download from the Hub failed: {reason(error)}")


def _bar_class(progress: ProgressCallback, total: int | None) -> type["tqdm"]:
    """Return a progress bar for the client that shows nothing and calls `progress`."""
    from huggingface_hub.utils.tqdm import tqdm

    furthest = 0

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            # With Xet there are two bars: received bytes (total unknown) and written bytes.
            nonlocal furthest
            self.n += n or 0
            furthest = max(furthest, int(self.n))
            progress(furthest if total is None else min(furthest, total), total)

    return Bar
