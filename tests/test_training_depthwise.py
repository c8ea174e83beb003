"""What training convolves and hands back to the levels, executed on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_no_worse_than, max_error, to_numpy
from strategies import needs_host
from test_separable_pyramid_limits import FAR, spread
from torch import Tensor
from training_depthwise_cases import (
    CASES,
    DTYPES,
    Case,
    as_rows,
    assert_near,
    check_gradient,
    check_levels,
    check_moments,
    check_normalised,
    joined,
    merged,
    ops,
    sum_eps,
)

from jpu_cuda import host

pytestmark = needs_host

EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EVERY_CASE = pytest.mark.parametrize("name", CASES)


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    host.load()


def exact(truth: Tensor) -> np.ndarray:
    return to_numpy(truth).astype(np.longdouble)


# --- moments --------------------------------------------------------------------------------------------


@EVERY_DTYPE
@EVERY_CASE
def test_moments_of_each_branch(name: str, dtype: torch.dtype) -> None:
    check_moments(replace(CASES[name], dtype=dtype))


@pytest.mark.parametrize("wanted", [[0, 1, 0], [1, 0, 1], [0, 1, 1]], ids=str)
def test_moments_of_those_that_are_wanted(wanted: list[int]) -> None:
    case = Case(2, (8, 5), (20, 43), (1, 2, 4))
    check_moments(case, wanted)
    some, counts = ops.training_moments(*case.arguments(), wanted)
    every, counts_of_every = ops.training_moments(*case.arguments(), [1] * 3)
    for d in (d for d in range(3) if wanted[d]):  # whose parts are as small as they can be here
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
    count = len(case.dilations)
    for first, branches in {(0, count), (count - 1, 1)}:
        check_normalised(case, first, branches)


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


@pytest.mark.parametrize("add", [False, True], ids=["puts", "adds"])
@EVERY_DTYPE
@EVERY_CASE
def test_gradient_of_the_levels(name: str, dtype: torch.dtype, add: bool) -> None:
    case = replace(CASES[name], dtype=dtype)
    count = len(case.dilations)
    check_levels(case, 0, count, add)
    if count > 1:
        check_levels(case, 1, 1, add)


@pytest.mark.parametrize("absent", [(0,), (2,), (1, 2), (0, 1), (1,)], ids=str)
@pytest.mark.parametrize("channels", [(8, 16, 24), (3, 8, 5)], ids=str)
def test_levels_without_a_gradient_are_left_out(absent: tuple[int, ...], channels: tuple[int, ...]) -> None:
    case = Case(2, channels, (6, 5), (1, 2))
    dz, weights = case.rows(2), (case.depthwise(), list(case.dilations))
    every = case.levels()
    ops.training_level_gradient(dz, *weights, every, False, 0, 2)
    some: list[Tensor | None] = [None if i in absent else x for i, x in enumerate(case.levels(seed=20))]
    ops.training_level_gradient(dz, *weights, some, False, 0, 2)
    for got, expected in zip(some, every, strict=True):
        assert got is None or torch.equal(got, expected)


# --- launches -----------------------------------------------------------------------------------------


def results(case: Case) -> list[Tensor]:
    """Of all four operators."""
    arguments, count = case.arguments(), len(case.dilations)
    moments, counts = ops.training_moments(*arguments, [1] * count)
    parts = [moments[:, s, d] for s in range(len(counts)) for d in range(count) if counts[s, d] > 0]
    normalised = ops.training_normalised(*arguments, case.of_sets(5, count), 0, count)
    dz, rows, levels = case.rows(count), case.rows(count), case.levels(seed=20)
    (weights,) = ops.training_depthwise_gradient(*arguments, case.of_sets(3, count), normalised, dz, 0, count, True)
    ops.training_depthwise_gradient(*arguments, case.of_sets(3, count), normalised, rows, 0, count, False)
    ops.training_level_gradient(dz, *arguments[1:], levels, True, 0, count)
    return [*parts, counts, normalised, dz, weights, rows, *levels]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [(40,), (3, 5)], ids=str)
def test_any_schedule_gives_the_same(channels: tuple[int, ...], dtype: torch.dtype) -> None:
    case = Case(2, channels, (11, 43), (1, 3), dtype=dtype)
    expected = results(case)
    for seed, late in ((1, True), (2, False)):
        with host.schedule(seed, late=late):
            assert all(map(torch.equal, results(case), expected))


def measured(case: Case) -> dict[str, host.Launch]:
    with host.record() as launches:
        results(case)
    assert len(launches) == 6
    return {launch.kernel.removeprefix("separable_pyramid training "): launch for launch in launches}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_is_accessed_by_vectors_and_little_of_it_twice(dtype: torch.dtype) -> None:
    case = Case(1, (64,), (32, 32), (1,), dtype=dtype)
    size = torch.finfo(dtype).bits // 8
    image, chunks, tiles, parts = 64 * 1024 * size, size, 8, 2
    launches = measured(case)
    for name in ("moments", "normalised", "depthwise gradient"):
        launch = launches[name]
        assert launch.blocks == parts * chunks
        # Patches of 10 by 18 pixels for tiles of 8 by 16, of which those at the edges lack some.
        assert image < 16 * launch.counters["global_reads"][16] < 1.41 * image
        assert launch.counters["bank_conflicts"] <= 0.05 * launch.counters["shared_accesses"]
        ends = 0 if name == "normalised" else launch.blocks
        assert launch.counters["barriers"] == launch.blocks + tiles * chunks + ends
    for name in ("normalised", "depthwise gradient"):  # whole sectors, also where an access is an element
        terms = 9 * 64 * 4 * parts if name == "depthwise gradient" else 0
        assert 32 * launches[name].counters["global_write_sectors"] == image + terms
        assert launches[name].counters["distinct_write_bytes"] == image + terms
    terms = launches["depthwise terms"].counters
    assert terms["distinct_read_bytes"] == terms["global_read_bytes"] == 9 * 64 * 4 * parts
    assert terms["bank_conflicts"] == 0
    rows = launches["row gradient"].counters
    assert rows["global_writes"] == {16: image // 16}
    assert rows["global_reads"][16] == 2 * image // 16
    levels = launches["level gradient"].counters
    assert levels["global_writes"] == {16: image // 16}
    # Of dz eight rows a block and one beside them; what is added to; taps.
    assert levels["distinct_read_bytes"] == image * 38 // 32 + image + 4 * 9 * 64 * size


def test_what_is_not_whole_vectors_is_served_by_elements() -> None:
    launches = measured(Case(1, (5, 3), (9, 9), (1,), dtype=torch.bfloat16))  # whole vectors together, not each
    assert launches["row gradient"].counters["global_writes"].keys() == {16}
    for name in ("moments", "normalised", "depthwise gradient", "level gradient"):
        assert 16 not in launches[name].counters["global_reads"]
    odd = measured(Case(1, (5,), (9, 9), (1,), dtype=torch.bfloat16))["row gradient"].counters
    assert odd["global_writes"] == {2: 5 * 81}


@pytest.mark.parametrize("axis", [0, 2, 3], ids=["images", "rows", "columns"])
def test_levels_may_reach_past_2_to_31_elements(axis: int) -> None:
    case = Case(2, (8,), (2, 3), (1,), dtype=torch.float16)
    (level,), *weights = case.arguments()
    far = spread(level, axis)
    assert far.stride(axis) >= FAR
    for got, expected in zip(
        ops.training_moments([far], *weights, [1]), ops.training_moments([level], *weights, [1]), strict=True
    ):
        assert torch.equal(got, expected)


# --- refusals -----------------------------------------------------------------------------------------

_CASE = Case(2, (8, 5), (4, 3), (1, 2))


def call(name: str, **changes: Any) -> Callable[[], Any]:
    """A call of an operator for both branches, of which some arguments are others."""

    def run() -> Any:
        levels, depthwise, dilations = _CASE.arguments()
        given: dict[str, Any] = {"levels": levels, "depthwise": depthwise, "dilations": dilations}
        group = {"first": 0, "branches": 2}
        rows = {"normalised": _CASE.rows(2), "gradient": _CASE.rows(2)}
        of = {
            "moments": given | {"wanted": [1, 1]},
            "normalised": given | {"statistics": _CASE.of_sets(5, 2)} | group,
            "depthwise_gradient": given | {"coefficients": _CASE.of_sets(3, 2)} | rows | group | {"weights": True},
            "level_gradient": {"dz": _CASE.rows(2), "depthwise": depthwise, "dilations": dilations}
            | {"gradients": levels, "add": False}
            | group,
        }[name]
        changed = {key: change(of[key]) if callable(change) else change for key, change in changes.items()}
        return getattr(ops, f"training_{name}")(**(of | changed))

    return run


REFUSALS = [
    (call("moments", levels=[]), "levels: expected 1 to 8, got 0"),
    (call("moments", levels=lambda x: [x[0], x[1][..., :2]]), r"levels\[1\]: expected the size of levels\[0\]"),
    (call("moments", levels=lambda x: [x[0], x[1].double()]), r"levels\[1\]: expected dtype Float"),
    (call("moments", levels=lambda x: [y[:0] for y in x]), "levels: expected 1 to 2147483647 images of 1 to"),
    (call("moments", levels=lambda x: [y[:, :0] for y in x]), "levels: expected 1 to 268435456 channels, got 0"),
    (call("moments", levels=lambda x: [y.int() for y in x], depthwise=lambda x: [y.int() for y in x]), "float64, fl"),
    (call("moments", depthwise=lambda x: x[:1]), "depthwise: expected one a dilation, 2, got 1"),
    (call("moments", depthwise=lambda x: [x[0], x[1][1:]]), r"depthwise\[1\]: expected shape \[13, 1, 3, 3\]"),
    (call("moments", depthwise=lambda x: [x[0], x[1].double()]), r"depthwise\[1\]: expected dtype Float, got Double"),
    (call("moments", depthwise=lambda x: [x[0], x[1].mT]), r"depthwise\[1\]: expected a contiguous tensor"),
    (call("moments", dilations=[1, 17]), r"dilations\[1\]: expected 1 to 16, got 17"),
    (call("moments", dilations=[0, 1]), r"dilations\[0\]: expected 1 to 16, got 0"),
    (call("moments", dilations=[], depthwise=[]), "dilations: expected 1 to 8, got 0"),
    (call("moments", wanted=[1]), "wanted: expected a number a dilation, 2, got 1"),
    (call("moments", wanted=[0, 0]), "wanted: expected at least one branch, got none"),
    (call("normalised", first=1), "branches: expected some of 2, got 2 from 1"),
    (call("normalised", first=-1), "branches: expected some of 2, got 2 from -1"),
    (call("normalised", branches=0), "branches: expected some of 2, got 0 from 0"),
    (call("normalised", statistics=lambda x: x.double()), "statistics: expected dtype Float, got Double"),
    (call("normalised", statistics=lambda x: x[:, :4]), r"statistics: expected shape \[1, 5, 2, 13\]"),
    (call("normalised", statistics=lambda x: x.repeat(3, 1, 1, 1)), "statistics: expected 1 set or one an image, 2, g"),
    (call("depthwise_gradient", coefficients=lambda x: x[:, :, :1]), r"coefficients: expected shape \[1, 3, 2, 13\]"),
    (call("depthwise_gradient", normalised=lambda x: x[:1]), r"normalised: expected shape \[2, 24, 13\]"),
    (call("depthwise_gradient", normalised=lambda x: x.double()), "normalised: expected dtype Float, got Double"),
    (call("depthwise_gradient", gradient=lambda x: x[:, 1:]), r"gradient: expected shape \[2, 24, 13\]"),
    (call("depthwise_gradient", gradient=lambda x: x.double()), "gradient: expected dtype Float, got Double"),
    (call("depthwise_gradient", first=1, branches=2), "branches: expected some of 2, got 2 from 1"),
    (call("level_gradient", dz=lambda x: x[0]), "dz: expected 3 dimensions"),
    (call("level_gradient", dz=lambda x: x[:1]), r"dz: expected shape \[2, 24, 13\], got \[1, 24, 13\]"),
    (call("level_gradient", dz=lambda x: x.double()), "gradients: expected dtype Double, got Float"),
    (call("level_gradient", gradients=[]), "gradients: expected 1 to 8, got 0"),
    (call("level_gradient", gradients=[None, None]), "gradients: expected at least one, got none"),
    (call("level_gradient", gradients=lambda x: x[:1]), "gradients: expected 13 channels of all levels, got 8"),
    (
        call("level_gradient", gradients=lambda x: [*x, x[0], None]),
        "gradients: expected 13 channels of all lev.* got 21",
    ),
    (call("level_gradient", gradients=lambda x: [None, x[1], None]), "those that are absent side by side, got 2 gaps"),
    (call("level_gradient", gradients=lambda x: [x[0], x[1][..., 1:]]), r"gradients\[1\]: expected the others' size"),
    (call("level_gradient", gradients=lambda x: [x[0], x[1].double()]), r"gradients\[1\]: expected dtype Float"),
    (call("level_gradient", branches=3), "branches: expected some of 2, got 3 from 0"),
]


@pytest.mark.parametrize(("run", "message"), REFUSALS)
def test_the_operators_say_what_is_wrong(run: Callable[[], Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run()
