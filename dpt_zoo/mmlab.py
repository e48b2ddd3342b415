"""Adapters that let MMDetection 3 run on mmcv-lite, current PyTorch and current Python.

Import this module before `mmdet.models`; the configs name it in `custom_imports`. On import it does the following once:

- It registers `mmcv._ext`, which implements the compiled mmcv operators that the zoo's detectors need with torchvision
  and PyTorch. An installed mmcv with compiled operators is always preferred.
- It defines `pkgutil.find_loader`, which MMEngine calls and Python 3.14 no longer has.
- It lets `torch.load(weights_only=True)` read the plain values in MMEngine's checkpoints.
- It silences, by their texts, warnings from these libraries that a user cannot act on.
"""

import copyreg
import functools
import importlib.util
import math
import pkgutil
import sys
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pickle import UnpicklingError
from threading import Barrier
from types import ModuleType
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from mmengine.logging import HistoryBuffer
from mmengine.registry import DefaultScope, init_default_scope
from torch import Tensor, nn

from .errors import OperatorUnavailableError
from .utils.dependencies import explain_imports
from .weights.safe_globals import allow_numpy_values

with explain_imports():
    import mmcv

# --- 1. Operators, with the signatures, in-place outputs and semantics of mmcv 2.1's csrc/pytorch/pybind.cpp.


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Any:
    """Return the indices `(K,)` of the boxes that greedy non-maximum suppression keeps, by descending score.

    A box is dropped if its IoU with a kept box is above the threshold. Of equal scores, the first box comes first.
    Boxes are `(N, 4)`: x1, y1, x2, y2 with the width `x2 - x1 + offset`; scores are `(N,)`.
    """
    dtype = _precision(boxes, scores)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # mmcv compares in the precision of the boxes, in which an IoU of exactly 0.6 is not above 0.6.
    threshold = torch.tensor(iou_threshold, dtype=dtype).item()
    return torch.ops.torchvision.nms(boxes, scores, threshold)


def _roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the average of each cell of each region into `output`, `(K, C, aligned_height, aligned_width)`.

    The `input` is feature maps `(N, C, H, W)`. `rois` is `(K, 5)`: the index of a map, then x1, y1, x2, y2 in image
    pixels. `spatial_scale` is the map's size relative to the image; `sampling_ratio` is the samples per cell and
    direction, or 0 for about one per pixel of the map. `aligned` shifts coordinates by half a pixel, which is correct.
    Maximum pooling (`pool_mode` 0), which uses the argmax tensors, is not in torchvision.
    """
    if pool_mode == 0:
        _refuse("roi_align with pool_mode='max'")
    dtype = _precision(input, rois)
    # torchvision needs contiguous maps: cast and reorder in at most one copy.
    features = input.detach().to(dtype, memory_format=torch.contiguous_format)
    rois = rois.detach().to(dtype)
    geometry = spatial_scale, aligned_height, aligned_width

    def align(channels: slice) -> Any:
        return torch.ops.torchvision.roi_align(features[:, channels], rois, *geometry, sampling_ratio, aligned)

    for channels, part in _by_channels(align, output):
        output[:, channels] = part


def _roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of `roi_align_forward` to `grad_input`, `(N, C, H, W)`."""
    if pool_mode == 0:
        _refuse("roi_align with pool_mode='max'")
    dtype = _precision(grad_output, rois)
    grad, rois = grad_output.to(dtype), rois.to(dtype)
    geometry = spatial_scale, aligned_height, aligned_width

    def scatter(channels: slice) -> Any:
        settings = *geometry, *grad_input[:, channels].shape, sampling_ratio, aligned
        return torch.ops.torchvision._roi_align_backward(grad[:, channels], rois, *settings)

    for channels, part in _by_channels(scatter, grad_input):
        grad_input[:, channels] += part


