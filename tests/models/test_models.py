"""The network by itself: sizes, precision, the explicit computation, gradient checkpointing, and timm's interface."""

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from explicit_dpt import ExplicitBlock, make_explicit
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope
from reference_data import random_images
from rule_weights import load_rule_weights
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dpt_zoo.errors import InputError
from dpt_zoo.manifest.records import get_detector_info
from dpt_zoo.models import DPT, DPTClassifier, cpu, depatch
from dpt_zoo.models.attention import Block, SpatialReductionAttention, attend
from dpt_zoo.models.backbone import SIZES
from dpt_zoo.models.cpu import FastConvolutions, Linear
from dpt_zoo.models.depatch import DePatch, grid_points, sample_bilinear
from dpt_zoo.models.detection import CachedAnchorGenerator

STRIDES = (4, 8, 16, 32)
ANCHORS = {"scales": [8], "ratios": [0.5, 1.0, 2.0], "strides": [4, 8]}


@pytest.fixture(scope="module")
def backbone() -> DPT:
    return load_rule_weights(DPT("tiny").double()).eval()


@pytest.fixture(scope="module")
def explicit(backbone: DPT) -> DPT:
    return make_explicit(copy.deepcopy(backbone))


class TestSizes:
    @settings(max_examples=20, deadline=None)
    @given(height=st.integers(32, 140), width=st.integers(32, 140), batch=st.integers(1, 2))
    def test_any_size_equals_the_explicit_computation(
        self, backbone: DPT, explicit: DPT, height: int, width: int, batch: int
    ) -> None:
        images = random_images(height * width, (batch, 3, height, width)).double()
        with torch.inference_mode():
            for ours, theirs, stride in zip(backbone(images), explicit(images), STRIDES, strict=True):
                assert ours.shape[2:] == (rounded_down(height, stride), rounded_down(width, stride))
                assert (ours - theirs).abs().max() < 1e-9 * theirs.std()

    @pytest.mark.parametrize("size", [(448, 448), (112, 448), (250, 330), (32, 32)])
    def test_particular_sizes(self, backbone: DPT, explicit: DPT, size: tuple[int, int]) -> None:
        images = random_images(7, (1, 3, *size)).double()
        with torch.inference_mode():
            for ours, theirs in zip(backbone(images), explicit(images), strict=True):
                assert (ours - theirs).abs().max() < 1e-9 * theirs.std()

    @pytest.mark.parametrize("name", SIZES)
    def test_every_depth_and_width(self, name: str) -> None:
        model = load_rule_weights(DPT(name).double()).eval()
        explicit = make_explicit(copy.deepcopy(model))
        images = random_images(7, (1, 3, 72, 100)).double()
        with torch.inference_mode():
            for ours, theirs, stage in zip(model(images), explicit(images), SIZES[name], strict=True):
                assert ours.shape[1] == stage.embed_dim
                assert (ours - theirs).abs().max() < 1e-9 * theirs.std()

    def test_stage_1_takes_its_embedding_as_it_stands_where_the_cell_count_is_its_own(self, backbone: DPT) -> None:
        assert torch.equal(backbone.position_embedding(1, (28, 112)), backbone.get_parameter("pos_embed1"))

    def test_later_stages_resize_theirs_to_any_map(self, backbone: DPT) -> None:
        assert backbone.position_embedding(2, (56, 56)).shape == (1, 3136, 128)
        own = backbone.get_parameter("pos_embed2")
        assert not torch.equal(backbone.position_embedding(2, (14, 56)), own)
        assert torch.equal(backbone.position_embedding(2, (28, 28)), own)

    @pytest.mark.parametrize("size", [(31, 64), (64, 31), (1, 1)])
    def test_less_than_the_last_stride_is_refused(self, backbone: DPT, size: tuple[int, int]) -> None:
        with pytest.raises(InputError, match=f"at least 32x32 pixels, not {size[1]}x{size[0]}"):
            backbone(torch.zeros(1, 3, *size))

    def test_an_unknown_size_is_refused(self) -> None:
        with pytest.raises(InputError, match="no DPT of size 'large': choose one of nano, tiny, small, medium"):
            DPT("large")


