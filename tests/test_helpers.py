"""The tolerance helpers must accept what is right and refuse what is wrong."""

import numpy as np
import pytest
import torch
from helpers import assert_no_worse, assert_relative_l2, assert_within, pyramid, randomise
from torch import nn

from jpu_cuda.reference.loops import Bounded

TRUTH = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)


def bounded(error: float) -> Bounded:
    return Bounded(TRUTH.numpy(), np.full((2, 2), error))


def test_within_accepts_an_entry_at_its_bound() -> None:
    assert_within(TRUTH + 0.125, bounded(0.125))


def test_within_refuses_one_entry_past_its_bound() -> None:
    wrong = TRUTH.clone()
    wrong[1, 0] += 0.126
    with pytest.raises(AssertionError, match=r"at \(1, 0\): expected 3.0"):
        assert_within(wrong, bounded(0.125))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_within_refuses_what_is_not_finite(value: float) -> None:
    wrong = TRUTH.clone()
    wrong[0, 0] = value
    with pytest.raises(AssertionError, match="finite"):
        assert_within(wrong, bounded(float("inf")))


def test_within_refuses_another_shape() -> None:
    with pytest.raises(AssertionError, match="shape"):
        assert_within(TRUTH[:1], bounded(1.0))


def test_relative_l2_accepts_one_rounding_and_refuses_an_error_past_it() -> None:
    eps = torch.finfo(torch.bfloat16).eps
    assert_relative_l2((TRUTH / 3).bfloat16(), TRUTH / 3, roundings=1)
    with pytest.raises(AssertionError, match="relative error"):
        assert_relative_l2((TRUTH * (1 + 3 * eps)).bfloat16(), TRUTH, roundings=1)


def test_no_worse_accepts_the_baseline_itself() -> None:
    baseline = (TRUTH / 3).half()
    assert_no_worse(baseline, baseline, TRUTH / 3)


def test_no_worse_refuses_twice_the_error() -> None:
    baseline = TRUTH + 0.01
    with pytest.raises(AssertionError, match="error of at most"):
        assert_no_worse(TRUTH + 0.02, baseline, TRUTH)


def test_no_worse_refuses_another_dtype() -> None:
    with pytest.raises(AssertionError, match="dtype"):
        assert_no_worse(TRUTH.float(), TRUTH, TRUTH)


def test_randomise_leaves_no_norm_at_its_start() -> None:
    norm = randomise(nn.BatchNorm2d(4))
    assert isinstance(norm.running_mean, torch.Tensor)
    assert not torch.equal(norm.running_mean, torch.zeros(4))
    assert not torch.equal(norm.weight, torch.ones(4))


def test_pyramid_is_repeatable_and_rounded() -> None:
    first, second = pyramid(dtype=torch.bfloat16), pyramid(dtype=torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[0].dtype == torch.bfloat16
