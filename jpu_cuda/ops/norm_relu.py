"""Norms with fixed statistics and ReLUs of a list of levels, in one launch; for inference.

Nothing is registered for autocast: it leaves PyTorch's own norm and ReLU alone too, which keep the dtype of their
input, whatever that of the norm's parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..reference import norm_relu as reference
from ._library import check_images, define, empty_image, register, register_fake, register_reference

# A norm a level. Results are channels_last where their level is, else contiguous.
define(
    "norm_relu(Tensor[] levels, Tensor?[] weight, Tensor?[] bias, Tensor[] mean, Tensor[] var, float[] eps) -> Tensor[]"
)


def _autograd(*arguments: Any) -> list[Tensor]:
    """What needs a derivative is the reference's: a graph that was recorded without may be run with it."""
    tensors = [tensor for part in arguments[:5] for tensor in part if tensor is not None]
    needed = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if forward_ad._current_level >= 0:
        needed |= any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
    if needed:
        return reference.norm_relu(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.jpu_cuda.norm_relu(*arguments)


register("norm_relu", _autograd, "Autograd")
register_reference("norm_relu", reference.norm_relu)


@register_fake("norm_relu")
def _(
    levels: list[Tensor], weight: Any, bias: Any, mean: list[Tensor], var: list[Tensor], eps: list[float]
) -> list[Tensor]:
    check_images("levels", levels)
    counts = [len(part) for part in (weight, bias, mean, var, eps)]
    if set(counts) != {len(levels)}:
        got = f"{', '.join(map(str, counts[:-1]))} and {counts[-1]}"
        raise ValueError(
            f"norms: expected {len(levels)} weights, biases, means, variances and eps, one a level, got {got}"
        )
    for name, part in (("weight", weight), ("bias", bias), ("mean", mean), ("var", var)):
        for i, (values, level) in enumerate(zip(part, levels, strict=True)):
            if values is not None and tuple(values.shape) != (level.shape[1],):
                raise ValueError(f"{name}[{i}]: expected shape {(level.shape[1],)}, got {tuple(values.shape)}")
    return [empty_image(x, x.shape[1], x.shape[2], x.shape[3], [x]) for x in levels]
