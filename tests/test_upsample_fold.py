"""upsample_fold, executed on the CPU: norms of fixed statistics as affine terms, in the launch that resizes."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from folds import Fold, assert_gradients, assert_terms, check_gradients, check_terms, fold
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import needs_host
from torch import Tensor
from torch.utils._pytree import tree_map

from jpu_cuda import host
from jpu_cuda.ops._library import DTYPES, sum_dtype
from jpu_cuda.reference import norms as by_torch

pytestmark = needs_host


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    """So that the operators are those of the kernels, for CPU tensors too."""
    host.load()


WIDE = pytest.mark.parametrize("wide", [True, False], ids=["norms in sums' type", "norms in levels' type"])

CASES = {
    "two branches": Fold(),
    "more channels than threads": Fold(3, (700, 257)),
    "eight branches": Fold(8, (5, 3)),
    "one branch, one channel": Fold(1, (1, 1)),
    "without weights": Fold(without=("weight",)),
    "without biases": Fold(without=("bias",)),
    "without both": Fold(without=("weight", "bias")),
    "one level": Fold(sizes=((4, 5),)),
    "an empty batch": Fold(batch=0),
    "each lacks something else": Fold(absent=(("weight", 1), ("bias", 2), ("weight", 3), ("bias", 3))),
    "some terms without a gradient": Fold(missing=(0, 3)),
    "corners apart": Fold(align_corners=False),
    "channels last": Fold(layout=torch.channels_last),
}


@WIDE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_terms_and_gradients(name: str, dtype: torch.dtype, wide: bool) -> None:
    case = replace(CASES[name], dtype=dtype, wide=wide)
    check_terms(case)
    check_gradients(case)


@WIDE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_so_are_the_references_which_round_one_product_more(name: str, dtype: torch.dtype, wide: bool) -> None:
    case = replace(CASES[name], dtype=dtype, wide=wide)
    (_, _, *norms), terms = case.arguments(), case.term_gradients()
    assert_terms(by_torch.fold(*norms, sum_dtype(dtype)), norms, fused=False)
    found = by_torch.fold_backward(terms, *norms[2:], [1] * 4 * case.branches)
    assert_gradients(found, terms, *norms[2:], fused=False)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    st.builds(
        Fold,
        branches=st.integers(1, 8),
        channels=st.tuples(st.integers(1, 300), st.integers(1, 300)),
        dtype=st.sampled_from(DTYPES),
        wide=st.booleans(),
        missing=st.lists(st.integers(0, 3), max_size=4).map(tuple),
        absent=st.lists(st.tuples(st.sampled_from(["weight", "bias"]), st.integers(0, 15)), max_size=8).map(tuple),
        sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4).map(tuple),
        batch=st.integers(0, 2),
        eps=st.lists(st.floats(0, 2), min_size=1, max_size=4).map(tuple),
        align_corners=st.booleans(),
        layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    )
)
def test_norms_of_any_number_and_size(case: Fold) -> None:
    check_terms(case)
    check_gradients(case)


def test_a_mean_of_ten_thousand_deviations_costs_no_more_than_in_pytorch() -> None:
    """What is left after scale · x + shift is as far off as F.batch_norm's."""
    errors, dtype = [], torch.float32
    for seed in range(8):
        levels, _, weight, bias, mean, var, eps = Fold(1, (64, 64)).arguments(seed)
        mean[0] = 1e4 * var[0].sqrt() * weight[0].sign()
        x = mean[0] + torch.randn(1000, 64, generator=torch.Generator().manual_seed(seed), dtype=dtype) * var[0].sqrt()
        scale, shift, *_ = fold([levels[:1], True, weight, bias, mean, var, eps])
        truth = F.batch_norm(*(y.double() for y in (x, mean[0], var[0], weight[0], bias[0])), eps=eps[0])
        # Fused, as the kernels have it.
        mine = torch.addcmul(shift[0].double(), scale[0].double(), x.double()).to(dtype)
        torchs = F.batch_norm(x, mean[0], var[0], weight[0], bias[0], eps=eps[0])
        errors.append([float((y.double() - truth).abs().max()) for y in (mine, torchs)])
    ours, theirs = (max(column) for column in zip(*errors, strict=True))
    assert ours <= 1.25 * theirs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_is_so_in_pytorch_too(dtype: torch.dtype) -> None:
    inf, nan = torch.inf, torch.nan
    columns = {
        "weight": [1, 1, 1, 1, 1, inf, 0, nan],
        "bias": [2, 2, 2, 2, 2, 2, 2, inf],
        "mean": [1, -1, 0, 1, 1, -1, inf, 1],
        "var": [-1, 0, 0, inf, nan, 1, 1, 1],
    }
    norms = *([torch.tensor(column, dtype=dtype)] * 2 for column in columns.values()), [0.0, 0.0]
    found = fold([[torch.ones(1, 1, 2, 2, dtype=dtype)], True, *norms])
    expected = by_torch.fold(*norms, sum_dtype(dtype))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    terms = [torch.ones_like(term) for term in expected]
    found = torch.ops.jpu_cuda.upsample_fold_backward([], [], [], True, terms, *norms[2:], [1] * 4)
    torch.testing.assert_close(
        found, by_torch.fold_backward(terms, *norms[2:], [1] * 4), rtol=0, atol=0, equal_nan=True
    )