def _by_channels(compute: Callable[[slice], Any], maps: Tensor) -> Iterable[tuple[slice, Tensor]]:
    """Compute all channels of maps `(N, C, H, W)`, on a CPU in threads, because torchvision's kernels use only one."""
    threads = torch.get_num_threads() if maps.device.type == "cpu" else 1
    step = max(1, math.ceil(maps.shape[1] / threads))
    parts = [slice(start, start + step) for start in range(0, maps.shape[1], step)]
    compute_all = map if len(parts) == 1 else _pool(threads).map  # a single part needs no other thread
    return zip(parts, compute_all(compute, parts), strict=True)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return a pool of threads without OpenMP workers, which would compete with those of this thread."""
    started = Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # initialises the number of OpenMP threads, which is set next
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, initializer=start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(threads)  # restores the settings that all threads share
    return pool


def _sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the focal loss (arXiv 1708.02002) of each logit into `output`.

    Logits and output are `(N, C)`; `target` `(N,)` is the class of each row, C for background; `weight` `(C,)` scales
    the classes, or is empty. MMDetection calls this for RetinaNet on GPUs; on CPUs it has its own implementation.
    """
    _, scale, log_p, q = _focal_terms(input, target, weight, alpha)
    output.copy_(-scale * q**gamma * log_p)


def _sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each focal loss with respect to its logit into `grad_input`, `(N, C)`."""
    sign, scale, log_p, q = _focal_terms(input, target, weight, alpha)
    grad_input.copy_(sign * scale * q**gamma * (gamma * (1 - q) * log_p - q))


def _focal_terms(logits: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, ...]:
    """Return four `(N, C)` tensors: 1 for the target and -1 elsewhere, the scale, log p of the target, and 1 - p."""
    dtype = _precision(logits)
    hit = (target[:, None] == torch.arange(logits.shape[1], device=logits.device)).to(dtype)
    sign = 2 * hit - 1
    scale = alpha * hit + (1 - alpha) * (1 - hit)
    if weight.numel():
        scale = scale * weight[target][:, None]
    evidence = sign * logits.to(dtype)
    return sign, scale, F.logsigmoid(evidence), torch.sigmoid(-evidence)


def _precision(*tensors: Tensor) -> torch.dtype:
    """Return the type to compute in: at least float32, because some kernels lack half precision."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def _refuse(operator: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise OperatorUnavailableError(
        f"mmcv's operator {operator} is unavailable: the installed mmcv has no compiled operators. Without them, only "
        "those that this zoo's detectors need work: nms, roi_align (average) and sigmoid_focal_loss.\n"
        f"  To use it, install a full mmcv built for torch {torch.__version__}: `pip uninstall mmcv-lite`, then "
        "`pip install mmcv==2.1.0`, which builds it where no wheel exists."
    )


class TorchvisionOperators(ModuleType):
    """A replacement for the compiled `mmcv._ext`; calling any other operator raises `OperatorUnavailableError`."""

    nms = staticmethod(_nms)
    roi_align_forward = staticmethod(_roi_align_forward)
    roi_align_backward = staticmethod(_roi_align_backward)
    sigmoid_focal_loss_forward = staticmethod(_sigmoid_focal_loss_forward)
    sigmoid_focal_loss_backward = staticmethod(_sigmoid_focal_loss_backward)

    def __init__(self) -> None:
        super().__init__("mmcv._ext", self.__doc__)
        # MMEngine detects a full mmcv by the spec's loader, and fails without a spec.
        self.__spec__ = ModuleSpec(self.__name__, loader=None, origin=__name__)

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        # mmcv looks up every operator on import: only a call is refused.
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return functools.partial(_refuse, name)

    @staticmethod
    def get_compiler_version() -> str:
        """Return the compiler version that mmcv reports without compiled operators."""
        return "n/a"

    get_compiling_cuda_version = get_compiler_version


try:
    importlib.import_module("mmcv._ext")
except ImportError:
    mmcv._ext = sys.modules["mmcv._ext"] = TorchvisionOperators()


# --- 2. Checkpoints. Besides tensors, MMEngine's contain NumPy values and HistoryBuffers, whose methods are pickled as
# calls of `getattr`. Allowing `getattr` would defeat `weights_only=True`, so a restricted function takes its name.


