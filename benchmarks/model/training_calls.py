"""The calls of training that host execution runs in the place of real ones, and how the real ones are cut.

A call makes some launches of jpu_cuda::trained_pyramid or of its gradient with operands of its own, since what they
cost depends on how the whole is cut rather than on each other's results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jpu_cuda.ops.trained_pyramid import WORKSPACE_BYTES

from . import kernels
from .kernels import FMA_OUTPUTS, MATRIX_OUTPUTS, Call
from .tiles import Rows, Tiling, parts, tiling
from .work import Work

# Channels that are whole chunks, vectors and lines in every dtype; of the pointwise weights' gradient, whole tiles.
CHANNELS, _GRADIENT_CHANNELS = 32, 256
_OUTPUTS = 64
# Statistics, coefficients and sums of a norm have so many rows.
STATISTICS, COEFFICIENTS, SUMS = 5, 3, 3


@dataclass(frozen=True)
class Sample(Work):
    """A smaller call that is cut as the real one where that is given.

    Attributes:
        at_once: branches that the backward pass works on at a time.
        moment_parts: of an image, of each branch's depthwise sums.
        sum_parts: of an image, of the sums for the last norms' gradients.
        strip: whether the map is a row of tiles, which shows what a part costs beside its tiles.
    """

    at_once: int = 0
    moment_parts: tuple[int, ...] = ()
    sum_parts: int = 0
    strip: bool = False


def _sample(work: Work, **changes: Any) -> Sample:
    dtype = kernels.counted_dtype(work)
    return Sample(**{**vars(work), "dtype": dtype, "at_once": groups(work)[0], **changes})


def groups(work: Work) -> list[int]:
    """Branches that the backward pass works on together, group by group."""
    if isinstance(work, Sample) and work.at_once:
        step = min(work.at_once, work.branches)
    else:
        of_branch = work.pixels * (2 * work.all_channels + work.outputs) * work.element_bytes
        step = min(max(WORKSPACE_BYTES // of_branch, 1), work.branches)
    return [min(step, work.branches - first) for first in range(0, work.branches, step)]


def _firsts(work: Work) -> list[tuple[int, int]]:
    """Of each group: its first branch, and how many it has."""
    sizes = groups(work)
    return [(sum(sizes[:i]), count) for i, count in enumerate(sizes)]


def tilings(work: Work) -> list[Tiling]:
    return [tiling(dilation, (work.height, work.width)) for dilation in work.dilations]


def parts_of_moments(work: Work) -> list[int]:
    if isinstance(work, Sample) and work.moment_parts:
        return list(work.moment_parts)
    return parts(tilings(work), work.batch * work.branches * kernels.chunks(work))


def parts_of_groups(work: Work) -> list[int]:
    found: list[int] = []
    for first, count in _firsts(work):
        found += parts(tilings(work)[first : first + count], work.batch * count * kernels.chunks(work))
    return found


def rows_of_q(work: Work, branches: int | None = None) -> Rows:
    return Rows((work.branches if branches is None else branches) * work.outputs, work.element_bytes)


def parts_of_sums(work: Work) -> int:
    if isinstance(work, Sample) and work.sum_parts:
        return work.sum_parts
    return rows_of_q(work).parts(work.batch, work.height * work.width)


# The calls.

_ops: Any = torch.ops.jpu_cuda


def _depthwise(work: Work) -> tuple[list[Tensor], list[int]]:
    weights = [torch.ones(work.all_channels, 1, 3, 3, dtype=kernels.dtype_of(work))] * work.branches
    return weights, list(work.dilations)


def _products(work: Work, policy: str, arch: int) -> None:
    levels = kernels.levels_of(work, resized=True)
    pointwise = [torch.ones(work.outputs, work.all_channels, 1, 1, dtype=kernels.dtype_of(work))] * work.branches
    scale, shift = (torch.ones(work.branches, work.all_channels) for _ in range(2))
    _ops.training_products(levels, *_depthwise(work), pointwise, scale, shift, True, arch, policy)


def _walks(work: Work) -> None:
    """All launches that go over an image's tiles part by part."""
    where = kernels.levels_of(work, resized=True), *_depthwise(work)
    _ops.training_moments(*where, [1] * work.branches)
    statistics = torch.ones(1, STATISTICS, work.branches, work.all_channels)
    for first, count in _firsts(work):
        normalised = _ops.training_normalised(*where, statistics, first, count)
        coefficients = torch.ones(1, COEFFICIENTS, count, work.all_channels)
        gradient = torch.ones_like(normalised)
        _ops.training_depthwise_gradient(*where, coefficients, normalised, gradient, first, count, True)


def _level_gradients(work: Work) -> None:
    images = kernels.levels_of(work, resized=True)
    for first, count in _firsts(work):
        dz = torch.ones(count, work.pixels, work.all_channels, dtype=kernels.dtype_of(work))
        widths = [image.shape[1] for image in images]
        _ops.training_level_gradient(dz, *_depthwise(work), images, widths, first > 0, first, count)


