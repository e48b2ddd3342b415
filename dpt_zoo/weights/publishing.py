"""Publish a model's weights, configs and model card as a repository of the Hugging Face Hub."""

import contextlib
import dataclasses
import json
import tempfile
from pathlib import Path

from .._version import __version__
from ..errors import DPTZooError, InputError, OutputError
from ..manifest.locations import HubModel
from ..manifest.metadata import METADATA_KEY, WeightsMetadata
from ..manifest.model_card import card, own_card
from ..manifest.records import PublishedDetector
from ..utils.progress import on_terminal
from .digests import tensors_sha256
from .huggingface import client, reason, status_of
from .metadata import write_metadata
from .reading import read_raw_weights
from .store import offline_variables

CONFIG_FILE, CARD_FILE = "config.py", "README.md"


def publish(
    weights: Path,
    metadata: WeightsMetadata,
    repo: str,
    *,
    record: PublishedDetector | None = None,
    private: bool = False,
) -> str:
    """Upload a detector's weights, configs and model card in one commit, and return the URL of the commit.

    Files that the repository already has are not uploaded again; without a changed file there is no new commit. The
    client's own settings choose the account: HF_TOKEN or `hf auth login`.

    Args:
        weights: the detector's checked weights as safetensors.
        metadata: what the uploaded weights say about their model, in their header and in `config.json`.
        repo: "org/name". The repository is created if it does not exist.
        record: the record of one of the authors' detectors.
        private: create a private repository.

    Raises:
        InputError: The repository's name is invalid, or `private` is set and the repository is public.
        WeightsError: The weights cannot be read.
        OutputError: The upload failed: no login, no permission to write, no connection, ...
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if variables := offline_variables():
        raise OutputError(f"publishing needs the network, which {' and '.join(variables)} forbids")
    location = _location(repo)
    digest = tensors_sha256(read_raw_weights(weights).tensors)
    with client(lambda error: _publish_error(error, repo)), contextlib.ExitStack() as afterwards:
        described = Path(afterwards.enter_context(tempfile.TemporaryDirectory()), location.file)
        write_metadata(metadata, weights, described)
        files = [
            CommitOperationAdd(location.file, described),
            CommitOperationAdd(location.config.file, hub_config(metadata).encode()),
        ]
        if record:
            files.append(CommitOperationAdd(CONFIG_FILE, resolved_config(record).encode()))
            text = model_card(record, repo, digest)
        else:
            text = own_card(metadata, location=location.url, tensors_sha256=digest)
        files.append(CommitOperationAdd(CARD_FILE, text.encode()))
        if not on_terminal() and not are_progress_bars_disabled():
            disable_progress_bars()
            afterwards.callback(enable_progress_bars)
        if not get_token():
            raise OutputError("nobody is logged in to the Hub: run `hf auth login`, or set HF_TOKEN")
        api = HfApi(library_name="dpt-zoo", library_version=__version__)
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise InputError(f"{repo} exists and is public: choose another name, or make it private on the Hub")
        title = record.title if record else metadata.title
        commit = api.create_commit(repo, files, commit_message=f"{title}, by DPT Zoo {__version__}")
    return str(commit.commit_url)


def hub_config(metadata: WeightsMetadata) -> str:
    """Return the content of `config.json`, by which the Hub counts downloads; `metadata.parse_config` reads it."""
    content = {"library_name": "dpt-zoo", METADATA_KEY: metadata.to_json()}
    return f"{json.dumps(content, indent=2, sort_keys=True)}\n"


def model_card(record: PublishedDetector, repo: str, tensors_sha256: str) -> str:
    """Return the model card of a detector's copy on the Hub.

    `repo` is "org/name"; other forms raise InputError. `tensors_sha256` is the digest of the weights.
    """
    return card(dataclasses.replace(record, tensors_sha256=tensors_sha256), location=_location(repo).url)


def resolved_config(record: PublishedDetector) -> str:
    """Return the detector's config as one file without base files."""
    from mmengine.config import Config

    return Config.fromfile(record.config_path, import_custom_modules=False).pretty_text


def _location(repo: str) -> HubModel:
    try:
        return HubModel(repo)
    except ValueError as error:
        raise InputError(str(error)) from error


def _publish_error(error: Exception, repo: str) -> DPTZooError:
    from huggingface_hub.errors import HFValidationError

    if isinstance(error, HFValidationError):
        return InputError(reason(error))
    hint = ": run `hf auth login`" if status_of(error) == 401 else ""
    return OutputError(f"{repo} could not be published: {reason(error)}{hint}")
