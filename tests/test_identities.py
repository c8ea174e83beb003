"""The paper's identities hold in float64, for any size, up to the rounding of the sums on both sides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce as fold

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_within, to_numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from jpu_cuda import identities
from jpu_cuda.identities import (
    dilated_chain,
    dilated_conv,
    merge,
    reduce,
    split,
    strided_chain,
    strided_conv,
)
from jpu_cuda.reference.loops import Arithmetic, Bounded


@dataclass(frozen=True)
class Case:
    """A chain of convolutions; ``channels`` are per group, from the input's to the last output's."""

    batch: int
    size: tuple[int, int]
    channels: tuple[int, ...]
    groups: int
    kernel: tuple[int, int]
    factor: int  # dilation or stride
    seed: int = 0

    def tensors(self) -> tuple[Tensor, list[Tensor]]:
        """The input and the weights, standard normal."""
        rng = torch.Generator().manual_seed(self.seed)
        normal = {"generator": rng, "dtype": torch.float64, "requires_grad": True}
        x = torch.randn(self.batch, self.channels[0] * self.groups, *self.size, **normal)
        weights = [
            torch.randn(c_out * self.groups, c_in, *self.kernel, **normal)
            for c_in, c_out in zip(self.channels, self.channels[1:], strict=False)
        ]
        return x, weights

    def summands(self) -> int:
        """Summands, over all sums that one monomial of a result or of a gradient goes through.

        A result takes one sum over input channels and taps per convolution; a gradient takes the same
        sums up to its place in the chain, one over the outputs of every later convolution, and, for a
        weight, one over the pixels.
        """
        taps = self.kernel[0] * self.kernel[1]
        pixels = self.batch * self.size[0] * self.size[1]
        return taps * (sum(self.channels[:-1]) + sum(self.channels[1:])) + pixels


@st.composite
def cases(draw: st.DrawFn, convolutions: tuple[int, int] = (1, 1)) -> Case:
    count = draw(st.integers(*convolutions))
    return Case(
        batch=draw(st.integers(1, 2)),
        size=(draw(st.integers(1, 19)), draw(st.integers(1, 19))),
        channels=tuple(draw(st.lists(st.integers(1, 3), min_size=count + 1, max_size=count + 1))),
        groups=draw(st.integers(1, 3)),
        kernel=(draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 3, 5]))),
        factor=draw(st.integers(1, 8)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


# The JPU's own: depthwise 3×3 at dilation 8, on one pixel, on fewer pixels than d, on a prime number.
ONE_PIXEL = Case(batch=1, size=(1, 1), channels=(1, 1), groups=4, kernel=(3, 3), factor=8)
SMALLER_THAN_FACTOR = Case(batch=2, size=(7, 5), channels=(1, 1), groups=4, kernel=(3, 3), factor=8)
PRIME = Case(batch=1, size=(17, 19), channels=(1, 1), groups=4, kernel=(3, 3), factor=8)
CHAIN = Case(batch=2, size=(13, 6), channels=(3, 2, 4, 1), groups=1, kernel=(3, 3), factor=2)

Chain = Callable[[Tensor, Sequence[Tensor]], Tensor]


def results(chain: Chain, x: Tensor, weights: Sequence[Tensor], cotangent: Tensor) -> list[Tensor]:
    """The chain's output, then its gradients for x and each weight."""
    y = chain(x, weights)
    return [y, *torch.autograd.grad(y, [x, *weights], cotangent)]


def assert_same_up_to_rounding(left: Chain, right: Chain, case: Case) -> None:
    """Output and gradients of two ways to compute one polynomial in float64 differ by rounding alone.

    Both sides are sums of the same monomials m, each a product of entries of x, the weights and, for
    gradients, the cotangent, summed in an order of its own. With unit roundoff u and n summands in all
    the sums that a monomial goes through, each side is off by at most γ·Σ|m|, γ = n·u / (1 − n·u)
    (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., section 3.1). All monomials have
    coefficient 1, so Σ|m| is the same polynomial at the absolute values; its computed value may be low
    by the factor 1 − γ. Hence the two sides differ by at most 2γ / (1 − γ) = 2n·u / (1 − 2n·u) times
    that value, which is the γ of :class:`Arithmetic`.
    """
    x, weights = case.tensors()
    rng = torch.Generator().manual_seed(case.seed + 1)
    with torch.no_grad():
        shape = right(x, weights).shape
    cotangent = torch.randn(shape, generator=rng, dtype=torch.float64)
    magnitudes = results(
        right,
        x.detach().abs().requires_grad_(),
        [w.detach().abs().requires_grad_() for w in weights],
        cotangent.abs(),
    )
    gamma = Arithmetic.of(torch.float64).gamma(case.summands())
    for actual, expected, magnitude in zip(
        results(left, x, weights, cotangent),
        results(right, x, weights, cotangent),
        magnitudes,
        strict=True,
    ):
        assert_within(actual, Bounded(to_numpy(expected), gamma * to_numpy(magnitude)))


