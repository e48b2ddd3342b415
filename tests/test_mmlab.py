"""mmlab.py: the operators against plain NumPy, checkpoints, warnings, and the order of preference."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hostile import Call
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from reference_data import PHOTO, ROOT

import dpt_zoo.mmlab  # noqa: F401  isort: skip  (before anything of mmcv.ops)
import mmcv.ops
from mmdet.models.losses import FocalLoss
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import load_checkpoint, save_checkpoint
from mmengine.utils.dl_utils import mmcv_full_available

from dpt_zoo.errors import DPTZooError, OperatorUnavailableError

quick = settings(max_examples=100, deadline=None, database=None)


# --- Suppression


def reference_nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float, offset: int = 0) -> list[int]:
    """Greedy suppression, in the precision of the boxes: each box against all that are kept so far."""
    kept: list[int] = []
    for candidate in np.argsort(-scores, kind="stable"):
        ious = pairwise_iou(boxes[candidate], boxes[kept], offset)
        if not (ious > boxes.dtype.type(iou_threshold)).any():
            kept.append(int(candidate))
    return kept


def pairwise_iou(box: np.ndarray, others: np.ndarray, offset: int) -> np.ndarray:
    """IoU `(N,)` of one box with N others; of two empty boxes not a number, which no threshold is below."""

    def area(x1: Any, y1: Any, x2: Any, y2: Any) -> Any:
        return (x2 - x1 + offset) * (y2 - y1 + offset)

    x1, y1 = np.maximum(box[:2], others[:, :2]).T
    x2, y2 = np.minimum(box[2:], others[:, 2:]).T
    overlap = np.maximum(x2 - x1 + offset, 0) * np.maximum(y2 - y1 + offset, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou: np.ndarray = overlap / (area(*box) + area(*others.T) - overlap)
    return iou


# Few different numbers, so that boxes coincide, touch, are empty or turned inside out, and scores are equal;
# quarters, so that every area is exact.
quarters = st.integers(-8, 24).map(lambda n: n / 4)
boxes_and_scores = arrays(np.float32, st.tuples(st.integers(0, 16), st.just(4)), elements=quarters).flatmap(
    lambda boxes: st.tuples(
        st.just(boxes), arrays(np.float32, len(boxes), elements=st.sampled_from([0.125, 0.5, 0.75]))
    )
)
thresholds = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.9, 1.0])


@quick
@given(boxes_and_scores, thresholds, st.sampled_from([0, 1]))
def test_nms_keeps_what_the_reference_keeps(
    boxes_and_scores: tuple[np.ndarray, np.ndarray],
    threshold: float,
    offset: int,
) -> None:
    boxes, scores = boxes_and_scores
    dets, kept = mmcv.ops.nms(boxes, scores, threshold, offset=offset)
    assert kept.tolist() == reference_nms(boxes, scores, threshold, offset)
    assert np.array_equal(dets, np.column_stack([boxes[kept], scores[kept]]))


def test_an_iou_equal_to_the_threshold_does_not_suppress() -> None:
    boxes = torch.tensor([[0.0, 0, 5, 1], [0, 0, 3, 1]])  # IoU 3 / 5
    scores = torch.tensor([0.9, 0.8])
    assert mmcv.ops.nms(boxes, scores, 0.6)[1].tolist() == [0, 1]
    assert mmcv.ops.nms(boxes, scores, 0.59)[1].tolist() == [0]
    assert mmcv.ops.nms(boxes.double(), scores.double(), 0.6)[1].tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_nms_of_any_precision(dtype: torch.dtype) -> None:
    boxes, scores = random_boxes(40)
    boxes, scores = boxes.round().to(dtype), scores.to(dtype)
    dets, kept = mmcv.ops.nms(boxes, scores, 0.3)
    assert dets.dtype == dtype
    assert kept.dtype == torch.int64
    assert kept.tolist() == reference_nms(boxes.float().numpy(), scores.float().numpy(), 0.3)


def test_nms_takes_boxes_and_scores_of_different_precision_and_any_layout() -> None:
    boxes, scores = random_boxes(40)
    expected = reference_nms(boxes.numpy(), scores.numpy(), 0.5)
    transposed = boxes.t().contiguous().t()
    assert mmcv.ops.nms(transposed, scores.double(), 0.5)[1].tolist() == expected


def test_nms_score_threshold_and_maximum() -> None:
    boxes, scores = random_boxes(60)
    wanted = [k for k in reference_nms(boxes.numpy(), scores.numpy(), 0.5) if scores[k] > 0.4][:5]
    assert mmcv.ops.nms(boxes, scores, 0.5, score_threshold=0.4, max_num=5)[1].tolist() == wanted


def test_nms_of_nothing() -> None:
    dets, kept = mmcv.ops.nms(torch.empty(0, 4), torch.empty(0), 0.5)
    assert dets.shape == (0, 5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64


@pytest.mark.parametrize("count", [300, 10_001], ids=["together", "class by class"])
def test_batched_nms_suppresses_within_classes_alone(count: int) -> None:
    boxes, scores = random_boxes(count, places=40)
    labels = torch.arange(count) % 3
    expected = []
    for label in range(3):
        of_label = (labels == label).nonzero().squeeze(1)
        kept = reference_nms(boxes[of_label].numpy(), scores[of_label].numpy(), 0.5)
        expected += of_label[kept].tolist()
    expected.sort(key=lambda index: -scores[index])
    dets, kept = mmcv.ops.batched_nms(boxes, scores, labels, {"type": "nms", "iou_threshold": 0.5})
    assert kept.tolist() == expected
    assert torch.equal(dets, torch.cat([boxes[kept], scores[kept, None]], 1))


def random_boxes(count: int, places: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes of whole pixels that crowd in a few places, and different scores."""
    generator = torch.Generator().manual_seed(count)
    centres = torch.randint(0, 200, (places, 2), generator=generator)[torch.arange(count) % places]
    corners = centres + torch.randint(0, 4, (count, 2), generator=generator)
    sizes = torch.randint(8, 16, (count, 2), generator=generator)
    scores = torch.randperm(count, generator=generator).add(1) / (count + 1)
    return torch.cat([corners, corners + sizes], 1).float(), scores


