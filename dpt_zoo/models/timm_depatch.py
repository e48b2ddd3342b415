"""DePatch in other pyramid transformers: those of timm that are listed in `with_depatch`."""

from typing import TypeVar

import torch.nn.functional as F
from timm.layers import register_notrace_module
from timm.models.pvt_v2 import OverlapPatchEmbed
from timm.models.swin_transformer import PatchMerging
from torch import Tensor, nn

from ..errors import InputError
from .attention import Shape
from .depatch import BoxCoder, DeformablePatches

STRIDE = 2  # of the patch embeddings of stages 2 to 4

ModelT = TypeVar("ModelT", bound=nn.Module)


@register_notrace_module  # as DePatch
class DeformableEmbedding(DeformablePatches):
    """A patch embedding of another model, which gets deformable patches instead of the regular ones of a map.

    The map is resampled so that the pixels of each patch lie side by side, and the embedding takes patch after patch.

    Args:
        embedding: the embedding; its patches have a stride of `kernel_size`, without padding.
        in_channels: number of channels of the map.
        out_channels: number of channels of the embedding's output.
        kernel_size: side of the embedding's patches in pixels.
        padding: by how many pixels the first regular patch begins before the map.
        channels_last: whether maps are `(B, H, W, C)` instead of `(B, C, H, W)`.
    """

    def __init__(
        self,
        embedding: nn.Module,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        padding: int = 0,
        channels_last: bool = False,
    ) -> None:
        # The regular patches: their first centre is kernel_size / 2 - padding pixels from the corner.
        position = (kernel_size / 2 - padding) / STRIDE
        box_coder = BoxCoder((kernel_size - 1) / (2 * STRIDE), position, clip=False)
        super().__init__(in_channels, out_channels, STRIDE, points=kernel_size, box_coder=box_coder)
        self.embedding = embedding
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        """Embed a map of any size; an odd side is padded by a row or a column of zeros."""
        if self.channels_last:
            x = x.permute(0, 3, 1, 2)
        x = F.pad(x, (0, x.shape[3] % STRIDE, 0, x.shape[2] % STRIDE))
        patches = self._lay_out(self.sample(x), (x.shape[2] // STRIDE, x.shape[3] // STRIDE))
        return self.embedding(patches.permute(0, 2, 3, 1) if self.channels_last else patches)

    def _lay_out(self, samples: Tensor, shape: Shape) -> Tensor:
        """Arrange samples `(B, C, P*P, H*W)` of a grid of `shape` as a map `(B, C, H*P, W*P)`."""
        x = samples.unflatten(3, shape).unflatten(2, (self.points, self.points))  # (B, C, column, row, H, W)
        return x.permute(0, 1, 4, 3, 5, 2).flatten(2, 3).flatten(3, 4)


def with_depatch(model: ModelT) -> ModelT:
    """Let the patch embeddings of stages 2 to 4 of a timm model take deformable patches, in place.

    The models are PVT v2 (`pvt_v2_*`) and the first Swin Transformer (`swin_*`), also with `features_only=True`. All of
    their weights are kept, and until training changes the new parameters the features are the same up to rounding. The
    new layers are those with which the paper predicts boxes: for C channels from c, 4*c*C + 7*C + 2 parameters.

    Args:
        model: the model. It is changed, and returned.

    Raises:
        InputError: The model is of another kind, or already has DePatch.
    """
    if any(isinstance(module, DeformablePatches) for module in model.modules()):
        raise InputError(f"this {type(model).__name__} already has DePatch")
    replaced = 0
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if embedding := _make_deformable(module):
                reference = next(module.parameters())
                setattr(parent, name, embedding.to(reference.device, reference.dtype).train(module.training))
                replaced += 1
    if not replaced:
        raise InputError(
            f"with_depatch cannot change {type(model).__name__}: it supports timm's PVT v2 and the first Swin "
            "Transformer, pvt_v2_* and swin_*"
        )
    return model


def _make_deformable(module: nn.Module) -> DeformableEmbedding | None:
    """Return the deformable form of a patch embedding of stages 2 to 4; None for other modules."""
    if isinstance(module, PatchMerging):
        return DeformableEmbedding(module, module.dim, module.out_dim, kernel_size=2, channels_last=True)
    if isinstance(module, OverlapPatchEmbed) and module.proj.stride == (STRIDE, STRIDE):
        conv = module.proj
        (kernel_size, _), (padding, _) = conv.kernel_size, conv.padding
        conv.stride, conv.padding = conv.kernel_size, (0, 0)
        return DeformableEmbedding(module, conv.in_channels, conv.out_channels, kernel_size, padding)
    return None
