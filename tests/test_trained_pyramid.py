"""trained_pyramid, executed on the CPU: values, gradients of any order, and what it refuses."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from strategies import needs_host
from trained_cases import (
    DTYPES,
    KINDS,
    Trained,
    backward_arguments,
    by_kernels,
    cases,
    changed,
    check_in_float64,
    check_no_worse,
    differentiated,
    flat,
    gradient_of,
    leaves,
)

from jpu_cuda import host
from jpu_cuda.ops import trained_pyramid as module
from jpu_cuda.reference.trained_pyramid import products, trained_pyramid

pytestmark = needs_host

SIZES = ((9, 7), (5, 4), (3, 2))
PLAIN = Trained(2, (8, 8, 16), 8, SIZES, (1, 2, 4))
HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    host.load()


# --- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", KINDS)
@pytest.mark.parametrize("before", KINDS)
def test_norms_of_every_kind_on_either_side(before: str, after: str) -> None:
    check_in_float64(replace(PLAIN, norms=(before, after)))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(cases(dtypes=(torch.float64,)))
def test_any_shapes_norms_and_formats_in_float64(case: Trained) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WORKSPACE_BYTES", case.workspace)
        check_in_float64(case)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("norms", [("batch", "batch"), ("group", "group"), ("fixed", "batch")], ids="-".join)
def test_lower_precision_is_no_worse_than_pytorchs(norms: tuple[str, str], dtype: torch.dtype) -> None:
    check_no_worse(replace(PLAIN, norms=norms, dtype=dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_norms_of_the_levels_dtype(dtype: torch.dtype) -> None:
    check_no_worse(replace(PLAIN, dtype=dtype, wide=False))


@settings(deadline=None, max_examples=20, derandomize=True)
@given(cases(dtypes=(torch.float32, *HALVES), least=4))
def test_any_shapes_norms_and_formats_in_lower_precision(case: Trained) -> None:
    """But for statistics of a few values, which may nearly agree: then PyTorch's sums of float64 are out of reach."""
    check_no_worse(case)


@pytest.mark.parametrize(
    ("dtype", "ratio"), [(torch.float32, 1e4), (torch.float16, 100), (torch.bfloat16, 10)], ids=str
)
@pytest.mark.parametrize("norms", [("batch", "batch"), ("group", "group")], ids="-".join)
def test_means_far_above_their_deviation(norms: tuple[str, str], dtype: torch.dtype, ratio: float) -> None:
    check_no_worse(replace(PLAIN, norms=norms, dtype=dtype, ratio=ratio, sizes=((12, 11),) * 3))


CORES = [(policy, dtype) for policy in ("mma", "two-pass") for dtype in (*HALVES, torch.float32)]


@pytest.mark.parametrize(("policy", "dtype"), CORES, ids=str)
def test_tensor_cores_are_no_worse_either(policy: str, dtype: torch.dtype) -> None:
    case = Trained(1, (40, 24), 72, SIZES[:2], (1, 4), dtype=dtype, policy=policy)
    with host.record() as launches:
        check_no_worse(case)
    kernels = {launch.kernel for launch in launches}
    assert f"separable_pyramid {'mma' if policy == 'mma' else 'product'} with moments" in kernels


