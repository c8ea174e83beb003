"""A JPU's training pass as a sequence of launches, and its gradients by centred closed forms.

Forward: the resized levels; the statistics of all depthwise sums z; one launch that makes z anew, normalises it and
multiplies, storing the products q with their statistics; norm and ReLU of q. Statistics are put together by small
launches in between, in a fixed order.

Backward, with ẑ and ŷ the normalised z and q, g the gradient past the ReLU, and M the number of pixels of a set of
statistics:

    dq = γ₂σ₂ (g − [Σg + ŷ·Σgŷ]/M)                     brackets only where statistics are the batch's
    A = dqᵀ·ẑ,  S = Σ dq                               dP = A·diag(γ₁) + S·β₁ᵀ
    dγ₁ = Σₒ P·A,  dβ₁ = Pᵀ·S                          so no pass over dh is needed for them
    dz = γ₁σ₁ (dq·P − [dβ₁ + ẑ·dγ₁]/M)
    dw = Σ dz·u,  du = Σ_d depthwise_dᵀ(dz)

Products of matrices are PyTorch's. Neither z, h nor their gradients outlive a group of branches, which are as many as
`workspace_bytes` holds, and one at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._library import suggests_channels_last, sum_dtype


class Norms(NamedTuple):
    """D norms of one side of the pointwise convolutions; ``groups`` of GroupNorm, else 0."""

    weight: list[Tensor | None]
    bias: list[Tensor | None]
    mean: list[Tensor | None]
    var: list[Tensor | None]
    eps: list[float]
    groups: int

    @property
    def of_batch(self) -> list[int]:
        """1 for each norm whose statistics depend on what is normalised."""
        return [int(mean is None) for mean in self.mean]


def sides(
    weight: list[Tensor | None],
    bias: list[Tensor | None],
    mean: list[Tensor | None],
    var: list[Tensor | None],
    eps: list[float],
    groups: Sequence[int],
) -> tuple[Norms, Norms]:
    """The norms before the pointwise convolutions and those after."""
    half = len(eps) // 2

    def side(part: slice, number: int) -> Norms:
        return Norms(weight[part], bias[part], mean[part], var[part], eps[part], number)

    return side(slice(half), groups[0]), side(slice(half, None), groups[1])


def by_channels(image: Tensor) -> Tensor:
    """In channels_last, which all launches take."""
    return image.contiguous(memory_format=torch.channels_last)


def resized(levels: Sequence[Tensor], align_corners: bool, reverse: bool) -> list[Tensor]:
    """All levels in the size of the first, last to first if ``reverse``."""
    height, width = levels[0].shape[2:]
    images = [by_channels(level) for level in levels]
    others = [x for x in images if x.shape[2:] != (height, width)]
    found = iter(torch.ops.jpu_cuda.upsample(others, height, width, align_corners) if others else ())
    # Of a single pixel or channel the formats are one to PyTorch, and results come in the other.
    images = [x if x.shape[2:] == (height, width) else by_channels(next(found)) for x in images]
    return images[::-1] if reverse else images


def forward(
    levels: list[Tensor],
    align_corners: bool,
    reverse: bool,
    depthwise: list[Tensor],
    pointwise: list[Tensor],
    dilations: list[int],
    inner: Norms,
    outer: Norms,
    options: Sequence[Any],
) -> list[Tensor]:
    """The output and what the gradient needs: q, and the statistics of z and of q, as training_statistics has them."""
    ops = torch.ops.jpu_cuda
    u = resized(levels, align_corners, reverse)
    moments = counts = u[0].new_empty(0, dtype=sum_dtype(u[0].dtype))
    if any(inner.of_batch):
        moments, counts = ops.training_moments(u, depthwise, dilations, inner.of_batch)
    inner_statistics = ops.training_statistics(moments, counts, *inner)
    scale, shift = inner_statistics[:, 3], inner_statistics[:, 4]
    if inner.groups == 0:
        scale, shift = scale[0], shift[0]
    q, moments, counts = ops.training_products(u, depthwise, dilations, pointwise, scale, shift, *options)
    outer_statistics = ops.training_statistics(moments, counts, *outer)
    output = ops.training_output(q, outer_statistics)
    if not all(suggests_channels_last(level) for level in levels):
        output = output.contiguous()
    return [output, q, inner_statistics, outer_statistics]


class Needed(NamedTuple):
    """What is asked for a gradient: of each level, and of all weights of a kind."""

    levels: list[bool]
    depthwise: bool
    pointwise: bool
    weight: bool
    bias: bool
    out_weight: bool
    out_bias: bool


def needed_of(numbers: Sequence[int], levels: int) -> Needed:
    flags = [bool(n) for n in numbers]
    return Needed(flags[:levels], *flags[levels:])


class _Inputs(NamedTuple):
    """Of the gradient past the pointwise convolutions, all that its groups of branches share."""

    u: list[Tensor]
    depthwise: list[Tensor]
    pointwise: list[Tensor]
    dilations: list[int]
    inner: Norms
    statistics: Tensor  # of z
    totals: Tensor  # [N, D, O]: Σ dq of each image
    needed: Needed


class _Group(NamedTuple):
    """What a group of branches has for a result; None where it was not asked for, or is not known yet."""

    depthwise: Tensor | None
    pointwise: Tensor | None
    norms: Tensor | None  # [2, branches, C]


def backward(
    levels: list[Tensor],
    align_corners: bool,
    reverse: bool,
    depthwise: list[Tensor],
    pointwise: list[Tensor],
    dilations: list[int],
    inner: Norms,
    outer: Norms,
    gradient: Tensor,
    saved: Sequence[Tensor],
    needed: Needed,
    workspace_bytes: int,
) -> list[Tensor]:
    """The gradients that are asked for, in the order of :class:`Needed`.

    ``saved`` are q and both statistics, as :func:`forward` gives them; ``workspace_bytes`` is what the intermediates of
    a group of branches may take, if it is more than one branch.
    """
    ops = torch.ops.jpu_cuda
    q, inner_statistics, outer_statistics = saved
    branches, (batch, _, height, width) = len(dilations), q.shape
    pixels = height * width
    gradient = by_channels(gradient)
    sums = ops.training_output_sums(gradient, q, outer_statistics)
    coefficients, totals, out_norms = ops.training_coefficients(
        sums, outer_statistics, outer.weight, outer.of_batch, outer.groups, pixels
    )
    images: list[Tensor | None] = []
    parts: list[_Group] = []
    if any(needed.levels) or needed.depthwise or needed.pointwise or needed.weight or needed.bias:
        u = resized(levels, align_corners, reverse)
        inputs = _Inputs(u, depthwise, pointwise, dilations, inner, inner_statistics, totals, needed)
        wanted = needed.levels[::-1] if reverse else needed.levels
        images = [torch.empty_like(x) if n else None for x, n in zip(u, wanted, strict=True)]
        channels, outputs = pointwise[0].shape[1], pointwise[0].shape[0]
        bytes_of_branch = batch * pixels * (2 * channels + outputs) * q.element_size()
        step = min(max(workspace_bytes // max(bytes_of_branch, 1), 1), branches)
        for first in range(0, branches, step):
            count = min(step, branches - first)
            dq = ops.training_output_gradient(gradient, q, outer_statistics, coefficients, first, count)
            parts.append(_group(inputs, dq, images, first))
            del dq  # before the next is made
    results = _adjoint(images[::-1] if reverse else images, levels, align_corners)
    columns = [[p.depthwise for p in parts], [p.pointwise for p in parts]]
    for column, flag in zip(columns, (needed.depthwise, needed.pointwise), strict=True):
        if flag:
            results.append(torch.cat([part for part in column if part is not None]))
    norms = [part.norms for part in parts if part.norms is not None]
    for row, flag in enumerate((needed.weight, needed.bias)):
        if flag:
            results.append(torch.cat([part[row] for part in norms]))
    # An operator's results share no memory.
    return results + [out_norms[row].clone() for row, flag in enumerate((needed.out_weight, needed.out_bias)) if flag]


def _group(x: _Inputs, dq: Tensor, images: list[Tensor | None], first: int) -> _Group:
    """From dq of some branches on; adds to the gradients of the resized levels, or begins them."""
    ops = torch.ops.jpu_cuda
    count, rows, outputs = dq.shape
    inner, needed = x.inner, x.needed
    group = slice(first, first + count)
    sets = x.statistics.shape[0]
    inputs_needed = any(image is not None for image in images) or needed.depthwise
    dw = dp = norms = None
    normalised = ops.training_normalised(x.u, x.depthwise, x.dilations, x.statistics, first, count)
    channels = normalised.shape[-1]
    # Where statistics are fixed, dz takes a factor alone.
    if needed.pointwise or needed.weight or needed.bias or (inputs_needed and any(inner.of_batch[group])):
        by_set = dq.view(count * sets, rows // sets, outputs), normalised.view(count * sets, rows // sets, channels)
        products = _products(by_set[0].transpose(1, 2), by_set[1]).view(count, sets, outputs, channels)
        dp, sums = ops.training_pointwise_gradient(
            products, x.pointwise, x.totals, inner.weight, inner.bias, first, count
        )
        coefficients, _, norms = ops.training_coefficients(
            sums,
            x.statistics[:, :, group].contiguous(),
            inner.weight[group],
            inner.of_batch[group],
            inner.groups,
            rows // sets,
        )
        del products
    else:
        factor = x.statistics[:, 3:4, group]
        coefficients = torch.cat([factor, torch.zeros_like(factor), torch.zeros_like(factor)], dim=1)
    if inputs_needed:
        weights = [weight.view(outputs, channels) for weight in x.pointwise[group]]
        dz = torch.mm(dq[0], weights[0])[None] if count == 1 else torch.bmm(dq, torch.stack(weights))
        found = ops.training_depthwise_gradient(
            x.u, x.depthwise, x.dilations, coefficients, normalised, dz, first, count, needed.depthwise
        )
        dw = found[0] if needed.depthwise else None
        if any(image is not None for image in images):
            widths = [level.shape[1] for level in x.u]
            ops.training_level_gradient(dz, x.depthwise, x.dilations, images, widths, first > 0, first, count)
    return _Group(dw, dp[..., None, None] if dp is not None and needed.pointwise else None, norms)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Of matrices, in the type of sums: in float16, A would overflow where A·diag(γ₁) does not."""
    if sum_dtype(a.dtype) == a.dtype:
        return torch.bmm(a, b)
    if a.is_cuda:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a.float(), b.float())  # host execution


def _adjoint(images: Sequence[Tensor | None], levels: Sequence[Tensor], align_corners: bool) -> list[Tensor]:
    """From the gradients of the resized levels, those of the levels that are asked for."""
    size = levels[0].shape[2:]
    asked = [(image, level) for image, level in zip(images, levels, strict=False) if image is not None]
    small = [(image, level) for image, level in asked if level.shape[2:] != size]
    sizes = [level.shape[2] for _, level in small], [level.shape[3] for _, level in small]
    given = [image for image, _ in small]
    found = iter(torch.ops.jpu_cuda.upsample_backward(given, *sizes, align_corners) if given else ())
    return [image if level.shape[2:] == size else next(found) for image, level in asked]
