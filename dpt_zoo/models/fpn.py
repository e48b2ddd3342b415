"""DPT with a feature pyramid, as the backbone of torchvision's detectors."""

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from ..manifest.records import get_model_info
from ..utils.validation import check_integer
from .backbone import DPT
from .pretrained import load_backbone


class NamedMaps(nn.Module):
    """A `backbone` whose maps of `out_indices` have names, "0" for the first, as torchvision's pyramid expects."""

    def __init__(self, backbone: DPT, out_indices: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.out_indices = tuple(out_indices)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.backbone(x)
        return {str(name): maps[index] for name, index in enumerate(self.out_indices)}


def torchvision_backbone(
    name: str,
    *,
    pretrained: bool = True,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    out_channels: int = 256,
    extra_blocks: ExtraFPNBlock | None = None,
    drop_path_rate: float = 0.1,
    gradient_checkpointing: bool = False,
) -> BackboneWithFPN:
    """Return DPT with a feature pyramid for `torchvision.models.detection`, with `DPT` as `.body.backbone`.

    Args:
        name: a model of the zoo whose backbone to take: a classifier ("dpt_small") or a detector ("mrcnn_dpt_s_1x").
        pretrained: load the backbone's weights of this model. The pyramid is always new.
        out_indices: the maps in the pyramid, 0 to 3, with strides 4, 8, 16 and 32.
        out_channels: number of channels of the pyramid's maps.
        extra_blocks: more levels; by default `LastLevelMaxPool()`.
        drop_path_rate: see `DPT`.
        gradient_checkpointing: see `DPT`.

    Raises:
        UnknownModelError: No model has this name.
        InputError: `out_indices` are invalid.
        FetchError, OutputError, WeightsError: The weights cannot be fetched, stored or loaded.
    """
    backbone = DPT(get_model_info(name).size, drop_path_rate, gradient_checkpointing=gradient_checkpointing)
    for index in out_indices:
        check_integer("out_indices", index, 0, len(backbone.stages) - 1)
    if pretrained:
        load_backbone(backbone, name)
    channels = [backbone.stages[index + 1].embed_dim for index in out_indices]
    # torchvision would run a body's children one after the other; DPT returns its maps itself.
    with_fpn = BackboneWithFPN(nn.Sequential(), {}, channels, out_channels, extra_blocks)
    with_fpn.body = NamedMaps(backbone, out_indices)
    return with_fpn
