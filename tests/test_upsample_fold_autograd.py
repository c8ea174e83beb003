"""upsample_fold in PyTorch's machinery: derivatives, compilation, export. By host execution."""

from typing import Any

import pytest
import torch
from folds import Fold, fold, leaves
from strategies import needs_host
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad

from jpu_cuda import host
from jpu_cuda.ops._library import DTYPES
from jpu_cuda.reference.norms import fold_backward
from jpu_cuda.reference.upsample_concat import upsample_backward

pytestmark = needs_host


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    """So that the operators are those of the kernels, for CPU tensors too."""
    host.load()


# --- what is computed -----------------------------------------------------------------------------------


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


def test_the_first_level_has_no_gradient_and_costs_no_launch() -> None:
    arguments = Fold().arguments()
    first = arguments[0][0].requires_grad_()
    out = fold(arguments)
    with host.record() as launches:
        assert torch.autograd.grad([x.sum() for x in out], first, allow_unused=True) == (None,)
    assert launches == []


def test_terms_without_a_gradient_count_as_zero() -> None:
    arguments, _ = leaves(Fold(dtype=torch.float64))
    out, weight = fold(arguments), arguments[2]
    with host.record() as launches:
        of_depthwise, of_pointwise = torch.autograd.grad(out[-4].sum(), [weight[0], weight[2]])
    assert len(launches) == 1
    assert of_depthwise.all()
    assert not of_pointwise.any()


# --- derivatives ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("without", [(), ("weight",), ("bias",)])
def test_every_entry_of_the_derivatives_checks(without: tuple[str, ...]) -> None:
    case = Fold(2, (2, 1), torch.float64, without=without, sizes=((3, 2), (2, 1)), batch=1)
    arguments, needing = leaves(case)

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(fold(arguments))

    assert torch.autograd.gradcheck(call, needing)
    assert torch.autograd.gradgradcheck(call, needing)


@pytest.mark.parametrize("wide", [True, False], ids=["norms in sums' type", "norms in levels' type"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_the_derivatives_with_and_without_a_graph(dtype: torch.dtype, wide: bool) -> None:
    case = Fold(dtype=dtype, wide=wide, absent=(("weight", 1), ("bias", 2)))
    arguments, needing = leaves(case)
    images, terms = case.level_gradients(), case.term_gradients()
    out = fold(arguments)
    every = torch.ops.jpu_cuda.upsample_fold_backward(*images, terms, *arguments[4:], [1] * 8)
    missing = (2 + 1, 2 + 4 + 2)  # after the gradients of two levels: a weight's and a bias's
    expected = [g for i, g in enumerate(every) if i not in missing]
    got = torch.autograd.grad(out, needing, [*images[0], *terms], retain_graph=True)
    assert all(map(torch.equal, got, expected))
    # A graph is made of PyTorch's own operators.
    *statistics, eps = arguments[4:]
    asked = [i not in missing for i in range(2, 10)]
    plain = [*upsample_backward(*images), *fold_backward(terms, *statistics, eps, asked)]
    with_graph = torch.autograd.grad(out, needing, [*images[0], *terms], create_graph=True)
    assert all(map(torch.equal, with_graph, plain))
    assert [x.dtype for x in with_graph] == [x.dtype for x in needing]


def test_statistics_that_change_before_the_derivative_are_noticed() -> None:
    arguments, needing = leaves(Fold())
    out = fold(arguments)
    arguments[5][0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(out[-4].sum(), needing[2])


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


def test_jacobians_of_all_entries_at_once_are_those_one_by_one() -> None:
    levels, align, weight, *rest = Fold(1, (2, 2), torch.float64, sizes=((2, 3), (1, 2)), batch=1).arguments()

    def call(level: Tensor, first: Tensor) -> tuple[Tensor, ...]:
        return tuple(fold([[levels[0], level], align, [first, *weight[1:]], *rest]))

    jacobian, inputs = torch.autograd.functional.jacobian, (levels[1], weight[0])
    for together, single in zip(jacobian(call, inputs, vectorize=True), jacobian(call, inputs), strict=True):
        torch.testing.assert_close(together, single, rtol=1e-14, atol=1e-15)


def test_transforms_of_torch_func_and_forward_mode_are_refused() -> None:
    """By PyTorch, which has none of them for operators of others: a JPU leaves them to the reference."""
    levels, align, weight, *rest = Fold(dtype=torch.float64).arguments()

    def scale(first: Tensor) -> Tensor:
        return fold([levels, align, [first, *weight[1:]], *rest])[-4]

    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda w: scale(w).sum())(weight[0])
    with pytest.raises(RuntimeError, match="Batching rule not implemented for jpu_cuda::upsample_fold"):
        torch.vmap(scale)(torch.stack([weight[0]] * 2))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        scale(forward_ad.make_dual(weight[0], weight[0]))


def test_inference_mode_and_no_grad_are_served() -> None:
    arguments, _ = leaves(Fold())
    expected = fold(arguments)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode(), host.record() as launches:
            assert all(map(torch.equal, fold(arguments), expected))
        assert len(launches) == 1


# --- compilation and export -----------------------------------------------------------------------------


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


class Folded(torch.nn.Module):
    def forward(self, levels: list[Tensor], *norms: Any) -> list[Tensor]:
        return torch.ops.jpu_cuda.upsample_fold(levels, False, *norms, [1e-5, 1e-3, 0.5, 1e-5])


def test_one_graph_serves_levels_of_any_size() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(Folded(), fullgraph=True, dynamic=True, backend=counter)
    # Of different numbers all, since equal ones would be taken to be so always.
    for sizes, channels in ((((11, 13), (6, 7), (8, 9)), (10, 14)), (((8, 9), (16, 17), (6, 15)), (18, 19))):
        (levels, _, *norms, _), needing = leaves(Fold(sizes=sizes, channels=channels))
        results = []
        for run in (compiled, Folded()):
            with host.record() as launches:
                out = run(levels, *norms)
                found = torch.autograd.grad(out, needing, [torch.ones_like(x) for x in out])
            assert len(launches) == 2
            results.append((*out, *found))
        assert all(map(torch.equal, *results))
    assert counter.frame_count == 1


@pytest.mark.parametrize("strict", [False, True])
def test_an_export_holds_the_operator(strict: bool) -> None:
    levels, _, *norms, _ = Fold(absent=(("weight", 1),)).arguments()
    program = torch.export.export(Folded(), (levels, *norms), strict=strict)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {name for name in targets if "getitem" not in name} == {"jpu_cuda.upsample_fold.default"}
    assert all(map(torch.equal, program.module()(levels, *norms), Folded()(levels, *norms)))
