"""The JPU of SegmentationBLWX/sssegmentation: mmsegmentation's with other keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..mmseg import LevelledJPU
from .core import conv_norm_relu
from .layout import SSSEGMENTATION
from .parts import runs_children_in_order


@runs_children_in_order
class DepthwiseSeparableConv2d(nn.Module):
    """Depthwise 3×3 convolution and norm, then pointwise convolution, norm and ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, dilation: int, norm_layer: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.depthwise_conv = nn.Conv2d(
            in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False
        )
        self.depthwise_bn = norm_layer(in_channels)
        self.pointwise_conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.pointwise_bn = norm_layer(out_channels)
        self.pointwise_activate = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, out_channels, H, W]."""
        x = self.depthwise_bn(self.depthwise_conv(x))
        return self.pointwise_activate(self.pointwise_bn(self.pointwise_conv(x)))


class SSSegmentationJPU(LevelledJPU):
    """sssegmentation's JPU; :func:`jpu_cuda.replace_jpu` puts it in the place of the original.

    Args:
        in_channels_list: channels of the backbone's levels, finest first.
        mid_channels: width of each stage and each branch.
        start_level: first level used.
        end_level: one past the last level used; -1 for all.
        dilations: one branch each.
        align_corners: as in :func:`torch.nn.functional.interpolate`.
        norm_layer: makes every norm from its number of channels (in the place of ``norm_cfg``, whose
            types that package alone knows).
    """

    layout = SSSEGMENTATION

    def __init__(
        self,
        in_channels_list: Sequence[int] = (512, 1024, 2048),
        mid_channels: int = 512,
        start_level: int = 0,
        end_level: int = -1,
        dilations: Sequence[int] = (1, 2, 4, 8),
        align_corners: bool = False,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self._configure_levels(in_channels_list, mid_channels, start_level, end_level, dilations, align_corners)
        self.conv_layers = nn.ModuleList(conv_norm_relu(c, mid_channels, norm_layer) for c in self.level_channels)
        self.dilation_layers = nn.ModuleList(
            DepthwiseSeparableConv2d(self.num_levels * mid_channels, mid_channels, d, norm_layer)
            for d in self.dilations
        )
