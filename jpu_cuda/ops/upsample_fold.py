"""The launch before a pyramid's: resizes its levels and folds its norms, whose statistics are fixed, into affine terms.

Norms come in two halves: those after the D depthwise convolutions, then those after the D pointwise ones. They are
read anew in every call, since nothing tells when a statistic or a parameter changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..reference import upsample_concat as reference
from ..reference.norms import fold, fold_backward
from ._library import (
    check_images,
    define,
    empty_image,
    is_batched,
    register,
    register_backward,
    register_fake,
    register_reference,
    sum_dtype,
)
from .separable_pyramid import MOST_BRANCHES
from .upsample_concat import fake_backward

# The levels after the first, resized to its size; then scale and shift [D, C], out_scale and out_shift [D, O], float32
# or, for float64, float64.
define(
    "upsample_fold(Tensor[] levels, bool align_corners, Tensor?[] weight, Tensor?[] bias, Tensor[] mean, Tensor[] var, "
    "float[] eps) -> Tensor[]"
)
# The gradients of levels of these sizes, then those of weights and of biases that `needed` (a number for each, the
# weights first) is 1 for. `terms`: the gradients of the four terms; None for 0.
define(
    "upsample_fold_backward(Tensor[] gradients, SymInt[] heights, SymInt[] widths, bool align_corners, "
    "Tensor?[] terms, Tensor[] mean, Tensor[] var, float[] eps, int[] needed) -> Tensor[]"
)


class UpsampleFold(Function):
    """Levels, weights, biases, means and variances in a row to the resized levels and four terms, in one launch."""

    @staticmethod
    def forward(
        ctx: Any, align_corners: bool, eps: Sequence[float], levels: int, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.align_corners, ctx.eps, ctx.levels = align_corners, eps, levels
        images, norms = tensors[:levels], _grouped(tensors[levels:], len(eps))
        ctx.shapes = [level.shape for level in images if level is not None]
        ctx.save_for_backward(*norms[2], *norms[3])
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(torch.ops.jpu_cuda.upsample_fold(list(images), align_corners, *norms, eps))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        count, norms = ctx.levels, len(ctx.eps)
        needed = ctx.needs_input_grad[3:]
        saved = ctx.saved_tensors
        mean, var = saved[:norms], saved[norms:]
        wanted = [g if n else None for g, n in zip(gradients[: count - 1], needed[1:count], strict=True)]
        pairs = [(g, shape) for g, shape in zip(wanted, ctx.shapes[1:], strict=True) if g is not None]
        images, shapes = [g for g, _ in pairs], [shape for _, shape in pairs]
        sizes = [shape[-2] for shape in shapes], [shape[-1] for shape in shapes]
        asked = list(needed[count : count + 2 * norms])
        terms = [None if g is None else g.contiguous() for g in gradients[count - 1 :]]
        if torch.is_grad_enabled() or is_batched([g for g in gradients if g is not None]):
            parts = reference.upsample_backward(images, *sizes, ctx.align_corners)
            found = [*parts, *fold_backward(terms, mean, var, ctx.eps, asked)]
        elif any(asked):
            arguments = (images, *sizes, ctx.align_corners, terms, mean, var, ctx.eps, [int(n) for n in asked])
            found = torch.ops.jpu_cuda.upsample_fold_backward(*arguments)
        else:
            found = torch.ops.jpu_cuda.upsample_backward(images, *sizes, ctx.align_corners) if images else []
        results = iter(found)
        level_parts = [None if g is None else next(results) for g in wanted]
        norm_parts = [next(results) if n else None for n in asked]
        return None, None, None, None, *level_parts, *norm_parts, *[None] * (2 * norms)


def _grouped(tensors: Sequence[Any], norms: int) -> tuple[list[Any], ...]:
    return tuple(list(tensors[i * norms : (i + 1) * norms]) for i in range(4))


def _autograd(levels: list[Tensor], align_corners: bool, *norms: Any) -> list[Tensor]:
    *tensors, eps = norms
    if len({len(part) for part in (*tensors, eps)}) > 1:
        got = ", ".join(str(len(part)) for part in (*tensors, eps))
        raise ValueError(f"norms: expected as many weights, biases, means, variances and eps, got {got}")
    if torch.is_grad_enabled() and any(tensor.requires_grad for part in tensors[2:] for tensor in part):
        raise ValueError("norms: expected statistics that need no gradient, got some that do")
    flat = [tensor for part in tensors for tensor in part]
    return list(UpsampleFold.apply(align_corners, eps, len(levels), *levels, *flat))


register("upsample_fold", _autograd, "Autograd")
register_backward("upsample_fold")


def _reference(levels: list[Tensor], align_corners: bool, *norms: Any) -> list[Tensor]:
    weight, bias, mean, var, eps = norms
    terms = fold(weight, bias, mean, var, eps, sum_dtype(levels[0].dtype))
    return [*reference.upsample(levels, align_corners)[1:], *terms]


def _reference_backward(
    gradients: list[Tensor], heights: list[int], widths: list[int], align_corners: bool, *rest: Any
) -> list[Tensor]:
    terms, mean, var, eps, needed = rest
    parts = reference.upsample_backward(gradients, heights, widths, align_corners)
    return [*parts, *fold_backward(terms, mean, var, eps, needed)]


register_reference("upsample_fold", _reference)
register_reference("upsample_fold_backward", _reference_backward, position=5)  # mean: levels may need no gradient


def _check_norms(mean: list[Tensor], var: list[Tensor], eps: list[float]) -> None:
    """As the binding; what else it checks is left to it."""
    counts = len(mean), len(var), len(eps)
    most = 2 * MOST_BRANCHES
    if counts[0] not in range(2, most + 1, 2) or len(set(counts)) > 1:
        got = f"{counts[0]}, {counts[1]} and {counts[2]}"
        raise ValueError(f"norms: expected mean, var and eps of as many, an even number from 2 to {most}, got {got}")
    for name, values in (("mean", mean), ("var", var)):
        for i, value in enumerate(values):
            expected = tuple(mean[0 if i < len(mean) // 2 else -1].shape)
            if tuple(value.shape) != expected or value.dim() != 1:
                raise ValueError(f"{name}[{i}]: expected shape {expected}, got {tuple(value.shape)}")


@register_fake("upsample_fold")
def _(
    levels: list[Tensor], align_corners: bool, weight: Any, bias: Any, mean: list[Tensor], var: list[Tensor], eps: Any
) -> list[Tensor]:
    check_images("levels", levels)
    _check_norms(mean, var, eps)
    height, width = levels[0].shape[2:]
    half = len(mean) // 2
    shapes = [(half, mean[i].shape[0]) for i in (0, 0, half, half)]
    resized = [empty_image(level, level.shape[1], height, width, [level]) for level in levels[1:]]
    return [*resized, *(mean[0].new_empty(shape, dtype=sum_dtype(levels[0].dtype)) for shape in shapes)]


@register_fake("upsample_fold_backward")
def _(
    gradients: list[Tensor], heights: list[int], widths: list[int], align_corners: bool, terms: Any, *rest: Any
) -> list[Tensor]:
    mean, var, eps, needed = rest
    images = fake_backward(gradients, heights, widths, align_corners) if gradients else []
    _check_norms(mean, var, eps)
    return [*images, *(torch.empty_like(m) for m, wanted in zip([*mean, *mean], needed, strict=True) if wanted)]
