"""A model's weights, recipe and model card, published as a repository of the Hugging Face Hub."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from safetensors.torch import load_file

from .. import __version__
from ..errors import DPTZooError, InputError, OutputError
from ..manifest import Architecture, Checkpoint
from ..sources import GoogleDrive, HubFile
from .digests import tensors_sha256
from .hub import client, reason, status_of
from .store import is_offline

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

WEIGHTS_FILE, CONFIG_FILE, CARD_FILE = "model.safetensors", "config.py", "README.md"

PIPELINE_TAGS: dict[Architecture, str] = {"retinanet": "object-detection", "mask_rcnn": "image-segmentation"}
"""The Hub's names of what a detector is for."""
SCHEDULES = {"1x": "12 epochs", "ms3x": "36 epochs, on images of several sizes"}
TASKS = {"bbox": ("object-detection", "box"), "segm": ("instance-segmentation", "mask")}
"""The Hub's name of each task with published figures, and the word for what is found."""

CARD = Template("""
# $title

$purpose of COCO's $num_classes kinds of objects, with the backbone of
[DPT: Deformable Patch-based Transformer for Visual Recognition]($paper) (ACM MM 2021). It has $num_params parameters
and was trained for $schedule. The weights are those that the paper's authors published; DPT Zoo runs them on current
PyTorch and MMDetection 3.

## Results

COCO val2017, in percent, as the authors published them. They were not measured again for this card.

$results

## Use

With DPT Zoo installed, or from its checkout by torch.hub:

```python
import dpt_zoo

detector = dpt_zoo.Detector("$name", weights="$location")
detections = detector("photo.jpg")  # .boxes .scores .labels .names .masks
```

```python
import torch

model = torch.hub.load("path/to/dpt-zoo", "$name", source="local", weights="$location")
```

The second gives a plain MMDetection model, on which all of MMDetection works. `$config_file` is its whole recipe in the
syntax of MMDetection 3, for training as well.

## Where the weights come from

The authors' file was converted to safetensors by DPT Zoo $version. No tensor was changed; their names, types and shapes
were checked, and that all numbers are finite. Nothing in the file was executed.

| | |
|---|---|
| authors' file | $origin |
| its SHA-256 | $sha256 |
| its size | $num_bytes |
| SHA-256 of the tensors | `$tensors_sha256` |

The last is what `dpt_zoo.weights.digests.tensors_sha256` gives for any file that holds these tensors.

## License

$license, as the authors' weights.

## Citation

```bibtex
@inproceedings{chen2021dpt,
  title = {DPT: Deformable Patch-based Transformer for Visual Recognition},
  author = {Chen, Zhiyang and Zhu, Yousong and Zhao, Chaoyang and Hu, Guosheng and Zeng, Wei and Wang, Jinqiao and
            Tang, Ming},
  booktitle = {Proceedings of the 29th ACM International Conference on Multimedia},
  year = {2021},
  eprint = {2107.14467},
  archivePrefix = {arXiv}
}
```
""")


def publish(checkpoint: Checkpoint, repo: str, weights: Path, *, private: bool = False) -> str:
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


def model_card(checkpoint: Checkpoint, repo: str, tensors_sha256: str) -> "ModelCard":
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
    tasks = [TASKS[task][0] for task in checkpoint.published]
    data = ModelCardData(
        license=checkpoint.license.lower(),
        library_name="dpt-zoo",
        pipeline_tag=PIPELINE_TAGS[checkpoint.architecture],
        tags=["dpt", checkpoint.architecture.replace("_", "-"), *tasks, "mmdetection"],
        datasets=["coco", "imagenet-1k"],  # the backbone started as an ImageNet classifier
        metrics=list(dict.fromkeys(figure for figures in checkpoint.published.values() for figure in figures)),
        model_name=checkpoint.name,
        eval_results=_eval_results(checkpoint),
    )
    text = CARD.substitute(
        title=checkpoint.title,
        purpose="Instance segmentation" if "segm" in checkpoint.published else "Detection",
        num_classes=checkpoint.num_classes,
        num_params=f"{checkpoint.num_params:,}",
        schedule=SCHEDULES[checkpoint.schedule],
        paper=checkpoint.paper,
        results=_results_table(checkpoint),
        name=checkpoint.name,
        location=location,
        config_file=CONFIG_FILE,
        version=__version__,
        origin=next((source.url for source in checkpoint.sources if isinstance(source, GoogleDrive)), "unknown"),
        sha256=f"`{checkpoint.sha256}`" if checkpoint.sha256 else "unknown",
        num_bytes=f"{checkpoint.num_bytes:,} bytes" if checkpoint.num_bytes else "unknown",
        tensors_sha256=tensors_sha256,
        license=checkpoint.license,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


def resolved_config(checkpoint: Checkpoint) -> str:
    """The recipe in one file, which needs none of those that it was made of."""
    from mmengine.config import Config

    text: str = Config.fromfile(checkpoint.config_path, import_custom_modules=False).pretty_text
    return text


def _eval_results(checkpoint: Checkpoint) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=TASKS[task][0],
            dataset_type="coco",
            dataset_name="COCO 2017",
            dataset_split="validation",
            metric_type=figure,
            metric_name=f"{TASKS[task][1]} {figure}, in percent",
            metric_value=value,
            source_name="published by the authors, not measured here",
            source_url=checkpoint.paper,
        )
        for task, figures in checkpoint.published.items()
        for figure, value in figures.items()
    ]


def _results_table(checkpoint: Checkpoint) -> str:
    columns = list(next(iter(checkpoint.published.values())))
    rows = [["", *columns], ["---", *("---:" for _ in columns)]]
    for task, figures in checkpoint.published.items():
        rows.append([TASKS[task][1], *(str(figures.get(column, "-")) for column in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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
