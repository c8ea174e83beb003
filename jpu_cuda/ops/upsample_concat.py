"""Bilinear resize of levels to one size, and its concatenation: operators and their derivatives.

Resizing is linear, so the derivative of :class:`Upsample` is its adjoint, :class:`UpsampleBackward`, whose
own derivative is :class:`Upsample` again: any order of differentiation works, forward mode too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..reference import upsample_concat as reference
from ._library import (
    check_images,
    check_size,
    define,
    empty_image,
    is_batched,
    register,
    register_autocast,
    register_fake,
    register_reference,
    widest,
)

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
        ctx.height, ctx.width = height, width
        ctx.shapes = [level.shape for level in levels]
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(torch.ops.jpu_cuda.upsample(levels, height, width, align_corners))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        return None, None, None, *_adjoint(gradients, ctx.shapes, ctx.align_corners, ctx.needs_input_grad[3:])

    @staticmethod
    def jvp(ctx: Any, height: None, width: None, align_corners: None, *tangents: Tensor | None) -> Any:
        return tuple(_upsample(_filled(tangents, ctx.shapes), ctx.height, ctx.width, ctx.align_corners))


class UpsampleBackward(Function):
    """The adjoint: gradients [N, C_i, H, W] at the common size to [N, C_i, heights[i], widths[i]], in one launch."""

    @staticmethod
    def forward(
        ctx: Any, heights: Sequence[int], widths: Sequence[int], align_corners: bool, *gradients: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.align_corners = align_corners
        ctx.heights, ctx.widths = heights, widths
        ctx.size = gradients[0].shape[2:]
        ctx.shapes = [gradient.shape for gradient in gradients]
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(torch.ops.jpu_cuda.upsample_backward(gradients, heights, widths, align_corners))

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
        height, width = ctx.size
        wanted = [t if needed else None for t, needed in zip(tangents, ctx.needs_input_grad[3:], strict=True)]
        return None, None, None, *_each(lambda given: _upsample(given, height, width, ctx.align_corners), wanted)

    @staticmethod
    def jvp(ctx: Any, heights: None, widths: None, align_corners: None, *tangents: Tensor | None) -> Any:
        sizes = list(zip(ctx.heights, ctx.widths, strict=True))
        return _adjoint(_filled(tangents, ctx.shapes), sizes, ctx.align_corners)


class UpsampleConcat(Function):
    """Resizes levels to the size of the first and concatenates their channels, in one launch.

    ``reverse`` concatenates last to first. The gradient of the first level is a slice of the output's, not a copy.
    """

    @staticmethod
    def forward(ctx: Any, align_corners: bool, reverse: bool, *levels: Tensor) -> Tensor:
        ctx.align_corners = align_corners
        ctx.reverse = reverse
        ctx.shapes = [level.shape for level in levels]
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
                slices[i] = gradient.narrow(1, start, ctx.shapes[i][1])
            start += ctx.shapes[i][1]
        return None, None, slices[0], *_adjoint(slices[1:], ctx.shapes[1:], ctx.align_corners, needed[1:])

    @staticmethod
    def jvp(ctx: Any, align_corners: None, reverse: None, *tangents: Tensor | None) -> Tensor:
        levels = _filled(tangents, ctx.shapes)
        if is_batched(levels):
            return reference.upsample_concat(levels, ctx.align_corners, ctx.reverse)
        return torch.ops.jpu_cuda.upsample_concat(levels, ctx.align_corners, ctx.reverse)


def _filled(tangents: Sequence[Tensor | None], shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Tangents, with zeros for those that are None: every output must have one."""
    some = next(tangent for tangent in tangents if tangent is not None)
    return [some.new_zeros(shape) if t is None else t for t, shape in zip(tangents, shapes, strict=True)]


def _each(function: Callable[[list[Tensor]], list[Tensor]], tensors: Sequence[Tensor | None]) -> Gradients:
    """Applies a function of several tensors to those that are there, in one call; the others cost nothing."""
    there = [tensor for tensor in tensors if tensor is not None]
    found = iter(function(there) if there else ())
    return tuple(None if tensor is None else next(found) for tensor in tensors)


def _upsample(levels: list[Tensor], height: int, width: int, align_corners: bool) -> list[Tensor]:
    if is_batched(levels):
        return [reference.resize(level, (height, width), align_corners) for level in levels]
    return torch.ops.jpu_cuda.upsample(levels, height, width, align_corners)


def _adjoint(
    gradients: Sequence[Tensor | None],
    shapes: Sequence[Sequence[int]],
    align_corners: bool,
    needed: Sequence[bool] | None = None,
) -> Gradients:
    """The gradients of those levels of ``shapes`` [..., H_i, W_i] that need one, of all if ``needed`` is None."""
    if needed is not None:
        gradients = [g if wanted else None for g, wanted in zip(gradients, needed, strict=True)]
    kept = [shape for gradient, shape in zip(gradients, shapes, strict=True) if gradient is not None]
    heights, widths = [shape[-2] for shape in kept], [shape[-1] for shape in kept]

    def compute(given: list[Tensor]) -> list[Tensor]:
        if is_batched(given):
            return reference.upsample_backward(given, heights, widths, align_corners)
        return torch.ops.jpu_cuda.upsample_backward(given, heights, widths, align_corners)

    return _each(compute, gradients)


register(
    "upsample",
    lambda levels, height, width, align_corners: list(Upsample.apply(height, width, align_corners, *levels)),
    "Autograd",
)
register(
    "upsample_backward",
    lambda gradients, heights, widths, align_corners: list(
        UpsampleBackward.apply(heights, widths, align_corners, *gradients)
    ),
    "Autograd",
)
register(
    "upsample_concat",
    lambda levels, align_corners, reverse: UpsampleConcat.apply(align_corners, reverse, *levels),
    "Autograd",
)

register_reference(
    "upsample", lambda levels, height, width, align: [reference.resize(x, (height, width), align) for x in levels]
)
register_reference("upsample_backward", reference.upsample_backward)
register_reference("upsample_concat", reference.upsample_concat)

# As PyTorch's own: a resize keeps its input's dtype, a concatenation takes the widest.
register_autocast("upsample_concat", lambda levels, *rest: (widest(levels), *rest))


@register_fake("upsample")
def _(levels: list[Tensor], height: int, width: int, align_corners: bool) -> list[Tensor]:
    check_images("levels", levels)
    check_size("size", height, width)
    return [empty_image(level, level.shape[1], height, width, [level]) for level in levels]


@register_fake("upsample_backward")
def fake_backward(gradients: list[Tensor], heights: list[int], widths: list[int], align_corners: bool) -> list[Tensor]:
    check_images("gradients", gradients)
    for i, (gradient, height, width) in enumerate(zip(gradients, heights, widths, strict=True)):
        check_size(f"sizes[{i}]", height, width)
        if gradient.shape[2:] != gradients[0].shape[2:]:
            expected, got = tuple(gradients[0].shape[2:]), tuple(gradient.shape[2:])
            raise ValueError(f"gradients[{i}]: expected height and width {expected} as gradients[0], got {got}")
    return [empty_image(g, g.shape[1], h, w, [g]) for g, h, w in zip(gradients, heights, widths, strict=True)]


@register_fake("upsample_concat")
def _(levels: list[Tensor], align_corners: bool, reverse: bool) -> Tensor:
    check_images("levels", levels)
    first = levels[0]
    channels = sum(level.shape[1] for level in levels)
    return empty_image(first, channels, first.shape[2], first.shape[3], levels)
