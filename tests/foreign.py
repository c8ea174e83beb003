"""JPUs as other packages structure them, written here for the tests under names of our own.

Only the structure (names of submodules, order of concatenation, arguments kept as attributes) is that
of the packages; mmsegmentation's own code is an oracle of its own (test_mmseg.py).
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True))


class Separable(nn.Sequential):
    """FastFCN's and Tramac's separable convolution: the depthwise one's name is the difference."""

    def __init__(self, name: str, channels: int, width: int, d: int, norm: Any = nn.BatchNorm2d) -> None:
        depthwise = nn.Conv2d(channels, channels, 3, padding=d, dilation=d, groups=channels, bias=False)
        pointwise = nn.Conv2d(channels, width, 1, bias=False)
        super().__init__(OrderedDict([(name, depthwise), ("bn", norm(channels)), ("pointwise", pointwise)]))


class FastFCNNeck(nn.Module):
    """As FastFCN's JPU."""

    depthwise = "conv1"

    def __init__(self, in_channels: Sequence[int], width: int, up_kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.up_kwargs = up_kwargs
        for level in (5, 4, 3):
            self.add_module(f"conv{level}", conv(in_channels[level - 6], width))
        for i in range(4):
            separable = Separable(self.depthwise, 3 * width, width, 2**i)
            self.add_module(f"dilation{i + 1}", nn.Sequential(separable, nn.BatchNorm2d(width), nn.ReLU(True)))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        f5, f4, f3 = (self.get_submodule(f"conv{n}")(inputs[n - 6]) for n in (5, 4, 3))
        up = [F.interpolate(f, f3.shape[2:], **self.up_kwargs) for f in (f5, f4)]
        u = torch.cat((*up, f3), 1)
        out = torch.cat([self.get_submodule(f"dilation{i}")(u) for i in (1, 2, 3, 4)], 1)
        return inputs[0], inputs[1], inputs[2], out


class TramacNeck(FastFCNNeck):
    """As the JPU of awesome-semantic-segmentation-pytorch, which keeps no resize options."""

    depthwise = "conv"

    def __init__(self, in_channels: Sequence[int], width: int) -> None:
        super().__init__(in_channels, width, {"mode": "bilinear", "align_corners": True})

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        self.up_kwargs = {"mode": "bilinear", "align_corners": True}
        outputs = super().forward(*inputs)
        del self.up_kwargs
        return outputs


class JointUp(nn.Module):
    """As FastFCN's JUM."""

    def __init__(self, in_channels: Sequence[int], width: int, d: int, up_kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.up_kwargs = up_kwargs
        self.conv_l = conv(in_channels[1], width)
        self.conv_h = conv(in_channels[0], width)

        def norm(channels: int) -> nn.Module:
            return nn.GroupNorm(32, channels)

        for i in range(3):
            separable = Separable("conv1", 2 * width, width, d * 2**i, norm)
            self.add_module(f"dilation{i + 1}", nn.Sequential(separable, norm(width), nn.ReLU(True)))

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        h = self.conv_h(high)
        up = F.interpolate(self.conv_l(low), h.shape[2:], **self.up_kwargs)
        u = torch.cat((up, h), 1)
        return torch.cat((up, *(self.get_submodule(f"dilation{i}")(u) for i in (1, 2, 3))), 1)


class FastFCNPyramidNeck(nn.Module):
    """As FastFCN's JPU_X."""

    def __init__(self, in_channels: Sequence[int], width: int, up_kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.jum_1 = JointUp(in_channels[:2], width // 2, 1, up_kwargs)
        self.jum_2 = JointUp(in_channels[1:], width, 2, up_kwargs)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        out = self.jum_2(inputs[3], self.jum_1(inputs[2], inputs[1]))
        return inputs[0], inputs[1], inputs[2], out


class SSSegSeparable(nn.Module):
    """As sssegmentation's separable convolution."""

    def __init__(self, channels: int, width: int, d: int) -> None:
        super().__init__()
        self.depthwise_conv = nn.Conv2d(channels, channels, 3, 1, d, d, channels, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(channels)
        self.pointwise_conv = nn.Conv2d(channels, width, 1, bias=False)
        self.pointwise_bn = nn.BatchNorm2d(width)
        self.pointwise_activate = nn.ReLU(True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pointwise_conv(self.depthwise_bn(self.depthwise_conv(x)))
        return self.pointwise_activate(self.pointwise_bn(x))  # type: ignore[no-any-return]


class SSSegNeck(nn.Module):
    """As sssegmentation's JPU."""

    def __init__(
        self,
        in_channels_list: Sequence[int],
        width: int,
        align_corners: bool = False,
        start_level: int = 0,
        dilations: Sequence[int] = (1, 2, 4, 8),
    ) -> None:
        super().__init__()
        self.in_channels_list = in_channels_list
        self.start_level = start_level
        self.backbone_end_level = len(in_channels_list)
        self.align_corners = align_corners
        self.conv_layers = nn.ModuleList(conv(c, width) for c in in_channels_list[start_level:])
        channels = len(self.conv_layers) * width
        self.dilation_layers = nn.ModuleList(SSSegSeparable(channels, width, d) for d in dilations)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        used = inputs[self.start_level :]
        features = [stage(x) for stage, x in zip(self.conv_layers, used, strict=True)]
        size = features[0].shape[2:]
        options: dict[str, Any] = {"mode": "bilinear", "align_corners": self.align_corners}
        u = torch.cat([features[0], *(F.interpolate(f, size, **options) for f in features[1:])], 1)
        return (*used[:-1], torch.cat([branch(u) for branch in self.dilation_layers], 1))
