"""The same network computed the explicit way, as the authors' code spells it out: what ours is compared with.

Attention is softmax(q k^T) v with the matrix of weights in memory; sampling takes the two steps of a pure-PyTorch
deformable-attention operator with one point per query. Parameters and results are those of `dpt_zoo.models.DPT`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpt_zoo.models.attention import Size, SpatialReductionAttention, map_to_tokens, tokens_to_map
from dpt_zoo.models.backbone import DPT
from dpt_zoo.models.depatch import DePatch, grid_points


class ExplicitAttention(SpatialReductionAttention):
    """Attention by matrix products and a softmax."""

    def forward(self, x: Tensor, size: Size) -> Tensor:
        batch, num_tokens, dim = x.shape
        context = x
        if self.reduction > 1:
            context = self.norm(map_to_tokens(self.sr(tokens_to_map(x, size).contiguous())))
        q = self.q(x).reshape(batch, num_tokens, self.num_heads, -1).permute(0, 2, 1, 3)
        k, v = self.kv(context).reshape(batch, -1, 2, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, num_tokens, dim))


class ExplicitDePatch(DePatch):
    """Sampling through values `(B, H*W, heads, C)` with one head, one level, one point and a weight of one."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        points = grid_points(self.predict_boxes(x)).transpose(1, 2).flatten(1, 2)  # (B, N*9, 2)
        values = x.flatten(2).transpose(1, 2).unsqueeze(2)  # (B, H*W, 1, C)
        samples = sample_two_step(values, (x.shape[2], x.shape[3]), points)
        return self.norm(self.output_proj(samples.reshape(len(x), -1, self.output_proj.in_features)))


def sample_two_step(values: Tensor, size: Size, points: Tensor) -> Tensor:
    """Sample values `(B, H*W, heads, C)` at points `(B, Q, 2)` in [0, 1]: `(B, Q, heads*C)`."""
    batch, _, heads, channels = values.shape
    values = values.flatten(2).transpose(1, 2).reshape(batch * heads, channels, *size)
    grid = (2 * points - 1).unsqueeze(2)  # (B, Q, 1, 2)
    sampled = F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    weights = torch.ones_like(sampled[:, :1])
    weighted = (torch.stack([sampled], dim=-2).flatten(-2) * weights).sum(-1)
    return weighted.view(batch, heads * channels, -1).transpose(1, 2).contiguous()


def make_explicit(model: DPT) -> DPT:
    """Switch a DPT, in place, to the explicit computation; its parameters stay."""
    swaps: dict[type[nn.Module], type[nn.Module]] = {
        SpatialReductionAttention: ExplicitAttention,
        DePatch: ExplicitDePatch,
    }
    for module in model.modules():
        module.__class__ = swaps.get(type(module), type(module))
    return model
