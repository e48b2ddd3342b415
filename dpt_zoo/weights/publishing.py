"""A model's weights, recipe and model card, published as a repository of the Hugging Face Hub."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file

from .._version import __version__
from ..errors import DPTZooError, InputError, OutputError
from ..manifest import model_card as cards
from ..manifest.locations import HubFile
from ..manifest.records import Architecture, PublishedDetector
from .digests import tensors_sha256
from .huggingface import client, reason, status_of
from .store import is_offline

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

WEIGHTS_FILE, CONFIG_FILE, CARD_FILE = "model.safetensors", "config.py", "README.md"

PIPELINE_TAGS: dict[Architecture, str] = {"retinanet": "object-detection", "mask_rcnn": "image-segmentation"}
"""The Hub's names of what a detector is for."""
TASKS = {"bbox": "object-detection", "segm": "instance-segmentation"}
"""The Hub's name of each task with published figures."""


def publish(checkpoint: PublishedDetector, repo: str, weights: Path, *, private: bool = False) -> str:
    """Upload a detector's weights, recipe and model card in one commit, and return the commit's address.

    The repository is made if it is not there. What is in it already is not uploaded again: publishing the same twice
    makes no second commit. Who publishes is the client's own setting: HF_TOKEN or `hf auth login`.

    Args:
        repo: "org/name".
        weights: the detector's weights as safetensors, checked: what `weights.store.obtain` gives.
        private: make the repository a private one.

    Raises:
        InputError: the repository's name cannot be used, or it is public and was to be private.
        OutputError: the Hub did not take it: nobody is logged in, without the right to write, no connection, ...
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if is_offline():
        raise OutputError("publishing needs the network, which DPT_ZOO_OFFLINE or HF_HUB_OFFLINE forbids")
    card = model_card(checkpoint, repo, tensors_sha256(load_file(weights)))
    files = [
        CommitOperationAdd(WEIGHTS_FILE, weights),
        CommitOperationAdd(CONFIG_FILE, resolved_config(checkpoint).encode()),
        CommitOperationAdd(CARD_FILE, str(card).encode()),
    ]
    with client(lambda error: _publish_error(error, repo)), _bars_on_terminals_only():
        if not get_token():
            raise OutputError("nobody is logged in to the Hub here: run `hf auth login`, or set HF_TOKEN")
        api = HfApi(library_name="dpt-zoo", library_version=__version__)
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise InputError(f"{repo} is there already, and public: choose another name, or make it private on the Hub")
        commit = api.create_commit(repo, files, commit_message=f"{checkpoint.title}, by DPT Zoo {__version__}")
    return str(commit.commit_url)


def model_card(checkpoint: PublishedDetector, repo: str, tensors_sha256: str) -> "ModelCard":
    """Make the card with which `repo` tells what it has, from the manifest's record.

    Its figures are the published ones, and said to be. `tensors_sha256` is the digest of the weights.

    Raises:
        InputError: `repo` is not of the form "org/name".
    """
    from huggingface_hub import ModelCard, ModelCardData

    try:
        location = HubFile(repo, WEIGHTS_FILE).url
    except ValueError as error:
        raise InputError(str(error)) from error
    tasks = [TASKS[task] for task in checkpoint.metrics]
    data = ModelCardData(
        license=checkpoint.license.lower(),
        library_name="dpt-zoo",
        pipeline_tag=PIPELINE_TAGS[checkpoint.architecture],
        tags=["dpt", checkpoint.architecture.replace("_", "-"), *tasks, "mmdetection"],
        datasets=["coco", "imagenet-1k"],  # the backbone started as an ImageNet classifier
        metrics=list(dict.fromkeys(figure for figures in checkpoint.metrics.values() for figure in figures)),
        model_name=checkpoint.name,
        eval_results=_eval_results(checkpoint),
    )
    text = cards.card(dataclasses.replace(checkpoint, tensors_sha256=tensors_sha256), location=location)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def resolved_config(checkpoint: PublishedDetector) -> str:
    """The recipe in one file, which needs none of those that it was made of."""
    from mmengine.config import Config

    text: str = Config.fromfile(checkpoint.config_path, import_custom_modules=False).pretty_text
    return text


def _eval_results(checkpoint: PublishedDetector) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=TASKS[task],
            dataset_type="coco",
            dataset_name="COCO 2017",
            dataset_split="validation",
            metric_type=figure,
            metric_name=f"{cards.TASKS[task]} {figure}, in percent",
            metric_value=value,
            source_name="published by the authors, not measured here",
            source_url=checkpoint.paper,
        )
        for task, figures in checkpoint.metrics.items()
        for figure, value in figures.items()
    ]


@contextlib.contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """Hide the client's progress bars where nobody would see them move."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _publish_error(error: Exception, repo: str) -> DPTZooError:
    from huggingface_hub.errors import HFValidationError

    if isinstance(error, HFValidationError):
        return InputError(reason(error))
    hint = ": run `hf auth login`" if status_of(error) == 401 else ""
    return OutputError(f"{repo} could not be published: {reason(error)}{hint}")
