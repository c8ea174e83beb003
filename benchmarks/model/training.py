"""The kernels of training that the sheet covers, with PyTorch's matrix products between them.

They are those of jpu_cuda::trained_pyramid and of its gradient, in channels_last, where statistics are the batch's and
every gradient is asked for. A call makes some launches with operands of its own, since what they cost depends on how
the whole is cut rather than on each other's results. Left out are copies that other memory formats take, and those of
weights into one tensor where a group of branches has several.
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
from .devices import Device
from .kernels import FMA_OUTPUTS, MATRIX_OUTPUTS, Call, Counts, Kernel
from .tiles import Rows, Tiling, fetched_by_parts, parts, tiling
from .work import Work

# Channels that are whole chunks, vectors and lines in every dtype; of the pointwise weights' gradient, whole tiles.
_CHANNELS, _GRADIENT_CHANNELS = 32, 256
_OUTPUTS = 64
# Of norm_relu/rows_config.h: pixels that a thread loads at once, of q and of q with its gradient.
OUTPUT_PIXELS, GRADIENT_PIXELS = 8, 4
# Statistics, coefficients and sums of a norm have so many rows.
_STATISTICS, _COEFFICIENTS, _SUMS = 5, 3, 3
_SUM_BYTES = 4


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


def _tilings(work: Work) -> list[Tiling]:
    return [tiling(dilation, (work.height, work.width)) for dilation in work.dilations]


def _parts_of_moments(work: Work) -> list[int]:
    if isinstance(work, Sample) and work.moment_parts:
        return list(work.moment_parts)
    return parts(_tilings(work), work.batch * work.branches * kernels.chunks(work))


def _parts_of_groups(work: Work) -> list[int]:
    found: list[int] = []
    for first, count in _firsts(work):
        found += parts(_tilings(work)[first : first + count], work.batch * count * kernels.chunks(work))
    return found


def _rows_of_q(work: Work, branches: int | None = None) -> Rows:
    return Rows((work.branches if branches is None else branches) * work.outputs, work.element_bytes)


def _parts_of_sums(work: Work) -> int:
    if isinstance(work, Sample) and work.sum_parts:
        return work.sum_parts
    return _rows_of_q(work).parts(work.batch, work.height * work.width)


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
    statistics = torch.ones(1, _STATISTICS, work.branches, work.all_channels)
    for first, count in _firsts(work):
        normalised = _ops.training_normalised(*where, statistics, first, count)
        coefficients = torch.ones(1, _COEFFICIENTS, count, work.all_channels)
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
    statistics, coefficients = (torch.ones(1, n, work.branches, work.outputs) for n in (_STATISTICS, _COEFFICIENTS))
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
    tiles = [t.tiles for t in _tilings(work)]
    for weights, biases, counts in ((weight, bias, _parts_of_moments(work)), (outer, outer_bias, tiles)):
        moments = torch.ones(work.batch, max(counts), branches, 2, weights[0].numel())
        has = torch.tensor([[int(part < count) for count in counts] for part in range(max(counts))], dtype=torch.int32)
        _ops.training_statistics(moments, has, weights, biases, none, none, [1e-5] * branches, 0)
    sums = torch.ones(work.batch, _parts_of_sums(work), _SUMS, branches, outputs)
    statistics = torch.ones(1, _STATISTICS, branches, outputs)
    pixels = work.height * work.width
    _, totals, _ = _ops.training_coefficients(sums, statistics, outer, [1] * branches, 0, pixels)
    pointwise = [torch.ones(outputs, channels, 1, 1, dtype=kernels.dtype_of(work))] * branches
    for first, count in _firsts(work):
        products = torch.ones(count, 1, outputs, channels, dtype=kernels.dtype_of(work))
        _, sums = _ops.training_pointwise_gradient(products, pointwise, totals, weight, bias, first, count)
        statistics = torch.ones(1, _STATISTICS, count, channels)
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
    small = _sample(work, batch=1, levels=1, channels=_CHANNELS, at_once=0)
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
    cut = {"moment_parts": tuple(_parts_of_moments(work)), "sum_parts": _parts_of_sums(work)}
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


# What counts depend on.


def _walk_features(found: Callable[[Work], list[int]], work: Work) -> Sequence[int]:
    # Parts; those that write how many pixels they have, which are one chunk's of one image; the tiles of whole maps;
    # and of rows of tiles those at both ends and those between.
    count = found(work)
    shares = work.batch * kernels.chunks(work)
    if isinstance(work, Sample) and work.strip:
        return shares * sum(count), sum(count), 0, 2 * shares, (work.width // 16 - 2) * shares
    return shares * sum(count), sum(count), shares, 0, 0


def _walk_known(found: Callable[[Work], list[int]], work: Work) -> Counts:
    # Tiles of a part overlap by their halos.
    pixels = sum(fetched_by_parts(t, count) for t, count in zip(_tilings(work), found(work), strict=True))
    return {"distinct_read_bytes": pixels * work.batch * work.all_channels * work.element_bytes}


def _term_features(work: Work) -> Sequence[int]:
    tiles = -(-work.all_channels // _CHANNELS)
    return work.branches * tiles, work.batch * sum(_parts_of_groups(work)) * tiles


def _step_features(work: Work) -> Sequence[int]:
    return 1, work.batch * work.outputs, work.batch * work.outputs * work.all_channels


def _channel_features(work: Work) -> Sequence[int]:
    return work.all_channels, work.outputs


def _fold_features(work: Work) -> Sequence[int]:
    return _channel_features(work) if _folds(work) else (0, 0)


def _output_features(work: Work) -> Sequence[int]:
    rows = _rows_of_q(work)
    return rows.blocks(work.pixels, OUTPUT_PIXELS), work.pixels * rows.tiles


def _sums_features(work: Work) -> Sequence[int]:
    rows = _rows_of_q(work)
    return work.batch * _parts_of_sums(work) * rows.tiles, work.pixels * rows.tiles


def _sums_known(work: Work) -> Counts:
    # A thread adds each run of pixels but its first to what shared memory holds. Of whole warps in a row of channels.
    rows = _rows_of_q(work)
    passes = _SUMS * rows.vector * rows.later_runs(work.batch, work.height * work.width)
    moved = passes * rows.lanes * _SUM_BYTES
    return {"shared_accesses": 2 * passes, "shared_read_bytes": moved, "shared_write_bytes": moved}


def _output_gradient_features(work: Work) -> Sequence[int]:
    rows = [_rows_of_q(work, count) for count in groups(work)]
    return sum(r.blocks(work.pixels, GRADIENT_PIXELS) for r in rows), work.pixels * sum(r.tiles for r in rows)


# What they must move.


def _rows_bytes(work: Work) -> int:
    """Of ẑ, or dz, of all branches."""
    return work.pixels * work.branches * work.all_channels * work.element_bytes


def _pointwise_bytes(work: Work) -> int:
    return work.weight_bytes() - work.depthwise_bytes()


def _terms(work: Work, rows: int, width: int) -> int:
    """Bytes of so many rows of sums, of all branches' channels or outputs."""
    return rows * work.branches * width * _SUM_BYTES


