"""The network computed explicitly, step by step as in the authors' code, for comparison with `dpt_zoo.models.DPT`.

Attention is softmax(q k^T) v with the attention matrix in memory. The MLP's whole hidden layer is in memory. Patch
centres come from a loop over rows and columns at every call. Sampling takes the two steps of a pure-PyTorch
deformable-attention operator with one point per query. Maps are contiguous `(B, C, H, W)` copies. The rest costs little
and is inherited. Parameters and results are those of `dpt_zoo.models.DPT`.
"""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpt_zoo.models.attention import Mlp, PatchConv, Shape, SpatialReductionAttention
from dpt_zoo.models.backbone import DPT
from dpt_zoo.models.cpu import Linear
from dpt_zoo.models.depatch import DePatch, PatchEmbed, grid_points

ModelT = TypeVar("ModelT", bound=nn.Module)


def make_explicit(model: ModelT) -> ModelT:
    """Switch a DPT, or a part of one, to the explicit computation, in place; its parameters stay the same."""
    swaps: dict[type[nn.Module], type[nn.Module]] = {
        DePatch: ExplicitDePatch,
        Linear: nn.Linear,
        Mlp: ExplicitMlp,
        PatchConv: nn.Conv2d,
        PatchEmbed: ExplicitPatchEmbed,
        SpatialReductionAttention: ExplicitAttention,
    }
    for module in model.modules():
        module.__class__ = swaps.get(type(module), type(module))
    if isinstance(model, DPT):
        model.__class__ = type("ExplicitDPT", (ExplicitStages, type(model)), {})
    return model


class ExplicitStages(DPT):
    """Stages whose maps are contiguous."""

    def run_stage(self, x: Tensor, stage: int) -> Tensor:
        tokens, shape = self.embed(x, stage)
        return _to_contiguous_map(self.transform(tokens, shape, stage), shape)


class ExplicitAttention(SpatialReductionAttention):
    """Attention as matrix products and a softmax."""

    def forward(self, x: Tensor, shape: Shape) -> Tensor:
        batch, num_tokens, dim = x.shape
        context = x
        if self.reduction > 1:
            context = self.norm(self.sr(_to_contiguous_map(x, shape)).flatten(2).transpose(1, 2))
        q = self.q(x).reshape(batch, num_tokens, self.num_heads, -1).permute(0, 2, 1, 3)
        k, v = self.kv(context).reshape(batch, -1, 2, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, num_tokens, dim))


class ExplicitMlp(Mlp):
    """An MLP with its whole hidden layer, before and after the activation, in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class ExplicitPatchEmbed(PatchEmbed):
    """A convolution and a norm."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class ExplicitDePatch(DePatch):
    """Sampling of values `(B, H*W, heads, C)` with one head, one level, one point and a weight of one."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # in full precision even under autocast
            x = x.to(self.offset_predictor.weight.dtype)
            points = grid_points(self.predict_boxes(x)).transpose(1, 2).flatten(1, 2)  # (B, N*9, 2)
            values = x.flatten(2).transpose(1, 2).unsqueeze(2)  # (B, H*W, 1, C)
            samples = sample_two_step(values, (x.shape[2], x.shape[3]), points)
        return self.norm(self.output_proj(samples.reshape(len(x), -1, self.output_proj.in_features)))

    def predict_boxes(self, x: Tensor) -> Tensor:
        height, width = x.shape[2] // 2, x.shape[3] // 2
        offsets = self.offset_predictor(F.gelu(self.patch_embed(x)))
        patch = offsets.new_tensor((1 / width, 1 / height))
        centres = loop_centres((height, width)).to(offsets) + offsets[..., :2].tanh() * patch
        half_sizes = (offsets[..., 2:] + self.box_coder.wh_bias).tanh().relu() * patch
        return torch.cat((centres - half_sizes, centres + half_sizes), dim=-1).clamp(0, 1)


def loop_centres(shape: Shape) -> Tensor:
    """Return the centres of a grid of `shape` patches, row by row: `(H*W, 2)` xy in [0, 1], float64."""
    height, width = shape
    centres = [((column + 0.5) / width, (row + 0.5) / height) for row in range(height) for column in range(width)]
    return torch.tensor(centres, dtype=torch.float64)


def sample_two_step(values: Tensor, shape: Shape, points: Tensor) -> Tensor:
    """Sample values `(B, H*W, heads, C)` at points `(B, Q, 2)` in [0, 1]: `(B, Q, heads*C)`."""
    batch, _, heads, channels = values.shape
    values = values.flatten(2).transpose(1, 2).reshape(batch * heads, channels, *shape)
    grid = (2 * points - 1).unsqueeze(2)  # (B, Q, 1, 2)
    sampled = F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    weights = torch.ones_like(sampled[:, :1])
    weighted = (torch.stack([sampled], dim=-2).flatten(-2) * weights).sum(-1)
    return weighted.view(batch, heads * channels, -1).transpose(1, 2).contiguous()


def _to_contiguous_map(tokens: Tensor, shape: Shape) -> Tensor:
    """Copy tokens `(B, H*W, C)` to a contiguous map `(B, C, H, W)`."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *shape).contiguous()
