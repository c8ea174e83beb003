"""The oracle's checks of training's norms: each path in extended precision, what moves, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from helpers import assert_refused
from training_norm_cases import (
    Coefficients,
    Pointwise,
    Statistics,
    check_coefficients,
    check_pointwise,
    check_statistics,
    run_coefficients,
    run_pointwise,
    run_statistics,
)

from jpu_cuda import host
from jpu_cuda.ops._library import DTYPES

_STATISTICS = (
    Statistics(),
    Statistics(images=1, parts=1, channels=5, fixed=(False,)),
    Statistics(images=3, parts=67, channels=3, most=3, mean=100),
    Statistics(fixed=(True, True), channels=37),
    Statistics(images=3, parts=5, fixed=(False, False), channels=36, groups=2, mean=100),
    Statistics(images=2, parts=19, fixed=(False,), channels=300, groups=1, most=2),
    Statistics(images=2, parts=3, fixed=(False,), channels=6, groups=6),
)
_COEFFICIENTS = (
    Coefficients(),
    Coefficients(images=37, parts=1, channels=7),
    Coefficients(images=2, parts=21, channels=33, batch=(0, 1), without=(0,)),
    Coefficients(groups=5, without=(1,)),
    Coefficients(images=2, parts=3, channels=600, batch=(1,), groups=2, without=()),
)
_POINTWISE = (
    Pointwise(),
    Pointwise(images=1, outputs=70, channels=264, branches=1, some=1),
    Pointwise(images=19, outputs=35, channels=37, branches=4, first=1, some=2),
    Pointwise(branches=4, first=1, some=3, by_image=True),
    Pointwise(offset=1, channels=16, outputs=9),
)


def statistics_are_those_of_all_values() -> None:
    for case in _STATISTICS:
        for dtype in DTYPES:
            check_statistics(replace(case, dtype=dtype))


def coefficients_are_within_their_bounds() -> None:
    for case in _COEFFICIENTS:
        for dtype in DTYPES:
            check_coefficients(replace(case, dtype=dtype))


def the_pointwise_gradient_is_within_its_bounds() -> None:
    for case in _POINTWISE:
        for dtype in DTYPES:
            for wide in (True, False):
                check_pointwise(replace(case, dtype=dtype, wide=wide))


def norms_whatever_the_order_of_threads() -> None:
    for run, arguments in (
        (lambda x: [run_statistics(x)], _STATISTICS[0].arguments()[0]),
        (lambda x: [run_statistics(x)], _STATISTICS[4].arguments()[0]),
        (run_coefficients, _COEFFICIENTS[2].arguments()),
        (run_coefficients, _COEFFICIENTS[4].arguments()),
        (run_pointwise, _POINTWISE[1].arguments()),
    ):
        expected = run(arguments)
        for seed in (1, 2):
            with host.schedule(seed):
                for x, y in zip(run(arguments), expected, strict=True):
                    torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


def what_norms_take_is_not_mixed_where_it_is_not_finite() -> None:
    arguments = Coefficients(batch=(0, 1), without=()).arguments()
    arguments[0][:, :, 1:] = torch.inf
    totals = run_coefficients(arguments)[1]
    assert totals[:, 0].isfinite().all(), "expected finite totals of fixed statistics"


def norms_read_little_and_by_vectors() -> None:
    launches: list[list[host.Launch]] = []
    case = Statistics(images=2, parts=8, channels=32, fixed=(False,), without=(), empty=False)
    for run, arguments in (
        (run_statistics, case.arguments()[0]),
        (run_coefficients, Coefficients(parts=1).arguments()),
        (run_pointwise, Pointwise(images=1, channels=64, dtype=torch.float16).arguments()),
    ):
        with host.record() as recorded:
            run(arguments)
        launches.append(recorded)
    assert [len(launch) for launch in launches] == [1, 1, 1]
    blocks = [launch[0].blocks for launch in launches]
    assert blocks == [2, 6, 3 * (2 + 2)], f"expected 2, 6 and 12 blocks, got {blocks}"
    if host._CHECK != "address":  # which counts nothing
        counters = launches[2][0].counters
        row = 64 * 2 // 16
        # Products of float32, twice, and weights; rows of products behind the last output are read again.
        expected = 3 * (37 * (2 * 2 + 1) + 27 * 2) * row
        assert counters["global_reads"][16] == expected, f"expected {expected}, got {counters}"
        assert counters["global_writes"][16] == 3 * 37 * 8


def wrong_arguments_of_norms_are_refused() -> None:
    def call(run: Callable[[Any], Any], arguments: Any, index: int, change: Callable[[Any], Any]) -> Any:
        changed = [change(x) if i == index else x for i, x in enumerate(arguments)]
        return lambda: run(tuple(changed))

    def of(index: int, change: Callable[[Any], Any], **case: Any) -> Any:
        return call(run_statistics, Statistics(**case).arguments()[0], index, change)

    def co(index: int, change: Callable[[Any], Any]) -> Any:
        return call(run_coefficients, Coefficients().arguments(), index, change)

    def po(index: int, change: Callable[[Any], Any]) -> Any:
        return call(run_pointwise, Pointwise().arguments(), index, change)

    assert_refused(
        [
            ("branches: expected 1 to 8, got 9", of(6, lambda x: x * 3)),
            ("mean: expected one a branch, 3, got 2", of(4, lambda x: x[1:])),
            ("var[1]: expected a variance with a mean", of(5, lambda _: [None] * 3)),
            ("mean[1]: expected none with groups", of(7, lambda _: 2)),
            ("groups: expected 0 or a divisor", of(7, lambda _: 3, fixed=(False,) * 3)),
            ("moments: expected a contiguous tensor", of(0, lambda x: x[..., ::2])),
            ("moments: expected shape [2, 3, 3, 2, 20]", of(0, lambda x: x[:, :, :2].clone())),
            ("norms: expected a dtype whose sums are Double", of(0, lambda x: x.double())),
            ("counts: expected dtype Int, got Long", of(1, lambda x: x.long())),
            ("counts: expected shape [3, 3]", of(1, lambda x: x[1:])),
            ("bias[0]: expected dtype Float, got Double", of(3, lambda x: [x[0].double(), *x[1:]])),
            ("weight[1]: expected shape [20], got [19]", of(2, lambda x: [x[0], x[1][1:], x[2]])),
            ("sums: expected shape [3, 5, 3, 3, 20]", co(0, lambda x: x[:, :, :2].clone())),
            ("statistics: expected dtype Float, got Double", co(1, lambda x: x.double())),
            ("statistics: expected shape [3, 5, 3, 20]", co(4, lambda _: 4)),
            ("batch: expected one a branch, 3, got 2", co(3, lambda x: x[1:])),
            ("pixels: expected at least one", co(5, lambda _: 0)),
            ("products: expected shape [3, 1, 37, 40]", po(0, lambda x: x[:2])),
            ("products: expected dtype Float, got Half", po(0, lambda x: x.half())),
            ("of 1 set or 3, got 37 and 2", po(0, lambda x: x.expand(-1, 2, -1, -1))),
            ("totals: expected shape [3, 3, 37]", po(2, lambda x: x[..., 1:].clone())),
            ("pointwise[2]: expected shape [37, 40, 1, 1]", po(1, lambda x: [*x[:2], x[2][1:]])),
            ("norms: expected dtype Float or that", po(3, lambda x: [y if y is None else y.half() for y in x])),
            ("branches: expected some of 3, got 3 from 1", po(5, lambda _: 1)),
        ]
    )


CHECKS = {
    function.__name__: function
    for function in (
        statistics_are_those_of_all_values,
        coefficients_are_within_their_bounds,
        the_pointwise_gradient_is_within_its_bounds,
        norms_whatever_the_order_of_threads,
        what_norms_take_is_not_mixed_where_it_is_not_finite,
        norms_read_little_and_by_vectors,
        wrong_arguments_of_norms_are_refused,
    )
}
