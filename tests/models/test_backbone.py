"""The backbone: sizes, precision, the explicit computation, compiling, and gradient checkpointing."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from explicit_dpt import make_explicit
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_data import random_images
from rule_weights import load_rule_weights
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dpt_zoo.errors import InputError
from dpt_zoo.models import DPT
from dpt_zoo.models.backbone import SIZES

STRIDES = (4, 8, 16, 32)


@pytest.fixture(scope="module")
def backbone() -> DPT:
    return load_rule_weights(DPT("tiny").double()).eval()


@pytest.fixture(scope="module")
def explicit(backbone: DPT) -> DPT:
    return make_explicit(copy.deepcopy(backbone))


@pytest.mark.slow
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

    def test_stage_1_takes_its_embedding_unchanged_if_the_number_of_cells_is_equal(self, backbone: DPT) -> None:
        assert torch.equal(backbone.position_embedding(1, (28, 112)), backbone.get_parameter("pos_embed1"))

    def test_later_stages_resize_theirs_to_any_map(self, backbone: DPT) -> None:
        assert backbone.position_embedding(2, (56, 56)).shape == (1, 3136, 128)
        own = backbone.get_parameter("pos_embed2")
        assert not torch.equal(backbone.position_embedding(2, (14, 56)), own)
        assert torch.equal(backbone.position_embedding(2, (28, 28)), own)

    @pytest.mark.parametrize("size", [(31, 64), (64, 31), (1, 1)])
    def test_images_smaller_than_the_last_stride_are_refused(self, backbone: DPT, size: tuple[int, int]) -> None:
        with pytest.raises(InputError, match=f"at least 32x32 pixels, not {size[1]}x{size[0]}"):
            backbone(torch.zeros(1, 3, *size))

    def test_an_unknown_size_is_refused(self) -> None:
        with pytest.raises(InputError, match="size 'large' is unknown: choose one of nano, tiny, small, medium"):
            DPT("large")

    def test_the_strides_of_maps_and_embeddings_of_one_image_are_channels_last(self, backbone: DPT) -> None:
        with torch.inference_mode():
            for x in backbone(random_images(7, (1, 3, 96, 64)).double()):
                assert x.stride() == torch.empty_like(x, memory_format=torch.channels_last).stride()
            for stage in backbone.stages:
                assert backbone.position_embedding(stage, (5, 9)).is_contiguous()


class TestPrecision:
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


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_compiled_for_two_sizes_it_takes_any(training: bool) -> None:
    model = DPT("nano", drop_path_rate=0).train(training)
    torch.compiler.reset()
    # Graph breaks and recompilations happen while tracing: the backend makes no difference.
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.set_grad_enabled(training):
        for size in ((256, 384), (320, 448)):
            compiled(random_images(7, (1, 3, *size)))
        with torch.compiler.set_stance("fail_on_recompile"):
            for size in ((480, 736), (333, 500), (256, 256), (224, 704)):
                images = random_images(7, (1, 3, *size))
                for ours, expected in zip(compiled(images), model(images), strict=True):
                    assert (ours - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.slow
def test_exported_it_is_a_graph_of_ordinary_operators_for_any_image_size() -> None:
    model = DPT("nano").eval()
    any_size = ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    images = random_images(7, (1, 3, 192, 224))
    exported = torch.export.export(model, (images,), dynamic_shapes=any_size, strict=False)
    operators = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert {"aten.linear.default", "aten.scaled_dot_product_attention.default"} <= operators
    for size in ((192, 192), (64, 96), (160, 320)):  # the first is that of the position embeddings
        images = random_images(8, (1, 3, *size))
        with torch.inference_mode():
            for ours, expected in zip(exported.module()(images), model(images), strict=True):
                assert (ours - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.slow
def test_tensors_without_values_give_the_shapes() -> None:
    with FakeTensorMode(), torch.inference_mode():
        assert DPT("nano").eval()(torch.zeros(1, 3, 64, 96))[-1].shape == (1, 192, 2, 3)


class TestStochasticDepth:
    def test_it_rises_linearly_over_all_blocks(self) -> None:
        model = DPT("small", drop_path_rate=0.15)
        rates = [block.drop_path.drop_prob for stage in (1, 2, 3, 4) for block in getattr(model, f"block{stage}")]
        assert rates == pytest.approx([0.15 * block / 15 for block in range(16)])


class TestGradientCheckpointing:
    @pytest.mark.slow
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


def saved_for_backward(module: Callable[[Tensor], Any], x: Tensor) -> list[int]:
    """Return the number of elements of each tensor that a forward pass keeps for the gradients."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return sizes


def rounded_down(pixels: int, stride: int) -> int:
    """Return the number of cells of the map at a stride: each stage rounds down."""
    cells = pixels // 4
    while stride > 4:
        cells, stride = cells // 2, stride // 2
    return cells
