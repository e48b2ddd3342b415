"""Fits MMDetection 3, on mmcv-lite and mmengine, to current PyTorch; importing this module does it.

Import it before `mmdet.models` (the configs name it in `custom_imports`). It does three things, once:

- the few compiled operators of mmcv that this zoo's detectors use are served by torchvision and PyTorch,
  as `mmcv._ext`, unless an mmcv with compiled operators is installed: that one is always preferred;
- `torch.load(weights_only=True)` learns the plain values that mmengine's checkpoints hold;
- the warnings that these libraries give and a user can do nothing about are silenced, each by its text.
"""

import functools
import importlib
import math
import sys
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pickle import UnpicklingError
from threading import Barrier
from types import ModuleType
from typing import Any, NoReturn

import mmcv
import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from mmengine.logging import HistoryBuffer
from torch import Tensor

from .errors import OperatorUnavailableError
from .weights.safe_globals import allow_numpy_values

# --- 1. Operators, with the signatures, in-place outputs and semantics of mmcv 2.1's csrc/pytorch/pybind.cpp.


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices `(K,)` int64 of the boxes that greedy suppression keeps, by descending score.

    A box is dropped when its IoU with a kept one of higher score is above `iou_threshold`; of equal scores
    the first box goes first. Boxes `(N, 4)` are x1, y1, x2, y2 with width `x2 - x1 + offset`; scores `(N,)`.
    """
    dtype = _precision(boxes, scores)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # mmcv compares in the boxes' precision, where an IoU of exactly 0.6 is not above 0.6.
    threshold = torch.tensor(iou_threshold, dtype=dtype).item()
    kept: Tensor = torch.ops.torchvision.nms(boxes, scores, threshold)
    return kept


def roi_align_forward(
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
    """Write into `output` `(K, C, aligned_height, aligned_width)` the average of each cell of each region.

    Args:
        input: feature maps `(N, C, H, W)`, of any memory layout.
        rois: regions `(K, 5)`: index of the map, then x1, y1, x2, y2 (x1 <= x2, y1 <= y2) in image pixels.
        argmax_y, argmax_x: for maximum pooling alone, left as they are.
        spatial_scale: pixels of the map per pixel of the image.
        sampling_ratio: samples per cell and direction; 0 for about one per pixel of the map.
        pool_mode: 1 for the average; 0, the maximum, is not in torchvision.
        aligned: whether coordinates are shifted by half a pixel, as they should be.

    Raises:
        OperatorUnavailableError: for maximum pooling.
    """
    _require_average(pool_mode)
    dtype = _precision(input, rois)
    # torchvision works on contiguous maps: cast and reorder in one copy, or in none.
    features = input.detach().to(dtype, memory_format=torch.contiguous_format)
    rois = rois.detach().to(dtype)
    geometry = spatial_scale, aligned_height, aligned_width

    def align(channels: slice) -> Tensor:
        part: Tensor = torch.ops.torchvision.roi_align(features[:, channels], rois, *geometry, sampling_ratio, aligned)
        return part

    for channels, part in _by_channels(align, output):
        output[:, channels] = part


def roi_align_backward(
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
    """Add to `grad_input` `(N, C, H, W)` the gradient of `roi_align_forward`, given that of its output."""
    _require_average(pool_mode)
    dtype = _precision(grad_output, rois)
    grad, rois = grad_output.to(dtype), rois.to(dtype)
    geometry = spatial_scale, aligned_height, aligned_width

    def scatter(channels: slice) -> Tensor:
        shape = grad_input[:, channels].shape
        part: Tensor = torch.ops.torchvision._roi_align_backward(
            grad[:, channels], rois, *geometry, *shape, sampling_ratio, aligned
        )
        return part

    for channels, part in _by_channels(scatter, grad_input):
        grad_input[:, channels] += part


def _by_channels(compute: Callable[[slice], Tensor], maps: Tensor) -> Iterable[tuple[slice, Tensor]]:
    """Compute all channels of maps `(N, C, H, W)`: in threads, as torchvision's CPU kernels use one alone."""
    threads = torch.get_num_threads() if maps.device.type == "cpu" else 1
    step = max(1, math.ceil(maps.shape[1] / threads))
    parts = [slice(start, start + step) for start in range(0, maps.shape[1], step)]
    # A single part stays in this thread: one of the pool would only have to be woken.
    return zip(parts, (map if len(parts) == 1 else _pool(threads).map)(compute, parts), strict=True)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose operators stay in them: a second set of OpenMP's workers would take the processors of the first."""
    started = Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # OpenMP's number, which is a thread's own, is read before it is set
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, initializer=start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(threads)  # for this thread, and for what is not a thread's own
    return pool


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write into `output` `(N, C)` the focal loss (arXiv 1708.02002) of each logit of `input` `(N, C)`.

    `target` `(N,)` is each row's class, C for background; `weight` `(C,)` scales rows by class, or is empty.
    MMDetection calls this for RetinaNet on GPUs; on CPUs it has its own.
    """
    _, scale, log_p, q = _focal_terms(input, target, weight, alpha)
    output.copy_(-scale * q**gamma * log_p)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write into `grad_input` `(N, C)` the derivative of each focal loss with respect to its logit."""
    sign, scale, log_p, q = _focal_terms(input, target, weight, alpha)
    grad_input.copy_(sign * scale * q**gamma * (gamma * (1 - q) * log_p - q))


