"""upsample_fold, executed on the CPU: norms of fixed statistics as affine terms, in the launch that resizes."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from folds import Fold, check_gradients, check_terms, fold
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import needs_host
from torch import Tensor

from jpu_cuda import host
from jpu_cuda.ops._library import DTYPES

pytestmark = needs_host


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    """So that the operators are those of the kernels, for CPU tensors too."""
    host.load()


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
}


@pytest.mark.parametrize("wide", [True, False], ids=["norms in sums' type", "norms in levels' type"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_terms_and_gradients(name: str, dtype: torch.dtype, wide: bool) -> None:
    case = replace(CASES[name], dtype=dtype, wide=wide)
    check_terms(case)
    check_gradients(case)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    st.builds(
        Fold,
        branches=st.integers(1, 8),
        channels=st.tuples(st.integers(1, 300), st.integers(1, 300)),
        dtype=st.sampled_from(DTYPES),
        wide=st.booleans(),
        without=st.sets(st.sampled_from(["weight", "bias"])).map(tuple),
        sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4).map(tuple),
        batch=st.integers(0, 2),
        eps=st.lists(st.floats(0, 2), min_size=1, max_size=4).map(tuple),
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
        mine = torch.addcmul(shift[0].double(), scale[0].double(), x.double()).to(
            dtype
        )  # fused, as the kernels have it
        torchs = F.batch_norm(x, mean[0], var[0], weight[0], bias[0], eps=eps[0])
        errors.append([float((y.double() - truth).abs().max()) for y in (mine, torchs)])
    ours, theirs = (max(column) for column in zip(*errors, strict=True))
    assert ours <= 1.25 * theirs


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


def leaves(case: Fold) -> tuple[tuple[Any, ...], list[Tensor]]:
    """Arguments of which all that has a gradient needs one, and those."""
    levels, align, weight, bias, *rest = case.arguments()
    needing = [t.requires_grad_() for t in (*levels[1:], *weight, *bias) if t is not None]
    return (levels, align, weight, bias, *rest), needing


@pytest.mark.parametrize(
    ("part", "index", "bytes_written"),
    [(0, 1, 2 * 4 * 3 * 4 * 8), (2, 1, 7 * 8), (3, -1, 5 * 8)],
    ids=["a level", "a weight", "a bias"],
)
def test_only_what_is_needed_is_computed(part: int, index: int, bytes_written: int) -> None:
    arguments = Fold(dtype=torch.float64).arguments()
    asked = arguments[part][index].requires_grad_()
    out = fold(arguments)
    with host.record() as launches:
        torch.autograd.grad([x.sum() for x in out if x.requires_grad], asked)
    assert [launch.kernel for launch in launches] == ["upsample_concat backward"]
    written = launches[0].counters["global_writes"]
    assert sum(size * count for size, count in written.items()) == bytes_written


def test_terms_without_a_gradient_count_as_zero() -> None:
    arguments, _ = leaves(Fold(dtype=torch.float64))
    out, weight = fold(arguments), arguments[2]
    with host.record() as launches:
        of_depthwise, of_pointwise = torch.autograd.grad(out[-4].sum(), [weight[0], weight[2]])
    assert len(launches) == 1
    assert of_depthwise.all()
    assert not of_pointwise.any()


# --- autograd and compilers -----------------------------------------------------------------------------


@pytest.mark.parametrize("without", [(), ("weight",), ("bias",)])
def test_every_entry_of_the_derivatives_checks(without: tuple[str, ...]) -> None:
    case = Fold(2, (2, 1), torch.float64, without=without, sizes=((3, 2), (2, 1)), batch=1)
    arguments, needing = leaves(case)

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(fold(arguments))

    assert torch.autograd.gradcheck(call, needing)
    assert torch.autograd.gradgradcheck(call, needing)


def test_one_tensor_may_weigh_two_norms() -> None:
    levels, align, weight, *rest = Fold(dtype=torch.float64).arguments()
    shared = weight[0].requires_grad_()
    weight[1] = shared
    out = fold([levels, align, weight, *rest])
    (gradient,) = torch.autograd.grad(out[-4].sum(), shared)
    var, eps = rest[2], rest[3]
    expected = sum(1 / (var[i] + eps[i]).sqrt() for i in (0, 1))
    torch.testing.assert_close(gradient, expected, rtol=1e-14, atol=0)


def test_batches_of_gradients_are_the_same_one_by_one() -> None:
    arguments, needing = leaves(Fold(1, (2, 2), torch.float64, sizes=((2, 3), (1, 2)), batch=1))
    out = fold(arguments)
    for result in out:
        flat = torch.eye(result.numel(), dtype=torch.float64).view(-1, *result.shape)
        together = torch.autograd.grad(result, needing, flat, True, is_grads_batched=True, allow_unused=True)
        single = [torch.autograd.grad(result, needing, g, True, allow_unused=True) for g in flat]
        for batch, *rows in zip(together, *single, strict=True):
            if batch is not None:
                torch.testing.assert_close(batch, torch.stack(rows), rtol=1e-14, atol=1e-15)


def test_inference_mode_and_no_grad_are_served() -> None:
    arguments, _ = leaves(Fold())
    expected = fold(arguments)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode(), host.record() as launches:
            assert all(map(torch.equal, fold(arguments), expected))
        assert len(launches) == 1


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad: bool) -> None:
    case = Fold(without=("weight",))
    arguments, _ = leaves(case) if requires_grad else (case.arguments(), None)
    torch.library.opcheck(torch.ops.jpu_cuda.upsample_fold, arguments)
    if not requires_grad:
        out = fold(arguments)
        given = (out[:2], [3, 2], [4, 5], True, [None, *case.term_gradients()[1:]], *arguments[4:], [0, 1] * 4)
        torch.library.opcheck(torch.ops.jpu_cuda.upsample_fold_backward, given)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_equals_eager(backend: str) -> None:
    arguments, needing = leaves(Fold(dtype=torch.float64))
    expected = fold(arguments)
    gradients = [torch.randn_like(x) for x in expected]
    wanted = torch.autograd.grad(expected, needing, gradients)
    with host.record() as launches:
        out = torch.compile(lambda: fold(arguments), fullgraph=True, backend=backend)()
        found = torch.autograd.grad(out, needing, gradients)
    assert [launch.kernel for launch in launches] == ["upsample_concat forward", "upsample_concat backward"]
    assert all(map(torch.equal, out, expected))
    assert all(map(torch.equal, found, wanted))


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
        (changed(4, lambda x: [torch.ones(7, requires_grad=True), *x[1:]]), "norms: expected statistics that need no"),
    ],
)
def test_the_operator_says_what_is_wrong(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message):
        call()


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
    ):
        with pytest.raises(RuntimeError, match=message):
            backward([], [], [], True, gradients, mean, var, eps, needed)
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
        meta = [
            [y.to("meta") if isinstance(y, Tensor) else y for y in x] if isinstance(x, list) else x for x in arguments
        ]
        with pytest.raises(ValueError, match=message):
            fold(meta)
