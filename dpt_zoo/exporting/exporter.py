"""Export a detector to a file that needs none of this package's code: ONNX, OpenVINO or `torch.export`."""

import contextlib
import copy
import importlib
import importlib.metadata
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Iterable
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import mmlab  # noqa: F401  (before mmdet)

# isort: split

from ..errors import DPTZooError, InputError
from ..inference.detector import ImageLike
from ..inference.inputs import ImageInput, find_inputs
from ..inference.limits import Limits
from ..manifest.locations import is_location
from ..manifest.metadata import UNKNOWN_LICENSE
from ..manifest.records import read_manifest
from ..models.factory import check_detector, create_model
from ..models.metadata import find_scale
from ..runtimes.graph_metadata import OUTPUTS, GraphMetadata
from ..utils.environment import versions
from ..utils.files import atomic_path
from ..utils.garbage import paused_garbage_collection
from ..utils.json_values import MAX_SIDE
from ..utils.validation import check_integer
from ..weights.digests import tensors_sha256
from ..weights.store import read_metadata
from .graph import DetectorGraph, build_graph

MODULES = {".onnx": "onnx_file", ".xml": "openvino_file", ".pt2": "torch_file"}
"""The module that writes and runs files of each suffix."""
PACKAGES = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".xml": ("onnx", "onnxscript", "openvino"), ".pt2": ()}
"""What each format needs besides PyTorch."""
EXAMPLE = 2, (192, 256)
"""Number and size of the images with which the graph is traced. The graph is not limited to them."""
MAX_BATCH = 1024
"""The largest number of images."""
UNLIKE_EXAMPLE = 3, (160, 96)
"""Number and size of the images on which the written file is checked."""
TOLERANCES = {"float32": (0.1, 0.01), "float16": (2.0, 0.1)}
"""Deviations of boxes in pixels and of scores that the check accepts, for noise as images."""
MIN_EQUAL = 0.9
"""The part of the objects that must be equal in the check; rounding may decide which of two boxes is suppressed."""
MAX_INT8_IMAGES = 300
"""The number of images with which int8 is made. More hardly change it."""


def export(
    model: str | Path | nn.Module,
    path: str | Path,
    *,
    weights: str | Path | None = None,
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    half: bool = False,
    preprocessing: bool = False,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    nms_iou: float | None = None,
    class_agnostic_nms: bool = False,
    int8: ImageLike | Iterable[ImageLike] | None = None,
    force: bool = False,
) -> Path:
    """Export a detector as one graph in one file, and check the file.

    The graph normalises images, runs the network and selects the objects; `runtimes.graph_metadata` describes its
    inputs and outputs, and the JSON that the file has about itself. It is written to the metadata of an ONNX file, to
    `rt_info` of an OpenVINO file, and as an extra file of a `.pt2` file. The file is checked on noise: its objects must
    be those of PyTorch.

    Args:
        model: a name from `list_models(include_demos=True)`; a weights file that says which model it is for (see
            `create_model`); or a model from `create_model`, which is not changed.
        path: the file to write. Its suffix is the format: .onnx, .xml (OpenVINO, with the weights in a .bin file beside
            it), or .pt2 (`torch.export`, which needs PyTorch and torchvision to run, and sides of at least 64 pixels,
            or 96 if the PyTorch that writes it is older than 2.13).
        weights: a path or a URL of other weights, see `create_model`. Only for a name.
        batch: the only number of images that the graph takes; by default, any number.
        image_size: the only height and width of the images, multiples of 32 pixels; by default, any size.
        half: store the weights in half precision. The file is half as large; computing stays in single precision.
        preprocessing: the graph takes one image of any size, and resizes and pads it. For ONNX and OpenVINO.
        score_threshold: the lowest score for which the graph can be asked, if it is lower than the config's (0.05).
        max_detections: the largest number of objects in an image; by default the config's (100).
        nms_iou: as in `Detector`; by default the config's (0.5).
        class_agnostic_nms: as in `Detector`.
        int8: images of the task, as for `Detector.stream`: quantise to int8 with them, and print what is gained and
            lost. The first 300 are used. For OpenVINO.
        force: write the int8 file even if it loses too much, or is not faster on this machine.

    Returns:
        The path.

    Raises:
        InputError: An argument is not supported, or a package is not installed.
        OutputError: The file cannot be written.
        FetchError, WeightsError: The weights cannot be downloaded or loaded; see `create_model`.
        ImageError: An image for int8 cannot be read.
        DPTZooError: The objects of the written file differ from PyTorch's, or int8 loses too much or is not faster. The
            file is removed.
    """
    path = Path(path)
    _check_arguments(path, batch, image_size, half, preprocessing)
    limits = Limits(score_threshold, max_detections, nms_iou, class_agnostic_nms)
    images = None if int8 is None else _find_images(path, int8, half)
    if force and int8 is None:
        raise InputError("force is only for int8")
    detector, name, license = _load(model, weights)
    format: Any = importlib.import_module(f".{MODULES[path.suffix]}", __package__)
    graph = build_graph(detector, format.NMS, limits)
    metadata = _describe(graph, name, license, path.suffix, batch, image_size, half, preprocessing)
    names = (path.suffix, ".bin") if path.suffix == ".xml" else (path.suffix,)
    with contextlib.ExitStack() as stack:
        # An unwritable folder is reported before the graph is traced. The .bin file appears before the .xml file.
        partials = {suffix: stack.enter_context(atomic_path(path.with_suffix(suffix))) for suffix in names}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-")))
        written = folder / f"model{path.suffix}"
        with paused_garbage_collection():
            program = trace(graph, metadata.batch, image_size)
            format.write(program, json.dumps(metadata.to_json()), written, metadata)
        _check_file(format, written, graph, metadata)
        if images:
            from .quantization import quantize

            written = quantize(written, images, force)
        for suffix, partial in partials.items():
            shutil.move(written.with_suffix(suffix), partial)
    return path


