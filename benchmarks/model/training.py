"""The kernels of training that the sheet covers, with PyTorch's matrix products between them.

They are those of jpu_cuda::trained_pyramid and of its gradient, in channels_last, where statistics are the batch's and
every gradient is asked for. Left out are copies that other memory formats take, those of weights into one tensor where
a group of branches has several, and those of statistics into one of a group's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from . import kernels
from .devices import Device
from .kernels import Counts, Kernel
from .tiles import fetched_by_parts
from .training_calls import (
    CHANNELS,
    COEFFICIENTS,
    STATISTICS,
    SUMS,
    Sample,
    groups,
    parts_of_groups,
    parts_of_moments,
    parts_of_sums,
    rows_of_q,
    tilings,
)
from .work import Work

# Of norm_relu/rows_config.h: pixels that a thread loads at once, of q and of q with its gradient.
OUTPUT_PIXELS, GRADIENT_PIXELS = 8, 4
_SUM_BYTES = 4

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
    pixels = sum(fetched_by_parts(t, count) for t, count in zip(tilings(work), found(work), strict=True))
    return {"distinct_read_bytes": pixels * work.batch * work.all_channels * work.element_bytes}


def _term_features(work: Work) -> Sequence[int]:
    tiles = -(-work.all_channels // CHANNELS)
    return work.branches * tiles, work.batch * sum(parts_of_groups(work)) * tiles


def _step_features(work: Work) -> Sequence[int]:
    return 1, work.batch * work.outputs, work.batch * work.outputs * work.all_channels


def _channel_features(work: Work) -> Sequence[int]:
    return work.all_channels, work.outputs


def _fold_features(work: Work) -> Sequence[int]:
    return _channel_features(work) if _folds(work) else (0, 0)


def _output_features(work: Work) -> Sequence[int]:
    rows = rows_of_q(work)
    return rows.blocks(work.pixels, OUTPUT_PIXELS), work.pixels * rows.tiles


def _sums_features(work: Work) -> Sequence[int]:
    rows = rows_of_q(work)
    return work.batch * parts_of_sums(work) * rows.tiles, work.pixels * rows.tiles


def _sums_known(work: Work) -> Counts:
    # A thread adds each run of pixels but its first to what shared memory holds. Of whole warps in a row of channels.
    rows = rows_of_q(work)
    passes = SUMS * rows.vector * rows.later_runs(work.batch, work.height * work.width)
    moved = passes * rows.lanes * _SUM_BYTES
    return {"shared_accesses": 2 * passes, "shared_read_bytes": moved, "shared_write_bytes": moved}


def _output_gradient_features(work: Work) -> Sequence[int]:
    rows = [rows_of_q(work, count) for count in groups(work)]
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


def _product_bytes(work: Work) -> int:
    """Of dqᵀ · ẑ of all branches, which are sums."""
    return _terms(work, work.outputs, work.all_channels)


def _moment_bytes(work: Work) -> int:
    return work.batch * sum(parts_of_moments(work)) * 2 * work.all_channels * _SUM_BYTES


def _tile_moment_bytes(work: Work) -> int:
    return work.batch * sum(t.tiles for t in tilings(work)) * 2 * work.outputs * _SUM_BYTES


def _sum_part_bytes(work: Work) -> int:
    return work.batch * parts_of_sums(work) * _terms(work, SUMS, work.outputs)


def _term_part_bytes(work: Work) -> int:
    return work.batch * sum(parts_of_groups(work)) * 9 * work.all_channels * _SUM_BYTES


def _products_moved(work: Work) -> int:
    read = work.resized_bytes() + work.weight_bytes() + _terms(work, 2, work.all_channels)
    return read + work.output_bytes() + _tile_moment_bytes(work)


def _statistics_moved(work: Work) -> int:
    written = _terms(work, STATISTICS, work.all_channels + work.outputs)
    return _moment_bytes(work) + _tile_moment_bytes(work) + written


def _coefficients_moved(work: Work) -> int:
    # Sums, totals and 1 / √(variance + eps) of each image or of all; coefficients, and gradients of weights and biases.
    outer = _terms(work, work.batch * (SUMS + 1) + COEFFICIENTS + 3, work.outputs)
    return outer + _terms(work, SUMS + 1 + COEFFICIENTS + 3, work.all_channels)


def _fold_moved(work: Work) -> int:
    totals = _terms(work, work.batch + 1, work.outputs)
    return _sum_part_bytes(work) + _terms(work, work.batch * SUMS, work.outputs) + totals


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
    return (parts_of_sums(work) > 1) + len(groups(work)) * (work.batch > 1)


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
        parts_of_moments,
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
        moved=lambda work: 3 * work.output_bytes() + _terms(work, 4 + COEFFICIENTS, work.outputs),
        launches=_each_group,
        **_ROWS,
        **_BACKWARD,
    ),
    _walk(
        "normalised",
        "training_normalised",
        parts_of_groups,
        moved=lambda work: work.resized_bytes() + _rows_bytes(work) + work.depthwise_bytes(),
        moved_again=_groups_again,
        launches=_each_group,
        **_BACKWARD,
    ),
    Kernel(
        name="torch.bmm dqᵀ·ẑ",
        multiply_adds=Work.pointwise_multiply_adds,
        moved=lambda work: work.output_bytes() + _rows_bytes(work) + _product_bytes(work),
        tensor=True,
        launches=_each_group,
        **_VENDOR,
    ),
    Kernel(
        name="norm_statistics pointwise gradient",
        symbol="norm_pointwise_gradient",
        features=lambda work: (work.branches * work.all_channels, work.branches * work.all_channels * work.outputs),
        multiply_adds=lambda work: 3 * work.branches * work.all_channels * work.outputs,
        moved=lambda work: (
            2 * _pointwise_bytes(work) + _product_bytes(work) + _terms(work, 2 + SUMS, work.all_channels)
        ),
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
        parts_of_groups,
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
