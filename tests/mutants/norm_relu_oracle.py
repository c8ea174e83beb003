"""The oracle's checks of norm_relu: each path in extended precision, what moves, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from helpers import assert_refused
from norm_cases import Norms, check, one, run

from jpu_cuda import host
from jpu_cuda.ops._library import DTYPES
from jpu_cuda.reference import norm_relu as by_torch

_LAST = ("channels_last",) * 3

CASES = (
    Norms(absent=(("weight", 0), ("bias", 1))),
    Norms((16, 520, 7), ((9, 7), (2, 2), (4, 6)), _LAST),
    Norms((3, 300, 1), ((24, 33), (2, 4), (8, 65))),
    Norms((131, 3, 260), ((3, 3), (41, 37), (1, 3)), (*_LAST[:2], "contiguous"), absent=(("weight", 1), ("bias", 1))),
    Norms((8, 8, 16), ((4, 8),) * 3, ("sliced_by_16", "sliced", "sliced_channels_last_by_16")),
    one(8, (4, 8), "sliced_channels_last"),  # of float64, a vector apart, but begins within one
    one(13, (1, 1), batch=1),
    Norms((8, 5, 8), ((4, 8), (4, 8), (1, 1)), ("transposed", "padded", "expanded_batch"), batch=3),
    Norms((5, 8), ((1, 1), (3, 5)), ("contiguous", "strided"), batch=0),
    Norms((3,) * 9, ((4, 5),) * 9, ("contiguous",) * 9),
)


def norms_and_relus_are_right() -> None:
    for case in CASES:
        for dtype in DTYPES:
            for wide in (True, False):
                check(replace(case, dtype=dtype, wide=wide), draws=4)


def whatever_the_order_of_threads() -> None:
    for case in CASES[1:4]:
        expected = run(case.arguments())
        for seed in (1, 2):
            with host.schedule(seed):
                assert all(map(torch.equal, run(case.arguments()), expected)), "expected the same in any order"


def what_is_not_finite_stays_so() -> None:
    for dtype in DTYPES:
        level = torch.tensor([1, -9, torch.nan, torch.inf, -torch.inf], dtype=dtype).view(1, 1, 1, 5)
        norm = [[torch.ones(1, dtype=dtype)] for _ in range(4)]
        (found,), (expected,) = (f([level], *norm, [0.0]) for f in (lambda *x: run(x), by_torch.norm_relu))
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def aligned_levels_go_by_vectors_in_few_blocks() -> None:
    for case, blocks in (
        (one(16, (3, 5), "channels_last"), 1),
        (one(64, (2, 2), "channels_last", batch=16), 1),
        (one(120, (33, 8)), 4),  # 33 vectors as 17 and 16, which leaves room for 15 rows of channels
        (one(64, (16, 16), batch=1), 1),
    ):
        arguments = replace(case, dtype=torch.float16).arguments()
        with host.record() as launches:
            run(arguments)
        (launch,) = launches
        assert launch.blocks == blocks, f"expected {blocks} blocks, got {launch.blocks}"
        if host._CHECK != "address":  # which counts nothing
            got, expected = launch.counters["global_writes"], {16: arguments[0][0].numel() // 8}
            assert got == expected, f"expected writes {expected}, got {got}"


def wrong_norms_of_levels_are_refused() -> None:
    """Beyond autograd, which takes no part."""
    levels, weight, bias, mean, var, eps = Norms().arguments()

    def call(**parts: Any) -> Callable[[], object]:
        given = {"levels": levels, "weight": weight, "bias": bias, "mean": mean, "var": var, "eps": eps, **parts}
        return lambda: run(tuple(given.values()))

    huge = torch.empty(1, dtype=torch.float16).expand(1, 1, 2**16, 2**15)
    vector = [torch.ones(1)]
    with torch.inference_mode():
        assert_refused(
            [
                ("levels[0]: expected 4 dimensions", call(levels=[levels[0][0], *levels[1:]])),
                ("levels[0]: expected 1 to 2147483647 pixels", call(levels=[levels[0][..., :0], *levels[1:]])),
                (
                    "levels[0]: expected 1 to 2147483647 pixels",
                    lambda: run(([huge], vector, vector, vector, vector, [0.0])),
                ),
                ("one a level, got 2, 3, 3, 3 and 3", call(weight=weight[1:])),
                ("one a level, got 3, 2, 3, 3 and 3", call(bias=bias[1:])),
                ("one a level, got 3, 3, 2, 3 and 3", call(mean=mean[1:])),
                ("one a level, got 3, 3, 3, 2 and 3", call(var=var[1:])),
                ("one a level, got 3, 3, 3, 3 and 2", call(eps=eps[1:])),
                ("mean[0]: expected dtype Float or that of levels[0]", call(mean=[x.double() for x in mean])),
                ("var[1]: expected dtype Float, got Half", call(var=[var[0], var[1].half(), var[2]])),
                ("weight[0]: expected shape [5], got [6]", call(weight=[torch.ones(6), *weight[1:]])),
                ("bias[2]: expected a contiguous tensor", call(bias=[*bias[:2], torch.ones(14)[::2]])),
            ]
        )


CHECKS = {
    function.__name__: function
    for function in (
        norms_and_relus_are_right,
        whatever_the_order_of_threads,
        what_is_not_finite_stays_so,
        aligned_levels_go_by_vectors_in_few_blocks,
        wrong_norms_of_levels_are_refused,
    )
}