def trace(graph: DetectorGraph, batch: int | None, image_size: tuple[int, int] | None) -> torch.export.ExportedProgram:
    """Trace a `graph` for `batch` images of an `image_size`, or for any number or size if it is None."""
    dim = torch.export.Dim
    images: dict[int, Any] = {} if batch else {0: dim("batch", min=1, max=MAX_BATCH)}
    sizes = dict(images)
    if image_size is None:
        most = MAX_SIDE // 32
        images |= {2: 32 * dim("rows", min=1, max=most), 3: 32 * dim("columns", min=1, max=most)}
    example = _noise(batch or EXAMPLE[0], image_size or EXAMPLE[1])
    with torch.no_grad():
        return torch.export.export(graph, example, dynamic_shapes=(images, sizes, None))


def _check_arguments(
    path: Path, batch: int | None, image_size: tuple[int, int] | None, half: bool, preprocessing: bool
) -> None:
    if path.suffix not in MODULES:
        raise InputError(f"{path}: the suffix must be .onnx, .xml (OpenVINO) or .pt2 (torch.export)")
    if missing := [name for name in PACKAGES[path.suffix] if importlib.util.find_spec(name) is None]:
        raise InputError(f'{path.suffix} files need {", ".join(missing)}: pip install "dpt-zoo[export]"')
    if batch is not None:
        check_integer("batch", batch, 1, MAX_BATCH)
    if image_size is not None and (
        np.shape(image_size) != (2,)
        or not all(isinstance(side, Integral) and 0 < side <= MAX_SIDE and side % 32 == 0 for side in image_size)
    ):
        raise InputError(f"image_size must be a height and a width, multiples of 32 pixels, not {image_size!r}")
    if path.suffix == ".pt2" and (half or preprocessing):
        raise InputError(f"{'half' if half else 'preprocessing'} is only for .onnx and .xml files")
    if preprocessing and (batch or image_size):
        raise InputError("preprocessing excludes batch and image_size: the graph takes one image of any size")


def _find_images(path: Path, int8: ImageLike | Iterable[ImageLike], half: bool) -> list[ImageInput]:
    """Return the images for int8, after checking that it is possible."""
    if path.suffix != ".xml" or half:
        raise InputError("int8 is only for .xml files, and excludes half")
    if importlib.util.find_spec("nncf") is None:
        raise InputError('int8 needs nncf: pip install "dpt-zoo[quantize]"')
    images = list(islice(find_inputs(int8), MAX_INT8_IMAGES))
    if not images:
        raise InputError("int8 needs images of the task, but none were given")
    return images


def _load(model: str | Path | nn.Module, weights: str | Path | None) -> tuple[Any, str, str]:
    """Return a detector of its own in eval mode on the CPU, its name, and the licence of its weights."""
    if isinstance(model, str | Path) and is_location(model):
        metadata = read_metadata(model)
        return create_model(model, weights=weights), metadata.name, metadata.license
    if isinstance(model, str | Path):
        record = read_manifest().detectors.get(str(model))
        license = record.license if record and weights is None else UNKNOWN_LICENSE
        return create_model(model, weights=weights), str(model), license
    check_detector(model, weights=weights)
    cfg: Any = model.cfg
    config = Path(cfg.filename)
    names = {record.config_path: record.name for record in read_manifest().detectors.values()}
    return copy.deepcopy(model).cpu().float().eval(), names.get(config, config.stem), UNKNOWN_LICENSE


