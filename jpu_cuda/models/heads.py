"""Segmentation heads under FastFCN's names: Encoding (EncNet), ASPP (DeepLabV3), PSP and FCN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import is_autocasting

NormLayer = Callable[[int], nn.Module]


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize with aligned corners, as everywhere in FastFCN."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


def _conv_norm_relu(
    in_channels: int, channels: int, kernel_size: int, norm_layer: NormLayer, dilation: int = 1
) -> list[nn.Module]:
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(in_channels, channels, kernel_size, padding=padding, dilation=dilation, bias=False)
    return [conv, norm_layer(channels), nn.ReLU(inplace=True)]


class FCNHead(nn.Module):
    """3×3 convolution to a quarter of the channels, then 1×1 to the classes; FastFCN's auxiliary head too."""

    def __init__(self, in_channels: int, num_classes: int, norm_layer: NormLayer) -> None:
        super().__init__()
        channels = in_channels // 4
        self.conv5 = nn.Sequential(
            *_conv_norm_relu(in_channels, channels, 3, norm_layer),
            nn.Dropout2d(0.1),
            nn.Conv2d(channels, num_classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → logits [N, num_classes, H, W]."""
        return self.conv5(x)


class PyramidPooling(nn.Module):
    """The input beside its averages over 1, 4, 9 and 36 regions (PSPNet, arXiv 1612.01105, section 3.2)."""

    bins = (1, 2, 3, 6)

    def __init__(self, in_channels: int, norm_layer: NormLayer) -> None:
        super().__init__()
        for i in range(1, 5):
            self.add_module(f"conv{i}", nn.Sequential(*_conv_norm_relu(in_channels, in_channels // 4, 1, norm_layer)))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, 2·C, H, W]."""
        pooled = [
            resize(self.get_submodule(f"conv{i}")(F.adaptive_avg_pool2d(x, bins)), x.shape[2:])
            for i, bins in enumerate(self.bins, start=1)
        ]
        return torch.cat((x, *pooled), 1)


class PSPHead(nn.Module):
    """Pyramid pooling, then the FCN head's layers (PSPNet, arXiv 1612.01105)."""

    def __init__(self, in_channels: int, num_classes: int, norm_layer: NormLayer) -> None:
        super().__init__()
        channels = in_channels // 4
        self.conv5 = nn.Sequential(
            PyramidPooling(in_channels, norm_layer),
            *_conv_norm_relu(in_channels + 4 * channels, channels, 3, norm_layer),
            nn.Dropout2d(0.1),
            nn.Conv2d(channels, num_classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → logits [N, num_classes, H, W]."""
        return self.conv5(x)


class AsppPooling(nn.Module):
    """The image's average, seen from every pixel."""

    def __init__(self, in_channels: int, channels: int, norm_layer: NormLayer) -> None:
        super().__init__()
        self.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_conv_norm_relu(in_channels, channels, 1, norm_layer))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, channels, H, W]."""
        return resize(self.gap(x), x.shape[2:])


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling (DeepLabV3, arXiv 1706.05587, section 3.3), dilations 12, 24 and 36."""

    dilations = (12, 24, 36)

    def __init__(self, in_channels: int, norm_layer: NormLayer) -> None:
        super().__init__()
        channels = in_channels // 8
        self.b0 = nn.Sequential(*_conv_norm_relu(in_channels, channels, 1, norm_layer))
        for i, dilation in enumerate(self.dilations, start=1):
            self.add_module(f"b{i}", nn.Sequential(*_conv_norm_relu(in_channels, channels, 3, norm_layer, dilation)))
        self.b4 = AsppPooling(in_channels, channels, norm_layer)
        self.project = nn.Sequential(*_conv_norm_relu(5 * channels, channels, 1, norm_layer), nn.Dropout2d(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, C/8, H, W]."""
        return self.project(torch.cat([self.get_submodule(f"b{i}")(x) for i in range(5)], 1))


class AsppHead(nn.Module):
    """ASPP, 3×3 convolution, 1×1 to the classes (DeepLabV3, arXiv 1706.05587)."""

    def __init__(self, in_channels: int, num_classes: int, norm_layer: NormLayer) -> None:
        super().__init__()
        channels = in_channels // 8
        self.aspp = Aspp(in_channels, norm_layer)
        self.block = nn.Sequential(
            *_conv_norm_relu(channels, channels, 3, norm_layer),
            nn.Dropout2d(0.1),
            nn.Conv2d(channels, num_classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → logits [N, num_classes, H, W]."""
        return self.block(self.aspp(x))


class Encoding(nn.Module):
    """Residuals of pixels to codewords, softly assigned and summed (EncNet, arXiv 1803.08904, Eq. 1).

    With r_ik = x_i − c_k and a_ik = softmax over k of s_k·‖r_ik‖²: e_k = Σ_i a_ik·r_ik. Neither the r_ik
    nor anything else of size pixels × codewords × channels is made: the norms come from
    ‖x‖² − 2·x·c + ‖c‖², the sums from Σ a·x − (Σ a)·c. At least float32, also under autocast, since
    the differences cancel, and the sums over all pixels of a large image pass float16's range.

    Args:
        channels: C.
        codewords: K.
    """

    def __init__(self, channels: int, codewords: int) -> None:
        super().__init__()
        bound = (codewords * channels) ** -0.5
        self.codewords = nn.Parameter(torch.empty(codewords, channels).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(codewords).uniform_(-1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, K, C], in the dtype of the parameters (float32 under autocast)."""
        autocast_off = torch.autocast(x.device.type, enabled=False) if is_autocasting(x.device) else nullcontext()
        with autocast_off:
            wide = torch.promote_types(x.dtype, torch.float32)
            pixels = x.to(wide).flatten(2).transpose(1, 2)  # [N, HW, C]
            codewords, scale = self.codewords.to(wide), self.scale.to(wide)
            products = pixels @ codewords.T  # [N, HW, K]
            distances = pixels.square().sum(2, keepdim=True) - 2 * products + codewords.square().sum(1)
            assignment = (scale * distances).softmax(2)
            encoded = assignment.transpose(1, 2) @ pixels - assignment.sum(1)[..., None] * codewords
            return encoded.to(self.codewords.dtype)


class Mean(nn.Module):
    """Mean over one dimension, as a layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dim)


class EncModule(nn.Module):
    """Channel gates from encoded context (EncNet, arXiv 1803.08904, section 3.1)."""

    codewords = 32

    def __init__(self, channels: int, num_classes: int, se_loss: bool, norm_layer: NormLayer) -> None:
        super().__init__()
        self.encoding = nn.Sequential(
            *_conv_norm_relu(channels, channels, 1, norm_layer),
            Encoding(channels, self.codewords),
            _norm_over_codes(norm_layer, self.codewords),
            nn.ReLU(inplace=True),
            Mean(1),
        )
        self.fc = nn.Sequential(nn.Linear(channels, channels), nn.Sigmoid())
        self.selayer = nn.Linear(channels, num_classes) if se_loss else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """[N, C, H, W] → gated features, and logits [N, num_classes] of the classes present with ``se_loss``."""
        encoded, norm = self.encoding[:4](x), self.encoding[4]
        # Norms of images (frozen ones, subclasses of BatchNorm2d) take the codes as rows of pixels.
        encoded = norm(encoded) if isinstance(norm, nn.BatchNorm1d) else norm(encoded[..., None])[..., 0]
        context = self.encoding[5:](encoded)
        gated = F.relu(x + x * self.fc(context)[:, :, None, None])
        return (gated,) if self.selayer is None else (gated, self.selayer(context))


def _norm_over_codes(norm_layer: NormLayer, codewords: int) -> nn.Module:
    """The norm of [N, K, C] per codeword; a plain BatchNorm2d becomes one-dimensional."""
    norm: Any = norm_layer(codewords)
    if type(norm) is not nn.BatchNorm2d:
        return norm
    return nn.BatchNorm1d(codewords, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)


class EncHead(nn.Module):
    """The Encoding head (EncNet, arXiv 1803.08904), with FastFCN's optional lateral connections.

    Args:
        level_channels: channels of strides 8 and 16, which ``lateral`` reads.
        in_channels: of the features.
        num_classes: of the logits.
        kernel_size: of the first convolution: 3 on a dilated backbone, 1 after an upsampling module.
        se_loss: whether to predict which classes are present.
        lateral: whether to fuse the levels of strides 8 and 16.
        norm_layer: makes a norm from its number of channels.
    """

    width = 512

    def __init__(
        self,
        level_channels: Sequence[int],
        in_channels: int,
        num_classes: int,
        kernel_size: int,
        se_loss: bool,
        lateral: bool,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        self.lateral = lateral
        self.conv5 = nn.Sequential(*_conv_norm_relu(in_channels, self.width, kernel_size, norm_layer))
        if lateral:
            self.connect = nn.ModuleList(
                nn.Sequential(*_conv_norm_relu(c, self.width, 1, norm_layer)) for c in level_channels
            )
            self.fusion = nn.Sequential(*_conv_norm_relu(3 * self.width, self.width, 3, norm_layer))
        self.encmodule = EncModule(self.width, num_classes, se_loss, norm_layer)
        self.conv6 = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(self.width, num_classes, 1))

    def forward(self, x: Tensor, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Features [N, C, H, W] and the levels of strides 8 and 16 → (logits[, presence logits])."""
        x = self.conv5(x)
        if self.lateral:
            # On a dilated backbone both have the features' size. After an upsampling module the second
            # is half of it, at which the original's concatenation fails; hence the resize.
            laterals = [
                y if y.shape[2:] == x.shape[2:] else resize(y, x.shape[2:])
                for y in (connect(level) for connect, level in zip(self.connect, levels, strict=True))
            ]
            x = self.fusion(torch.cat((x, *laterals), 1))
        gated, *presence = self.encmodule(x)
        return (self.conv6(gated), *presence)
