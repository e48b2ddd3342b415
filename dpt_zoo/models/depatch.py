"""Patch embeddings: a plain one for stage 1, and DePatch for stages 2 to 4 (paper section 3)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import cpu
from .attention import PatchConv, Shape, map_to_tokens

POINTS = 3
"""Number of sampling points along each side of a patch's box, both ends included."""


class PatchEmbed(nn.Module):
    """Embed patches of `patch_size` p: a map `(B, in_channels, H, W)` to tokens `(B, H//p * W//p, embed_dim)`."""

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = PatchConv(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(map_to_tokens(self.proj(x)))


def patch_centres(shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the centres of a grid of `shape` patches, row by row: `(H*W, 2)` xy in [0, 1]."""
    height, width = shape
    x = ((torch.arange(width, device=device).to(dtype) + 0.5) / width)[None, :].expand(height, width)
    y = ((torch.arange(height, device=device).to(dtype) + 0.5) / height)[:, None].expand(height, width)
    return torch.stack((x, y), dim=-1).flatten(0, 1)


class BoxCoder(nn.Module):
    """Decode the four predicted numbers of each patch to the box from which it is sampled."""

    def __init__(self) -> None:
        super().__init__()
        self.wh_bias = nn.Parameter(torch.full((2,), math.log(math.sqrt(5 / 3))))

    def forward(self, offsets: Tensor, shape: Shape) -> Tensor:
        """Decode offsets `(B, N, 4)` dx, dy, dw, dh on a grid of `shape` patches to `(B, N, 4)` xyxy in [0, 1]."""
        grid = patch_centres(shape, offsets.dtype, offsets.device)  # (N, 2)
        patch = 2 * grid[0]  # the first centre is half a patch from the corner
        centres = grid + offsets[..., :2].tanh() * patch
        half_sizes = (offsets[..., 2:] + self.wh_bias).tanh().relu() * patch
        return torch.cat((centres - half_sizes, centres + half_sizes), dim=-1).clamp(0, 1)


def grid_points(boxes: Tensor) -> Tensor:
    """Return 3x3 points in each box `(B, N, 4)` xyxy, corners included: `(B, 9, N, 2)` xy.

    Point `3*ix + iy` is at column ix, row iy.
    """
    steps = torch.linspace(0, 1, POINTS, dtype=boxes.dtype, device=boxes.device).view(-1, 1, 1)
    corner, extent = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    xy = corner.unsqueeze(1) + extent.unsqueeze(1) * steps  # (B, 3, N, 2)
    x, y = torch.broadcast_tensors(xy[:, :, None, :, 0], xy[:, None, :, :, 1])  # (B, 3, 3, N) each
    return torch.stack((x, y), dim=-1).flatten(1, 2)


class DePatch(nn.Module):
    """Deformable patch embedding: a map `(B, in_channels, H, W)` to tokens `(B, H//2 * W//2, embed_dim)`.

    Each 2x2 patch is sampled at 3x3 points of a box predicted from its content.
    """

    value_level_start_index: Tensor

    def __init__(self, in_channels: int, embed_dim: int) -> None:
        super().__init__()
        # This buffer is only for the checkpoints, which contain it.
        self.register_buffer("value_level_start_index", torch.zeros(1, dtype=torch.long))
        self.patch_embed = PatchEmbed(in_channels, embed_dim, patch_size=2)
        self.offset_predictor = nn.Linear(embed_dim, 4, bias=False)
        self.box_coder = BoxCoder()
        self.output_proj = nn.Linear(POINTS**2 * in_channels, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        # As in the authors' code, prediction and sampling are in full precision even under autocast. If the weights are
        # in half precision, only coordinates and sampling are, for which PyTorch's kernel returns NaN otherwise.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.offset_predictor.weight.dtype)
            boxes = self.predict_boxes(x)  # (B, N, 4) xyxy in [0, 1]
            samples = cpu.sample(x.to(boxes.dtype), 2 * grid_points(boxes) - 1).to(x.dtype)  # (B, C, 9, N)
        # `output_proj` expects the channels of each point side by side. Its weight is cheaper to reorder than samples.
        weight = self.output_proj.weight.unflatten(1, (POINTS**2, -1)).transpose(1, 2).flatten(1)
        return self.norm(F.linear(samples.flatten(1, 2).transpose(1, 2), weight, self.output_proj.bias))

    def predict_boxes(self, x: Tensor) -> Tensor:
        """Predict from a map `(B, C, H, W)` the box of each patch: `(B, H//2 * W//2, 4)` xyxy in [0, 1]."""
        offsets = self.offset_predictor(F.gelu(self.patch_embed(x)))
        offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
        return self.box_coder(offsets, (x.shape[2] // 2, x.shape[3] // 2))
