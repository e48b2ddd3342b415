"""Model cards: what is known of a model, as a page in Markdown. Imports no torch."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .._version import __version__
from .locations import LocalFile, Location
from .records import Architecture, Classifier, DemoDetector, Metrics, PublishedDetector, data_path

Record = PublishedDetector | Classifier | DemoDetector

TASKS = {"bbox": "box", "segm": "mask"}
"""The word for what is found, by the name of its figures."""

PURPOSES: dict[Architecture, str] = {"retinanet": "Detection", "mask_rcnn": "Instance segmentation"}
FINDS: dict[Architecture, str] = {"retinanet": "boxes, and no masks", "mask_rcnn": "boxes and masks"}
SCHEDULES = {
    "1x": "12 epochs, every image scaled to fit into 1333 by 800 pixels",
    "ms3x": "36 epochs, every image scaled to a short side drawn from 640 to 800 pixels, the long side at most 1333",
}

CONVERTED = f"""\
The authors' file was converted to safetensors by DPT Zoo {__version__}. No tensor was changed; their names, types
and shapes were checked, and that all numbers are finite. Beside it, `config.py` is the whole recipe in the syntax of
MMDetection 3, for training as well."""

CITATION = """\
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
```"""


def card(record: Record, *, location: str | None = None) -> str:
    """Tell what a model is, how it was made, how good it is, and where its weights come from, in Markdown.

    Args:
        record: one of the manifest's.
        location: where a converted copy of the weights is published beside the recipe, in the form that `weights=`
            takes. The card is then that copy's.
    """
    match record:
        case PublishedDetector():
            text = _checkpoint_text(record)
        case DemoDetector():
            text = _demo_text(record)
        case Classifier():
            text = _classifier_text(record)
    return f"""\
# {record.title}

{text.purpose}, built on [DPT: Deformable Patch-based Transformer for Visual Recognition]({record.paper}) (ACM MM 2021).
It has {record.num_params:,} parameters. {text.maker}

## Training

{text.training}

## Results

{text.results}

## Intended use and limits

{text.limits}

## Use

{_classifier_use(record) if isinstance(record, Classifier) else _detector_use(record, location)}

## Where the weights come from

{CONVERTED if location else text.origin} Nothing in a file of weights is executed.

{_file_table(record)}

The last is what `dpt_zoo.weights.digests.tensors_sha256` gives for any file that holds these tensors.

## Licence

{record.license}.

## Citation

{CITATION}
"""


class _Text(NamedTuple):
    """What a card says in other words of each kind of model."""

    purpose: str
    maker: str
    training: str
    results: str
    limits: str
    origin: str


def _checkpoint_text(record: PublishedDetector) -> _Text:
    return _Text(
        purpose=f"{PURPOSES[record.architecture]} of COCO's {record.num_classes} kinds of objects",
        maker="""\
The weights are those that the paper's authors published; DPT Zoo runs them on
current PyTorch and MMDetection 3.""",
        training=f"""\
By the authors, on COCO train2017: {SCHEDULES[record.schedule]}.
The backbone started as the ImageNet-1k classifier `dpt_{record.size}`. All settings are in the recipe,
`{record.config}`.""",
        results=f"""\
COCO val2017, in percent, as the authors published them. They were not measured again for this card.

{_figures_table(record.metrics)}""",
        limits=f"""\
- It finds COCO's {record.num_classes} kinds of objects in photographs, and nothing else. For objects of other kinds,
  `dpt-zoo train` fine-tunes it.
- It gives {FINDS[record.architecture]}.
- An image of any size is scaled to fit into 1333 by 800 pixels, or 800 by 1333.
- The figures are for COCO's photographs. `dpt-zoo evaluate` measures it on yours.""",
        origin=_fetched(record),
    )


def _demo_text(record: DemoDetector) -> _Text:
    facts = {
        "recipe": f"`{record.config}`",
        "command": f"`{record.command}`",
        "seed": str(record.seed),
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        "machine": record.machine,
        "minutes": f"{record.minutes:g}",
        "log": f"`{record.log}`",
    }
    return _Text(
        purpose=f"{PURPOSES[record.architecture]} of the digits 0 to 9 in made-up scenes",
        maker="""\
This project trained it, not the paper's authors. It comes with DPT Zoo, so that
there is a model which needs no download.""",
        training=f"""\
By this project, on {record.dataset}.

{_table(("", ""), facts.items())}""",
        results=f"""\
On {record.data}, in percent, measured by this project.

{_figures_table(record.metrics)}""",
        limits=f"""\
- It is for trying things on. All that it has seen is scenes of 3 to 9 handwritten digits, 24 to 80 pixels high and
  turned by up to 25 degrees, on textured grounds.
- It gives {FINDS[record.architecture]}.
- An image of any size is scaled to fit into 192 by 192 pixels, the size of these scenes.
- The figures are for such scenes. `dpt-zoo evaluate` measures it on your images.""",
        origin="They come with DPT Zoo.",
    )


def _classifier_text(record: Classifier) -> _Text:
    rows = [
        ("top-1 accuracy, percent", str(record.metrics["top1"])),
        ("GFLOPs for an image of 224 by 224 pixels", str(record.gflops)),
    ]
    return _Text(
        purpose=f"Classification of images into {record.dataset}'s {record.num_classes:,} classes",
        maker="""\
The weights are those that the paper's authors published. The training of
detectors starts from them.""",
        training=f"By the authors, on {record.dataset}. The paper tells how.",
        results=f"""\
{record.dataset}, as the authors published them. They were not measured again for this card.

{_table(("", ""), rows)}""",
        limits=f"""\
- It names one of {record.dataset}'s classes for a whole image, and finds no objects in it.
- It was trained on images of 224 by 224 pixels.""",
        origin=_fetched(record),
    )


def _detector_use(record: PublishedDetector | DemoDetector, location: str | None) -> str:
    weights = f', weights="{location}"' if location else ""
    return f"""\
With DPT Zoo installed, or from its checkout by torch.hub:

```python
import dpt_zoo