# --- launches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("levels", "launches"), [(1, 1), (2, 1), (17, 1), (18, 2), (34, 3)])
def test_one_launch_serves_the_norms_and_up_to_16_levels(levels: int, launches: int) -> None:
    case = Fold(sizes=((4, 5),) + ((2, 3),) * (levels - 1))
    arguments = case.arguments()
    with host.record() as recorded:
        out = fold(arguments)
    assert [launch.kernel for launch in recorded] == ["upsample_concat forward"] * launches
    gradients = out[:-4]
    sizes = [2] * len(gradients), [3] * len(gradients)
    terms, rest = case.term_gradients(), arguments[4:]
    with host.record() as recorded:
        torch.ops.jpu_cuda.upsample_fold_backward(gradients, *sizes, True, terms, *rest, [1] * 8)
    assert [launch.kernel for launch in recorded] == ["upsample_concat backward"] * launches
    check_terms(case)


def test_later_launches_are_those_of_levels_alone() -> None:
    case = Fold(3, (700, 5), sizes=((4, 5),) + ((2, 3),) * 20)
    arguments = case.arguments()
    with host.record() as alone:
        torch.ops.jpu_cuda.upsample(arguments[0][1:], 4, 5, True)
    with host.record() as launches:
        fold(arguments)
    blocks = 3 * 3 + 3  # of 256 channels
    assert [launch.blocks for launch in launches] == [alone[0].blocks + blocks, alone[1].blocks]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_each_gradient_alone_is_what_it_is_among_all(dtype: torch.dtype) -> None:
    case = Fold(dtype=dtype, wide=False)
    rest = (case.term_gradients(), *case.arguments()[4:])
    backward = torch.ops.jpu_cuda.upsample_fold_backward
    every = backward([], [], [], True, *rest, [1] * 8)
    for i, expected in enumerate(every):
        (found,) = backward([], [], [], True, *rest, [int(i == j) for j in range(8)])
        assert torch.equal(found, expected)


# --- without kernels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@WIDE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fake_results_look_like_real_ones(dtype: torch.dtype, wide: bool, layout: torch.memory_format) -> None:
    case = Fold(3, dtype=dtype, wide=wide, layout=layout)
    arguments = case.arguments()
    backward = (*case.level_gradients(), [*case.term_gradients()[:3], None], *arguments[4:], [1, 0, 1] * 4)
    operators = torch.ops.jpu_cuda.upsample_fold, torch.ops.jpu_cuda.upsample_fold_backward
    for operator, values in zip(operators, (arguments, backward), strict=True):
        real, fake = operator(*values), operator(*on_meta(values))
        assert [(x.shape, x.stride(), x.dtype) for x in fake] == [(x.shape, x.stride(), x.dtype) for x in real]


def on_meta(arguments: Sequence[Any]) -> list[Any]:
    return tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, list(arguments))


