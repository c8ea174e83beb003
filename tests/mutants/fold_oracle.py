"""The oracle's checks of upsample_fold: the formulas in extended precision, a result for each thing asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from folds import Fold, check_gradients, check_terms, fold
from helpers import assert_refused
from torch import Tensor

from jpu_cuda import host
from jpu_cuda.ops._library import DTYPES

CASES = (
    Fold(),
    Fold(3, (300, 5), align_corners=False),
    Fold(1, (1, 257), without=("weight",), sizes=((4, 5),)),
    Fold(8, (3, 9), without=("bias",), batch=0),
)


def norms_are_folded() -> None:
    for case in CASES:
        for dtype in DTYPES:
            for wide in (True, False):
                check_terms(replace(case, dtype=dtype, wide=wide))


def gradients_of_norms_are_right() -> None:
    for case in CASES:
        for dtype in DTYPES:
            for wide in (True, False):
                check_gradients(replace(case, dtype=dtype, wide=wide))


def norms_go_with_the_first_launch() -> None:
    case = Fold(sizes=((4, 5),) + ((2, 3),) * 20)
    check_terms(case)
    arguments = case.arguments()
    with host.record() as alone:
        torch.ops.jpu_cuda.upsample(arguments[0][1:], 4, 5, True)
    with host.record() as launches:
        fold(arguments)
    expected, got = [alone[0].blocks + 4, alone[1].blocks], [launch.blocks for launch in launches]
    assert got == expected, f"expected {expected} blocks, got {got}"


def levels_are_resized_beside_norms_backward() -> None:
    case = Fold(dtype=torch.float64)
    arguments = case.arguments()
    *images, _, _, _, _ = fold(arguments)
    sizes = [3, 2], [4, 5]
    expected = torch.ops.jpu_cuda.upsample_backward(images, *sizes, True)
    needed = [1, 0, 1, 0, 0, 1, 0, 0]
    given = (images, *sizes, True, [None, *case.term_gradients()[1:]], *arguments[4:], needed)
    found = torch.ops.jpu_cuda.upsample_fold_backward(*given)
    assert [tuple(x.shape) for x in found] == [
        tuple(x.shape) for x in (*expected, *arguments[2][:3:2], arguments[2][1])
    ]
    assert all(map(torch.equal, found[:2], expected))
    shift_alone = -arguments[4][0] * case.term_gradients()[1][0] / (arguments[5][0] + arguments[6][0]).sqrt()
    torch.testing.assert_close(found[2], shift_alone, rtol=1e-13, atol=0)
    nothing = (images, *sizes, True, [None] * 4, *arguments[4:], needed)
    assert not any(x.any() for x in torch.ops.jpu_cuda.upsample_fold_backward(*nothing)[2:])


def wrong_norms_are_refused() -> None:
    """Beyond autograd, which counts them first."""
    case = Fold()
    levels, align, *norms = case.arguments()
    terms, (images, *sizes, _) = case.term_gradients(), case.level_gradients()
    _, _, mean, var, eps = norms
    backward, vectors = torch.ops.jpu_cuda.upsample_fold_backward, [torch.ones(3)]

    def forward(part: int, value: list[Any]) -> Callable[[], object]:
        return lambda: fold([levels, align, *norms[:part], value, *norms[part + 1 :]])

    def all_of(count: int) -> Callable[[], object]:
        return lambda: fold([levels, align, *[vectors * count] * 4, [0.5] * count])

    def of_terms(value: list[Tensor | None], needed: int = 8) -> Callable[[], object]:
        return lambda: backward(images, *sizes, align, value, mean, var, eps, [1] * needed)

    refusals: list[tuple[str, Callable[[], object]]] = [
        ("levels[0]: expected 4 dimensions", lambda: fold([[levels[0][0]], align, *norms])),
        ("levels[0]: expected height and width", lambda: fold([[levels[0][..., :0]], align, *norms])),
        ("an even number from 2 to 16, got 0", all_of(0)),
        ("an even number from 2 to 16, got 3", all_of(3)),
        ("an even number from 2 to 16, got 18", all_of(18)),
        ("an even number from 2 to 16, got 4, 3", forward(3, var[1:])),
        ("an even number from 2 to 16, got 4, 4 and 3", forward(4, eps[1:])),
        ("expected 4 weights and biases, got 3 and 4", forward(0, norms[0][1:])),
        ("expected 4 weights and biases, got 4 and 3", forward(1, norms[1][1:])),
        (
            "mean[0]: expected dtype Float or that of levels[0], Float, got Double",
            forward(2, [x.double() for x in mean]),
        ),
        ("var[1]: expected dtype Float, got Half", forward(3, [var[0], var[1].half(), *var[2:]])),
        ("var[1]: expected shape [7], got [8]", forward(3, [var[0], torch.ones(8), *var[2:]])),
        ("mean[3]: expected a contiguous tensor", forward(2, [*mean[:3], torch.ones(10)[::2]])),
        ("expected 1 to 2147483647 channels, got 0", forward(2, [torch.ones(0), *mean[1:]])),
        ("weight[0]: expected dtype Float, got Half", forward(0, [norms[0][0].half(), *norms[0][1:]])),
        ("bias[3]: expected shape [5], got [6]", forward(1, [*norms[1][:3], torch.ones(6)])),
        ("expected 4 terms and 8 numbers, got 3 and 8", of_terms(list(terms[:3]))),
        ("expected 4 terms and 8 numbers, got 4 and 7", of_terms(list(terms), 7)),
        ("terms[2]: expected dtype Float, got Double", of_terms([*terms[:2], terms[2].double(), terms[3]])),
        ("terms[2]: expected shape [2, 5], got [2, 7]", of_terms([*terms[:2], *terms[:2]])),
        ("mean: expected at least one", lambda: backward(images, *sizes, align, terms, [], [], [], [])),
    ]
    with torch.inference_mode():
        assert_refused(refusals)


CHECKS = {
    function.__name__: function
    for function in (
        norms_are_folded,
        gradients_of_norms_are_right,
        norms_go_with_the_first_launch,
        levels_are_resized_beside_norms_backward,
        wrong_norms_are_refused,
    )
}