def _moment_bytes(work: Work) -> int:
    return work.batch * sum(_parts_of_moments(work)) * 2 * work.all_channels * _SUM_BYTES


def _tile_moment_bytes(work: Work) -> int:
    return work.batch * sum(t.tiles for t in _tilings(work)) * 2 * work.outputs * _SUM_BYTES


def _sum_part_bytes(work: Work) -> int:
    return work.batch * _parts_of_sums(work) * _terms(work, _SUMS, work.outputs)


def _term_part_bytes(work: Work) -> int:
    return work.batch * sum(_parts_of_groups(work)) * 9 * work.all_channels * _SUM_BYTES


def _products_moved(work: Work) -> int:
    read = work.resized_bytes() + work.weight_bytes() + _terms(work, 2, work.all_channels)
    return read + work.output_bytes() + _tile_moment_bytes(work)


def _statistics_moved(work: Work) -> int:
    written = _terms(work, _STATISTICS, work.all_channels + work.outputs)
    return _moment_bytes(work) + _tile_moment_bytes(work) + written


def _coefficients_moved(work: Work) -> int:
    # Sums, totals and 1 / √(variance + eps) of each image or of all; coefficients, and gradients of weights and biases.
    outer = _terms(work, work.batch * (_SUMS + 1) + _COEFFICIENTS + 3, work.outputs)
    return outer + _terms(work, _SUMS + 1 + _COEFFICIENTS + 3, work.all_channels)


def _fold_moved(work: Work) -> int:
    totals = _terms(work, work.batch + 1, work.outputs)
    return _sum_part_bytes(work) + _terms(work, work.batch * _SUMS, work.outputs) + totals


def _groups_again(work: Work, device: Device) -> int:
    """Bytes of levels that come from DRAM for every group of branches, whose launches do not overlap."""
    if work.resized_bytes() <= device.l2:
        return 0
    return max((len(groups(work)) - 1) * work.resized_bytes(), kernels.levels_again(work, device))


def _gradients_again(work: Work, device: Device) -> int:
    """Each group but the first adds to what those before it left."""
    return 2 * (len(groups(work)) - 1) * work.resized_bytes() if work.resized_bytes() > device.l2 else 0


