"""What training convolves and hands back to the levels, executed on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_no_worse_than, assert_within, max_error, to_numpy
from strategies import needs_host
from torch import Tensor
from training_depthwise_cases import (
    CASES,
    DTYPES,
    Case,
    as_image,
    as_rows,
    depthwise_sums,
    each_row,
    joined,
    merged,
    sum_eps,
)

from jpu_cuda import host
from jpu_cuda.reference.loops import Bounded

pytestmark = needs_host

EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EVERY_CASE = pytest.mark.parametrize("name", CASES)
ops: Any = torch.ops.jpu_cuda


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    host.load()


def assert_near(actual: Tensor, truth: Tensor, bound: Tensor) -> None:
    """Asserts that each entry is within its bound, which higher orders and subnormal numbers widen."""
    error = 1.01 * bound + torch.finfo(actual.dtype).smallest_normal
    assert_within(actual, Bounded(to_numpy(truth), to_numpy(error)))


def exact(truth: Tensor) -> np.ndarray:
    return to_numpy(truth).astype(np.longdouble)


# --- moments --------------------------------------------------------------------------------------------


def check_moments(case: Case, wanted: list[int] | None = None) -> None:
    levels, depthwise, dilations = case.arguments()
    wanted = [1] * len(dilations) if wanted is None else wanted
    moments, counts = ops.training_moments(levels, depthwise, dilations, wanted)
    parts = counts.shape[0]
    assert moments.shape == (case.batch, parts, len(dilations), 2, case.total)
    assert counts.dtype == torch.int32
    u = joined(levels)
    eps = sum_eps(case.dtype)
    for d, dilation in enumerate(dilations):
        if not wanted[d]:
            assert not counts[:, d].any()
            continue
        assert int(counts[:, d].sum()) == case.pixels
        z = as_rows(depthwise_sums(u, depthwise[d], dilation))
        magnitude = as_rows(depthwise_sums(u.abs(), depthwise[d].abs(), dilation)).amax(0)
        mean, variance, _ = merged(moments, counts, d)
        # A z is off by 9 roundings. A mean of n values by n in a thread and one for each merge, which also moves squares.
        off = (9 + 2 * case.pixels) * eps / 2 * magnitude
        assert_near(mean, z.mean(0), off)
        true = z.var(0, unbiased=False)
        assert_near(variance, true, 4 * off * true.sqrt() + off**2 + (16 + 2 * case.pixels) * eps * true)


@EVERY_DTYPE
@EVERY_CASE
def test_moments_of_each_branch(name: str, dtype: torch.dtype) -> None:
    check_moments(replace(CASES[name], dtype=dtype))


@pytest.mark.parametrize("wanted", [[0, 1, 0, 0], [1, 0, 0, 1], [0, 1, 1, 0]], ids=str)
def test_moments_of_those_that_are_wanted(wanted: list[int]) -> None:
    case = replace(CASES["vectors, several levels"], size=(20, 23))
    check_moments(case, wanted)
    some, counts = ops.training_moments(*case.arguments(), wanted)
    every, counts_of_every = ops.training_moments(*case.arguments(), [1] * 4)
    for d in (d for d in range(4) if wanted[d]):  # whose parts are as small as they can be here
        parts = int((counts[:, d] > 0).sum())
        assert torch.equal(counts[:parts, d], counts_of_every[:parts, d])
        assert torch.equal(some[:, :parts, d], every[:, :parts, d])


def test_a_branch_of_fewer_tiles_has_fewer_parts() -> None:
    case = Case(1, (8,), (33, 33), (1, 16))  # 11 tiles, and 32
    _, counts = ops.training_moments(*case.arguments(), [1, 1])
    assert (counts > 0).any(1).all()
    lacking = (counts == 0).any(0)
    assert lacking.tolist() in ([True, False], [False, True])


@pytest.mark.parametrize("size", [(16, 32), (40, 37)], ids=["one part", "several"])
def test_statistics_keep_their_precision_beside_a_large_mean(size: tuple[int, int]) -> None:
    """Mean to deviation 10⁴ : 1, where E[z²] − E[z]² in float32 has no digit left.

    PyTorch sums float32 in float64 on a CPU, so its results are the truth but for their own rounding. Ours may differ
    by what each part's mean was rounded, and not by what a mean of a few values would be.
    """
    case = Case(1, (8, 5), size, (1, 2))
    for seed in range(3):
        levels, depthwise, dilations = case.arguments(seed)
        for weight in depthwise:  # one tap, so that z is the level and nothing of the edges
            weight.zero_()[:, :, 1, 1] = 1
        for level in levels:
            level.add_(1e4)
        moments, counts = ops.training_moments(levels, depthwise, dilations, [1, 1])
        z = joined(levels)
        variance, mean = torch.var_mean(z, (0, 2, 3), unbiased=False)
        assert 0.5e4 < float((mean / variance.sqrt()).mean()) < 2e4
        errors_of_torch = [
            max_error(x, exact(truth))
            for x, truth in zip(torch.var_mean(z.float(), (0, 2, 3), unbiased=False), (variance, mean), strict=True)
        ]
        rounding = sum_eps(torch.float32) / 2 * mean
        for d in range(2):
            got_mean, got_variance, total = merged(moments, counts, d)
            assert_no_worse_than(got_mean.float(), exact(mean), [errors_of_torch[1]])
            share = counts[:, d].double()[None, :, None] / total
            of_parts = torch.where(share > 0, (moments[:, :, d, 0].double() - mean).abs(), 0)
            by_means = (share * (2 * of_parts * rounding + rounding**2)).sum((0, 1))
            by_squares = 64 * sum_eps(torch.float32) * variance  # additions, and the sums' share in each part
            assert ((got_variance - variance).abs() <= 1.25 * errors_of_torch[0] + by_means + by_squares).all()


@EVERY_DTYPE
def test_a_nan_or_infinity_reaches_the_statistics_of_its_channel_alone(dtype: torch.dtype) -> None:
    case = Case(1, (8, 3), (9, 17), (2,), dtype=dtype)
    levels, depthwise, dilations = case.arguments()
    levels[0][0, 3, 4, 5] = torch.nan
    levels[1][0, 1, 4, 5] = torch.inf
    moments, counts = ops.training_moments(levels, depthwise, dilations, [1])
    mean, variance, _ = merged(moments, counts, 0)
    bad = torch.zeros(11, dtype=torch.bool)
    bad[[3, 9]] = True
    assert torch.equal(~mean.isfinite(), bad)
    assert torch.equal(~variance.isfinite(), bad)


# --- ẑ --------------------------------------------------------------------------------------------------


@EVERY_DTYPE
@EVERY_CASE
def test_normalised_rows(name: str, dtype: torch.dtype) -> None:
    case = replace(CASES[name], dtype=dtype)
    levels, depthwise, dilations = case.arguments()
    branches = len(dilations)
    statistics = case.of_sets(5, branches)
    u = joined(levels)
    for first, count in {(0, branches), (branches - 1, 1)}:
        rows = ops.training_normalised(levels, depthwise, dilations, statistics, first, count)
        assert (rows.shape, rows.dtype) == ((count, case.batch * case.pixels, case.total), dtype)
        for g in range(count):
            d = first + g
            mean, inverse = (each_row(statistics[:, i, d].double(), case) for i in (0, 2))
            z = as_rows(depthwise_sums(u, depthwise[d], dilations[d]))
            magnitude = as_rows(depthwise_sums(u.abs(), depthwise[d].abs(), dilations[d])) + mean
            truth = (z - mean) * inverse
            bound = 12 * sum_eps(dtype) / 2 * magnitude * inverse + torch.finfo(dtype).eps / 2 * truth.abs()
            assert_near(rows[g], truth, bound)


def test_the_mean_is_subtracted_first() -> None:
    """A scale · z − scale · mean in float32 would be off by 10⁵ units in the last place of what is left."""
    case = Case(1, (8,), (8, 8), (1,))
    levels, depthwise, dilations = case.arguments()
    depthwise[0].zero_()[:, :, 1, 1] = 1
    levels[0].add_(1e5)
    statistics = case.of_sets(5, 1)
    statistics[:, 0] = 1e5
    rows = ops.training_normalised(levels, depthwise, dilations, statistics, 0, 1)[0]
    truth = (as_rows(levels[0].double()) - 1e5) * statistics[0, 2, 0].double()
    assert_near(rows, truth, 2 * sum_eps(torch.float32) / 2 * truth.abs())


# --- dz and the depthwise weights' gradient -----------------------------------------------------------


def check_gradient(case: Case, first: int, count: int) -> None:
    levels, depthwise, dilations = case.arguments()
    coefficients, normalised, dh = case.of_sets(3, count), case.rows(count), case.rows(count, seed=300)
    dz, rows_alone = dh.clone(), dh.clone()
    (weights,) = ops.training_depthwise_gradient(
        levels, depthwise, dilations, coefficients, normalised, dz, first, count, True
    )
    assert (weights.shape, weights.dtype) == ((count, case.total, 1, 3, 3), case.dtype)
    assert (
        ops.training_depthwise_gradient(
            levels, depthwise, dilations, coefficients, normalised, rows_alone, first, count, False
        )
        == []
    )
    assert torch.equal(rows_alone, dz)  # one expression, whichever kernel
    u, eps, own = joined(levels), sum_eps(case.dtype), torch.finfo(case.dtype).eps
    for g in range(count):
        k, a, b = (each_row(coefficients[:, i, g].double(), case) for i in range(3))
        truth = k * dh[g].double() - a - b * normalised[g].double()
        magnitude = k * dh[g].double().abs() + a + b * normalised[g].double().abs()
        assert_near(dz[g], truth, 3 * eps / 2 * magnitude + own / 2 * truth.abs())

        def gradient(u: Tensor, dz: Tensor, dilation: int = dilations[first + g]) -> Tensor:
            weight = torch.zeros(case.total, 1, 3, 3, dtype=torch.float64, requires_grad=True)
            return torch.autograd.grad(depthwise_sums(u, weight, dilation), weight, dz)[0]

        rounded = as_image(dz[g].double(), case)
        steps = 16 + case.batch * case.pixels
        true = gradient(u, rounded)
        assert_near(weights[g], true, steps * eps / 2 * gradient(u.abs(), rounded.abs()) + own / 2 * true.abs())


@EVERY_DTYPE
@EVERY_CASE
def test_gradient_of_the_depthwise_sums_and_weights(name: str, dtype: torch.dtype) -> None:
    case = replace(CASES[name], dtype=dtype)
    count = len(case.dilations)
    check_gradient(case, 0, count)
    if count > 1:
        check_gradient(case, 1, count - 1)


@EVERY_DTYPE
def test_what_lies_beside_pixels_that_do_not_exist_does_not_count(dtype: torch.dtype) -> None:
    """Slots without a pixel have windows on those that exist: their gradients of 0 must not meet ∞ there."""
    case = Case(1, (8,), (5, 7), (1,), dtype=dtype)
    levels, depthwise, dilations = case.arguments()
    levels[0][0, 0, :, 6] = torch.inf  # which the left column of taps never reaches
    levels[0][0, 1, 4, :] = torch.nan  # and the upper row of taps this
    coefficients = case.of_sets(3, 1)
    (weights,) = ops.training_depthwise_gradient(
        levels, depthwise, dilations, coefficients, case.rows(1), case.rows(1, seed=300), 0, 1, True
    )
    finite = weights[0, :, 0].isfinite()
    assert finite[2:].all()
    assert finite[0].tolist() == [[True, False, False]] * 3
    assert finite[1].tolist() == [[True] * 3, [False] * 3, [False] * 3]


# --- the levels' gradients ----------------------------------------------------------------------------


def zeros(case: Case) -> list[Tensor]:
    return [torch.zeros_like(x) for x in case.levels()]


def check_levels(case: Case, first: int, count: int, add: bool) -> None:
    _, depthwise, dilations = case.arguments()
    dz = case.rows(count, seed=400)
    gradients = case.levels(seed=20)
    before = joined(gradients) * add
    ops.training_level_gradient(dz, depthwise, dilations, gradients, add, first, count)
    u = torch.zeros(case.batch, case.total, *case.size, dtype=torch.float64, requires_grad=True)
    truth, magnitude = before, before.abs()
    for g in range(count):
        weight, dilation = depthwise[first + g].double(), dilations[first + g]
        image = as_image(dz[g].double(), case)
        truth = truth + torch.autograd.grad(depthwise_sums(u, weight, dilation), u, image)[0]
        magnitude = magnitude + torch.autograd.grad(depthwise_sums(u, weight.abs(), dilation), u, image.abs())[0]
    steps = 9 + count + 1
    bound = steps * sum_eps(case.dtype) / 2 * magnitude + torch.finfo(case.dtype).eps / 2 * truth.abs()
    assert_near(torch.cat(gradients, 1), truth, bound)


@pytest.mark.parametrize("add", [False, True], ids=["puts", "adds"])
@EVERY_DTYPE
@EVERY_CASE
def test_gradient_of_the_levels(name: str, dtype: torch.dtype, add: bool) -> None:
    case = replace(CASES[name], dtype=dtype)
    count = len(case.dilations)
    check_levels(case, 0, count, add)
    if count > 1:
        check_levels(case, 1, 1, add)