# --- RoIAlign


def reference_roi_align(
    maps: np.ndarray, rois: np.ndarray, size: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> np.ndarray:
    """Mask R-CNN's RoIAlign (arXiv 1703.06870), one sample at a time."""
    shift = 0.5 if aligned else 0.0
    output = np.zeros((len(rois), maps.shape[1], *size))
    for k, (index, *box) in enumerate(rois):
        x1, y1, x2, y2 = (value * scale - shift for value in box)
        width, height = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1), max(y2 - y1, 1))
        cell_height, cell_width = height / size[0], width / size[1]
        rows, columns = (ratio, ratio) if ratio else (int(np.ceil(cell_height)), int(np.ceil(cell_width)))
        for i, j in np.ndindex(size):
            samples = [
                bilinear(
                    maps[int(index)],
                    y1 + i * cell_height + (row + 0.5) * cell_height / rows,
                    x1 + j * cell_width + (column + 0.5) * cell_width / columns,
                )
                for row in range(rows)
                for column in range(columns)
            ]
            output[k, :, i, j] = np.mean(samples, axis=0) if samples else 0
    return output


def bilinear(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """Sample `(C, H, W)` at a point: its border repeated for one pixel, zero farther out."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(len(image))
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = image[:, top, left] * (1 - dx) + image[:, top, right] * dx
    lower = image[:, bottom, left] * (1 - dx) + image[:, bottom, right] * dx
    return upper * (1 - dy) + lower * dy


# Regions on maps of 6 x 7 pixels: inside, across the border, outside, without width or height. Quarters, and
# cells of which a power of two makes a region, so that a sample is on the same side of the border for both.
starts, lengths = st.integers(-16, 32), st.integers(0, 40)
regions = st.lists(st.tuples(st.sampled_from([0, 1]), starts, starts, lengths, lengths), max_size=4).map(
    lambda rows: [[index, x / 4, y / 4, (x + w) / 4, (y + h) / 4] for index, x, y, w, h in rows]
)


@quick
@given(regions, st.sampled_from([0, 2]), st.booleans(), st.sampled_from([(2, 4), (1, 1)]))
def test_roi_align_is_the_reference(
    regions: list[list[float]],
    ratio: int,
    aligned: bool,
    size: tuple[int, int],
) -> None:
    rois = torch.tensor(regions, dtype=torch.float64).view(-1, 5)
    maps = random_maps()
    pooled = mmcv.ops.RoIAlign(size, 0.5, ratio, aligned=aligned)(maps, rois)
    expected = reference_roi_align(maps.numpy(), rois.numpy(), size, 0.5, ratio, aligned)
    np.testing.assert_allclose(pooled.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_gradient(ratio: int, aligned: bool) -> None:
    maps = random_maps().requires_grad_()
    pool = mmcv.ops.RoIAlign((2, 3), 0.5, ratio, aligned=aligned)
    assert torch.autograd.gradcheck(lambda x: pool(x, ROIS), maps)

    # RoIAlign is linear in the maps, so that a difference quotient of any step is the derivative.
    direction, weights = torch.randn_like(maps), torch.randn(len(ROIS), 3, 2, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((pool(maps, ROIS) * weights).sum(), maps)
    with torch.no_grad():
        difference = pool(maps + direction, ROIS) - pool(maps - direction, ROIS)
    torch.testing.assert_close((gradient * direction).sum(), (difference * weights).sum() / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_roi_align_of_less_precision_is_that_of_its_rounded_input(dtype: torch.dtype) -> None:
    maps = random_maps().to(dtype).requires_grad_()
    precise = maps.detach().float().requires_grad_()
    pool = mmcv.ops.RoIAlign((2, 3), 0.5)
    pooled, expected = pool(maps, ROIS.to(dtype)), pool(precise, ROIS.float())
    assert pooled.dtype == dtype
    assert torch.equal(pooled, expected.to(dtype))
    (gradient,) = torch.autograd.grad(pooled.sum(), maps)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), precise)
    assert gradient.dtype == dtype
    assert torch.equal(gradient, expected_gradient.to(dtype))


def test_roi_align_under_autocast() -> None:
    maps, pool = random_maps().float(), mmcv.ops.RoIAlign((2, 3), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pool(maps.bfloat16(), ROIS.bfloat16())
    assert torch.equal(pooled, pool(maps.bfloat16(), ROIS.bfloat16()))


def test_roi_align_of_any_memory_layout() -> None:
    pool = mmcv.ops.RoIAlign((2, 3), 0.5)
    plain = random_maps().requires_grad_()
    expected = pool(plain, ROIS)
    weights = torch.randn_like(expected).transpose(1, 3).contiguous().transpose(1, 3)
    (expected_gradient,) = torch.autograd.grad(expected, plain, weights)
    for maps in (plain.to(memory_format=torch.channels_last), torch.stack([plain, plain], -1)[..., 0]):
        assert not maps.is_contiguous()
        pooled = pool(maps, ROIS.t().contiguous().t())
        assert torch.equal(pooled, expected)
        (gradient,) = torch.autograd.grad(pooled, maps, weights)
        assert torch.equal(gradient, expected_gradient)


def test_roi_align_takes_each_region_from_its_map() -> None:
    maps = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    rois = torch.tensor([[index, 1, 1, 5, 5] for index in (2, 0, 1, 2)]).float()
    pooled = mmcv.ops.RoIAlign((1, 1))(maps, rois)
    assert pooled.flatten().tolist() == [2, 0, 1, 2]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_roi_align_shared_by_threads_is_that_of_one(channels: int, mode: Callable[[], Any]) -> None:
    threads = torch.get_num_threads()
    maps = torch.randn(2, channels, 12, 16)
    rois = torch.tensor([[0, 3.0, 2.0, 20.0, 15.0], [1, 0.0, 0.0, 31.0, 23.0]])
    results = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            with mode():
                source = maps.clone().requires_grad_(mode is torch.enable_grad)
                results.append([mmcv.ops.RoIAlign(4, 0.5)(source, rois)])
                if source.requires_grad:
                    results[-1] += torch.autograd.grad(results[-1][0].square().sum(), source)
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    for one, shared in zip(*results, strict=True):
        assert torch.equal(one, shared)


def test_roi_align_of_nothing() -> None:
    maps = random_maps().requires_grad_()
    pooled = mmcv.ops.RoIAlign((2, 3), 0.5)(maps, ROIS[:0])
    assert pooled.shape == (0, 3, 2, 3)
    (gradient,) = torch.autograd.grad(pooled.sum(), maps)
    assert torch.equal(gradient, torch.zeros_like(maps))


def random_maps() -> torch.Tensor:
    """Two maps of three channels."""
    return torch.randn(2, 3, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


ROIS = torch.tensor(
    [[0, 1, 1, 9, 8], [1, -3, 2, 20, 5.5], [1, 4, 4, 4, 4], [0, 30, 30, 40, 40]],
    dtype=torch.float64,
)


# --- Focal loss


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_focal_loss_is_mmdetections_own(gamma: float) -> None:
    logits, target = random_logits()
    one_hot = torch.nn.functional.one_hot(target, 5)[:, :4]
    loss = mmcv.ops.sigmoid_focal_loss(logits, target, gamma, 0.25, None, "none")
    expected = py_sigmoid_focal_loss(logits, one_hot, gamma=gamma, alpha=0.25, reduction="none")
    torch.testing.assert_close(loss, expected)
    weights = torch.rand_like(loss)
    (gradient,) = torch.autograd.grad((loss * weights).sum(), logits)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), logits)
    torch.testing.assert_close(gradient, expected_gradient)


def test_focal_loss_gradient() -> None:
    logits, target = random_logits()
    target = target.clamp(max=3)  # mmcv has no weight for the background
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    loss = mmcv.ops.SigmoidFocalLoss(2.0, 0.3, weight, reduction="sum")
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits)
    plain = mmcv.ops.sigmoid_focal_loss(logits, target, 2.0, 0.3, None, "none")
    torch.testing.assert_close(loss(logits, target), (plain * weight[target][:, None]).sum())


def test_focal_loss_of_extreme_logits_and_half_precision() -> None:
    logits = torch.tensor([[300.0, -300.0, 0.0]], dtype=torch.float16, requires_grad=True)
    loss = mmcv.ops.sigmoid_focal_loss(logits, torch.tensor([1]), 2.0, 0.25, None, "none")
    assert loss.dtype == torch.float16
    torch.testing.assert_close(loss.tolist(), [[225.0, 75.0, 0.75 * 0.25 * np.log(2)]], rtol=1e-3, atol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.tolist()[0][:2] == [0.75, -0.25]


def test_mmdetections_focal_loss_needs_no_operator_on_the_cpu() -> None:
    logits, target = random_logits()
    loss = FocalLoss(gamma=2.0, alpha=0.25, reduction="sum")(logits, target)
    expected = mmcv.ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "sum")
    torch.testing.assert_close(loss, expected)


def random_logits() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `(9, 4)`, and targets that name every class and the background."""
    logits = 3 * torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return logits.requires_grad_(), torch.arange(9) % 5


# --- Operators that are not served


MAP, ROI = torch.rand(1, 1, 4, 4), torch.zeros(1, 5)
KERNEL, SHIFTS = torch.rand(1, 1, 3, 3), torch.zeros(1, 18, 2, 2)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("softnms", lambda: mmcv.ops.soft_nms(torch.rand(3, 4), torch.rand(3))),
        ("nms_match", lambda: mmcv.ops.nms_match(torch.rand(3, 5), 0.5)),
        ("roi_pool_forward", lambda: mmcv.ops.RoIPool(2)(MAP, ROI)),
        ("roi_align with pool_mode='max'", lambda: mmcv.ops.RoIAlign(2, pool_mode="max")(MAP, ROI)),
        ("softmax_focal_loss", lambda: mmcv.ops.SoftmaxFocalLoss(2, 0.25)(torch.rand(3, 4), torch.arange(3))),
        ("deform_conv", lambda: mmcv.ops.deform_conv2d(MAP, SHIFTS, KERNEL)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_operators_say_what_to_do(name: str, call: Callable[[], object]) -> None:
    with pytest.raises(OperatorUnavailableError, match=name) as caught:
        call()
    assert "install a full mmcv" in str(caught.value)
    assert isinstance(caught.value, DPTZooError)
    assert isinstance(caught.value, NotImplementedError)


def test_the_stand_in_does_not_pass_for_a_full_mmcv() -> None:
    extension = sys.modules["mmcv._ext"]
    assert extension is mmcv._ext
    assert not hasattr(extension, "__path__")
    assert not mmcv_full_available()
    assert mmcv.ops.get_compiler_version() == mmcv.ops.get_compiling_cuda_version() == "n/a"


# --- Checkpoints


def test_what_mmengine_saves_is_loaded_with_weights_only(tmp_path: Path) -> None:
    hub = MessageHub.get_instance(f"test_mmlab_{tmp_path}")
    for loss in (3.0, 2.0, 1.0):
        hub.update_scalar("train/loss", loss)
    hub.update_info("best", np.float64(0.402))
    hub.update_info("values", [np.float32(0.5), np.int64(7), np.bool_(True), np.arange(6).reshape(2, 3)])
    path = tmp_path / "epoch_1.pth"
    save_checkpoint({"state_dict": {}, "message_hub": hub.state_dict()}, str(path))

    for loaded in (torch.load(path, weights_only=True), load_checkpoint(torch.nn.Module(), str(path))):
        scalars, info = loaded["message_hub"]["log_scalars"], loaded["message_hub"]["runtime_info"]
        history = scalars["train/loss"]
        assert type(history) is HistoryBuffer
        assert [part.tolist() for part in history.data] == [[3, 2, 1], [1, 1, 1]]
        statistics = {name: history.statistics(name) for name in ("min", "max", "mean", "current")}
        assert statistics == {"min": 1, "max": 3, "mean": 2, "current": 1}
        assert info["best"] == 0.402
        assert type(info["best"]) is np.float64
        assert [type(value) for value in info["values"]] == [np.float32, np.int64, np.bool_, np.ndarray]
        assert info["values"][:3] == [0.5, 7, True]
        assert np.array_equal(info["values"][3], [[0, 1, 2], [3, 4, 5]])
        history.update(0.0)
        assert history.min() == 0


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"], ids=["NumPy 1", "NumPy 2"])
def test_numpys_old_and_new_names_are_both_read(core: bytes) -> None:
    file = io.BytesIO()
    torch.save([np.float64(0.5), np.array([1.0, 2.0])], file, _use_new_zipfile_serialization=False)
    renamed = file.getvalue().replace(b"numpy._core.", b"numpy.core.").replace(b"numpy.core.", core + b".")
    assert core + b".multiarray\nscalar" in renamed
    number, array = torch.load(io.BytesIO(renamed), weights_only=True)
    assert number == 0.5
    assert array.tolist() == [1, 2]


REAL = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "numpy._core.multiarray._reconstruct": np.empty(0).__reduce__()[0],
    "numpy._core.multiarray.scalar": np.float64(0).__reduce__()[0],
    "builtins.getattr": getattr,
}


@pytest.mark.parametrize("name", REAL)
def test_a_name_that_a_user_has_allowed_for_mmengine_does_no_harm(name: str, tmp_path: Path) -> None:
    # Which of two values of a name PyTorch takes is a matter of chance, so here ours makes room.
    values = torch.serialization.get_safe_globals()
    others = [value for value in values if not (isinstance(value, tuple) and value[1] == name)]
    torch.save([HistoryBuffer([2.0, 1.0], [1, 1]), np.float64(0.5)], tmp_path / "values.pth")
    try:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([*others, (REAL[name], name)])
        history, number = torch.load(tmp_path / "values.pth", weights_only=True)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(values)
    history.update(0.0)
    torch.save([history, number], tmp_path / "again.pth")
    history, number = torch.load(tmp_path / "again.pth", weights_only=True)
    assert [part.tolist() for part in history.data] == [[2, 1, 0], [1, 1, 1]]
    assert all(type(part) is np.ndarray for part in history.data)
    assert number == 0.5


@pytest.mark.parametrize("code", "?bBhHiIlLqQefdFD")
def test_any_type_of_number_is_read(code: str, tmp_path: Path) -> None:
    array = np.arange(6).astype(code).reshape(2, 3)
    torch.save([array, array[1, 1]], tmp_path / "values.pth")
    loaded, number = torch.load(tmp_path / "values.pth", weights_only=True)
    assert type(loaded) is np.ndarray
    assert loaded.dtype == array.dtype
    assert np.array_equal(loaded, array)
    assert number == array[1, 1]
    assert loaded.flags.writeable


SCALAR = np.float64(0).__reduce__()[0]
ATTACKS: dict[str, Callable[[str], Any]] = {
    "os.system": lambda command: Call(os.system, command),
    "eval": lambda command: Call(eval, f"__import__('os').system({command!r})"),
    "getattr, globals": lambda _: Call(getattr, Call(getattr, HistoryBuffer, "__init__"), "__globals__"),
    "getattr, other method": lambda _: Call(getattr, HistoryBuffer, "update"),
    "getattr, instance": lambda _: Call(getattr, HistoryBuffer([1], [1]), "min"),
    "getattr, other class": lambda _: Call(getattr, np.ndarray, "min"),
    "calling a statistic": lambda _: Call(Call(getattr, HistoryBuffer, "min"), HistoryBuffer([1], [1])),
    "objects at addresses of the file": lambda _: Call(set, Call(np.ndarray, (1,), "O", bytearray(8))),
    "an object at an address of the file": lambda _: Call(SCALAR, np.dtype("O"), bytearray(8)),
    "array of objects": lambda _: np.array([{"an": "object"}], dtype=object),
    "array of records": lambda _: np.zeros(1, [("field", "f8")]),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_checkpoint_that_asks_for_anything_else_is_refused(
    attack: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "attack.pth"
    torch.save({"state_dict": {}, "attack": attack(f"echo > {marker}")}, path)
    with pytest.raises(UnpicklingError):
        torch.load(path, weights_only=True)
    assert not marker.exists()


def test_a_checkpoint_cannot_forge_the_layout_of_a_numpy_type(tmp_path: Path) -> None:
    wide = (3, "<", (np.dtype("f8"), (1000,)), None, None, -1, -1, 63)
    torch.save(Call(np.dtype, "f8", False, True, state=wide), tmp_path / "forged.pth")
    loaded = torch.load(tmp_path / "forged.pth", weights_only=True)
    assert loaded is np.dtype("f8")
    assert (loaded.itemsize, loaded.subdtype, loaded.hasobject) == (8, None, False)


# --- Imports, each in a process of its own


def run(code: str, modules: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code as `python -W default -c` does, in the repository's root; `modules` is first on the import path."""
    command = [sys.executable, "-W", "default", "-c", code]
    path = os.pathsep.join(filter(None, [str(modules or ""), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_importing_prints_nothing_and_leaves_other_warnings_alone() -> None:
    done = run(
        "import warnings\n"
        # An old timm's on an old PyTorch, MMEngine's on Python 3.13, and an old Matplotlib's: hidden unless asked for,
        # as here.
        "old_matplotlib = \"'(enablePackrat|parseString|resetCache)' deprecated\"\n"
        "for text in ('`torch.jit.script` is deprecated', \"'maxsplit' is passed\", old_matplotlib):\n"
        "    warnings.filterwarnings('ignore', text, DeprecationWarning)\n"
        "import dpt_zoo.mmlab, mmdet.apis, mmdet.models, mmcv.cnn, mmengine.runner\n"
        "compile(r\"'\\ '\", '/somewhere/mmdet/models/backbones/trident_resnet.py', 'exec')\n"
        "warnings.warn('hear me', ImportWarning)\n"
    )
    assert (done.returncode, done.stdout) == (0, "")
    warning, *source = done.stderr.splitlines()  # Python 3.13 and later also print the source line
    assert warning == "<string>:7: ImportWarning: hear me"
    assert [line.strip() for line in source] in ([], ["warnings.warn('hear me', ImportWarning)"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extension", "served_by"),
    [("def nms(): ...", "_ext.py"), ("raise ImportError('undefined symbol: _ZN5torch')", "dpt_zoo.mmlab")],
    ids=["works", "was built for another PyTorch"],
)
def test_a_compiled_extension_is_preferred_when_it_works(
    extension: str,
    served_by: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "_ext.py").write_text(extension)
    done = run(
        f"import mmcv; mmcv.__path__.append({str(tmp_path)!r})\n"
        "import dpt_zoo.mmlab, importlib, mmcv._ext\n"
        "importlib.reload(dpt_zoo.mmlab)\n"
        "print(mmcv._ext.__spec__.origin)"
    )
    assert done.stdout.strip().endswith(served_by), done.stderr


@pytest.mark.slow
def test_mmengine_runs_without_find_loader() -> None:
    """Python 3.14 has no `pkgutil.find_loader`."""
    done = run(
        "import pkgutil\n"
        "vars(pkgutil).pop('find_loader', None)\n"
        "import dpt_zoo.mmlab\n"
        "from mmengine.utils.dl_utils import mmcv_full_available\n"
        "print(mmcv_full_available(), pkgutil.find_loader('json').name, pkgutil.find_loader('no_such_module'))"
    )
    assert (done.stdout, done.stderr) == ("False json None\n", "")


DOORS = {
    "the API": "import dpt_zoo; dpt_zoo.create_model",
    "mmlab": "import dpt_zoo.mmlab",
    "the command": f"from dpt_zoo.cli import main; exit(main(['detect', {str(PHOTO)!r}, '--model', 'mrcnn_dpt_t_1x']))",
}


@pytest.mark.slow
@pytest.mark.parametrize("code", DOORS.values(), ids=DOORS)
def test_opencv_without_graphics_libraries_is_explained(code: str, tmp_path: Path) -> None:
    failure = "libGL.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "cv2.py").write_text(f"raise ImportError({failure!r})")
    done = run(code, modules=tmp_path)
    message = f"OpenCV cannot be imported ({failure}): on a machine without graphics libraries, run `pip uninstall"
    if "main" in code:
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith(f"dpt-zoo: {message}")
    else:
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"dpt_zoo.errors.DependencyError: {message}")


@pytest.mark.slow
def test_other_failures_to_import_opencv_are_unchanged(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('numpy.core.multiarray failed to import')")
    done = run("import dpt_zoo.mmlab", modules=tmp_path)
    assert done.stderr.splitlines()[-1] == "ImportError: numpy.core.multiarray failed to import"