def _each_group(work: Work, device: Device, counts: Counts) -> int:
    return len(groups(work))


def _folds(work: Work) -> int:
    # What has one part, or one image, needs none.
    return (_parts_of_sums(work) > 1) + len(groups(work)) * (work.batch > 1)


_WALK: dict[str, Any] = {"call": "training walks", "source": "separable_pyramid/training_{dtype}.cu"}
_ROWS: dict[str, Any] = {"call": "training rows", "source": "norm_relu/rows_{dtype}.cu"}
# Norms have the type of sums, whatever that of the levels.
_NORMS: dict[str, Any] = {"call": "training norms", "source": "norm_statistics/norms_float32.cu"}
_FORWARD: dict[str, Any] = {"policy": "any", "direction": "forward"}
_BACKWARD: dict[str, Any] = {"policy": "any", "direction": "backward"}
_VENDOR: dict[str, Any] = {"call": "", "source": "", "symbol": "", "features": lambda work: (), **_BACKWARD}


def _product(policy: str, name: str, source: str, symbol: str, **more: Any) -> Kernel:
    return Kernel(
        name=f"separable_pyramid {name} with moments",
        call=f"training products, {policy}",
        policy=policy,
        source=f"separable_pyramid/{source}_{{dtype}}.cu",
        symbol=symbol,
        features=_step_features,
        multiply_adds=Work.pointwise_multiply_adds,
        direction="forward",
        **{"moved": _products_moved, "moved_again": kernels.levels_again, **more},
    )


def _walk(name: str, symbol: str, found: Callable[[Work], list[int]], **more: Any) -> Kernel:
    return Kernel(
        name=f"separable_pyramid training {name}",
        symbol=symbol,
        features=partial(_walk_features, found),
        known=partial(_walk_known, found),
        multiply_adds=Work.depthwise_multiply_adds,
        **_WALK,
        **more,
    )


_UPSAMPLE = Kernel(
    name="upsample_concat forward",
    call="training upsample",
    source="upsample_concat/forward_{dtype}.cu",
    symbol="upsample_forward",
    features=lambda work: (1, work.batch * work.channels),
    multiply_adds=lambda work: 3 * work.pixels * (work.levels - 1) * work.channels,
    moved=lambda work: work.level_bytes(1) + work.resized_bytes(work.levels - 1),
    wide=True,
    **_FORWARD,
)