def conv2d(x: Tensor, weight: Tensor, case: Case, *, stride: int = 1, dilation: int = 1) -> Tensor:
    padding = tuple(dilation * (k // 2) for k in case.kernel)
    return F.conv2d(x, weight, padding=padding, stride=stride, dilation=dilation, groups=case.groups)


@settings(deadline=None)
@given(cases())
@example(ONE_PIXEL)
@example(SMALLER_THAN_FACTOR)
@example(PRIME)
def test_dilated_convolution_is_split_convolve_merge(case: Case) -> None:
    assert_same_up_to_rounding(
        lambda x, weights: dilated_conv(x, weights[0], case.factor, case.groups),
        lambda x, weights: conv2d(x, weights[0], case, dilation=case.factor),
        case,
    )


@settings(deadline=None)
@given(cases())
@example(ONE_PIXEL)
@example(SMALLER_THAN_FACTOR)
@example(PRIME)
def test_strided_convolution_is_convolve_reduce(case: Case) -> None:
    assert_same_up_to_rounding(
        lambda x, weights: strided_conv(x, weights[0], case.factor, case.groups),
        lambda x, weights: conv2d(x, weights[0], case, stride=case.factor),
        case,
    )


@settings(deadline=None)
@given(cases(convolutions=(1, 4)))
@example(CHAIN)
def test_chain_of_dilated_convolutions_needs_one_split_and_one_merge(case: Case) -> None:
    assert_same_up_to_rounding(
        lambda x, weights: dilated_chain(x, weights, case.factor, case.groups),
        lambda x, weights: fold(lambda y, w: conv2d(y, w, case, dilation=case.factor), weights, x),
        case,
    )


@settings(deadline=None)
@given(cases(convolutions=(1, 4)))
@example(CHAIN)
def test_strided_chain_is_a_strided_then_plain_convolutions(case: Case) -> None:
    def plain(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        first = conv2d(x, weights[0], case, stride=case.factor)
        return fold(lambda y, w: conv2d(y, w, case), weights[1:], first)

    assert_same_up_to_rounding(
        lambda x, weights: strided_chain(x, weights[0], weights[1:], case.factor, case.groups), plain, case
    )


@settings(deadline=None)
@given(cases(convolutions=(1, 4)))
@example(CHAIN)
def test_strided_chain_is_class_zero_of_the_dilated_twin(case: Case) -> None:
    def dilated_twin(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        first = conv2d(x, weights[0], case)
        twin = fold(lambda y, w: conv2d(y, w, case, dilation=case.factor), weights[1:], first)
        return split(twin, case.factor)[0]

    assert_same_up_to_rounding(
        lambda x, weights: strided_chain(x, weights[0], weights[1:], case.factor, case.groups),
        dilated_twin,
        case,
    )


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 8))
def test_merge_undoes_split(height: int, width: int, dilation: int) -> None:
    x = torch.arange(height * width).reshape(1, 1, height, width)
    assert torch.equal(merge(split(x, dilation), dilation, (height, width)), x)


def test_split_orders_classes_by_row_then_column() -> None:
    rows, columns = torch.meshgrid(torch.arange(7), torch.arange(5), indexing="ij")
    x = torch.stack([rows, columns])[None]
    classes = [tuple(part[0, :, 0, 0].tolist()) for part in split(x, 3)]
    assert classes == [(i, j) for i in range(3) for j in range(3)]


def test_split_and_reduce_return_views() -> None:
    x = torch.zeros(1, 1, 5, 5)
    pointers = {part.untyped_storage().data_ptr() for part in [*split(x, 2), reduce(x, 2)]}
    assert pointers == {x.untyped_storage().data_ptr()}


def test_chain_without_weights_is_the_input() -> None:
    x, _ = PRIME.tensors()
    assert torch.equal(dilated_chain(x, [], 3), x)


def test_second_derivatives_are_right() -> None:
    x, weights = Case(1, (3, 2), (1, 1, 1), 1, (3, 1), factor=2).tensors()
    assert torch.autograd.gradgradcheck(lambda x, *weights: dilated_chain(x, weights, 2), [x, *weights])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtype_is_kept_also_where_classes_are_empty(dtype: torch.dtype) -> None:
    x, weights = SMALLER_THAN_FACTOR.tensors()
    y = dilated_conv(x.to(dtype), weights[0].to(dtype), 8, groups=4)
    assert y.dtype == dtype


def test_autocast_lowers_every_class_alike() -> None:
    x, weights = SMALLER_THAN_FACTOR.tensors()
    with torch.autocast("cpu", torch.bfloat16):
        y = dilated_conv(x.float(), weights[0].float(), 8, groups=4)
    assert y.dtype == torch.bfloat16


IMAGE = torch.zeros(1, 4, 5, 5)
WEIGHT = torch.zeros(2, 4, 3, 3)


@pytest.mark.parametrize("op", [split, reduce], ids=lambda op: op.__name__)
def test_image_that_is_not_4d_is_refused(op: Callable[[Tensor, int], object]) -> None:
    with pytest.raises(ValueError, match=r"x: expected 4 dimensions \[N, C, H, W\], got shape \(4, 5, 5\)"):
        op(IMAGE[0], 2)


def test_image_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="x: expected a Tensor, got list"):
        split([1.0], 2)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda factor: split(IMAGE, factor), "dilation"),
        (lambda factor: merge([IMAGE], factor, (5, 5)), "dilation"),
        (lambda factor: reduce(IMAGE, factor), "stride"),
        (lambda factor: dilated_conv(IMAGE, WEIGHT, factor), "dilation"),
        (lambda factor: strided_conv(IMAGE, WEIGHT, factor), "stride"),
        (lambda factor: dilated_conv(IMAGE, WEIGHT, 1, groups=factor), "groups"),
    ],
)
def test_factor_below_one_is_refused(call: Callable[[int], object], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        call(0)


def test_factor_that_is_no_integer_is_refused() -> None:
    with pytest.raises(TypeError, match="dilation: expected an integer, got float"):
        split(IMAGE, 2.0)


def test_merge_refuses_a_wrong_number_of_parts() -> None:
    with pytest.raises(ValueError, match="parts: expected dilation² = 4 residue classes, got 3"):
        merge(split(IMAGE, 2)[:3], 2, (5, 5))


def test_merge_refuses_parts_of_a_wrong_size() -> None:
    expected = r"parts\[0\]: expected shape \(1, 4, 3, 2\) in an image of size \(5, 4\), got \(1, 4, 3, 3\)"
    with pytest.raises(ValueError, match=expected):
        merge(split(IMAGE, 2), 2, (5, 4))


def test_merge_refuses_parts_of_a_wrong_dtype() -> None:
    parts = split(IMAGE, 2)
    parts[3] = parts[3].double()
    with pytest.raises(ValueError, match=r"parts\[3\]: expected torch.float32 on cpu as parts\[0\], got torch.float64"):
        merge(parts, 2, (5, 5))


@pytest.mark.parametrize("size", [(5,), (5, -1)])
def test_merge_refuses_an_impossible_size(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"size: expected \(height, width\) of at least 0, got"):
        merge(split(IMAGE, 2), 2, size)


@pytest.mark.parametrize(
    ("x", "weight", "groups", "error", "message"),
    [
        (IMAGE, [1.0], 1, TypeError, "weight: expected a Tensor, got list"),
        (IMAGE.int(), WEIGHT.int(), 1, TypeError, "x: expected a floating-point dtype, got torch.int32"),
        (
            IMAGE,
            WEIGHT.double(),
            1,
            ValueError,
            "weight: expected torch.float32 on cpu as x, got torch.float64",
        ),
        (
            IMAGE,
            WEIGHT.to("meta"),
            1,
            ValueError,
            "weight: expected torch.float32 on cpu as x, got torch.float32 on meta",
        ),
        (
            IMAGE,
            WEIGHT[:, :, :2],
            1,
            ValueError,
            r"with odd kh and kw, got shape \(2, 4, 2, 3\)",
        ),
        (IMAGE, WEIGHT[0], 1, ValueError, r"expected \[O, C/groups, kh, kw\].*got shape \(4, 3, 3\)"),
        (
            IMAGE,
            WEIGHT[:, :3],
            1,
            ValueError,
            r"x: expected groups · weight.shape\[1\] = 3 channels, got 4",
        ),
        (
            IMAGE,
            WEIGHT.repeat(2, 1, 1, 1)[:3, :2],
            2,
            ValueError,
            "weight: expected a multiple of groups = 2 outputs, got 3",
        ),
    ],
)
@pytest.mark.parametrize("op", [dilated_conv, strided_conv], ids=lambda op: op.__name__)
def test_weight_that_does_not_fit_is_refused(
    op: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    groups: int,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        op(x, weight, 2, groups)


def test_package_reaches_the_identities() -> None:
    import jpu_cuda

    assert jpu_cuda.identities is identities
