"""The oracle's checks of training's depthwise launches: every path against float64, what moves, what is refused."""

from __future__ import annotations

from dataclasses import replace

import torch
from helpers import assert_refused
from training_depthwise_cases import (
    DTYPES,
    Case,
    check_gradient,
    check_levels,
    check_moments,
    check_normalised,
    depthwise_sums,
    joined,
    merged,
    ops,
)

from jpu_cuda import host

# Several tiles a part and parts a branch; odd channels; packed classes; dilations beyond the image.
CASES = (
    Case(2, (16, 40), (10, 12), (1, 2, 4), sets=True),
    Case(1, (5, 3), (37, 45), (1, 2)),
    Case(2, (8,), (33, 9), (5, 16)),
    Case(3, (3,), (4, 5), (8, 1), sets=True),
    Case(1, (8,), (70, 5), (1,)),
)


def depthwise_moments_are_right() -> None:
    for i, case in enumerate(CASES):
        for dtype in (torch.float32, DTYPES[i % 4]):
            check_moments(replace(case, dtype=dtype))
    check_moments(CASES[0], [0, 1, 0])
    check_moments(CASES[1], [0, 1])


def depthwise_moments_keep_a_large_mean() -> None:
    """Of one part, whose mean is rounded once: its square is what the variance is off by."""
    case = Case(1, (8,), (16, 32), (1,))
    levels, depthwise, dilations = case.arguments()
    depthwise[0].zero_()[:, :, 1, 1] = 1
    levels[0].add_(1e4)
    moments, counts = ops.training_moments(levels, depthwise, dilations, [1])
    variance, mean = torch.var_mean(joined(levels), (0, 2, 3), unbiased=False)
    got_mean, got_variance, _ = merged(moments, counts, 0)
    assert len(counts) == 1, f"expected one part, got {len(counts)}"
    assert ((got_mean / mean - 1).abs() < 2**-23).all(), "expected a mean that is rounded once"
    error = float((got_variance / variance - 1).abs().max())
    assert error < 64 * 2**-23, f"expected a variance within {64 * 2**-23}, got {error}"


def depthwise_rows_and_gradients_are_right() -> None:
    for i, case in enumerate(CASES):
        count = len(case.dilations)
        for dtype in (DTYPES[i % 4], DTYPES[(i + 2) % 4]):
            for first, branches in {(0, count), (count - 1, 1)}:
                check_normalised(replace(case, dtype=dtype), first, branches)
                check_gradient(replace(case, dtype=dtype), first, branches)
                check_levels(replace(case, dtype=dtype), first, branches, add=first > 0)
        check_levels(case, 0, count, add=True)


def depthwise_rows_subtract_the_mean_first() -> None:
    case = Case(1, (8,), (8, 8), (1,))
    levels, depthwise, dilations = case.arguments()
    statistics = case.of_sets(5, 1)
    statistics[:, 0], statistics[:, 2] = 1e5, 0.7
    depthwise[0].zero_()[:, :, 1, 1] = 1
    levels[0].add_(1e5)
    rows = ops.training_normalised(levels, depthwise, dilations, statistics, 0, 1)[0]
    truth = (depthwise_sums(joined(levels), depthwise[0], 1) - 1e5) * statistics[0, 2, 0].double()[:, None, None]
    error = (rows.double() - truth.permute(0, 2, 3, 1).reshape(rows.shape)).abs().max()
    assert error < 1e-6, f"expected ẑ within 1e-6, got {float(error)}"


def depthwise_infinities_stay_where_they_are() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        case = Case(1, (8,), (5, 7), (1,), dtype=dtype)
        levels, depthwise, dilations = case.arguments()
        levels[0][0, 0, :, 6] = torch.inf
        levels[0][0, 1, 4, :] = torch.inf
        arguments = (levels, depthwise, dilations, case.of_sets(3, 1), case.rows(1), case.rows(1, seed=300))
        finite = ops.training_depthwise_gradient(*arguments, 0, 1, True)[0][0, :2, 0].isfinite()
        assert finite[0].tolist() == [[True, False, False]] * 3, f"expected a finite left column, got {finite[0]}"
        expected = [[True] * 3, [False] * 3, [False] * 3]
        assert finite[1].tolist() == expected, f"expected a finite upper row, got {finite[1]}"


def depthwise_infinities_of_fixed_statistics_are_left_out() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        case = Case(1, (8,), (5, 7), (1,), dtype=dtype)
        coefficients, dh = case.of_sets(3, 1), case.rows(1, seed=300)
        coefficients[:, 2] = 0
        for weights in (True, False):
            results = []
            for value in (0, torch.inf, torch.nan):
                dz, normalised = dh.clone(), torch.full_like(dh, value)
                ops.training_depthwise_gradient(*case.arguments(), coefficients, normalised, dz, 0, 1, weights)
                results.append(dz)
            for dz in results[1:]:
                assert torch.equal(dz, results[0]), "expected the same dz, whatever b = 0 is multiplied by"