KERNELS = (
    _UPSAMPLE,
    _walk(
        "moments",
        "training_moments",
        _parts_of_moments,
        moved=lambda work: work.resized_bytes() + work.depthwise_bytes() + _moment_bytes(work),
        moved_again=kernels.levels_again,
        **_FORWARD,
    ),
    Kernel(
        name="norm_statistics statistics",
        symbol="norm_merge",
        features=_channel_features,
        multiply_adds=lambda work: work.branches * (work.all_channels + work.outputs),
        moved=_statistics_moved,
        launches=lambda work, device, counts: 2,
        **_NORMS,
        **_FORWARD,
    ),
    _product(
        "fma",
        "forward",
        "products",
        "pyramid_forward",
        main_multiply_adds=kernels.fma_product,
    ),
    _product("mma", "mma", "products", "pyramid_mma", tensor=True, dynamic_shared=kernels.MMA_SHARED),
    replace(
        next(kernel for kernel in kernels.KERNELS if kernel.name == "separable_pyramid normalise"),
        call="training products, two-pass",
        direction="forward",
    ),
    _product(
        "two-pass",
        "product",
        "products",
        "pyramid_product",
        tensor=True,
        moved=lambda work: _pointwise_bytes(work) + work.output_bytes() + _tile_moment_bytes(work),
        moved_again=kernels.normalised_again,
        dynamic_shared=kernels.TWO_PASS_SHARED,
        launches=kernels.product_launches,
    ),
    Kernel(
        name="norm_relu output",
        symbol="rows_outputI.*Li[48]E",
        features=_output_features,
        multiply_adds=Work.output_elements,
        moved=lambda work: 2 * work.output_bytes() + _terms(work, 2, work.outputs),
        **_ROWS,
        **_FORWARD,
    ),
    Kernel(
        name="norm_relu output sums",
        symbol="rows_output_sumsI.*Li[48]E",
        features=_sums_features,
        known=_sums_known,
        multiply_adds=lambda work: 2 * work.output_elements(),
        moved=lambda work: 2 * work.output_bytes() + _terms(work, 4, work.outputs) + _sum_part_bytes(work),
        **_ROWS,
        **_BACKWARD,
    ),
    Kernel(
        name="norm_statistics fold",
        symbol="norm_fold",
        features=_fold_features,
        multiply_adds=lambda work: 0,
        moved=_fold_moved,
        launches=lambda work, device, counts: _folds(work),
        **_NORMS,
        **_BACKWARD,
    ),
    Kernel(
        name="norm_statistics coefficients",
        symbol="norm_coefficients",
        features=_channel_features,
        multiply_adds=lambda work: 2 * work.branches * (work.batch * work.outputs + work.all_channels),
        moved=_coefficients_moved,
        launches=lambda work, device, counts: 1 + len(groups(work)),
        **_NORMS,
        **_BACKWARD,
    ),
    replace(_UPSAMPLE, direction="backward"),
    Kernel(
        name="norm_relu output gradient",
        symbol="rows_output_gradientI.*Li[48]E",
        features=_output_gradient_features,
        multiply_adds=lambda work: 3 * work.output_elements(),
        moved=lambda work: 3 * work.output_bytes() + _terms(work, 4 + _COEFFICIENTS, work.outputs),
        launches=_each_group,
        **_ROWS,
        **_BACKWARD,
    ),
    _walk(
        "normalised",
        "training_normalised",
        _parts_of_groups,
        moved=lambda work: work.resized_bytes() + _rows_bytes(work) + work.depthwise_bytes(),
        moved_again=_groups_again,
        launches=_each_group,
        **_BACKWARD,
    ),
    Kernel(
        name="torch.bmm dqᵀ·ẑ",
        multiply_adds=Work.pointwise_multiply_adds,
        moved=lambda work: work.output_bytes() + _rows_bytes(work) + _pointwise_bytes(work),
        tensor=True,
        launches=_each_group,
        **_VENDOR,
    ),
    Kernel(
        name="norm_statistics pointwise gradient",
        symbol="norm_pointwise_gradient",
        features=lambda work: (work.branches * work.all_channels, work.branches * work.all_channels * work.outputs),
        multiply_adds=lambda work: 3 * work.branches * work.all_channels * work.outputs,
        moved=lambda work: 3 * _pointwise_bytes(work) + _terms(work, 2 + _SUMS, work.all_channels),
        launches=_each_group,
        **{**_NORMS, "source": "norm_statistics/norms_{dtype}.cu"},
        **_BACKWARD,
    ),
    Kernel(
        name="torch.bmm dq·P",
        multiply_adds=Work.pointwise_multiply_adds,
        moved=lambda work: work.output_bytes() + _rows_bytes(work) + _pointwise_bytes(work),
        tensor=True,
        launches=_each_group,
        **_VENDOR,
    ),
    _walk(
        "depthwise gradient",
        "training_depthwise_gradient",
        _parts_of_groups,
        moved=lambda work: work.resized_bytes() + 3 * _rows_bytes(work) + _term_part_bytes(work),
        moved_again=_groups_again,
        launches=_each_group,
        **_BACKWARD,
    ),
    Kernel(
        name="separable_pyramid training depthwise terms",
        symbol="training_depthwise_terms",
        features=_term_features,
        multiply_adds=lambda work: 0,
        moved=lambda work: _term_part_bytes(work) + work.depthwise_bytes(),
        launches=_each_group,
        **_WALK,
        **_BACKWARD,
    ),
    Kernel(
        name="separable_pyramid training level gradient",
        call="training levels",
        source="separable_pyramid/training_{dtype}.cu",
        symbol="pyramid_level_gradient",
        features=lambda work: (1, work.batch * work.all_channels),
        multiply_adds=Work.depthwise_multiply_adds,
        moved=lambda work: _rows_bytes(work) + work.resized_bytes() + work.depthwise_bytes(),
        moved_again=_gradients_again,
        launches=_each_group,
        **_BACKWARD,
    ),
    Kernel(
        name="upsample_concat backward",
        call="training upsample backward",
        source="upsample_concat/backward_{dtype}.cu",
        symbol="upsample_backward",
        features=lambda work: (1, work.batch * work.channels),
        multiply_adds=lambda work: 3 * work.pixels * (work.levels - 1) * work.channels,
        moved=lambda work: work.level_bytes(1) + work.resized_bytes(work.levels - 1),
        **_BACKWARD,
    ),
    Kernel(
        name="torch.cat of gradients",
        multiply_adds=lambda work: 0,
        moved=lambda work: 2 * (work.weight_bytes() + _terms(work, 2, work.all_channels)),
        # Those of depthwise and pointwise weights, and of norms' weights and biases.
        launches=lambda work, device, counts: 4,
        **_VENDOR,
    ),
)
