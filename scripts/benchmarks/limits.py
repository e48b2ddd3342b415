"""The machine's rates of matrix products and copies, which limit every network."""

from collections.abc import Iterator

import torch

from dpt_zoo.models.backbone import SIZES, STRIDES

from .measuring import Action, Comparison, Settings, awaited, find_devices, time_in_turn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COPIED_BYTES = 2**28  # far beyond the caches


def compare(settings: Settings) -> Iterator[Comparison]:
    torch.set_num_threads(settings.threads)
    for device in find_devices():
        where = device if device == "cuda" else f"{settings.threads} threads"
        for dtype in DTYPES:
            rates = measure_square_product(dtype, device, settings)
            yield Comparison("limits", f"{dtype}, {where}", "rate of a matrix product", "GFLOP/s", rates)
        yield Comparison("limits", where, "rate of a copy, read and written", "GB/s", _copy_rates(device, settings))
    rates = measure_products(_linear_shapes(settings), "float32", "cpu", settings.runs)
    setting = f"float32, {settings.threads} threads, first linear layers of DPT-{settings.size}'s MLPs"
    yield Comparison("limits", setting, "rate of a matrix product", "GFLOP/s", rates)


def measure_square_product(dtype: str, device: str, settings: Settings) -> dict[str, list[float]]:
    """Return the GFLOP/s of a product of square matrices that keep a device busy."""
    side = settings.side if device == "cpu" else 4 * settings.side
    return measure_products([(side,) * 3], dtype, device, settings.runs)


def measure_products(shapes: list[tuple[int, ...]], dtype: str, device: str, runs: int) -> dict[str, list[float]]:
    """Return the GFLOP/s of products of matrices `m x k` and `k x n`, by "MxKxN"."""
    actions = {"x".join(map(str, shape)): _product(shape, DTYPES[dtype], device) for shape in shapes}
    times = time_in_turn(actions, runs)
    return {
        name: [2e-9 * m * k * n / seconds for seconds in times[name]]
        for name, (m, k, n) in zip(actions, shapes, strict=True)
    }


def _product(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Action:
    m, k, n = shape
    left, right = (torch.randn(*each, dtype=dtype, device=device) for each in ((m, k), (k, n)))
    result = torch.empty(m, n, dtype=dtype, device=device)
    return awaited(lambda: torch.mm(left, right, out=result), device)


def _linear_shapes(settings: Settings) -> list[tuple[int, ...]]:
    """Return for each stage its number of tokens, of channels, and of channels of the MLP's hidden layer."""
    return [
        ((settings.height // stride) * (settings.width // stride), stage.embed_dim, stage.mlp_ratio * stage.embed_dim)
        for stage, stride in zip(SIZES[settings.size], STRIDES, strict=True)
    ]


def _copy_rates(device: str, settings: Settings) -> dict[str, list[float]]:
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = time_in_turn({"copy": awaited(lambda: target.copy_(source), device)}, settings.runs)
    return {"copy": [2e-9 * COPIED_BYTES / seconds for seconds in times["copy"]]}