def _history_method(owner: Any, name: str) -> Any:
    """Replace `getattr`: return one of the four statistics of `HistoryBuffer`."""
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise UnpicklingError(f"Unsupported in a checkpoint: getattr({owner!r}, {name!r})")
    return getattr(owner, name)


allow_numpy_values()
torch.serialization.add_safe_globals([HistoryBuffer, (_history_method, "builtins.getattr")])


# --- 3. Pickles. `mmdet` cannot be imported before this module, so a pickle must name this module first.


def set_default_scope() -> None:
    """Set MMEngine's default scope, which MMDetection's functions need, unless the process has one."""
    if DefaultScope.get_current_instance() is None:
        init_default_scope("mmdet")


def make_portable(model: nn.Module) -> None:
    """Let pickles of a detector, of its parts and of its results be loaded in a process that has imported nothing.

    With an installed mmcv that has compiled operators, nothing is changed.
    """
    if not isinstance(mmcv._ext, TorchvisionOperators):
        return
    from mmdet.structures import DetDataSample

    for kind in {DetDataSample, *map(type, model.modules())}:
        if kind.__module__.startswith("mmdet."):
            copyreg.pickle(kind, _reduce)


def _reduce(instance: Any) -> tuple[Any, ...]:
    _, arguments, state, *_ = instance.__reduce_ex__(2)
    return _new_instance, arguments, state


def _new_instance(kind: type, *arguments: Any) -> Any:
    set_default_scope()
    return kind.__new__(kind, *arguments)


# --- 4. Python 3.14: MMEngine looks for mmcv's operators with a function that no longer exists.

if not hasattr(pkgutil, "find_loader"):
    pkgutil.find_loader = lambda fullname: getattr(importlib.util.find_spec(fullname), "loader", None)


# --- 5. Warnings: the start of the text, the category, and the module that the warning is attributed to.

_NOISE: tuple[tuple[str, type[Warning], str], ...] = (
    # Importing mmcv.cnn reports that a class has moved.
    ("``MultiScaleDeformableAttention`` has been", ImportWarning, r"mmcv\.cnn\.bricks\.transformer"),
    # DetInferencer creates a visualizer without a folder, because it saves nothing.
    ("Failed to add .*LocalVisBackend", UserWarning, r"mmengine\.visualization\.visualizer"),
    # pycocotools, which decodes masks, does not support NumPy 2's `copy` argument.
    ("__array__ implementation doesn't accept a copy", DeprecationWarning, r"pycocotools\.mask"),
    # Runner looks for mmcv's operators with a function that Python 3.12 deprecates.
    (r"'pkgutil\.find_loader' is", DeprecationWarning, r"mmengine\.utils\.dl_utils\.misc"),
    # With accumulated gradients, the optimizer makes no step in the first iterations.
    ("Detected call of `scheduler.step", UserWarning, r"mmengine\.optim\.scheduler\.param_scheduler"),
    # A notebook without ipywidgets, which this package does not need.
    ("IProgress not found", Warning, r"tqdm\.auto"),
    # torchvision's NMS in a graph that torch.export traces.
    ("`create_unbacked_symint` is deprecated", FutureWarning, r"torchvision\._meta_registrations"),
    # MMDetection's ATSS calls its own deprecated property.
    ("DeprecationWarning: `num_anchors` is deprecated", UserWarning, r"mmdet\.models\.dense_heads\.anchor_head"),
    # MMDetection's DETR copies its class weights in each step.
    ("To copy construct from a tensor", UserWarning, r"mmdet\.models\.losses\.cross_entropy_loss"),
    # Two docstrings of mmdet should be raw strings; the compiler attributes the warning to the file, not the module.
    (".*invalid escape sequence", Warning, r".*[/\\]mmdet[/\\]models[/\\]"),
)

for _message, _category, _module in _NOISE:
    warnings.filterwarnings("ignore", _message, _category, _module)
