"""The explicit loops against values worked out by hand, and their bound against a wrong result."""

import numpy as np
import pytest
import torch

from jpu_cuda.reference.loops import Arithmetic, Bounded, Conv, Norm, conv2d, normalise, resize

DOUBLE = Arithmetic.of(torch.float64)


def exact(values: object) -> Bounded:
    return Bounded.exact(torch.tensor(values, dtype=torch.float64))


def test_convolution_sums_the_taps_inside_the_image() -> None:
    x = exact([[[[1.0, 2.0], [3.0, 4.0]]]])
    weight = np.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    # The pixel under tap (a, b) is (i + a − 1, j + b − 1); taps count 1 to 9.
    expected = [
        [5 + 2 * 6 + 3 * 8 + 4 * 9, 4 + 2 * 5 + 3 * 7 + 4 * 8],
        [2 + 2 * 3 + 3 * 5 + 4 * 6, 1 + 4 + 12 + 20],
    ]
    np.testing.assert_array_equal(conv2d(x, Conv(weight), DOUBLE).value[0, 0], expected)


def test_dilation_spreads_the_taps() -> None:
    x = exact([[[[1.0, 2.0, 3.0]]]])
    weight = np.zeros((1, 1, 3, 3))
    weight[0, 0, 1, 2] = 1.0
    np.testing.assert_array_equal(conv2d(x, Conv(weight, dilation=2), DOUBLE).value[0, 0], [[3.0, 0.0, 0.0]])


def test_a_depthwise_convolution_keeps_channels_apart() -> None:
    x = exact([[[[1.0]], [[10.0]]]])
    weight = np.zeros((2, 1, 3, 3))
    weight[:, 0, 1, 1] = [2.0, 3.0]
    np.testing.assert_array_equal(conv2d(x, Conv(weight, groups=2), DOUBLE).value[0, :, 0, 0], [2.0, 30.0])


@pytest.mark.parametrize(
    ("align_corners", "expected"),
    [(True, [0.0, 1.0, 2.0, 3.0]), (False, [0.0, 0.75, 2.25, 3.0])],
)
def test_resize_places_pixels_by_align_corners(align_corners: bool, expected: list[float]) -> None:
    resized = resize(exact([[[[0.0, 3.0]]]]), (1, 4), align_corners, DOUBLE)
    np.testing.assert_allclose(resized.value[0, 0, 0], expected, rtol=0, atol=1e-15)


def test_batch_statistics_are_over_the_batch_and_biased() -> None:
    x = exact([[[[1.0, 3.0]]], [[[5.0, 7.0]]]])  # mean 4, variance 5
    normed = normalise(x, Norm(None, None, eps=0.0), DOUBLE).value
    np.testing.assert_allclose(normed.ravel(), np.array([-3, -1, 1, 3]) / np.sqrt(5), rtol=1e-15)


def test_group_statistics_are_per_sample_and_group() -> None:
    x = exact([[[[1.0]], [[3.0]], [[10.0]], [[30.0]]], [[[2.0]], [[2.0]], [[0.0]], [[4.0]]]])
    normed = normalise(x, Norm(None, None, eps=0.0 + 1e-300, groups=2), DOUBLE).value
    np.testing.assert_allclose(normed[:, :, 0, 0], [[-1, 1, -1, 1], [0, 0, -1, 1]], rtol=1e-14)


def test_running_statistics_are_used_as_given() -> None:
    norm = Norm(np.array([2.0]), np.array([1.0]), eps=0.0, mean=np.array([3.0]), var=np.array([4.0]))
    np.testing.assert_array_equal(normalise(exact([[[[5.0]]]]), norm, DOUBLE).value, [[[[3.0]]]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_bound_holds_one_rounding_and_not_a_wrong_tap(dtype: torch.dtype) -> None:
    x = torch.rand(1, 4, 3, 3, dtype=torch.float64).to(dtype)
    weight = torch.rand(2, 4, 3, 3, dtype=torch.float64).to(dtype)
    bounded = conv2d(Bounded.exact(x), Conv(weight.double().numpy()), Arithmetic.of(dtype))
    right = torch.nn.functional.conv2d(x, weight, padding=1).double().numpy()
    wrong = torch.nn.functional.conv2d(x, weight.flip(-1), padding=1).double().numpy()
    assert (np.abs(right - bounded.value) <= bounded.error).all()
    assert (np.abs(wrong - bounded.value) > bounded.error).mean() > 0.5


def test_a_sum_too_long_for_its_arithmetic_is_refused() -> None:
    with pytest.raises(ValueError, match="expected fewer than"):
        Arithmetic(accumulate=2**-8, store=2**-8).gamma(300)
