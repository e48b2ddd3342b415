"""The faster operators for CPUs have the same results, and are used only on CPUs."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dpt_zoo.models import cpu
from dpt_zoo.models.cpu import FastConvolutions, Linear


class TestIsUsed:
    def test_with_ordinary_tensors_on_a_cpu(self) -> None:
        assert cpu.is_used(torch.zeros(1))

    def test_not_elsewhere(self) -> None:
        assert not cpu.is_used(torch.zeros(1, device="meta"))
        with FakeTensorMode():
            assert not cpu.is_used(torch.zeros(1))

    @pytest.mark.parametrize("strict", [True, False])
    def test_not_in_an_exported_graph(self, strict: bool) -> None:
        exported = torch.export.export(Probe(), (torch.zeros(1),), strict=strict)
        assert exported.module()(torch.zeros(1)).item() == 0

    def test_not_in_a_compiled_graph(self) -> None:
        assert torch.compile(Probe(), backend="eager", fullgraph=True)(torch.zeros(1)).item() == 0


class Probe(torch.nn.Module):
    """Return `x + 1` if the CPU's operators are used, else `x`."""

    def forward(self, x: Tensor) -> Tensor:
        return x + int(cpu.is_used(x))


class TestPerToken:
    @pytest.mark.parametrize(("width", "parts"), [(1, [1000]), (300, [250, 250, 250, 250])])
    def test_it_takes_equal_parts_that_fit_the_cache(
        self, width: int, parts: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[int] = []

        def double(x: Tensor) -> Tensor:
            seen.append(x.shape[1])
            return 2 * x

        monkeypatch.setattr(cpu, "CACHED_ELEMENTS", 2 * 300 * 300 // torch.get_num_threads())
        x = torch.randn(2, 1000, 3)
        assert torch.equal(cpu.per_token(double, x, width), 2 * x)
        assert seen == parts


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (lambda x: cpu.gelu_(x), torch.nn.functional.gelu),
        (lambda x: cpu.add_(x, 2 * torch.ones_like(x)), lambda x: x + 2),
    ],
    ids=["gelu_", "add_"],
)
class TestInPlace:
    def test_without_gradients_the_input_is_overwritten(
        self, ours: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor]
    ) -> None:
        x = torch.randn(1000)
        wanted = expected(x)
        with torch.no_grad():
            result = ours(x)
        assert torch.equal(result, wanted) and result.data_ptr() == x.data_ptr()

    def test_with_gradients_it_is_not(
        self, ours: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor]
    ) -> None:
        x = torch.randn(1000, dtype=torch.float64, requires_grad=True)
        y = 1.5 * x
        assert torch.equal(ours(y), expected(y)) and torch.equal(y, 1.5 * x)
        assert torch.autograd.gradcheck(lambda x: ours(1.5 * x), x[:10])


