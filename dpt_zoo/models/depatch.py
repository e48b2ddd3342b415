"""Patch embeddings: a plain one for stage 1, and DePatch for stages 2 to 4 (paper section 3)."""

import math

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ..utils.validation import check_integer
from . import cpu
from .attention import PatchConv, Shape, map_to_tokens


class PatchEmbed(nn.Module):
    """Embed patches of `patch_size` p: a map `(B, in_channels, H, W)` to tokens `(B, H//p * W//p, embed_dim)`."""

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = PatchConv(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(map_to_tokens(self.proj(x)))


def patch_centres(shape: Shape, dtype: torch.dtype, device: torch.device, position: float = 0.5) -> Tensor:
    """Return the centres of a grid of `shape` patches, row by row: `(H*W, 2)` xy in [0, 1].

    `position` is where a centre is in its cell of the grid: 0 is the left or the upper edge, 1 the other one.
    """
    height, width = shape
    x = ((torch.arange(width, device=device).to(dtype) + position) / width)[None, :].expand(height, width)
    y = ((torch.arange(height, device=device).to(dtype) + position) / height)[:, None].expand(height, width)
    return torch.stack((x, y), dim=-1).flatten(0, 1)


class BoxCoder(nn.Module):
    """Decode the four predicted numbers of each patch to the box from which it is sampled.

    Args:
        half_size: half the side of the box for numbers of zero, in cells of the grid; between 0 and 1.
        position: where the box's centre then is in its cell, see `patch_centres`.
        clip: cut boxes at the edges of the map, as the authors do. Otherwise, samples outside the map are zero.
    """

    def __init__(self, half_size: float = 0.25, position: float = 0.5, clip: bool = True) -> None:
        super().__init__()
        self.position = position
        self.clip = clip
        self.wh_bias = nn.Parameter(torch.full((2,), math.atanh(half_size)))

    def forward(self, offsets: Tensor, shape: Shape) -> Tensor:
        """Decode offsets `(B, N, 4)` dx, dy, dw, dh on a grid of `shape` patches to `(B, N, 4)` xyxy in [0, 1]."""
        grid = patch_centres(shape, offsets.dtype, offsets.device, self.position)  # (N, 2)
        patch = grid[0] / self.position  # the first centre is this part of a cell from the corner
        centres = grid + offsets[..., :2].tanh() * patch
        half_sizes = (offsets[..., 2:] + self.wh_bias).tanh().relu() * patch
        boxes = torch.cat((centres - half_sizes, centres + half_sizes), dim=-1)
        return boxes.clamp(0, 1) if self.clip else boxes


def grid_points(boxes: Tensor, points: int = 3) -> Tensor:
    """Return `points` x `points` points in each of `boxes` `(B, N, 4)` xyxy, corners too: `(B, points**2, N, 2)` xy.

    Point `points*ix + iy` is at column ix, row iy.
    """
    steps = torch.linspace(0, 1, points, dtype=boxes.dtype, device=boxes.device).view(-1, 1, 1)
    corner, extent = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    xy = corner.unsqueeze(1) + extent.unsqueeze(1) * steps  # (B, P, N, 2)
    x, y = torch.broadcast_tensors(xy[:, :, None, :, 0], xy[:, None, :, :, 1])  # (B, P, P, N) each
    return torch.stack((x, y), dim=-1).flatten(1, 2)


class DeformablePatches(nn.Module):
    """Sample each patch of a map from a box that is predicted from the patch's content.

    Before training, the boxes are the regular patches: their outer points are the centres of a patch's outer pixels.

    Args:
        in_channels: number of channels C of the map.
        hidden_dim: number of channels of the layer that predicts boxes.
        patch_size: side p of a patch in pixels, at least 2.
        points: number P of points along each side of a box, both ends included; at least 2.
        box_coder: decodes the predictions; by default for the regular patches.
    """

    def __init__(
        self, in_channels: int, hidden_dim: int, patch_size: int, points: int, box_coder: BoxCoder | None = None
    ) -> None:
        super().__init__()
        check_integer("patch_size", patch_size, 2)
        check_integer("points", points, 2)
        self.patch_size = patch_size
        self.points = points
        self.patch_embed = PatchEmbed(in_channels, hidden_dim, patch_size)
        self.offset_predictor = nn.Linear(hidden_dim, 4, bias=False)
        nn.init.zeros_(self.offset_predictor.weight)
        self.box_coder = box_coder or BoxCoder(half_size=(patch_size - 1) / (2 * patch_size))

    def predict_boxes(self, x: Tensor) -> Tensor:
        """Predict from a map `(B, C, H, W)` the box of each patch: `(B, H//p * W//p, 4)` xyxy in [0, 1]."""
        offsets = self.offset_predictor(F.gelu(self.patch_embed(x)))
        offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
        return self.box_coder(offsets, (x.shape[2] // self.patch_size, x.shape[3] // self.patch_size))

    def sample(self, x: Tensor) -> Tensor:
        """Sample each patch of a map `(B, C, H, W)`: return `(B, C, P*P, H//p * W//p)`, points column by column."""
        # As in the authors' code, prediction and sampling are in full precision even under autocast. If the weights are
        # in half precision, only coordinates and sampling are, for which PyTorch's kernel returns NaN otherwise.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.offset_predictor.weight.dtype)
            boxes = self.predict_boxes(x)  # (B, N, 4) xyxy in [0, 1]
            return cpu.sample(x.to(boxes.dtype), 2 * grid_points(boxes, self.points) - 1).to(x.dtype)  # (B, C, P*P, N)


@register_notrace_module  # sampling depends on the tensors: device, type, size
class DePatch(DeformablePatches):
    """Deformable patch embedding: a map `(B, in_channels, H, W)` to tokens `(B, H//p * W//p, embed_dim)`.

    The defaults are the authors': each 2x2 patch is sampled at 3x3 points.

    Args:
        in_channels: number of channels of the map.
        embed_dim: number of channels of a token.
        patch_size: side p of a patch in pixels, at least 2.
        points: number of points along each side of a box, both ends included; at least 2.

    Raises:
        InputError: `patch_size` or `points` is too small.
    """

    value_level_start_index: Tensor

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int = 2, points: int = 3) -> None:
        super().__init__(in_channels, embed_dim, patch_size, points)
        # This buffer is only for the checkpoints, which contain it.
        self.register_buffer("value_level_start_index", torch.zeros(1, dtype=torch.long))
        self.output_proj = nn.Linear(points**2 * in_channels, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        samples = self.sample(x)  # (B, C, P*P, N)
        # `output_proj` expects the channels of each point side by side. Its weight is cheaper to reorder than samples.
        weight = self.output_proj.weight.unflatten(1, (self.points**2, -1)).transpose(1, 2).flatten(1)
        return self.norm(F.linear(samples.flatten(1, 2).transpose(1, 2), weight, self.output_proj.bias))
