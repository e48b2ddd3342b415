"""Publish a model's weights, config and model card as a repository of the Hugging Face Hub."""

import contextlib
import dataclasses
from pathlib import Path

from safetensors.torch import load_file

from .._version import __version__
from ..errors import DPTZooError, InputError, OutputError
from ..manifest.locations import HubFile
from ..manifest.model_card import card
from ..manifest.records import PublishedDetector
from ..utils.progress import on_terminal
from .digests import tensors_sha256
from .huggingface import client, reason, status_of
from .store import offline_variables

WEIGHTS_FILE, CONFIG_FILE, CARD_FILE = "model.safetensors", "config.py", "README.md"


def publish(record: PublishedDetector, repo: str, weights: Path, *, private: bool = False) -> str:
    """Upload a detector's weights, config and model card in one commit, and return the URL of the commit.

    Files that the repository already has are not uploaded again; without a changed file there is no new commit. The
    client's own settings choose the account: HF_TOKEN or `hf auth login`.

    Args:
        record: the detector's record.
        repo: "org/name". The repository is created if it does not exist.
        weights: the detector's checked weights as safetensors (from `weights.store.obtain`).
        private: create a private repository.

    Raises:
        InputError: The repository's name is invalid, or `private` is set and the repository is public.
        OutputError: The upload failed: no login, no permission to write, no connection, ...
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if variables := offline_variables():
        raise OutputError(f"publishing needs the network, which {' and '.join(variables)} forbids")
    files = [
        CommitOperationAdd(WEIGHTS_FILE, weights),
        CommitOperationAdd(CONFIG_FILE, resolved_config(record).encode()),
        CommitOperationAdd(CARD_FILE, model_card(record, repo, tensors_sha256(load_file(weights))).encode()),
    ]
    with client(lambda error: _publish_error(error, repo)), contextlib.ExitStack() as afterwards:
        if not on_terminal() and not are_progress_bars_disabled():
            disable_progress_bars()
            afterwards.callback(enable_progress_bars)
        if not get_token():
            raise OutputError("nobody is logged in to the Hub: run `hf auth login`, or set HF_TOKEN")
        api = HfApi(library_name="dpt-zoo", library_version=__version__)
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise InputError(f"{repo} exists and is public: choose another name, or make it private on the Hub")
        commit = api.create_commit(repo, files, commit_message=f"{record.title}, by DPT Zoo {__version__}")
    return str(commit.commit_url)


def model_card(record: PublishedDetector, repo: str, tensors_sha256: str) -> str:
    """Return the model card of a detector's copy on the Hub.

    `repo` is "org/name"; other forms raise InputError. `tensors_sha256` is the digest of the weights.
    """
    try:
        location = HubFile(repo, WEIGHTS_FILE).url
    except ValueError as error:
        raise InputError(str(error)) from error
    return card(dataclasses.replace(record, tensors_sha256=tensors_sha256), location=location)


def resolved_config(record: PublishedDetector) -> str:
    """Return the detector's config as one file without base files."""
    from mmengine.config import Config

    return Config.fromfile(record.config_path, import_custom_modules=False).pretty_text


def _publish_error(error: Exception, repo: str) -> DPTZooError:
    from huggingface_hub.errors import HFValidationError

    if isinstance(error, HFValidationError):
        return InputError(reason(error))
    hint = ": run `hf auth login`" if status_of(error) == 401 else ""
    return OutputError(f"{repo} could not be published: {reason(error)}{hint}")