class TestPrecision:
    def test_prediction_and_sampling_stay_float32_under_autocast(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = load_rule_weights(DePatch(8, 16)).eval()
        x = random_images(7, (1, 8, 20, 30)).bfloat16()
        seen: list[tuple[Tensor, Tensor]] = []
        sample = depatch.sample_bilinear

        def sample_and_tell(x: Tensor, points: Tensor) -> Tensor:
            seen.append((x, points))
            return sample(x, points)

        monkeypatch.setattr(depatch, "sample_bilinear", sample_and_tell)
        with torch.inference_mode():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = module(x)
            points = grid_points(module.predict_boxes(x.float()))
        assert seen[0][0].dtype == seen[0][1].dtype == torch.float32
        assert torch.equal(seen[0][1], points)
        assert output.shape == (1, 150, 16)

    def test_a_model_cast_to_half_runs(self) -> None:
        with torch.inference_mode():
            maps = DPT("tiny").bfloat16().eval()(torch.zeros(1, 3, 64, 64, dtype=torch.bfloat16))
        assert {feature_map.dtype for feature_map in maps} == {torch.bfloat16}

    def test_autocast_computes_the_rest_in_half(self) -> None:
        model = DPT("tiny").eval()
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            attention = model.get_submodule("block1.0.attn.proj")
            seen: list[torch.dtype] = []
            attention.register_forward_hook(lambda *call: seen.append(call[2].dtype))
            model(random_images(7, (1, 3, 64, 64)))
        assert seen == [torch.bfloat16]


class TestProcessors:
    """What a CPU computes in another order than a GPU, or in parts, comes out the same."""

    def test_maps_and_embeddings_of_one_image_are_channels_last_by_all_their_strides(self, backbone: DPT) -> None:
        with torch.inference_mode():
            for x in backbone(random_images(7, (1, 3, 96, 64)).double()):
                assert x.stride() == torch.empty_like(x, memory_format=torch.channels_last).stride()
            for stage in backbone.stages:
                assert backbone.position_embedding(stage, (5, 9)).is_contiguous()

    @pytest.mark.parametrize(("grad", "training"), [(True, True), (True, False), (False, True), (False, False)])
    def test_a_block_in_parts_is_the_block(self, grad: bool, training: bool) -> None:
        tokens = torch.randn(2, 1000, 16, dtype=torch.float64, requires_grad=True)
        results = []
        for block in wide_blocks():
            block.double().train(training)
            with torch.set_grad_enabled(grad):
                output = block(tokens, (40, 25))
            inputs = [tokens, *block.parameters()]
            results.append([output, *(torch.autograd.grad(output.square().sum(), inputs) if grad else ())])
        for in_parts, at_once in zip(*results, strict=True):
            assert torch.allclose(in_parts, at_once, rtol=0, atol=1e-12 * at_once.detach().abs().max().item())

    def test_a_block_leaves_its_input_as_it_is(self) -> None:
        tokens = torch.randn(1, 1000, 16)
        before = tokens.clone()
        with torch.inference_mode():
            wide_blocks()[0].eval()(tokens, (40, 25))
        assert torch.equal(tokens, before)

    def test_the_hidden_layer_is_kept_once_for_the_gradients(self) -> None:
        tokens = torch.randn(1, 100, 16, requires_grad=True)
        in_parts, at_once = (sum(saved_for_backward(partial(block, size=(10, 10)), tokens)) for block in wide_blocks())
        assert in_parts < 0.6 * at_once

    @pytest.mark.parametrize("heads", [1, 2])
    def test_attention_in_parts_that_stay_in_the_cache_is_attention(
        self, heads: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        block = Block(dim=16, num_heads=heads, mlp_ratio=4, reduction=5, drop_path=0.0).double().eval()
        tokens = torch.randn(2, 1000, 16, dtype=torch.float64)
        expected = block(tokens, (40, 25)).detach()  # with gradients, all tokens attend at once
        seen: list[int] = []
        attend_from = SpatialReductionAttention.attend_from

        def attend_and_tell(self: SpatialReductionAttention, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
            seen.append(x.shape[1])
            return attend_from(self, x, k, v)

        monkeypatch.setattr(SpatialReductionAttention, "attend_from", attend_and_tell)
        monkeypatch.setattr(cpu, "CACHED_ELEMENTS", 2 * 2 * 16 * 300 // torch.get_num_threads())
        with torch.inference_mode():
            found = block(tokens, (40, 25))
        assert seen == [250, 250, 250, 250]
        assert torch.allclose(found, expected, rtol=0, atol=1e-12 * expected.abs().max().item())

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

    @pytest.mark.parametrize(
        ("batch", "threads", "shares"), [(1, 1, 1), (1, 3, 3), (1, 4, 2), (2, 1, 1), (2, 3, 3), (2, 4, 2)]
    )
    def test_sampling_shared_out_to_threads_is_sampling(
        self, batch: int, threads: int, shares: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images: list[int] = []
        grid_sample = torch.nn.functional.grid_sample

        def sample_and_tell(x: Tensor, grid: Tensor, **options: Any) -> Tensor:
            images.append(len(x))
            return grid_sample(x, grid, **options)

        monkeypatch.setattr(torch.nn.functional, "grid_sample", sample_and_tell)
        x = torch.randn(batch, 6, 9, 8, dtype=torch.float64, requires_grad=True)
        points = torch.rand(batch, 3, 7, 2, dtype=torch.float64, requires_grad=True)
        default = torch.get_num_threads()
        results = []
        for count in (threads, 1):
            torch.set_num_threads(count)
            try:
                samples = sample_bilinear(x, points)
                results.append([samples, *torch.autograd.grad(samples.square().sum(), (x, points))])
            finally:
                torch.set_num_threads(default)
        assert results[0][0].shape == (batch, 6, 3, 7)
        assert images == [batch * shares, batch]
        for shared_out, alone in zip(*results, strict=True):
            assert torch.allclose(shared_out, alone, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("threads", [1, 3, 4])
    @pytest.mark.parametrize(("batch", "heads", "num_tokens"), [(1, 1, 60), (1, 1, 61), (1, 5, 24), (2, 3, 20)])
    def test_attention_in_parts_is_attention(self, batch: int, heads: int, num_tokens: int, threads: int) -> None:
        q = torch.randn(batch, heads, num_tokens, 8, dtype=torch.float64, requires_grad=True)
        k, v = torch.randn(2, batch, heads, 7, 8, dtype=torch.float64, requires_grad=True)
        expected = torch.softmax(q @ k.mT / math.sqrt(8), dim=-1) @ v
        default = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            found = attend(q, k, v)
            results = [torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (found, expected)]
        finally:
            torch.set_num_threads(default)
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)
        for one, other in zip(*results, strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-11)

    def test_attention_in_bfloat16_is_attention_rounded(self) -> None:
        q, k, v = (torch.randn(2, num, 3, 32).bfloat16().transpose(1, 2) for num in (1000, 900, 900))
        expected = torch.softmax(q.double() @ k.double().mT / math.sqrt(32), dim=-1) @ v.double()
        with torch.inference_mode():
            found = attend(q, k, v)
        assert found.shape == q.shape and found.dtype == torch.bfloat16
        assert (found - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("training", [False, True])
def test_compiled_for_two_sizes_it_takes_any(training: bool) -> None:
    model = DPT("nano", drop_path_rate=0).train(training)
    torch.compiler.reset()
    # Tracing is what breaks graphs and asks for new ones; what makes machine code of them makes no difference here.
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.set_grad_enabled(training):
        for size in ((256, 384), (320, 448)):
            compiled(random_images(7, (1, 3, *size)))
        with torch.compiler.set_stance("fail_on_recompile"):
            for size in ((800, 1216), (333, 500), (256, 256), (416, 1333)):
                images = random_images(7, (1, 3, *size))
                for ours, expected in zip(compiled(images), model(images), strict=True):
                    assert (ours - expected).abs().max() < 1e-4 * expected.std()


class TestKept:
    """What depends on an image's size alone is computed once for it."""

    def test_position_embeddings_are_kept_for_the_last_size(self) -> None:
        model = DPT("nano").eval()
        with torch.inference_mode():
            first = model.position_embedding(2, (5, 9))
            assert model.position_embedding(2, (5, 9)) is first
            assert model.position_embedding(2, (9, 5)) is not first
            assert model.position_embedding(2, (5, 9)) is not first
            assert torch.equal(model.position_embedding(2, (5, 9)), first)

    @pytest.mark.parametrize(
        "change",
        [
            lambda model: model.pos_embed2.data.mul_(2),  # as an average of weights is put in and taken out
            lambda model: model.load_state_dict(DPT("nano").state_dict()),
            lambda model: model.half(),
            lambda model: setattr(model, "pos_embed2", torch.nn.Parameter(torch.zeros(1, 24**2, 64))),
        ],
        ids=["data", "load_state_dict", "half", "another parameter"],
    )
    def test_other_weights_have_other_embeddings(self, change: Callable[[Any], Any]) -> None:
        model = DPT("nano").eval()
        with torch.inference_mode():
            before = model.position_embedding(2, (5, 9))
        change(model)
        with torch.inference_mode():
            after = model.position_embedding(2, (5, 9))
        anew = model.position_embedding(2, (5, 9)).detach()  # with gradients none is kept
        assert torch.equal(after, anew)
        assert before.dtype != after.dtype or not torch.equal(before, after)

    def test_copies_and_files_hold_none(self) -> None:
        model = DPT("nano").eval()
        size = len(pickle.dumps(model))
        images = random_images(7, (1, 3, 320, 480))
        with torch.inference_mode():
            maps = model(images)
            assert len(pickle.dumps(model)) < size + 1000
            assert all(torch.equal(a, b) for a, b in zip(copy.deepcopy(model)(images), maps, strict=True))

    def test_what_inference_keeps_training_can_use(self) -> None:
        images = random_images(7, (1, 3, 64, 96))
        gradients = []
        for infer_first in (False, True):
            depatch.kept_centres.cache_clear()
            model = load_rule_weights(DPT("nano", drop_path_rate=0.0))
            if infer_first:
                with torch.inference_mode():
                    model(images)
            gradients.append(torch.autograd.grad(model(images)[-1].square().sum(), list(model.parameters())))
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))

    def test_tensors_without_values_are_not_kept(self) -> None:
        """PyTorch traces with such tensors, which are said to be on a CPU."""
        depatch.kept_centres.cache_clear()
        with FakeTensorMode(), torch.inference_mode():
            model = DPT("nano").eval()
            for _ in range(2):
                assert model(torch.zeros(1, 3, 64, 96))[-1].shape == (1, 192, 2, 3)
        assert depatch.kept_centres.cache_info().currsize == 0

    def test_patch_centres_are_kept(self) -> None:
        depatch.kept_centres.cache_clear()
        model = DPT("nano").eval()
        with torch.inference_mode():
            for _ in range(3):
                model(torch.zeros(1, 3, 64, 96))
        counts = depatch.kept_centres.cache_info()
        assert (counts.misses, counts.hits) == (3, 6)  # of three stages

    @settings(max_examples=20, deadline=None)
    @given(sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=2, max_size=6))
    def test_anchors_are_mmdetections(self, sizes: list[tuple[int, int]]) -> None:
        ours, theirs = CachedAnchorGenerator(**ANCHORS), AnchorGenerator(**ANCHORS)
        for height, width in sizes:
            maps = [(2 * height, 2 * width), (height, width)]
            dtype = torch.float16 if height == width else torch.float32
            for a, b in zip(*(each.grid_priors(maps, dtype, "cpu") for each in (ours, theirs)), strict=True):
                assert a.dtype == dtype
                assert torch.equal(a, b)

    def test_anchors_are_kept_for_the_last_size(self) -> None:
        anchors = CachedAnchorGenerator(**ANCHORS)
        first = anchors.grid_priors([(4, 6), (2, 3)], device="cpu")
        again = anchors.grid_priors([torch.Size((4, 6)), torch.Size((2, 3))], device="cpu")
        assert all(a is b for a, b in zip(first, again, strict=True))

    def test_anchors_of_inference_mode_are_not_for_training(self) -> None:
        anchors = CachedAnchorGenerator(**ANCHORS)
        with torch.inference_mode():
            anchors.grid_priors([(4, 6), (2, 3)], device="cpu")
        assert not any(each.is_inference() for each in anchors.grid_priors([(4, 6), (2, 3)], device="cpu"))

    def test_a_compiler_makes_anchors_by_itself(self) -> None:
        anchors = CachedAnchorGenerator(**ANCHORS)

        @torch.compile(fullgraph=True, backend="eager")
        def make(x: Tensor) -> Tensor:
            return torch.cat(anchors.grid_priors([x.shape[2:], (2, 3)], device="cpu"))

        for _ in range(2):
            made = make(torch.zeros(1, 1, 4, 6))
            assert anchors._cached is None
        assert torch.equal(made, torch.cat(anchors.grid_priors([(4, 6), (2, 3)], device="cpu")))


class TestDePatch:
    def test_a_fresh_one_samples_boxes_of_the_initial_size_at_the_patch_centres(self) -> None:
        module = DePatch(8, 16).double()
        torch.nn.init.zeros_(module.offset_predictor.weight)  # as the network does
        with torch.inference_mode():
            boxes = module.predict_boxes(torch.randn(1, 8, 20, 40, dtype=torch.float64))
        x1, y1, x2, y2 = boxes.unflatten(1, (10, 20))[0, 4, 7].tolist()
        half = math.tanh(math.log(math.sqrt(5 / 3)))  # of a patch
        assert [x1, x2] == pytest.approx([(7.5 - half) / 20, (7.5 + half) / 20])
        assert [y1, y2] == pytest.approx([(4.5 - half) / 10, (4.5 + half) / 10])

    def test_points_run_through_x_in_the_outer_loop(self) -> None:
        points = grid_points(torch.tensor([[[0.2, 0.4, 0.6, 1.0]]]))
        expected = [[x, y] for x in (0.2, 0.4, 0.6) for y in (0.4, 0.7, 1.0)]
        assert torch.allclose(points[0, :, 0], torch.tensor(expected))


class TestStochasticDepth:
    def test_it_rises_linearly_over_all_blocks(self) -> None:
        model = DPT("small", drop_path_rate=0.15)
        rates = [block.drop_path.drop_prob for stage in (1, 2, 3, 4) for block in getattr(model, f"block{stage}")]
        assert rates == pytest.approx([0.15 * block / 15 for block in range(16)])

    @pytest.mark.parametrize("batch", [1, 2, 3])
    def test_what_it_drops_is_not_computed_and_makes_no_difference(self, batch: int) -> None:
        block = Block(dim=16, num_heads=2, mlp_ratio=4, reduction=2, drop_path=0.5).double().train()
        explicit = make_explicit_block(block)
        computed: list[int] = []
        block.norm2.register_forward_hook(lambda module, inputs, output: computed.append(len(output)))
        tokens = torch.randn(batch, 24, 16, dtype=torch.float64, requires_grad=True)
        seen = set()
        for seed in range(20):
            computed.clear()
            results = []
            for each in (block, explicit):
                torch.manual_seed(seed)
                output = each(tokens, (4, 6))
                inputs = [tokens, *each.parameters()]
                gradients = torch.autograd.grad(output.square().sum(), inputs)  # none may be missing
                results.append([output, *gradients, torch.rand(1)])  # the next random number, too
            for ours, expected in zip(*results, strict=True):
                assert torch.allclose(ours, expected, rtol=0, atol=1e-10)
            seen.add(computed[0] if computed else 0)
        assert {0, batch} <= seen <= set(range(batch + 1))

    def test_it_drops_under_autocast_and_in_half(self) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            block = Block(dim=16, num_heads=2, mlp_ratio=4, reduction=2, drop_path=0.5).to(dtype).train()
            for seed in range(10):
                torch.manual_seed(seed)
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.float32):
                    output = block(torch.randn(3, 24, 16, dtype=dtype), (4, 6))
                output.float().sum().backward()
                assert output.dtype == dtype


def make_explicit_block(block: Block) -> Block:
    explicit = copy.deepcopy(block)
    explicit.__class__ = ExplicitBlock
    return explicit


def operators_of(function: Callable[[Tensor], Any], x: Tensor) -> set[str]:
    """The names of PyTorch's operators that a function calls."""
    names: set[str] = set()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.add(str(func))
            return func(*args, **(kwargs or {}))

    with Names():
        function(x)
    return names


class TestGradientCheckpointing:
    @pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
    def test_maps_and_gradients_are_the_same(self, drop_path_rate: float) -> None:
        model = DPT("tiny", drop_path_rate).double().train()
        images = random_images(7, (2, 3, 64, 96)).double()
        results = []
        for model.gradient_checkpointing in (False, True):
            torch.manual_seed(0)
            maps = model(images)
            gradients = torch.autograd.grad(sum_of_squares(maps), list(model.parameters()), materialize_grads=True)
            results.append([*maps, *gradients, torch.rand(1)])  # the next random number, too
        for plain, checkpointed in zip(*results, strict=True):
            assert torch.equal(plain, checkpointed)

    def test_a_detectors_losses_and_gradients_are_the_same(self) -> None:
        init_default_scope("mmdet")
        cfg = Config.fromfile(get_detector_info("retinanet_dpt_t_1x").config_path)
        cfg.merge_from_dict({"model.backbone.drop_path_rate": 0.5})
        results = []
        for checkpointed in (False, True):
            cfg.merge_from_dict({"model.backbone.gradient_checkpointing": checkpointed})
            torch.manual_seed(0)
            model = MODELS.build(cfg.model).train()
            data = model.data_preprocessor(demo_mm_inputs(2, (3, 64, 96), num_classes=80), True)
            total, losses = model.parse_losses(model(**data, mode="loss"))
            total.backward()
            results.append([*losses.values(), *(parameter.grad for parameter in model.parameters())])
        for without, with_it in zip(*results, strict=True):
            assert torch.equal(without, with_it)

    def test_much_less_is_kept_for_the_gradients(self) -> None:
        model = DPT("tiny").train()
        plain = sum(saved_for_backward(model, random_images(7, (1, 3, 128, 128))))
        model.gradient_checkpointing = True
        assert sum(saved_for_backward(model, random_images(7, (1, 3, 128, 128)))) < 0.2 * plain

    def test_outside_training_nothing_changes(self) -> None:
        model = DPT("tiny").eval()
        plain = saved_for_backward(model, random_images(7, (1, 3, 128, 128)))
        model.gradient_checkpointing = True
        assert saved_for_backward(model, random_images(7, (1, 3, 128, 128))) == plain

    @pytest.mark.parametrize("grad", [True, False])
    def test_it_warns_of_nothing(self, grad: bool) -> None:
        model = DPT("nano", gradient_checkpointing=True).train()
        with warnings.catch_warnings(), torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
            warnings.simplefilter("error")
            maps = model(random_images(7, (1, 3, 64, 64)))
            if grad:
                sum_of_squares(maps).backward()


def sum_of_squares(maps: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([feature_map.float().square().sum() for feature_map in maps]).sum()


def wide_blocks() -> tuple[Block, Block]:
    """A block whose hidden layer needs many parts even for few tokens, and the same that computes it at once."""
    block = Block(dim=16, num_heads=1, mlp_ratio=256, reduction=1, drop_path=0.0)
    return block, make_explicit_block(block)


def saved_for_backward(module: Callable[[Tensor], Any], x: Tensor) -> list[int]:
    """Elements of each tensor that a pass keeps for the gradients, but for what is computed again."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return sizes


class TestTimm:
    def test_the_name_gives_the_classifier(self) -> None:
        model = timm.create_model("dpt_small")
        assert isinstance(model, DPTClassifier)
        assert timm.list_models("dpt_*") == ["dpt_medium", "dpt_small", "dpt_tiny"]
        with torch.inference_mode():
            assert model.eval()(torch.zeros(2, 3, 224, 224)).shape == (2, 1000)

    def test_features_are_the_maps_that_a_detector_sees(self) -> None:
        features: Any = load_rule_weights(timm.create_model("dpt_tiny", features_only=True)).eval()
        assert features.feature_info.channels() == [64, 128, 320, 512]
        assert features.feature_info.reduction() == list(STRIDES)
        backbone = DPT("tiny").eval()
        backbone.load_state_dict(features.model.state_dict(), strict=False)
        images = random_images(7, (1, 3, 96, 64))
        with torch.inference_mode():
            for ours, theirs in zip(features(images), backbone(images), strict=True):
                assert torch.equal(ours, theirs)

    def test_some_features(self) -> None:
        features = timm.create_model("dpt_tiny", features_only=True, out_indices=(1, -1)).eval()
        with torch.inference_mode():
            assert [list(m.shape[1:]) for m in features(torch.zeros(1, 3, 64, 64))] == [[128, 8, 8], [512, 2, 2]]

    def test_intermediates_come_with_the_last_tokens(self) -> None:
        model = timm.create_model("dpt_tiny").eval()
        images = random_images(7, (1, 3, 64, 64))
        with torch.inference_mode():
            tokens, maps = model.forward_intermediates(images, indices=2)
            assert torch.equal(tokens, model.forward_features(images))
        assert [len(m[0]) for m in maps] == [320, 512]

    def test_the_head_can_be_replaced_or_left_out(self) -> None:
        model = timm.create_model("dpt_tiny", num_classes=7).eval()
        images = torch.zeros(1, 3, 64, 64)
        with torch.inference_mode():
            assert model(images).shape == (1, 7)
            model.reset_classifier(0)
            assert model(images).shape == (1, 512)
        with pytest.raises(InputError, match="class token"):
            model.reset_classifier(3, global_pool="avg")


def rounded_down(pixels: int, stride: int) -> int:
    """Cells of the map at a stride: each stage rounds down by itself."""
    cells = pixels // 4
    while stride > 4:
        cells, stride = cells // 2, stride // 2
    return cells
