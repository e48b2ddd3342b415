"""The transformer block: the same in parts and at once, with and without gradients."""

import copy

import pytest
import torch
from explicit_dpt import make_explicit
from torch import Tensor

from dpt_zoo.models.attention import Block


class TestBlock:
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

    def test_a_block_does_not_write_to_its_input(self) -> None:
        tokens = torch.randn(1, 1000, 16)
        before = tokens.clone()
        with torch.inference_mode():
            wide_blocks()[0].eval()(tokens, (40, 25))
        assert torch.equal(tokens, before)

    def test_the_hidden_layer_is_kept_once_for_the_gradients(self) -> None:
        tokens = torch.randn(1, 100, 16, requires_grad=True)
        in_parts, at_once = (count_saved(block, tokens, (10, 10)) for block in wide_blocks())
        assert in_parts < 0.6 * at_once

    @pytest.mark.parametrize("batch", [1, 3])
    def test_stochastic_depth_drops_branches_of_images(self, batch: int) -> None:
        block = Block(dim=16, num_heads=2, mlp_ratio=4, reduction=2, drop_path=0.5).double().train()
        explicit = make_explicit(copy.deepcopy(block))
        tokens = torch.randn(batch, 24, 16, dtype=torch.float64, requires_grad=True)
        for seed in range(10):
            results = []
            for each in (block, explicit):
                torch.manual_seed(seed)
                output = each(tokens, (4, 6))
                gradients = torch.autograd.grad(output.square().sum(), [tokens, *each.parameters()])
                results.append([output, *gradients, torch.rand(1)])  # the next random number, too
            for ours, expected in zip(*results, strict=True):
                assert torch.allclose(ours, expected, rtol=0, atol=1e-10)

    def test_it_drops_under_autocast_and_in_half(self) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            block = Block(dim=16, num_heads=2, mlp_ratio=4, reduction=2, drop_path=0.5).to(dtype).train()
            for seed in range(10):
                torch.manual_seed(seed)
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.float32):
                    output = block(torch.randn(3, 24, 16, dtype=dtype), (4, 6))
                output.float().sum().backward()
                assert output.dtype == dtype


def wide_blocks() -> tuple[Block, Block]:
    """Return a block that computes its hidden layer in many parts even for few tokens, and one without parts."""
    block = Block(dim=16, num_heads=1, mlp_ratio=256, reduction=1, drop_path=0.0)
    return block, make_explicit(copy.deepcopy(block))


def count_saved(block: Block, tokens: Tensor, shape: tuple[int, int]) -> int:
    """Return the number of elements that a forward pass keeps for the gradients."""
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(tokens, shape)
    return sum(saved)