@pytest.mark.parametrize("norms", [("batch", "batch"), ("mixed", "fixed"), ("group", "group")], ids="-".join)
def test_products_and_statistics_are_results_too(norms: tuple[str, str]) -> None:
    case = replace(PLAIN, norms=norms)
    arguments = case.arguments()
    _, *found = by_kernels(case, arguments)
    for served, expected in zip(found, products(*arguments), strict=True):
        torch.testing.assert_close(served, expected, rtol=1e-11, atol=1e-11)
    assert found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_groups_of_branches_are_a_matter_of_memory(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights' gradients are the same to the bit; those of levels are added up in another order."""
    case = replace(PLAIN, dtype=dtype)
    arguments, gradient = case.arguments(), gradient_of(case)
    expected = differentiated(case, arguments, gradient, kernels=True)
    monkeypatch.setattr(module, "WORKSPACE_BYTES", 1)
    with host.record() as launches:
        found = differentiated(case, arguments, gradient, kernels=True)
    assert [launch.kernel for launch in launches].count("separable_pyramid training level gradient") == 3
    for i, (one, all_at_once) in enumerate(zip(found, expected, strict=True)):
        if 1 <= i <= len(case.channels):
            tolerance = 4 * torch.finfo(dtype).eps * float(all_at_once.abs().max())
            torch.testing.assert_close(one, all_at_once, rtol=0, atol=tolerance)
        else:
            assert torch.equal(one, all_at_once), i


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_schedule_gives_the_same_bits(dtype: torch.dtype) -> None:
    case = replace(PLAIN, dtype=dtype)
    arguments, gradient = case.arguments(), gradient_of(case)
    expected = differentiated(case, arguments, gradient, kernels=True)
    for seed in (1, 2):
        with host.schedule(seed):
            found = differentiated(case, arguments, gradient, kernels=True)
        assert all(map(torch.equal, found, expected))


def test_what_is_not_finite_is_so_in_pytorch_too() -> None:
    arguments = PLAIN.arguments()
    arguments[0][0][0, 3, 2, 2] = torch.inf
    arguments[0][1][1, 2, 1, 1] = torch.nan
    expected = trained_pyramid(*arguments)
    assert torch.equal(by_kernels(PLAIN, arguments)[0].isnan(), expected.isnan())
    assert expected.isnan().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fixed_norms_of_infinite_levels_have_pytorchs_gradients(dtype: torch.dtype) -> None:
    case = replace(PLAIN, norms=("fixed", "fixed"), dtype=dtype)
    arguments, gradient = case.arguments(), gradient_of(case)
    arguments[0][0][0, 3, 2, 2] = torch.inf
    found, expected = (
        differentiated(case, arguments, gradient, kernels)[1 : 1 + len(case.channels)] for kernels in (True, False)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.isfinite(), theirs.isfinite())
    assert expected[0].isfinite().any()


@pytest.mark.parametrize("norms", [("batch", "batch"), ("group", "batch"), ("batch", "group")], ids="-".join)
def test_products_of_float16_overflow_no_sooner_than_pytorchs(norms: tuple[str, str]) -> None:
    """dqᵀ·ẑ is the gradient of pointwise weights, over the norm's weights, which are small here."""
    case = replace(PLAIN, norms=norms, dtype=torch.float16, sizes=((16, 16),) * 3)
    arguments, gradient = case.arguments(), 16 * gradient_of(case)
    count = len(case.dilations)
    for weight, bias in zip(arguments[6][:count], arguments[7][:count], strict=True):
        weight.fill_(1e-3)
        bias.zero_()
    expected = differentiated(case, arguments, gradient, kernels=False)
    assert all(x.isfinite().all() for x in expected)
    first = 1 + len(case.channels) + count
    assert max(float(x.abs().max()) for x in expected[first : first + count]) / 1e-3 > 65504
    found = differentiated(case, arguments, gradient, kernels=True)
    assert all(x.isfinite().all() for x in found)


# --- derivatives ----------------------------------------------------------------------------------------

TINY = Trained(2, (2, 2), 2, ((3, 4), (2, 2)), (1, 2), groups=(2, 1))


@pytest.mark.parametrize("norms", [("batch", "batch"), ("group", "group"), ("mixed", "fixed")], ids="-".join)
def test_gradcheck_and_gradgradcheck(norms: tuple[str, str]) -> None:
    case = replace(TINY, norms=norms)
    arguments = leaves(case.arguments())
    tensors = flat(arguments)

    def function(*inputs: torch.Tensor) -> torch.Tensor:
        given = iter(inputs)
        put = changed(arguments, lambda x: next(given) if any(x is t for t in tensors) else x)
        return by_kernels(case, put)[0]

    # In the order that changed() visits them.
    order: list[torch.Tensor] = []
    changed(arguments, lambda x: order.append(x) if any(x is t for t in tensors) else None)
    assert torch.autograd.gradcheck(function, order)
    assert torch.autograd.gradgradcheck(function, order, atol=1e-4)


@pytest.mark.parametrize("norms", [("batch", "batch"), ("mixed", "group")], ids="-".join)
def test_opcheck(norms: tuple[str, str]) -> None:
    case = replace(PLAIN, norms=norms)
    arguments = leaves(case.arguments())
    torch.library.opcheck(torch.ops.jpu_cuda.trained_pyramid.default, (*arguments, *case.options))
    torch.library.opcheck(torch.ops.jpu_cuda.trained_pyramid_backward.default, (*backward_arguments(case), 1 << 28))


def test_autocast_casts_all_but_norms() -> None:
    case = replace(PLAIN, dtype=torch.float32)
    arguments = leaves(case.arguments())
    cast = [
        part if i >= 6 or i in (1, 2, 5) else changed([part], lambda x: x.bfloat16())[0]
        for i, part in enumerate(arguments)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        out = by_kernels(case, arguments)[0]
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, by_kernels(case, cast)[0])
    gradient = torch.ones_like(out)
    with torch.autocast("cpu", torch.bfloat16):  # which a backward pass does not take part in
        found = torch.autograd.grad(out, flat(arguments), gradient)
    assert {g.dtype for g in found} == {torch.float32}
    expected = torch.autograd.grad(by_kernels(case, cast)[0], flat(arguments), gradient)
    assert all(map(torch.equal, found, expected))


def test_second_derivatives_and_vectorised_jacobians_are_pytorchs() -> None:
    arguments = leaves(TINY.arguments())
    level = arguments[0][0]

    def function(x: torch.Tensor) -> torch.Tensor:
        return by_kernels(TINY, [[x, *arguments[0][1:]], *arguments[1:]])[0].square().sum(dim=(0, 2, 3))

    plain = torch.autograd.functional.jacobian(function, level)
    torch.testing.assert_close(torch.autograd.functional.jacobian(function, level, vectorize=True), plain)


# --- what is refused ------------------------------------------------------------------------------------


def _without(i: int) -> Callable[[list[Any]], None]:
    def change(arguments: list[Any]) -> None:
        arguments[i] = arguments[i][1:]

    return change


def _set(i: int, value: Any) -> Callable[[list[Any]], None]:
    def change(arguments: list[Any]) -> None:
        arguments[i] = value

    return change


REFUSED: dict[str, tuple[Callable[[list[Any]], None], str]] = {
    "no levels": (_set(0, []), "expected at least one"),
    "weights": (_without(3), "weights: expected one of each a dilation, 3, got 2 and 3"),
    "norms": (_without(7), "norms: expected 6 weights, biases, means, variances and eps, got 6, 5, 6, 6, 6"),
    "groups": (_set(11, [0]), "groups: expected two numbers, got 1"),
    "divisor": (_set(11, [3, 0]), "groups: expected a divisor of 32"),
    "depthwise": (_set(3, [torch.ones(32, 1, 3, 3)] * 3), r"depthwise_weight\[0\]: expected dtype torch.float64"),
    "pointwise": (_set(4, [torch.ones(8, 31, 1, 1)] * 3), r"pointwise_weight\[0\]: expected shape \(8, 32, 1, 1\)"),
    "weight": (_set(6, [torch.ones(5)] * 6), r"weight\[0\]: expected shape \(32,\), got \(5,\)"),
    "mean alone": (_set(8, [torch.ones(32)] * 3 + [torch.ones(8)] * 3), r"expected both mean\[0\] and var\[0\]"),
    "dilation": (_set(5, [1, 2, 17]), "expected 1 to 16, got 17"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_arguments_that_do_not_fit_are_refused(what: str) -> None:
    change, message = REFUSED[what]
    arguments = PLAIN.arguments()
    change(arguments)
    with pytest.raises((ValueError, RuntimeError), match=message):
        by_kernels(PLAIN, arguments)