def test_without_kernels_the_operators_are_the_references(tmp_path: Path) -> None:
    case = Fold(dtype=torch.float64, without=("bias",))
    arguments = case.arguments()
    out = fold(arguments)
    given = (out[:2], [3, 2], [4, 5], True, [None, *case.term_gradients()[1:]], *arguments[4:], [0, 1] * 4)
    expected = torch.ops.jpu_cuda.upsample_fold_backward(*given)
    torch.save((arguments, out, given, expected), tmp_path / "tensors.pt")
    code = """
import sys, torch, jpu_cuda
arguments, out, given, expected = torch.load(sys.argv[1])
got = torch.ops.jpu_cuda.upsample_fold(*arguments)
found = torch.ops.jpu_cuda.upsample_fold_backward(*given)
for x, y in zip([*got, *found], [*out, *expected], strict=True):
    torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
# Where no level needs a gradient.
weight = arguments[2][1].requires_grad_()
scale = torch.ops.jpu_cuda.upsample_fold(*arguments)[-4]
(gradient,) = torch.autograd.grad(scale[1].sum(), weight)
torch.testing.assert_close(gradient, 1 / (arguments[5][1] + arguments[6][1]).sqrt(), rtol=1e-12, atol=0)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "tensors.pt")], check=True)


# --- refusals -------------------------------------------------------------------------------------------


def changed(index: int, change: Callable[[Any], Any], case: Fold | None = None) -> Callable[[], Any]:
    def call() -> Any:
        arguments = list((case or Fold()).arguments())
        arguments[index] = change(arguments[index])
        return fold(arguments)

    return call


def _first(tensor: Tensor) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [tensor, *values[1:]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (changed(0, lambda _: []), "levels: expected at least one"),
        (changed(0, lambda x: [x[0][0], *x[1:]]), r"levels\[0\]: expected 4 dimensions \[N, C, H, W\], got 3"),
        (changed(0, lambda x: [x[0], x[1].double()]), r"levels\[1\]: expected dtype Float as levels\[0\], got Double"),
        (changed(0, lambda x: [x[0], x[1][:1]]), r"levels\[1\]: expected batch size 2, got 1"),
        (changed(0, lambda x: [x[0], x[1][:, :, :0]]), r"levels\[1\]: expected height and width from 1"),
        (changed(2, _first(torch.ones(6))), r"weight\[0\]: expected shape \[7\], got \[6\]"),
        (changed(2, _first(torch.ones(7).double())), r"weight\[0\]: expected dtype Float, got Double"),
        (changed(3, _first(torch.ones(14)[::2])), r"bias\[0\]: expected a contiguous tensor"),
        (changed(2, lambda x: x[:3]), "norms: expected as many .* got 3, 4, 4, 4, 4"),
        (changed(6, lambda x: x[:3]), "norms: expected as many .* got 4, 4, 4, 4, 3"),
        (
            changed(4, lambda x: [torch.ones(7).half(), *x[1:]]),
            "expected dtype Float or that of levels.*, got Half",
        ),
        (changed(4, lambda x: [x[0], torch.ones(8), *x[2:]]), r"mean\[1\]: expected shape \[7\], got \[8\]"),
        (changed(5, lambda x: [*x[:3], torch.ones(1, 5)]), r"var\[3\]: expected shape \[5\], got \[1, 5\]"),
        (
            changed(4, lambda x: [torch.ones(7).half(), *x[1:]], Fold(dtype=torch.float64)),
            "expected dtype Double or that of levels.*, got Half",
        ),
        (
            changed(4, lambda x: [torch.ones(7).double(), *x[1:]], Fold(dtype=torch.float16)),
            "expected dtype Float or that of levels.*, Half, got Double",
        ),
        (changed(4, lambda x: [torch.ones(0), *x[1:]]), "norms: expected 1 to 2147483647 channels, got 0"),
        (
            changed(4, lambda x: [torch.ones(1).expand(2**31), *x[1:]]),
            "norms: expected 1 to 2147483647 channels, got 2147483648",
        ),
        (changed(4, lambda x: [x[0], x[1].half(), *x[2:]]), r"mean\[1\]: expected dtype Float, got Half"),
        (changed(5, lambda x: [x[0].double(), *x[1:]]), r"var\[0\]: expected dtype Float, got Double"),
        (changed(5, lambda x: [torch.ones(14)[::2], *x[1:]]), r"var\[0\]: expected a contiguous tensor"),
        (changed(0, lambda x: [y.int() for y in x]), "dtype: expected float64, float32, float16 or bfloat16, got Int"),
        (changed(4, lambda x: [torch.ones(7, requires_grad=True), *x[1:]]), "norms: expected statistics that need no"),
    ],
)
def test_the_operator_says_what_is_wrong(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message):
        call()


def test_blocks_of_norms_count_among_those_that_a_launch_takes() -> None:
    """Levels whose elements share memory have as many as it takes; their result is reserved and never touched."""
    level = torch.ones(1, 1, 1, 1, dtype=torch.float16).expand(2**31 - 1, 1, 1, 1)
    message = "upsample_concat forward: expected at most 2147483647 blocks, got 2147483651"
    with pytest.raises(RuntimeError, match=message):
        changed(0, lambda _: [level] * 2, Fold(dtype=torch.float16))()


def test_the_binding_counts_weights_and_biases_itself() -> None:
    """Autograd, which does so first, takes no part in inference mode."""
    levels, align, weight, bias, *rest = Fold().arguments()
    with torch.inference_mode():
        for parts, got in (((weight[1:], bias), "3 and 4"), ((weight, bias[1:]), "4 and 3")):
            with pytest.raises(RuntimeError, match=f"norms: expected 4 weights and biases, got {got}"):
                fold([levels, align, *parts, *rest])


@pytest.mark.parametrize("count", [0, 3, 18])
def test_norms_come_in_two_halves_of_up_to_eight(count: int) -> None:
    level, vectors = torch.ones(1, 1, 2, 2), [torch.ones(3)] * count
    for device in ("cpu", "meta"):
        values = [v.to(device) for v in vectors]
        with pytest.raises((RuntimeError, ValueError), match=rf"an even number from 2 to 16, got {count}, "):
            fold([[level.to(device)], True, values, values, values, values, [1e-5] * count])


def test_the_derivative_says_what_is_wrong() -> None:
    case = Fold()
    *_, mean, var, eps = case.arguments()
    terms = case.term_gradients()
    backward = torch.ops.jpu_cuda.upsample_fold_backward
    for gradients, needed, message in (
        (terms[:3], [1] * 8, "expected 4 terms and 8 numbers, got 3 and 8"),
        (terms, [1] * 7, "expected 4 terms and 8 numbers, got 4 and 7"),
        ([terms[2], *terms[1:]], [1] * 8, r"terms\[0\]: expected shape \[2, 7\], got \[2, 5\]"),
        ([terms[0].double(), *terms[1:]], [1] * 8, r"terms\[0\]: expected dtype Float, got Double"),
        ([*terms[:3], terms[3].t().contiguous().t()], [1] * 8, r"terms\[3\]: expected a contiguous tensor"),
    ):
        with pytest.raises(RuntimeError, match=message):
            backward([], [], [], True, gradients, mean, var, eps, needed)
    gradients, heights, widths, _ = case.level_gradients()
    for images, message in (
        ((gradients, heights[1:], widths), "sizes: expected one height and width a gradient, got 1 and 2 for 2"),
        ((gradients, [0, 2], widths), r"sizes\[0\]: expected height and width from 1"),
        (([x.double() for x in gradients], heights, widths), "expected dtype Double or that of gradients.*, got Float"),
    ):
        with pytest.raises(RuntimeError, match=message):
            backward(*images, True, terms, mean, var, eps, [1] * 8)
    for statistics, got in (((mean, var[1:], eps), "4, 3 and 4"), ((mean, var, eps[1:]), "4, 4 and 3")):
        with pytest.raises(RuntimeError, match=f"norms: expected mean, var and eps of as many.*, got {got}"):
            backward([], [], [], True, terms, *statistics, [1] * 8)
    whole = [x.int() for x in mean], [x.int() for x in var]
    with pytest.raises(RuntimeError, match="dtype: expected float64, float32, float16 or bfloat16, got Int"):
        backward([], [], [], True, terms, *whole, eps, [1] * 8)
    with pytest.raises(RuntimeError, match="mean: expected at least one, got none"):
        backward([], [], [], True, terms, [], [], [], [])
    with pytest.raises(RuntimeError, match="differentiate upsample_fold twice, which works"):
        backward([], [], [], True, [terms[0].requires_grad_(), *terms[1:]], mean, var, eps, [1] * 8)


def test_fake_kernels_refuse_what_the_binding_refuses() -> None:
    for index, change, message in (
        (0, lambda _: [], "levels: expected at least one, got none"),
        (0, lambda x: [x[0][0], *x[1:]], r"levels\[0\]: expected 4 dimensions"),
        (4, lambda x: [x[0], torch.ones(8), *x[2:]], r"mean\[1\]: expected shape \(7,\), got \(8,\)"),
        (5, lambda x: [*x[:3], torch.ones(1, 5)], r"var\[3\]: expected shape \(5,\), got \(1, 5\)"),
    ):
        arguments = list(Fold().arguments())
        arguments[index] = change(arguments[index])
        with pytest.raises(ValueError, match=message):
            fold(on_meta(arguments))
    case = Fold()
    gradients, *sizes = case.level_gradients()
    rest = [case.term_gradients(), *case.arguments()[4:], [1] * 8]
    fewer = [rest[0], rest[1], rest[2][1:], *rest[3:]]
    with pytest.raises(ValueError, match=r"norms: expected mean, var and eps of as many.*, got 4, 3 and 4"):
        torch.ops.jpu_cuda.upsample_fold_backward(*on_meta([gradients, *sizes, *fewer]))
    cut = [gradients[0], gradients[1][..., 1:]]
    with pytest.raises(ValueError, match=r"gradients\[1\]: expected height and width \(6, 8\) as gradients\[0\]"):
        torch.ops.jpu_cuda.upsample_fold_backward(*on_meta([cut, *sizes, *rest]))
