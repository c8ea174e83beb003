"""The truth of resizing by hand, and what the other shared pieces of these tests must accept and refuse."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_no_worse_than, max_error
from hypothesis import given
from strategies import LAYOUTS, Case, cases, torch_adjoint, true_adjoint, true_upsample

X = torch.tensor([[[[0.0, 3.0]]]], dtype=torch.float64)
TRUTH = np.array([1.0, 2.0, 4.0], dtype=np.longdouble)


@pytest.mark.parametrize(("align_corners", "expected"), [(True, [0, 1, 2, 3]), (False, [0, 0.75, 2.25, 3])])
def test_the_truth_is_what_a_hand_works_out(align_corners: bool, expected: list[float]) -> None:
    truth = true_upsample(X, (1, 4), align_corners)
    np.testing.assert_allclose(truth[0, 0, 0].astype(float), expected, rtol=0, atol=1e-18)


def test_the_truth_of_the_adjoint_is_what_a_hand_works_out() -> None:
    gradient = torch.tensor([[[[1.0, 2.0, 4.0, 8.0]]]])
    expected = [1 + 0.75 * 2 + 0.25 * 4, 0.25 * 2 + 0.75 * 4 + 8]
    np.testing.assert_array_equal(true_adjoint(gradient, (1, 2), False)[0, 0, 0].astype(float), expected)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 4), (3, 5), (13, 2)])
def test_the_truth_is_pytorchs_in_float64(size: tuple[int, int], align_corners: bool) -> None:
    x, gradient = torch.randn(2, 3, 4, 7).double(), torch.randn(2, 3, *size).double()
    resized = F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
    assert max_error(resized, true_upsample(x, size, align_corners)) < 1e-14
    assert (
        max_error(torch_adjoint(gradient, (4, 7), align_corners), true_adjoint(gradient, (4, 7), align_corners)) < 1e-13
    )


def test_no_worse_than_takes_the_worst_draw() -> None:
    actual = torch.tensor([1.0, 2.0, 4.0]).double() + 0.01
    assert_no_worse_than(actual, TRUTH, [0.0, 0.009])
    with pytest.raises(AssertionError, match="error of at most"):
        assert_no_worse_than(actual, TRUTH, [0.0, 0.007])


def test_no_worse_than_sees_less_than_a_rounding_of_float64() -> None:
    third = np.array([1], dtype=np.longdouble) / 3
    assert 0 < max_error(torch.tensor([1 / 3], dtype=torch.float64), third) < 2.0**-54


def test_the_error_of_another_shape_is_refused() -> None:
    with pytest.raises(AssertionError, match="shape"):
        max_error(torch.zeros(1, 3), TRUTH)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_values_and_differ_in_strides(layout: str) -> None:
    x = torch.randn(2, 3, 4, 5)
    laid_out = LAYOUTS[layout](x)
    assert laid_out.shape == x.shape
    if not layout.startswith("expanded"):
        assert torch.equal(laid_out, x)
    assert (laid_out.stride() == x.stride()) == (layout == "contiguous")


@given(cases())
def test_cases_are_small_and_draw_the_shapes_that_they_state(case: Case) -> None:
    assert case.elements <= 70_000
    levels, gradients = case.levels(), case.gradients()
    assert [tuple(x.shape) for x in levels] == [
        (case.batch, c, *size) for c, size in zip(case.channels, case.sizes, strict=True)
    ]
    assert all(g.shape == (x.shape[0], x.shape[1], *case.sizes[0]) for g, x in zip(gradients, levels, strict=True))
    assert {x.dtype for x in (*levels, *gradients)} == {case.dtype}
