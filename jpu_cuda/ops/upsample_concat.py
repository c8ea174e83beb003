"""Bilinear resize of levels to one size, and its concatenation: operators and their derivatives.

Resizing is linear, so the derivative of :class:`Upsample` is its adjoint, :class:`UpsampleBackward`, whose
own derivative is :class:`Upsample` again: any order of differentiation works.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._library import check_images, check_size, define, empty_image, register_autocast, register_autograd, widest

define("upsample(Tensor[] levels, SymInt height, SymInt width, bool align_corners) -> Tensor[]")
define("upsample_backward(Tensor[] gradients, SymInt[] heights, SymInt[] widths, bool align_corners) -> Tensor[]")
define("upsample_concat(Tensor[] levels, bool align_corners, bool reverse) -> Tensor")

Gradients = tuple[Tensor | None, ...]


class Upsample(Function):
    """Resizes levels [N, C_i, H_i, W_i] to [N, C_i, height, width] in one launch."""

    @staticmethod
    def forward(ctx: Any, height: int, width: int, align_corners: bool, *levels: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.align_corners = align_corners
        ctx.sizes = [level.shape[2:] for level in levels]
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(torch.ops.jpu_cuda.upsample(levels, height, width, align_corners))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        return None, None, None, *_adjoint(gradients, ctx.sizes, ctx.align_corners, ctx.needs_input_grad[3:])


class UpsampleBackward(Function):
    """The adjoint: gradients [N, C_i, H, W] at the common size to [N, C_i, heights[i], widths[i]], in one launch."""

    @staticmethod
    def forward(
        ctx: Any, heights: Sequence[int], widths: Sequence[int], align_corners: bool, *gradients: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.align_corners = align_corners
        ctx.size = gradients[0].shape[2:]
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(torch.ops.jpu_cuda.upsample_backward(gradients, heights, widths, align_corners))

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
        wanted = [i for i, t in enumerate(tangents) if t is not None and ctx.needs_input_grad[3 + i]]
        results: list[Tensor | None] = [None] * len(tangents)
        if wanted:
            resized = torch.ops.jpu_cuda.upsample([tangents[i] for i in wanted], *ctx.size, ctx.align_corners)
            for i, result in zip(wanted, resized, strict=True):
                results[i] = result
        return None, None, None, *results


class UpsampleConcat(Function):
    """Resizes levels to the size of the first and concatenates their channels, in one launch.

    ``reverse`` concatenates last to first. The gradient of the first level is a slice of the output's, not a copy.
    """

    @staticmethod
    def forward(ctx: Any, align_corners: bool, reverse: bool, *levels: Tensor) -> Tensor:
        ctx.align_corners = align_corners
        ctx.reverse = reverse
        ctx.sizes = [level.shape[2:] for level in levels]
        ctx.channels = [level.shape[1] for level in levels]
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.jpu_cuda.upsample_concat(levels, align_corners, reverse)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[2:]
        order = range(len(needed))
        slices: list[Tensor | None] = [None] * len(needed)
        start = 0
        for i in reversed(order) if ctx.reverse else order:
            if needed[i]:
                slices[i] = gradient.narrow(1, start, ctx.channels[i])
            start += ctx.channels[i]
        return None, None, slices[0], *_adjoint(slices[1:], ctx.sizes[1:], ctx.align_corners, needed[1:])


def _adjoint(
    gradients: Sequence[Tensor | None], sizes: Sequence[Any], align_corners: bool, needed: Sequence[bool]
) -> Gradients:
    """The gradients of the levels that need one; the others cost nothing."""
    wanted = [i for i, gradient in enumerate(gradients) if gradient is not None and needed[i]]
    results: list[Tensor | None] = [None] * len(gradients)
    if wanted:
        computed = torch.ops.jpu_cuda.upsample_backward(
            [gradients[i] for i in wanted], [sizes[i][0] for i in wanted], [sizes[i][1] for i in wanted], align_corners
        )
        for i, result in zip(wanted, computed, strict=True):
            results[i] = result
    return tuple(results)


register_autograd(
    "upsample",
    lambda levels, height, width, align_corners: list(Upsample.apply(height, width, align_corners, *levels)),
)
register_autograd(
    "upsample_backward",
    lambda gradients, heights, widths, align_corners: list(
        UpsampleBackward.apply(heights, widths, align_corners, *gradients)
    ),
)
register_autograd(
    "upsample_concat",
    lambda levels, align_corners, reverse: UpsampleConcat.apply(align_corners, reverse, *levels),
)

# As PyTorch's own: a resize keeps its input's dtype, a concatenation takes the widest.
register_autocast("upsample_concat", lambda levels, *rest: (widest(levels), *rest))


@torch.library.register_fake("jpu_cuda::upsample")
def _(levels: list[Tensor], height: int, width: int, align_corners: bool) -> list[Tensor]:
    check_images("levels", levels)
    check_size("size", height, width)
    return [empty_image(level, level.shape[1], height, width, [level]) for level in levels]


@torch.library.register_fake("jpu_cuda::upsample_backward")
def _(gradients: list[Tensor], heights: list[int], widths: list[int], align_corners: bool) -> list[Tensor]:
    check_images("gradients", gradients)
    for i, (gradient, height, width) in enumerate(zip(gradients, heights, widths, strict=True)):
        check_size(f"sizes[{i}]", height, width)
        if gradient.shape[2:] != gradients[0].shape[2:]:
            expected, got = tuple(gradients[0].shape[2:]), tuple(gradient.shape[2:])
            raise ValueError(f"gradients[{i}]: expected height and width {expected} as gradients[0], got {got}")
    return [empty_image(g, g.shape[1], h, w, [g]) for g, h, w in zip(gradients, heights, widths, strict=True)]


@torch.library.register_fake("jpu_cuda::upsample_concat")
def _(levels: list[Tensor], align_corners: bool, reverse: bool) -> Tensor:
    check_images("levels", levels)
    first = levels[0]
    channels = sum(level.shape[1] for level in levels)
    return empty_image(first, channels, first.shape[2], first.shape[3], levels)