def _rows(work: Work) -> None:
    q = torch.ones(work.batch, work.branches * work.outputs, work.height, work.width, dtype=kernels.dtype_of(work))
    q = q.contiguous(memory_format=torch.channels_last)
    gradient = torch.ones_like(q)
    statistics, coefficients = (torch.ones(1, n, work.branches, work.outputs) for n in (STATISTICS, COEFFICIENTS))
    _ops.training_output(q, statistics)
    _ops.training_output_sums(gradient, q, statistics)
    for first, count in _firsts(work):
        _ops.training_output_gradient(gradient, q, statistics, coefficients, first, count)


def _norms(work: Work) -> None:
    """All launches without pixels: of moments and sums over parts, and of products of dq."""
    branches, channels, outputs = work.branches, work.all_channels, work.outputs
    none = [None] * branches
    # What is one tensor is counted once in a block, which a model has two of.
    weight, bias, outer, outer_bias = ([torch.ones(n)] * branches for n in (channels, channels, outputs, outputs))
    tiles = [t.tiles for t in tilings(work)]
    for weights, biases, counts in ((weight, bias, parts_of_moments(work)), (outer, outer_bias, tiles)):
        moments = torch.ones(work.batch, max(counts), branches, 2, weights[0].numel())
        has = torch.tensor([[int(part < count) for count in counts] for part in range(max(counts))], dtype=torch.int32)
        _ops.training_statistics(moments, has, weights, biases, none, none, [1e-5] * branches, 0)
    sums = torch.ones(work.batch, parts_of_sums(work), SUMS, branches, outputs)
    statistics = torch.ones(1, STATISTICS, branches, outputs)
    pixels = work.height * work.width
    _, totals, _ = _ops.training_coefficients(sums, statistics, outer, [1] * branches, 0, pixels)
    pointwise = [torch.ones(outputs, channels, 1, 1, dtype=kernels.dtype_of(work))] * branches
    for first, count in _firsts(work):
        products = torch.ones(count, 1, outputs, channels)
        _, sums = _ops.training_pointwise_gradient(products, pointwise, totals, weight, bias, first, count)
        statistics = torch.ones(1, STATISTICS, count, channels)
        _ops.training_coefficients(sums, statistics, weight[:count], [1] * count, 0, work.pixels)


def _upsample(work: Work) -> None:
    _ops.upsample(kernels.levels_of(work, resized=False)[1:], work.height, work.width, False)


def _upsample_backward(work: Work) -> None:
    sizes = [work.level_size(level) for level in range(1, work.levels)]
    gradients = kernels.levels_of(work, resized=True)[1:]
    _ops.upsample_backward(gradients, [size[0] for size in sizes], [size[1] for size in sizes], False)


def _samples_of_products(outputs: int) -> Callable[[Work], Sequence[Work]]:
    # As of inference; and two images, since only the first one's blocks say of how many pixels moments are.
    def samples(work: Work) -> Sequence[Work]:
        small = replace(work, batch=1, levels=1, channels=32, outputs=outputs, dtype=kernels.counted_dtype(work))
        return small, replace(small, channels=64), replace(small, batch=2)

    return samples


def _samples_of_walks(work: Work) -> Sequence[Work]:
    # How many parts an image has depends on all blocks of a launch, and a small one always has the most. So the whole
    # map shows what tiles cost, and a row of three, four or five tiles, of which five are two parts, what a part does.
    # Shared passes are right to a thousandth: patches take turns in two places, whose banks are not the same.
    small = _sample(work, batch=1, levels=1, channels=CHANNELS, at_once=0)
    strips = [replace(small, height=8, width=16 * n, dilations=(1,), strip=True) for n in (3, 4, 5)]
    return small, replace(small, batch=2), *strips


def _samples_of_levels(work: Work) -> Sequence[Work]:
    small = _sample(work, batch=1, levels=1, channels=64)
    return small, replace(small, channels=128)


def _samples_of_rows(work: Work) -> Sequence[Work]:
    # As many channels as there are, by which tiles go; two small maps that fill none.
    small = _sample(work, batch=1, height=8, width=8)
    return small, replace(small, height=9, width=9)


def _samples_of_norms(work: Work) -> Sequence[Work]:
    # As many parts, images and branches as there are. No tensor here has pixels.
    cut = {"moment_parts": tuple(parts_of_moments(work)), "sum_parts": parts_of_sums(work)}
    small = _sample(work, levels=1, channels=_GRADIENT_CHANNELS, outputs=_OUTPUTS, **cut)
    return small, replace(small, outputs=2 * _OUTPUTS)


CALLS = {
    "training products, fma": Call(partial(_products, policy="fma", arch=0), _samples_of_products(FMA_OUTPUTS)),
    "training products, mma": Call(partial(_products, policy="mma", arch=80), _samples_of_products(MATRIX_OUTPUTS)),
    "training products, two-pass": Call(
        partial(_products, policy="two-pass", arch=80), _samples_of_products(MATRIX_OUTPUTS)
    ),
    "training walks": Call(_walks, _samples_of_walks),
    "training levels": Call(_level_gradients, _samples_of_levels),
    "training rows": Call(_rows, _samples_of_rows),
    "training norms": Call(_norms, _samples_of_norms),
    "training upsample": Call(_upsample, kernels.channels_of_upsample),
    "training upsample backward": Call(_upsample_backward, kernels.channels_of_upsample),
}
