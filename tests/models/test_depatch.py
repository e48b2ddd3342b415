"""DePatch: its boxes, its sampling points, and its precision."""

import math

import pytest
import torch
from reference_data import random_images
from rule_weights import load_rule_weights
from torch import Tensor

from dpt_zoo.errors import InputError
from dpt_zoo.models import cpu
from dpt_zoo.models.depatch import DePatch, grid_points


class TestDePatch:
    def test_a_fresh_one_samples_boxes_of_the_initial_size_at_the_patch_centres(self) -> None:
        module = DePatch(8, 16).double()
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

    def test_prediction_and_sampling_stay_float32_under_autocast(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = load_rule_weights(DePatch(8, 16)).eval()
        x = random_images(7, (1, 8, 20, 30)).bfloat16()
        seen: list[tuple[Tensor, Tensor]] = []
        sample = cpu.sample

        def record_and_sample(x: Tensor, grid: Tensor) -> Tensor:
            seen.append((x, grid))
            return sample(x, grid)

        monkeypatch.setattr(cpu, "sample", record_and_sample)
        with torch.inference_mode():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = module(x)
            points = grid_points(module.predict_boxes(x.float()))
        assert seen[0][0].dtype == seen[0][1].dtype == torch.float32
        assert torch.equal(seen[0][1], 2 * points - 1)
        assert output.shape == (1, 150, 16)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_weights_in_half_precision(self, dtype: torch.dtype) -> None:
        module = load_rule_weights(DePatch(8, 16)).eval()
        x = random_images(7, (1, 8, 20, 30)).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            expected = module(x)
            output = module.to(dtype)(x.to(dtype))
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.3)

    @pytest.mark.parametrize(("patch_size", "points"), [(2, 3), (3, 3), (4, 4), (5, 2)])
    def test_other_patches(self, patch_size: int, points: int) -> None:
        module = DePatch(3, 8, patch_size, points).double()
        x = torch.randn(2, 3, 4 * patch_size, 5 * patch_size + 1, dtype=torch.float64)
        with torch.inference_mode():
            assert module(x).shape == (2, 20, 8)
            boxes = module.predict_boxes(x[..., :-1]).unflatten(1, (4, 5))
        # The outer points are the centres of the outer pixels: half a pixel from the patch's edges.
        margin = 0.5 / patch_size
        expected = [(2 + margin) / 5, (1 + margin) / 4, (3 - margin) / 5, (2 - margin) / 4]
        assert boxes[0, 1, 2].tolist() == pytest.approx(expected)

    def test_with_as_many_points_as_pixels_a_fresh_one_is_a_plain_embedding(self) -> None:
        module = DePatch(3, 8, patch_size=4, points=4).double()
        x = torch.randn(2, 3, 12, 16, dtype=torch.float64)
        weight = module.output_proj.weight.unflatten(1, (4, 4, 3)).permute(0, 3, 2, 1)  # from column, row, channel
        with torch.inference_mode():
            plain = torch.nn.functional.conv2d(x, weight, module.output_proj.bias, stride=4)
            # The base size of boxes was rounded to float32.
            assert torch.allclose(module(x), module.norm(plain.flatten(2).transpose(1, 2)), atol=1e-5)

    @pytest.mark.parametrize("sizes", [{"patch_size": 1}, {"points": 1}, {"points": 2.5}])
    def test_impossible_patches(self, sizes: dict[str, int]) -> None:
        with pytest.raises(InputError, match=f"{next(iter(sizes))} must be a whole number from 2"):
            DePatch(3, 8, **sizes)
