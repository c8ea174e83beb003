"""Bilinear resize of a pyramid to its first level's size, and concatenation."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(levels: Sequence[Tensor], align_corners: bool) -> list[Tensor]:
    """Resizes every level [N, C_i, H_i, W_i] to [N, C_i, H_0, W_0]; the first is passed through."""
    return [levels[0], *(resize(level, levels[0].shape[2:], align_corners) for level in levels[1:])]


def upsample_concat(levels: Sequence[Tensor], align_corners: bool, reverse: bool = False) -> Tensor:
    """Resizes as :func:`upsample` and concatenates to [N, ΣC_i, H_0, W_0], last to first if ``reverse``."""
    resized = upsample(levels, align_corners)
    return torch.cat(resized[::-1] if reverse else resized, dim=1)


def resize(level: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Resizes [N, C, H, W] to [N, C, *size]."""
    if level.shape[1] == 0:  # which F.interpolate refuses
        return level.new_empty((level.shape[0], 0, *size))
    return F.interpolate(level, tuple(size), mode="bilinear", align_corners=align_corners)


def upsample_backward(
    gradients: Sequence[Tensor], heights: Sequence[int], widths: Sequence[int], align_corners: bool
) -> list[Tensor]:
    """The adjoint of :func:`resize`: gradients [N, C_i, H, W] to [N, C_i, heights[i], widths[i]]."""
    results = []
    for gradient, height, width in zip(gradients, heights, widths, strict=True):
        shape = (*gradient.shape[:2], height, width)
        if gradient.shape[1] == 0:
            results.append(gradient.new_empty(shape))
        else:
            results.append(
                torch.ops.aten.upsample_bilinear2d_backward(gradient, gradient.shape[2:], shape, align_corners)
            )
    return results
