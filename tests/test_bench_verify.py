"""What results are held to before they are timed."""

import pytest
import torch
from torch import nn

from benchmarks import verify
from benchmarks.verify import Truth, WrongResultError

VALUE = torch.linspace(-1, 1, 1000, dtype=torch.float64).reshape(1, 10, 10, 10)
PYTORCH = (VALUE + 1e-3).float()  # an error of 1e-3 everywhere
TRUTH = Truth.of(VALUE, [PYTORCH])


def test_the_error_of_pytorch_is_that_of_its_least_exact_way():
    assert Truth.of(VALUE, [PYTORCH, (VALUE - 2e-3).float(), PYTORCH]).error == pytest.approx(2e-3, rel=1e-3)


@pytest.mark.parametrize("deep", [False, True])
def test_pytorchs_own_result_passes(deep):
    verify.assert_no_worse(PYTORCH, TRUTH, deep)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("error", "passes"), [(1.24e-3, True), (-1.24e-3, True), (1.26e-3, False)])
def test_a_quarter_more_is_allowed_everywhere(error, passes, deep):
    actual = (VALUE + error).float()
    if passes:
        verify.assert_no_worse(actual, TRUTH, deep)
    else:
        with pytest.raises(WrongResultError, match="error: expected at most 1.250e-03, got 1.26"):
            verify.assert_no_worse(actual, TRUTH, deep)


def _with_one(error: float) -> torch.Tensor:
    actual = PYTORCH.clone()
    actual[0, 3, 4, 5] = VALUE[0, 3, 4, 5] + error
    return actual


@pytest.mark.parametrize(("deep", "error"), [(False, 1.3e-3), (True, 2.6e-3)])
def test_one_entry_that_is_off_is_caught(deep, error):
    with pytest.raises(WrongResultError, match="^error: expected at most"):
        verify.assert_no_worse(_with_one(error), TRUTH, deep)


def test_one_entry_of_a_deep_network_may_be_off_by_more():
    verify.assert_no_worse(_with_one(2.4e-3), TRUTH, deep=True)


def test_the_rounding_of_the_result_is_allowed():
    exact = Truth(VALUE, torch.bfloat16, 0.0, 0.0)
    verify.assert_no_worse(VALUE.bfloat16(), exact)
    with pytest.raises(WrongResultError):
        verify.assert_no_worse((VALUE + 2**-7).bfloat16(), exact)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(wrong):
    with pytest.raises(WrongResultError, match="result: expected finite values, got 1 of 1000 that are not"):
        verify.assert_no_worse(_with_one(wrong), TRUTH)
    with pytest.raises(WrongResultError, match="PyTorch's result: expected finite values, got 1 of 1000"):
        Truth.of(VALUE, [_with_one(wrong)])


@pytest.mark.parametrize(
    ("actual", "got"),
    [
        (PYTORCH[:, :5], r"got torch.float32 \(1, 5, 10, 10\)"),
        (PYTORCH.bfloat16(), r"got torch.bfloat16 \(1, 10, 10, 10\)"),
        (PYTORCH[:0], r"got torch.float32 \(0, 10, 10, 10\)"),
    ],
    ids=["shape", "dtype", "empty"],
)
def test_another_shape_or_dtype_is_refused(actual, got):
    with pytest.raises(WrongResultError, match=r"expected torch.float32 \(1, 10, 10, 10\), " + got):
        verify.assert_no_worse(actual, TRUTH)


def test_the_truth_is_float64_arithmetic_on_the_rounded_weights():
    model = nn.Conv2d(3, 4, 3).bfloat16().eval()
    image = torch.randn(1, 3, 6, 6).bfloat16()
    seen = []
    model.register_forward_hook(lambda module, inputs, _: seen.append((module.weight.dtype, inputs[0].stride())))
    truth = verify.find_truth(model, [image], lambda result: result)
    weight, bias = model.weight.double(), model.bias.double()
    assert truth.value.equal(nn.functional.conv2d(image.double(), weight, bias))
    assert truth.dtype == torch.bfloat16
    assert 0 < truth.error < 0.1
    # One in float64, then PyTorch's own in both layouts; the model itself is left as it was.
    assert [dtype for dtype, _ in seen] == [torch.float64, torch.bfloat16, torch.bfloat16]
    assert seen[1][1] != seen[2][1]
    assert model.weight.dtype == torch.bfloat16
    assert model.weight.is_contiguous()


@pytest.mark.parametrize(("error", "passes"), [(1.99e-3, True), (2.01e-3, False)])
def test_another_factor_may_be_allowed(error, passes):
    actual = (VALUE + error).float()
    if passes:
        verify.assert_no_worse(actual, TRUTH, deep=True, factor=2.0)
    else:
        with pytest.raises(WrongResultError, match="root mean square error: expected at most 2.000e-03, got 2.01"):
            verify.assert_no_worse(actual, TRUTH, deep=True, factor=2.0)


def test_all_operands_of_dense_convolutions_are_cut_to_tf32():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3, groups=4, bias=False))
    image = torch.randn(1, 3, 8, 8, requires_grad=True)
    cut = verify.with_tf32_operands(model)
    result = cut(image)
    gradient = torch.randn_like(result)
    result.backward(gradient)

    def short(x):
        return (x.view(torch.int32) & -(2**13)).view(torch.float32)

    x, weight = short(image.detach()).requires_grad_(), short(model[0].weight.detach()).requires_grad_()
    between = nn.functional.conv2d(x, weight)
    leaf = between.detach().requires_grad_()
    expected = model[1](leaf)
    assert result.equal(expected)
    expected.backward(gradient)
    between.backward(short(leaf.grad))
    assert cut[0].weight.grad.equal(weight.grad)
    assert image.grad.equal(x.grad)
    assert cut[1].weight.grad.equal(model[1].weight.grad)
    assert not short(model[0].weight).equal(model[0].weight)
