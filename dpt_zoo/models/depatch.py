"""Patch embeddings: the plain one of stage 1, and DePatch of stages 2 to 4 (paper section 3)."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import PatchConv, Shape, map_to_tokens
from .cpu import compute_in_parts, count_shares, runs_on_cpu

POINTS = 3
"""Sampling points along each side of a patch's box, both ends included."""


class PatchEmbed(nn.Module):
    """Cut a map into square patches and embed each: `(B, C, H, W)` to tokens `(B, H//p * W//p, embed_dim)`."""

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = PatchConv(in_channels, embed_dim, patch_size)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(map_to_tokens(self.proj(x)))


def patch_centres(shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Centres of a grid of `shape` patches, row by row: `(H*W, 2)` xy, where the whole map is [0, 1]."""
    height, width = shape
    x = (torch.arange(width, dtype=dtype, device=device) + 0.5) / width
    y = (torch.arange(height, dtype=dtype, device=device) + 0.5) / height
    return torch.stack((x.repeat(height), y.repeat_interleave(width)), dim=-1)


kept_centres = lru_cache(maxsize=16)(patch_centres)
"""The same, computed once for each of the last sizes: a CPU's. A compiler makes them within its kernels."""


class BoxCoder(nn.Module):
    """Turn the four numbers predicted for each patch into the box that the patch is sampled from."""

    def __init__(self) -> None:
        super().__init__()
        self.wh_bias = nn.Parameter(torch.full((2,), math.log(math.sqrt(5 / 3))))

    def forward(self, offsets: Tensor, shape: Shape) -> Tensor:
        """Decode `(B, N, 4)` dx, dy, dw, dh on a grid of `shape` patches to `(B, N, 4)` xyxy in [0, 1]."""
        height, width = shape
        patch = offsets.new_tensor((1 / width, 1 / height))
        centres_of = kept_centres if runs_on_cpu(offsets) else patch_centres
        centres = centres_of(shape, offsets.dtype, offsets.device) + offsets[..., :2].tanh() * patch
        half_sizes = (offsets[..., 2:] + self.wh_bias).tanh().relu() * patch
        return torch.cat((centres - half_sizes, centres + half_sizes), dim=-1).clamp(0, 1)


def grid_points(boxes: Tensor) -> Tensor:
    """Spread 3x3 points over each box, corners included.

    Args:
        boxes: `(B, N, 4)` xyxy in [0, 1].

    Returns:
        `(B, 9, N, 2)` xy in [0, 1]; x outer, y inner: point `3*ix + iy`.
    """
    steps = torch.linspace(0, 1, POINTS, dtype=boxes.dtype, device=boxes.device).view(-1, 1, 1)
    corner, extent = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    xy = corner.unsqueeze(1) + extent.unsqueeze(1) * steps  # (B, 3, N, 2)
    x, y = torch.broadcast_tensors(xy[:, :, None, :, 0], xy[:, None, :, :, 1])  # (B, 3, 3, N) each
    return torch.stack((x, y), dim=-1).flatten(1, 2)


def sample_bilinear(x: Tensor, points: Tensor) -> Tensor:
    """Read a map at points given in [0, 1], bilinearly, zero outside the map.

    Args:
        x: `(B, C, H, W)`.
        points: `(B, P, N, 2)` xy, where the whole map is [0, 1].

    Returns:
        `(B, C, P, N)`.
    """
    grid = 2 * points - 1
    if runs_on_cpu(x):
        # PyTorch shares out images to threads: where those are too few, a part of the channels passes for an image.
        shares = count_shares(*x.shape[:2])
        x, grid = x.contiguous().unflatten(1, (shares, -1)).flatten(0, 1), grid.repeat_interleave(shares, dim=0)
    samples = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return samples.unflatten(0, (len(points), -1)).flatten(1, 2)


class DePatch(nn.Module):
    """Deformable patch embedding: each 2x2 patch is sampled at 3x3 points of a box predicted from its content."""

    value_level_start_index: Tensor

    def __init__(self, in_channels: int, embed_dim: int) -> None:
        super().__init__()
        # The checkpoints hold it; nothing reads it.
        self.register_buffer("value_level_start_index", torch.zeros(1, dtype=torch.long))
        self.patch_embed = PatchEmbed(in_channels, embed_dim, patch_size=2)
        self.offset_predictor = nn.Linear(embed_dim, 4, bias=False)
        self.box_coder = BoxCoder()
        self.output_proj = nn.Linear(POINTS**2 * in_channels, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Embed a map `(B, C, H, W)` as tokens `(B, H//2 * W//2, embed_dim)`."""
        # The authors predict and sample in full precision even when the rest runs in half.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.offset_predictor.weight.dtype)
            boxes = self.predict_boxes(x)
        if torch.is_grad_enabled() or not runs_on_cpu(x):
            return self.norm(self.project(self.sample(x, boxes)))
        x = x.contiguous()  # once, and not for each part
        parts = compute_in_parts(lambda part: self.project(self.sample(x, part)), boxes, self.output_proj.in_features)
        return self.norm(parts)

    def sample(self, x: Tensor, boxes: Tensor) -> Tensor:
        """Read a map `(B, C, H, W)` at the points of boxes `(B, N, 4)` xyxy in [0, 1]: `(B, C, 9, N)`."""
        with torch.autocast(x.device.type, enabled=False):
            return sample_bilinear(x, grid_points(boxes))

    def predict_boxes(self, x: Tensor) -> Tensor:
        """Predict from a map `(B, C, H, W)` the box of each patch: `(B, H//2 * W//2, 4)` xyxy in [0, 1]."""
        offsets = self.offset_predictor(F.gelu(self.patch_embed(x)))
        return self.box_coder(offsets, (x.shape[2] // 2, x.shape[3] // 2))

    def project(self, samples: Tensor) -> Tensor:
        """Project each patch's samples `(B, C, 9, N)` to `(B, N, embed_dim)`.

        `output_proj` counts its inputs point-major, channel-minor, and the samples come channel-major: it is
        far cheaper to reorder the weight than the samples.
        """
        weight = self.output_proj.weight.unflatten(1, (POINTS**2, -1)).transpose(1, 2).flatten(1)
        return F.linear(samples.flatten(1, 2).transpose(1, 2), weight, self.output_proj.bias)
