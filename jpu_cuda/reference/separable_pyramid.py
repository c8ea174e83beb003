"""Depthwise 3×3 convolutions of several dilations, each followed by affine, pointwise, affine and ReLU."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _affine(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """The affine map scale · x + shift per channel in (at least) float32, rounded once to x's dtype.

    Args:
        x: [N, C, H, W].
        scale: [C] or [N, C], or None for 1.
        shift: as scale, or None for 0.
    """
    if scale is None and shift is None:
        return x
    wide = x.double() if x.dtype == torch.float64 else x.float()
    if scale is not None:
        wide = wide * scale.to(wide.dtype)[..., None, None]
    if shift is not None:
        wide = wide + shift.to(wide.dtype)[..., None, None]
    return wide.to(x.dtype)


def separable_pyramid(
    levels: Sequence[Tensor],  # each [N, C_i, H, W]
    depthwise_weight: Tensor,  # [D, C, 3, 3], C = ΣC_i
    pointwise_weight: Tensor,  # [D, O, C]
    dilations: Sequence[int],  # D
    scale: Tensor | None,  # [D, C] or [N, D, C]
    shift: Tensor | None,  # [D, C] or [N, D, C]
    out_scale: Tensor | None,  # [D, O]
    out_shift: Tensor | None,  # [D, O]
    relu: bool,
) -> Tensor:  # [N, D·O, H, W]
    """See :func:`jpu_cuda.functional.separable_pyramid`."""
    u = torch.cat(tuple(levels), dim=1)
    outputs = []
    for d, dilation in enumerate(dilations):
        z = F.conv2d(u, depthwise_weight[d, :, None], padding=dilation, dilation=dilation, groups=u.shape[1])
        h = _affine(z, None if scale is None else scale[..., d, :], None if shift is None else shift[..., d, :])
        q = F.conv2d(h, pointwise_weight[d, :, :, None, None])
        q = _affine(q, None if out_scale is None else out_scale[d], None if out_shift is None else out_shift[d])
        outputs.append(q.relu() if relu else q)
    return torch.cat(outputs, dim=1)
