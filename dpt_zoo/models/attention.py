"""Attention to a spatially reduced map, and the transformer block around it (paper section 3, after PVT)."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .cpu import Linear, compute_in_parts, count_shares, runs_on_cpu, split_to_cache

Shape = tuple[int, int]
"""Height and width of a feature map, in cells."""


def tokens_to_map(tokens: Tensor, shape: Shape) -> Tensor:
    """View tokens `(B, H*W, C)` as a channels-last map `(B, C, H, W)`, without a copy."""
    # In this order the strides of a single image tell the layout, too; PyTorch's operators go by them.
    return tokens.unflatten(1, shape).permute(0, 3, 1, 2)


def map_to_tokens(x: Tensor) -> Tensor:
    """View a map `(B, C, H, W)` as tokens `(B, H*W, C)`: contiguous where the map is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class PatchConv(nn.Conv2d):
    """A convolution of patches that do not overlap: from any map to a channels-last one."""

    def __init__(self, in_channels: int, out_channels: int, patch_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        # With one of them in another layout PyTorch would reorder the map, and its result back.
        x, weight = (each.contiguous(memory_format=torch.channels_last) for each in (x, self.weight))
        return self._conv_forward(x, weight, self.bias)


class SpatialReductionAttention(nn.Module):
    """Multi-head attention of all tokens to the same tokens on a map `reduction` times smaller."""

    def __init__(self, dim: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.reduction = reduction
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.proj = Linear(dim, dim)
        if reduction > 1:
            self.sr = PatchConv(dim, dim, reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, shape: Shape) -> Tensor:
        """Attend; `x` is `(B, N, C)`, `shape` its map's height and width (unused where nothing is reduced)."""
        return self.attend_from(x, *self.keys_and_values(x, shape))

    def keys_and_values(self, x: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        """Compute what tokens `(B, N, C)` attend to: `(B, heads, M, C/heads)` each."""
        context = x  # (B, M, C)
        if self.reduction > 1:
            context = self.norm(map_to_tokens(self.sr(tokens_to_map(x, shape))))
        k, v = self.kv(context).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        # A projected average of values is the average of projected ones, and these are few.
        return k, self.proj(v) if self.num_heads == 1 else v

    def attend_from(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute for tokens `(B, N, C)`, all or a part, what they find in `keys_and_values`."""
        q = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, C/heads)
        found = attend(q, k, v).transpose(1, 2).flatten(2)
        return found if self.num_heads == 1 else self.proj(found)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from `(B, heads, N, D)` to `(B, heads, M, D)`."""
    if runs_on_cpu(q):
        if torch.is_grad_enabled():
            return _attend_in_equal_parts(q, k, v)
        if q.dtype == torch.bfloat16:
            return _attend_in_products(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def _attend_in_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend by matrix products: in bfloat16, PyTorch's CPU kernel has no use of the instructions that those have."""
    q, k = q.transpose(1, 2) * q.shape[3] ** -0.5, k.transpose(2, 3)  # (B, N, heads, D), (B, heads, D, M)

    def attend_part(part: Tensor) -> Tensor:
        return ((part.transpose(1, 2) @ k).softmax(dim=3) @ v).transpose(1, 2)

    return compute_in_parts(attend_part, q, q.shape[2] * k.shape[3]).transpose(1, 2)


def _attend_in_equal_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend as PyTorch's CPU kernel can share out to threads in its backward pass: by images and heads.

    Where those are too few, a part of the tokens passes for an image.
    """
    batch, heads, num_tokens, _ = q.shape
    parts = count_shares(batch * heads, num_tokens)
    q = q.unflatten(2, (parts, -1)).transpose(1, 2).flatten(0, 1)
    k, v = (x.unsqueeze(1).expand(-1, parts, -1, -1, -1).flatten(0, 1) for x in (k, v))
    x = F.scaled_dot_product_attention(q, k, v)
    return x.unflatten(0, (batch, parts)).transpose(1, 2).flatten(2, 3)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them, on tokens `(B, N, C)`."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.fc1(x))

    def finish(self, hidden: Tensor) -> Tensor:
        """Activate and project the hidden layer; without gradients it is written over."""
        return self.fc2(F.gelu(hidden) if torch.is_grad_enabled() else torch.ops.aten.gelu_(hidden))


class Block(nn.Module):
    """Pre-norm transformer block on tokens `(B, N, C)`."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SpatialReductionAttention(dim, num_heads, reduction)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, mlp_ratio * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, shape: Shape) -> Tensor:
        if runs_on_cpu(x) and not (torch.is_grad_enabled() or self.training):
            return self._infer_in_parts(x, shape)
        x = self._add(x, lambda tokens: self.attn(self.norm1(tokens), shape), self.norm1, self.attn)
        return self._add(x, self.feed_forward, self.norm2, self.mlp)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Compute what is added to tokens `(B, N, C)`, each of them by itself."""
        if not runs_on_cpu(x):
            return self.mlp(self.norm2(x))
        # Of the hidden layer only what goes into its activation is kept for the gradients.
        finish = partial(checkpoint, self.mlp.finish, use_reentrant=False, preserve_rng_state=False)
        return compute_in_parts(lambda part: finish(self.mlp.fc1(self.norm2(part))), x, self.mlp.fc1.out_features)

    def _infer_in_parts(self, x: Tensor, shape: Shape) -> Tensor:
        """Compute without gradients, a part of the tokens at a time."""
        tokens = self.norm1(x)
        k, v = self.attn.keys_and_values(tokens, shape)
        # The sum takes the place of tokens that have attended: of new memory the system clears each page.
        parts = (split_to_cache(each, 2 * x.shape[2]) for each in (x, tokens))  # queries and what they find
        for part, part_tokens in zip(*parts, strict=True):
            torch.add(part, self.attn.attend_from(part_tokens, k, v), out=part_tokens)
        for part in split_to_cache(tokens, self.mlp.fc1.out_features):
            part += self.mlp(self.norm2(part))
        return tokens

    def _add(self, x: Tensor, branch: Callable[[Tensor], Tensor], *modules: nn.Module) -> Tensor:
        """Add to tokens `(B, N, C)` what a branch, which these modules are for, makes of them.

        In training some images are left as they are. On a CPU the branch is not computed for these.
        """
        if not (runs_on_cpu(x) and self.training and self.drop_path.drop_prob):
            return x + self.drop_path(branch(x))
        factors = self.drop_path(x.new_ones(len(x), 1, 1))  # 0, or what makes up for it
        kept = factors.flatten().nonzero().flatten()
        if len(kept) == len(x):
            return torch.addcmul(x, factors, branch(x))
        if len(kept) > 0:
            return x.index_add(0, kept, (factors[kept] * branch(x[kept])).to(x.dtype))
        # The gradients of what was not computed are zero, but there: optimizers and DistributedDataParallel need them.
        parameters = (parameter for module in modules for parameter in module.parameters())
        return x + 0 * torch.stack([parameter.sum() for parameter in parameters]).sum()