class TestLinear:
    @pytest.mark.parametrize("shape", [(16,), (7, 16), (2, 5, 16), (1, 1, 30, 16)])
    @pytest.mark.parametrize("bias", [True, False])
    def test_a_linear_layer_that_convolves_is_the_linear_layer(
        self, shape: tuple[int, ...], bias: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layer = Linear(16, 24, bias)
        x = torch.randn(shape, requires_grad=True)
        results = []
        for convolves in (False, True):
            monkeypatch.setattr(cpu, "_convolves_faster", lambda convolves=convolves: convolves)
            operators = operators_of(layer, x)
            assert ("aten.convolution.default" in operators) == convolves
            y = layer(x)
            assert y.shape == (*shape[:-1], 24)
            results.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
        for multiplied, convolved in zip(*results, strict=True):
            assert torch.allclose(multiplied, convolved, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("name", "mkl", "onednn", "expected"),
        [
            ("AMD EPYC 9654 96-Core Processor", True, True, True),
            ("AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD", True, True, True),
            ("Intel(R) Xeon(R) Platinum 8581C", True, True, False),
            ("AMD EPYC", False, True, False),
            ("AMD EPYC", True, False, False),
            ("arm64", False, False, False),
        ],
    )
    def test_it_does_where_that_is_faster(
        self, name: str, mkl: bool, onednn: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cpu, "processor_name", lambda: name)
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
        assert cpu._convolves_faster.__wrapped__() is expected

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_only_float32_is_convolved(self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cpu, "_convolves_faster", lambda: True)
        layer = Linear(16, 24).to(dtype)
        assert "aten.convolution.default" not in operators_of(layer, torch.randn(2, 5, 16, dtype=dtype))


class TestFastConvolutions:
    @pytest.mark.parametrize("batch", [1, 2])
    @pytest.mark.parametrize(("kernel", "size"), [(1, 3), (1, 64), (3, 16), (3, 64)])
    def test_a_fast_convolution_is_the_convolution(self, kernel: int, size: int, batch: int) -> None:
        layer = torch.nn.Conv2d(64, 24, kernel, padding=kernel // 2)
        maps = torch.randn(batch, 64, size, size)
        with torch.no_grad():
            expected = layer.double()(maps.double())
            layer.float()
            with FastConvolutions():
                found, operators = layer(maps), operators_of(layer, maps)
        assert found.is_contiguous()
        assert (found - expected).abs().max() < 1e-4 * expected.std()
        assert ("aten.addmm.default" in operators) == (kernel == 1)
        by_winograd = (kernel, size) == (3, 64) and torch._nnpack_available()
        assert ("aten._nnpack_spatial_convolution.default" in operators) == by_winograd

    @pytest.mark.parametrize(
        ("options", "dtype", "layout", "grad"),
        [
            ({"stride": 2}, torch.float32, torch.contiguous_format, False),
            ({"groups": 2}, torch.float32, torch.contiguous_format, False),
            ({"bias": False}, torch.float32, torch.contiguous_format, False),
            ({}, torch.float64, torch.contiguous_format, False),
            ({}, torch.float32, torch.channels_last, False),
            ({}, torch.float32, torch.contiguous_format, True),
        ],
    )
    @pytest.mark.parametrize("kernel", [1, 3])
    def test_other_convolutions_stay_as_they_are(
        self, kernel: int, options: dict[str, Any], dtype: torch.dtype, layout: torch.memory_format, grad: bool
    ) -> None:
        layer = torch.nn.Conv2d(16, 24, kernel, padding=kernel // 2, dtype=dtype, **options)
        maps = torch.randn(1, 16, 64, 64, dtype=dtype).contiguous(memory_format=layout)
        with torch.set_grad_enabled(grad):
            expected = layer(maps)
            with FastConvolutions():
                assert torch.equal(layer(maps), expected)
                assert "aten.convolution.default" in operators_of(layer, maps)

    def test_autocast_convolves_in_half_precision(self) -> None:
        layer, maps = torch.nn.Conv2d(16, 24, 1), torch.randn(1, 16, 8, 8)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), FastConvolutions():
            assert layer(maps).dtype == torch.bfloat16


class TestThreads:
    @pytest.mark.parametrize(
        ("batch", "threads", "shares"), [(1, 1, 1), (1, 3, 3), (1, 4, 2), (2, 1, 1), (2, 3, 3), (2, 4, 2)]
    )
    def test_shared_out_sampling_is_sampling(
        self, batch: int, threads: int, shares: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images: list[int] = []
        grid_sample = torch.nn.functional.grid_sample

        def count_and_sample(x: Tensor, grid: Tensor, **options: Any) -> Tensor:
            images.append(len(x))
            return grid_sample(x, grid, **options)

        monkeypatch.setattr(torch.nn.functional, "grid_sample", count_and_sample)
        x = torch.randn(batch, 6, 9, 8, dtype=torch.float64, requires_grad=True)
        grid = (2 * torch.rand(batch, 3, 7, 2, dtype=torch.float64) - 1).requires_grad_()
        default = torch.get_num_threads()
        results = []
        for count in (threads, 1):
            torch.set_num_threads(count)
            try:
                samples = cpu.sample(x, grid)
                results.append([samples, *torch.autograd.grad(samples.square().sum(), (x, grid))])
            finally:
                torch.set_num_threads(default)
        assert results[0][0].shape == (batch, 6, 3, 7)
        assert images == [batch * shares, batch]
        for shared_out, alone in zip(*results, strict=True):
            assert torch.allclose(shared_out, alone, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("threads", [1, 3, 4])
    @pytest.mark.parametrize(("batch", "heads", "num_tokens"), [(1, 1, 60), (1, 1, 61), (1, 5, 24), (2, 3, 20)])
    def test_shared_out_attention_is_attention(self, batch: int, heads: int, num_tokens: int, threads: int) -> None:
        q = torch.randn(batch, heads, num_tokens, 8, dtype=torch.float64, requires_grad=True)
        k, v = torch.randn(2, batch, heads, 7, 8, dtype=torch.float64, requires_grad=True)
        expected = torch.softmax(q @ k.mT / math.sqrt(8), dim=-1) @ v
        default = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            found = cpu.attend(q, k, v)
            results = [torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (found, expected)]
        finally:
            torch.set_num_threads(default)
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)
        for one, other in zip(*results, strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-11)


class TestBfloat16:
    def test_attention_in_bfloat16_is_attention_rounded(self) -> None:
        q, k, v = (torch.randn(2, num, 3, 32).bfloat16().transpose(1, 2) for num in (1000, 900, 900))
        expected = torch.softmax(q.double() @ k.double().mT / math.sqrt(32), dim=-1) @ v.double()
        with torch.inference_mode():
            found = cpu.attend(q, k, v)
        assert found.shape == q.shape and found.dtype == torch.bfloat16
        assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def operators_of(function: Callable[[Tensor], Any], x: Tensor) -> set[str]:
    """Return the names of PyTorch's operators that a function calls."""
    names: set[str] = set()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.add(str(func))
            return func(*args, **(kwargs or {}))

    with Names():
        function(x)
    return names