def depthwise_levels_may_be_parts_of_more() -> None:
    """Pixels lie whole vectors apart, but channels are none."""
    case = Case(1, (5,), (6, 7), (1,), dtype=torch.float16)
    wide = case.normal(1, 8, 6, 7).half().contiguous(memory_format=torch.channels_last)
    weights = case.depthwise(), [1], [1]
    part, copy = (ops.training_moments([x], *weights) for x in (wide[:, :5], wide[:, :5].clone()))
    assert all(map(torch.equal, part, copy)), "expected the moments of a copy"


def depthwise_absent_levels_are_left_out() -> None:
    case = Case(2, (8, 16, 8), (4, 5), (1, 2))
    dz, weights = case.rows(2), (case.depthwise(), list(case.dilations))
    every = case.levels()
    ops.training_level_gradient(dz, *weights, every, case.channels, False, 0, 2)
    for absent in ((0,), (1, 2), (1,), (0, 2)):
        some = [None if i in absent else x for i, x in enumerate(case.levels(seed=20))]
        ops.training_level_gradient(dz, *weights, some, case.channels, False, 0, 2)
        for got, expected in zip(some, every, strict=True):
            assert got is None or torch.equal(got, expected), f"expected the same without {absent}"


def depthwise_launches_walk_over_tiles() -> None:
    if host._CHECK == "address":
        return  # which counts nothing
    case = Case(1, (32,), (32, 32), (1,), dtype=torch.bfloat16)
    with host.record() as launches:
        ops.training_moments(*case.arguments(), [1])
    (launch,) = launches
    assert launch.blocks == 2, f"expected 2 blocks of 4 tiles, got {launch.blocks}"
    barriers = launch.counters["barriers"]
    assert barriers == 2 * 6, f"expected a barrier a tile and 2 a block, got {barriers}"


def depthwise_levels_load_rows_once() -> None:
    if host._CHECK == "address":
        return  # which counts nothing
    # Strips of four pixels a dilation apart where the image has these, of two neighbours elsewhere.
    for height, rows in ((32, 8 * 4), (8, 8)):
        case = Case(1, (64,), (height, 8), (8,), dtype=torch.bfloat16)
        with host.record() as launches:
            check_levels(case, 0, 1, add=False)
        (launch,) = launches
        loads, products, conflicts, passes = (
            launch.counters["global_reads"][16],
            *(launch.counters[key] for key in ("multiply_adds", "bank_conflicts", "shared_accesses")),
        )
        assert loads == rows * 8 * 8, f"expected {rows} rows of 8 pixels of 8 vectors, got {loads} loads"
        assert products == height * 3 * 8 * 64, f"expected three for each channel, got {products}"
        assert conflicts <= 0.1 * passes, f"expected few conflicts of {passes} passes, got {conflicts}"


def depthwise_results_do_not_depend_on_the_order() -> None:
    case = Case(1, (8, 3), (20, 43), (1, 2))
    arguments = case.arguments()
    results = []
    for seed, late in ((0, True), (1, False), (2, True)):
        with host.schedule(seed, late=late):
            moments, counts = ops.training_moments(*arguments, [1, 1])
            dz = case.rows(2)
            weights = ops.training_depthwise_gradient(*arguments, case.of_sets(3, 2), case.rows(2), dz, 0, 2, True)
            results.append([moments[:, : int((counts > 0).all(1).sum())], counts, dz, *weights])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other)), "expected the same in any order"


def depthwise_arguments_that_do_not_fit_are_refused() -> None:
    case = Case(2, (8, 5, 4), (4, 3), (1, 2))
    levels, depthwise, dilations = case.arguments()
    statistics, coefficients, rows = case.of_sets(5, 2), case.of_sets(3, 2), case.rows(2)
    several = [None, levels[1], None]
    given = (levels, depthwise, dilations)
    assert_refused(
        [
            ("statistics: expected shape", lambda: ops.training_normalised(*given, statistics[..., 1:], 0, 2)),
            (
                "gradient: expected dtype Float",
                lambda: ops.training_depthwise_gradient(*given, coefficients, rows, rows.double(), 0, 2, True),
            ),
            (
                "channels: expected 17 of all levels, got 18",
                lambda: ops.training_level_gradient(rows, depthwise, dilations, several, (9, 5, 4), False, 0, 2),
            ),
            ("wanted: expected at least one", lambda: ops.training_moments(*given, [0, 0])),
        ]
    )


CHECKS = {
    f.__name__: f
    for f in (
        depthwise_moments_are_right,
        depthwise_moments_keep_a_large_mean,
        depthwise_rows_and_gradients_are_right,
        depthwise_rows_subtract_the_mean_first,
        depthwise_infinities_stay_where_they_are,
        depthwise_infinities_of_fixed_statistics_are_left_out,
        depthwise_levels_may_be_parts_of_more,
        depthwise_absent_levels_are_left_out,
        depthwise_launches_walk_over_tiles,
        depthwise_levels_load_rows_once,
        depthwise_results_do_not_depend_on_the_order,
        depthwise_arguments_that_do_not_fit_are_refused,
    )
}
