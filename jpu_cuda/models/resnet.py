"""ResNet-50 and -101 in FastFCN's form: a stem of three 3×3 convolutions, dilated on request."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

NormLayer = Callable[[int], nn.Module]

# Blocks in layer1 to layer4.
DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolution with a shortcut around them.

    Args:
        in_channels: C.
        planes: channels of the 3×3 convolution; the block has four times as many outputs.
        stride: of the 3×3 convolution.
        dilation: of the 3×3 convolution.
        norm_layer: makes a norm from its number of channels.
    """

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, dilation: int, norm_layer: NormLayer) -> None:
        super().__init__()
        channels = planes * self.expansion
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = norm_layer(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = norm_layer(planes)
        self.conv3 = nn.Conv2d(planes, channels, 1, bias=False)
        self.bn3 = norm_layer(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), norm_layer(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, 4·planes, ⌈H/stride⌉, ⌈W/stride⌉]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x += shortcut
        return self.relu(x)


class ResNet(nn.Module):
    """The backbone of FastFCN's models, under its names.

    ``fc`` belongs to published checkpoints and takes no part in segmentation.

    Args:
        depths: blocks in each of the four layers.
        dilated: output stride 8 instead of 32: layer3 and layer4 have stride 1 and dilations 2 and 4; the
            3×3 convolution of each one's first block still has the dilation of the layer before it.
        norm_layer: makes a norm from its number of channels.
    """

    channels = (256, 512, 1024, 2048)

    def __init__(self, depths: tuple[int, ...], dilated: bool, norm_layer: NormLayer = nn.BatchNorm2d) -> None:
        super().__init__()

        def stem_conv(in_channels: int, channels: int, stride: int) -> nn.Conv2d:
            return nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)

        self.conv1 = nn.Sequential(
            stem_conv(3, 64, 2),
            norm_layer(64),
            nn.ReLU(inplace=True),
            stem_conv(64, 64, 1),
            norm_layer(64),
            nn.ReLU(inplace=True),
            stem_conv(64, 128, 1),
        )
        self.bn1 = norm_layer(128)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        strides, dilations = ((1, 2, 1, 1), (1, 1, 2, 4)) if dilated else ((1, 2, 2, 2), (1, 1, 1, 1))
        in_channels, before = 128, 1
        for i, (depth, stride, dilation) in enumerate(zip(depths, strides, dilations, strict=True)):
            planes = 64 * 2**i
            blocks = [Bottleneck(in_channels, planes, stride, before, norm_layer)]
            in_channels, before = planes * Bottleneck.expansion, dilation
            blocks += [Bottleneck(in_channels, planes, 1, dilation, norm_layer) for _ in range(depth - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(in_channels, 1000)
        self._initialise()

    def _initialise(self) -> None:
        """He's normal initialisation over the fan-out; norms start from 1 and 0 by themselves."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, 3, H, W] → features of strides 4, 8, 16 and 32 (dilated: 4, 8, 8 and 8)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        levels = []
        for i in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{i}")(x)
            levels.append(x)
        return levels