detector = dpt_zoo.Detector("{record.name}"{weights})
detections = detector("photo.jpg")  # .boxes .scores .labels .names .masks
```

```python
import torch

model = torch.hub.load("path/to/dpt-zoo", "{record.name}", source="local"{weights})
```

The second gives a plain MMDetection model, on which all of MMDetection works."""


def _classifier_use(record: Classifier) -> str:
    return f"""\
```bash
dpt-zoo convert {record.name} {record.name}.safetensors
```

```python
import timm
import dpt_zoo.models

classifier = timm.create_model("{record.name}", checkpoint_path="{record.name}.safetensors")
```"""


def _fetched(record: PublishedDetector | Classifier) -> str:
    return f"`dpt-zoo download {record.name}` fetches, checks and converts the authors' file."


def _file_table(record: Record) -> str:
    file = "file" if isinstance(record, DemoDetector) else "authors' file"
    facts = {
        file: " or ".join(map(_place, record.locations)),
        "its SHA-256": _digest(record.sha256),
        "its size": f"{record.num_bytes:,} bytes" if record.num_bytes else "unknown",
        "SHA-256 of the tensors": _digest(record.tensors_sha256),
    }
    return _table(("", ""), facts.items())


def _place(source: Location) -> str:
    if isinstance(source, LocalFile):  # which comes with the project: the same on every machine
        return f"`{source.path.relative_to(data_path('')).as_posix()}`"
    return source.url


def _digest(sha256: str | None) -> str:
    return f"`{sha256}`" if sha256 else "unknown"


def _figures_table(figures: Metrics) -> str:
    columns = list(next(iter(figures.values())))
    rows = [(TASKS[task], *(str(values.get(column, "-")) for column in columns)) for task, values in figures.items()]
    return _table(("", *columns), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
