"""The oracle's checks of upsample_fold: the formulas in extended precision, a result for each thing asked for."""

from __future__ import annotations

from dataclasses import replace

import torch
from folds import Fold, check_gradients, check_terms, fold

from jpu_cuda.ops._library import DTYPES

CASES = (Fold(), Fold(3, (300, 5)), Fold(1, (1, 257), without=("weight",)), Fold(8, (3, 9), without=("bias",), batch=0))


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
    check_terms(Fold(sizes=((4, 5),) + ((2, 3),) * 20))


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


CHECKS = {
    function.__name__: function
    for function in (
        norms_are_folded,
        gradients_of_norms_are_right,
        norms_go_with_the_first_launch,
        levels_are_resized_beside_norms_backward,
    )
}