def _focal_terms(logits: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, ...]:
    """Return, `(N, C)` each: 1 for the target and -1 elsewhere, its scale, log p of the truth, q = 1 - p."""
    dtype = _precision(logits)
    hit = (target[:, None] == torch.arange(logits.shape[1], device=logits.device)).to(dtype)
    sign = 2 * hit - 1
    scale = alpha * hit + (1 - alpha) * (1 - hit)
    if weight.numel():
        scale = scale * weight[target][:, None]
    evidence = sign * logits.to(dtype)
    return sign, scale, F.logsigmoid(evidence), torch.sigmoid(-evidence)


def _precision(*tensors: Tensor) -> torch.dtype:
    """Return the type to compute in: float32 also for half precision, which not every kernel has."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def _require_average(pool_mode: int) -> None:
    if pool_mode == 0:
        _refuse("roi_align with pool_mode='max'")


def _refuse(operator: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise OperatorUnavailableError(
        f"mmcv's operator {operator} is unavailable: the installed mmcv has no compiled operators, "
        "and without them only nms, roi_align (average) and sigmoid_focal_loss are served, all that this "
        f"zoo's detectors need.\n  To use it, install a full mmcv built for torch {torch.__version__}: "
        "pip uninstall mmcv-lite, then pip install mmcv==2.1.0 where it has a wheel, or build it."
    )


class TorchvisionOperators(ModuleType):
    """Takes the place of the compiled `mmcv._ext`; an operator that it lacks raises `OperatorUnavailableError`."""

    nms = staticmethod(nms)
    roi_align_forward = staticmethod(roi_align_forward)
    roi_align_backward = staticmethod(roi_align_backward)
    sigmoid_focal_loss_forward = staticmethod(sigmoid_focal_loss_forward)
    sigmoid_focal_loss_backward = staticmethod(sigmoid_focal_loss_backward)

    def __init__(self) -> None:
        super().__init__("mmcv._ext", self.__doc__)
        # mmengine looks for a loader to tell a full mmcv, and fails where there is no spec.
        self.__spec__ = ModuleSpec(self.__name__, loader=None, origin=__name__)

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        # mmcv asks for every operator as it is imported: refuse only the call.
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return functools.partial(_refuse, name)

    @staticmethod
    def get_compiler_version() -> str:
        """Return what mmcv's report of the environment says without compiled operators."""
        return "n/a"

    get_compiling_cuda_version = get_compiler_version


def _serve_operators() -> None:
    try:
        importlib.import_module("mmcv._ext")
    except ImportError:
        mmcv._ext = sys.modules["mmcv._ext"] = TorchvisionOperators()


# --- 2. Checkpoints. Besides tensors, mmengine's hold NumPy values and HistoryBuffers: arrays, and methods of
# the class, pickled as calls of `getattr`. To allow `getattr` would undo what `weights_only=True` is for: it
# reaches any code. So a stand-in gets its name.


def _history_method(owner: Any, name: str) -> Callable[..., Any]:
    """Stand in for `getattr`: return one of the statistics that every HistoryBuffer has."""
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise UnpicklingError(f"Unsupported in a checkpoint: getattr({owner!r}, {name!r})")
    method: Callable[..., Any] = getattr(owner, name)
    return method


def _allow_checkpoint_values() -> None:
    allow_numpy_values()
    torch.serialization.add_safe_globals([HistoryBuffer, (_history_method, "builtins.getattr")])


# --- 3. Warnings: start of the text, kind, and module to which it is attributed.

_NOISE: tuple[tuple[str, type[Warning], str], ...] = (
    # mmcv.cnn tells whoever imports it that a class has moved.
    ("``MultiScaleDeformableAttention`` has been", ImportWarning, r"mmcv\.cnn\.bricks\.transformer"),
    # DetInferencer makes a visualizer without a folder for what it does not save.
    ("Failed to add .*LocalVisBackend", UserWarning, r"mmengine\.visualization\.visualizer"),
    # pycocotools does not know NumPy 2's `copy` argument; COCO evaluation decodes masks with it.
    ("__array__ implementation doesn't accept a copy", DeprecationWarning, r"pycocotools\.mask"),
    # Runner looks for mmcv's operators in a way that Python 3.12 deprecates.
    (r"'pkgutil\.find_loader' is", DeprecationWarning, r"mmengine\.utils\.dl_utils\.misc"),
    # With accumulated gradients the first iterations make no step of the optimizer.
    ("Detected call of `scheduler.step", UserWarning, r"mmengine\.optim\.scheduler\.param_scheduler"),
    # A notebook without ipywidgets, which nothing here needs.
    ("IProgress not found", Warning, r"tqdm\.auto"),
    # Two docstrings of mmdet are no raw strings; told when they are compiled, of a file instead of a module.
    (".*invalid escape sequence", Warning, r".*[/\\]mmdet[/\\]models[/\\]"),
)


def _silence_warnings() -> None:
    for message, category, module in _NOISE:
        warnings.filterwarnings("ignore", message, category, module)


_serve_operators()
_allow_checkpoint_values()
_silence_warnings()