def _describe(
    graph: DetectorGraph,
    name: str,
    license: str,
    suffix: str,
    batch: int | None,
    image_size: tuple[int, int] | None,
    half: bool,
    preprocessing: bool,
) -> GraphMetadata:
    """Return the metadata of the file."""
    model = graph.model
    preprocessor = model.data_preprocessor
    has_masks = hasattr(model, "roi_head")
    test_cfg = graph.test_cfg["rcnn"] if has_masks else graph.test_cfg
    return GraphMetadata(
        name=name,
        classes=tuple(model.dataset_meta["classes"]),
        has_masks=has_masks,
        has_preprocessing=preprocessing,
        scale=find_scale(model.cfg),
        pad_divisor=preprocessor.pad_size_divisor,
        batch=1 if preprocessing else batch,
        image_size=image_size and (int(image_size[0]), int(image_size[1])),
        mean=tuple(preprocessor.mean.flatten().tolist()),
        std=tuple(preprocessor.std.flatten().tolist()),
        lowest_score=test_cfg.score_thr,
        max_detections=test_cfg.max_per_img,
        nms_iou=test_cfg.nms.iou_threshold,
        class_agnostic_nms=test_cfg.nms.get("class_agnostic", False),
        mask_threshold=test_cfg.mask_thr_binary if has_masks else 0.5,
        weights_sha256=tensors_sha256(model.state_dict()),
        license=license,
        precision="float16" if half else "float32",
        versions={**versions(), **{package: importlib.metadata.version(package) for package in PACKAGES[suffix]}},
        score_thresholds=model.dataset_meta.get("score_thresholds"),
    )


def _noise(batch: int, image_size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs of a graph: images of noise, the last of which has padding, and a score threshold of 0."""
    height, width = image_size
    images = 255 * torch.rand(batch, 3, height, width, generator=_generator())
    sizes = torch.tensor([[height, width]] * batch, dtype=torch.float32)
    sizes[-1] -= torch.tensor([5, 9])
    return images, sizes, torch.tensor(0.0)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _check_file(format: Any, path: Path, graph: DetectorGraph, metadata: GraphMetadata) -> None:
    """Check that a written file gives the objects of the eager graph, on images unlike those of tracing."""
    if metadata.has_preprocessing:  # an image that is only padded: rounding of resized noise would change objects
        pixels = (255 * torch.rand(min(metadata.scale), max(metadata.scale), 3, generator=_generator())).byte()
        height, width = pixels.shape[:2]
        padding = (0, -width % metadata.pad_divisor, 0, -height % metadata.pad_divisor)
        images = F.pad(pixels.permute(2, 0, 1)[None].float(), padding)
        inputs: tuple[Tensor, ...] = images, torch.tensor([[height, width]]).float(), torch.tensor(0.0)
        passed: tuple[Tensor, ...] = pixels, inputs[2]
    else:
        inputs = passed = _noise(metadata.batch or UNLIKE_EXAMPLE[0], metadata.image_size or UNLIKE_EXAMPLE[1])
    with torch.no_grad():
        expected = [each.numpy() for each in graph(*inputs)]
    try:
        objects = format.run(path, [each.numpy() for each in passed])
    except Exception as error:  # each runtime has its own errors
        raise DPTZooError(f"the exported {path.suffix} file cannot be run: {error}") from error
    equal = min(_count_equal(expected, objects, metadata), _count_equal(objects, expected, metadata))
    total = max(len(expected[0]), len(objects[0]))
    if equal < MIN_EQUAL * total:
        raise DPTZooError(f"the exported {path.suffix} file is wrong: only {equal} of {total} objects are PyTorch's")


def _count_equal(some: list[NDArray[Any]], others: list[NDArray[Any]], metadata: GraphMetadata) -> int:
    """Count the objects of `some` that are also in `others`, up to `TOLERANCES`."""
    pixels, score = TOLERANCES[metadata.precision]
    image, boxes, scores, labels = (dict(zip(OUTPUTS, some, strict=False))[name] for name in OUTPUTS[:4])
    same = (image[:, None] == others[0]) & (labels[:, None] == others[3])
    same &= np.abs(boxes[:, None] - others[1]).max(2, initial=0) <= pixels
    same &= np.abs(scores[:, None] - others[2]) <= score
    return int(same.any(1).sum())
