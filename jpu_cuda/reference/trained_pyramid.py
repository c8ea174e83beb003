"""Resize, concatenation and separable branches with norms of any kind: what follows a JPU's stages, in training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .upsample_concat import upsample_concat


def trained_pyramid(
    levels: Sequence[Tensor],  # each [N, C_i, H_i, W_i]
    align_corners: bool,
    reverse: bool,
    depthwise_weight: Sequence[Tensor],  # D of [C, 1, 3, 3], C = ΣC_i
    pointwise_weight: Sequence[Tensor],  # D of [O, C, 1, 1]
    dilations: Sequence[int],  # D
    weight: Sequence[Tensor | None],  # of 2·D norms: those before the pointwise convolutions, then those after
    bias: Sequence[Tensor | None],
    mean: Sequence[Tensor | None],  # None where the batch's, or a group's, are taken
    var: Sequence[Tensor | None],
    eps: Sequence[float],
    groups: Sequence[int],  # of GroupNorm, before and after the pointwise convolutions; 0 for BatchNorm
) -> Tensor:  # [N, D·O, H_0, W_0]
    """For each dilation: depthwise 3×3, norm, pointwise, norm, ReLU (FastFCN, Figure 4c)."""
    u = upsample_concat(levels, align_corners, reverse)
    count = len(dilations)
    outputs = []
    for i, dilation in enumerate(dilations):
        norms = [(weight[j], bias[j], mean[j], var[j], eps[j], groups[j // count]) for j in (i, count + i)]
        z = F.conv2d(u, depthwise_weight[i], padding=dilation, dilation=dilation, groups=u.shape[1])
        q = F.conv2d(_normalise(z, *norms[0]), pointwise_weight[i])
        outputs.append(_normalise(q, *norms[1]).relu())
    return torch.cat(outputs, dim=1)


def products(
    levels: Sequence[Tensor],
    align_corners: bool,
    reverse: bool,
    depthwise_weight: Sequence[Tensor],
    pointwise_weight: Sequence[Tensor],
    dilations: Sequence[int],
    weight: Sequence[Tensor | None],
    bias: Sequence[Tensor | None],
    mean: Sequence[Tensor | None],
    var: Sequence[Tensor | None],
    eps: Sequence[float],
    groups: Sequence[int],
) -> list[Tensor]:
    """What :func:`trained_pyramid` goes through, with its arguments.

    Returns:
        The products q before the last norms, [N, D·O, H_0, W_0]; then for the norms on either side of the pointwise
        convolutions [R, 5, D, channels]: mean, biased variance, 1 / √(variance + eps), and the norm as an affine map,
        scale and shift; of all images together (R = 1), or of each for GroupNorm.
    """
    u = upsample_concat(levels, align_corners, reverse)
    count = len(dilations)
    stored, before, after = [], [], []
    for i, dilation in enumerate(dilations):
        norms = [(weight[j], bias[j], mean[j], var[j], eps[j], groups[j // count]) for j in (i, count + i)]
        z = F.conv2d(u, depthwise_weight[i], padding=dilation, dilation=dilation, groups=u.shape[1])
        before.append(_statistics(z, *norms[0]))
        stored.append(F.conv2d(_normalise(z, *norms[0]), pointwise_weight[i]))
        after.append(_statistics(stored[-1], *norms[1]))
    return [torch.cat(stored, dim=1), torch.stack(before, dim=2), torch.stack(after, dim=2)]


def _normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    groups: int,
) -> Tensor:
    if groups > 0:
        # Which takes one dtype on a GPU, where autocast has all of it wider.
        wide = x if weight is None else x.to(torch.promote_types(x.dtype, weight.dtype))
        return F.group_norm(wide, groups, weight, bias, eps).to(x.dtype)
    return F.batch_norm(x, mean, var, weight, bias, training=mean is None, eps=eps)


def _statistics(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    groups: int,
) -> Tensor:
    """[R, 5, channels] of a norm's input, in at least float32."""
    channels = x.shape[1]
    wide = x.double() if x.dtype == torch.float64 else x.float()
    if groups > 0:
        var, mean = torch.var_mean(wide.reshape(x.shape[0], groups, -1), dim=2, correction=0)
        each = channels // groups
        var, mean = var.repeat_interleave(each, dim=1), mean.repeat_interleave(each, dim=1)
    elif mean is None or var is None:
        var, mean = (part[None] for part in torch.var_mean(wide, dim=(0, 2, 3), correction=0))
    else:
        var, mean = var.to(wide.dtype)[None], mean.to(wide.dtype)[None]
    inverse = (var + eps).rsqrt()
    scale = inverse if weight is None else inverse * weight.to(wide.dtype)
    shift = -mean * scale if bias is None else bias.to(wide.dtype) - mean * scale
    return torch.stack([mean, var, inverse, scale, shift], dim=1)
