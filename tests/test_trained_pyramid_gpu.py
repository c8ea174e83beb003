"""The operator trained_pyramid on a GPU: what host execution cannot show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from gpu import captured, needs_memory, on_a_late_stream, on_cuda, one_at_a_time, products_in_tf32, requested_bytes
from hypothesis import given, settings
from strategies import needs_host
from torch import Tensor
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
from jpu_cuda.reference.trained_pyramid import trained_pyramid as reference

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
ops = torch.ops.jpu_cuda
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=str)
HALVES = (torch.float16, torch.bfloat16)
LOWER = pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
CORES = pytest.mark.parametrize("policy", ["mma", "two-pass"])
BOTH_SIDES = [("batch", "batch"), ("group", "group"), ("mixed", "fixed")]
NORMS = pytest.mark.parametrize("norms", BOTH_SIDES, ids="-".join)

PLAIN = Trained(2, (8, 8, 16), 8, ((9, 7), (5, 4), (3, 2)), (1, 2, 4), device=DEVICE)
# Several chunks of channels, blocks of outputs, tiles of a part and parts of an image.
LARGE = Trained(3, (96, 72, 40), 136, ((61, 67), (31, 34), (15, 16)), (1, 2, 4, 8), device=DEVICE)
ODD = Trained(2, (5, 3, 9), 7, ((33, 17), (9, 5), (1, 1)), (1, 16), groups=(1, 7), layout="contiguous", device=DEVICE)
SHIFTED = replace(LARGE, batch=1, layout="shifted", groups=(8, 4))  # vectors that do not begin at 16 bytes
LIKE_MODELS = Trained(2, (512,) * 3, 512, ((60, 60), (30, 30), (15, 15)), (1, 2, 4, 8), groups=(32, 32), device=DEVICE)
SHAPES = {"large": LARGE, "odd": ODD, "shifted": SHIFTED}


@pytest.fixture(autouse=True)
def _on_cuda() -> Iterator[None]:
    with on_cuda():
        yield


def results_of(case: Trained, arguments: list[Any], gradient: Tensor) -> list[Tensor]:
    """Output and all gradients."""
    return differentiated(case, arguments, gradient, kernels=True)


# --- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", KINDS)
@pytest.mark.parametrize("before", KINDS)
def test_norms_of_every_kind_on_either_side(before: str, after: str) -> None:
    check_in_float64(replace(PLAIN, norms=(before, after)))


@NORMS
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_in_float64(name: str, norms: tuple[str, str]) -> None:
    check_in_float64(replace(SHAPES[name], norms=norms))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(cases(dtypes=(torch.float64,)))
def test_any_shapes_norms_and_formats_in_float64(case: Trained) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WORKSPACE_BYTES", case.workspace)
        check_in_float64(replace(case, device=DEVICE))


@LOWER
@NORMS
@pytest.mark.parametrize("name", SHAPES)
def test_lower_precision_is_no_worse_than_pytorchs(name: str, norms: tuple[str, str], dtype: torch.dtype) -> None:
    check_no_worse(replace(SHAPES[name], norms=norms, dtype=dtype), draws=8)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(cases(dtypes=(torch.float32, *HALVES), least=4))
def test_any_shapes_norms_and_formats_in_lower_precision(case: Trained) -> None:
    check_no_worse(replace(case, device=DEVICE))


@pytest.mark.parametrize(
    ("dtype", "ratio"), [(torch.float32, 1e4), (torch.float16, 100), (torch.bfloat16, 10)], ids=str
)
@pytest.mark.parametrize("norms", BOTH_SIDES[:2], ids="-".join)
def test_means_far_above_their_deviation(norms: tuple[str, str], dtype: torch.dtype, ratio: float) -> None:
    check_no_worse(replace(PLAIN, norms=norms, dtype=dtype, ratio=ratio, sizes=((12, 11),) * 3))


@pytest.mark.parametrize("matmul", [False, True], ids=["products in float32", "products in TF32"])
@LOWER
@CORES
@NORMS
def test_tensor_cores_are_no_worse(norms: tuple[str, str], policy: str, dtype: torch.dtype, matmul: bool) -> None:
    """Those of the gradients are PyTorch's, which has a setting of its own."""
    if matmul and dtype != torch.float32:
        pytest.skip("of float32 alone")
    with products_in_tf32(matmul):
        check_no_worse(replace(LARGE, norms=norms, dtype=dtype, policy=policy), draws=8)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("policy", ["auto", "fma"])
@pytest.mark.parametrize("norms", BOTH_SIDES[:2], ids="-".join)
def test_the_size_that_models_have(norms: tuple[str, str], policy: str, dtype: torch.dtype) -> None:
    check_no_worse(replace(LIKE_MODELS, norms=norms, dtype=dtype, policy=policy), draws=3)


@needs_host
@ALL_DTYPES
@NORMS
@pytest.mark.parametrize("name", ["plain", "odd"])
def test_the_gpu_and_host_execution_agree_bit_for_bit(name: str, norms: tuple[str, str], dtype: torch.dtype) -> None:
    """In all that takes no product of PyTorch's: forward, and the gradients of the last norms."""
    host.load()
    on_gpu = replace({"plain": PLAIN, "odd": ODD}[name], norms=norms, dtype=dtype)
    found = []
    for case in (on_gpu, replace(on_gpu, device="cpu")):
        arguments = case.arguments()
        needing = [x.requires_grad_() for part in arguments[6:8] for x in part[len(case.dilations) :]]
        out, *rest = by_kernels(case, arguments)
        found.append([out.detach(), *rest, *torch.autograd.grad(out, needing, gradient_of(case))])
    for gpu, cpu in zip(*found, strict=True):
        assert gpu.stride() == cpu.stride()
        assert torch.equal(gpu.cpu(), cpu)


@ALL_DTYPES
@pytest.mark.parametrize("policy", ["fma", "mma", "two-pass"])
def test_results_are_bit_for_bit_the_same_on_every_run_and_beside_other_work(policy: str, dtype: torch.dtype) -> None:
    case = replace(LARGE, dtype=dtype, policy=policy)
    arguments, gradient = case.arguments(), gradient_of(case)
    others, other_gradient = case.arguments(seed=1), gradient_of(case, seed=1)
    expected = results_of(case, arguments, gradient)
    torch.cuda.synchronize()
    beside = torch.cuda.Stream()
    for run in range(20):
        if run % 2 == 1:
            with torch.cuda.stream(beside):
                for _ in range(2):
                    results_of(case, others, other_gradient)
        assert all(map(torch.equal, results_of(case, arguments, gradient), expected)), run
    torch.cuda.synchronize()


@pytest.mark.parametrize("workspace", [1, 3])
def test_groups_of_branches_change_no_gradient_of_weights(workspace: int) -> None:
    """Those of levels are added up in another order; of `workspace`, in branches, comes how many are a group."""
    *every, needed = backward_arguments(LARGE)
    branch = bytes_of_branch(LARGE)
    together, apart = (ops.trained_pyramid_backward(*every, needed, n * branch) for n in (4, workspace))
    for i, (got, expected) in enumerate(zip(apart, together, strict=True)):
        # PyTorch may choose other products for one branch than for several.
        atol = 64 * torch.finfo(torch.float64).eps * float(expected.abs().max()) * LARGE.sizes[0][0]
        torch.testing.assert_close(got, expected, rtol=0, atol=atol, msg=lambda m, i=i: f"{i}: {m}")


# --- PyTorch's machinery --------------------------------------------------------------------------------

TINY = Trained(2, (2, 2), 2, ((3, 4), (2, 2)), (1, 2), groups=(2, 1), device=DEVICE)


@NORMS
def test_gradgradcheck(norms: tuple[str, str]) -> None:
    arguments = leaves(replace(TINY, norms=norms).arguments())
    wanted = flat(arguments)
    needing: list[Tensor] = []
    changed(arguments, lambda x: needing.append(x) if any(x is t for t in wanted) else None)

    def function(*inputs: Tensor) -> Tensor:
        given = iter(inputs)
        put = changed(arguments, lambda x: next(given) if any(x is t for t in needing) else x)
        return by_kernels(TINY, put)[0]

    assert torch.autograd.gradcheck(function, needing, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, needing, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@NORMS
def test_second_derivatives_of_half_precision_with_wide_norms(norms: tuple[str, str], dtype: torch.dtype) -> None:
    """Which PyTorch works out, whose GroupNorm has one dtype for all on a GPU."""
    case = replace(PLAIN, norms=norms, dtype=dtype)
    arguments = leaves(case.arguments())
    out = by_kernels(case, arguments)[0]
    first = torch.autograd.grad(out.float().square().mean(), flat(arguments), create_graph=True)
    plain = torch.autograd.grad(by_kernels(case, arguments)[0].float().square().mean(), flat(arguments))
    for with_graph, without in zip(first, plain, strict=True):
        error = float((with_graph.double() - without.double()).norm())
        assert error <= 16 * torch.finfo(dtype).eps * max(float(without.double().norm()), 1e-3)
    second = torch.autograd.grad(sum(x.float().square().sum() for x in first), arguments[4])
    assert all(bool(x.isfinite().all() and x.any()) for x in second)


@NORMS
def test_opcheck(norms: tuple[str, str]) -> None:
    case = replace(PLAIN, norms=norms)
    torch.library.opcheck(ops.trained_pyramid.default, (*leaves(case.arguments()), *case.options))
    torch.library.opcheck(ops.trained_pyramid_backward.default, (*backward_arguments(case), 1 << 28))


@pytest.mark.parametrize("low", HALVES, ids=str)
def test_under_autocast_all_but_norms_is_cast(low: torch.dtype) -> None:
    case = replace(LARGE, dtype=torch.float32)
    arguments = leaves(case.arguments())
    cast = [changed([part], lambda x: x.to(low))[0] if i in (0, 3, 4) else part for i, part in enumerate(arguments)]
    with torch.autocast(DEVICE, low):
        out = by_kernels(case, arguments)[0]
    expected = by_kernels(case, cast)[0]
    assert out.dtype == low
    assert torch.equal(out, expected)
    gradient = torch.ones_like(out)
    found, wanted = (torch.autograd.grad(x, flat(arguments), gradient) for x in (out, expected))
    assert {g.dtype for g in found} == {torch.float32}
    assert all(map(torch.equal, found, wanted))


# --- streams, devices, graphs, memory -------------------------------------------------------------------


def tensors_of(arguments: list[Any], gradient: Tensor) -> list[Tensor]:
    found = [gradient]
    changed(arguments, found.append)
    return found


@pytest.mark.parametrize("policy", ["fma", "two-pass"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_kernels_run_on_the_current_stream(layout: str, policy: str) -> None:
    case = replace(LARGE, dtype=torch.bfloat16, layout=layout, policy=policy)
    values, gradient = case.arguments(), gradient_of(case)
    late = changed(values, torch.zeros_like)
    late_gradient = torch.zeros_like(gradient)
    sources = tensors_of(values, gradient)
    expected, results = (
        on_a_late_stream(
            lambda a=a, g=g: torch._foreach_copy_(tensors_of(a, g), sources), lambda a=a, g=g: results_of(case, a, g)
        )
        for a, g in ((values, gradient), (late, late_gradient))
    )
    assert all(map(torch.equal, results, expected))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("policy", ["fma", "mma", "two-pass"])
def test_tensors_of_another_device_than_the_current_one_are_served_there(policy: str) -> None:
    case = replace(LARGE, dtype=torch.float16, policy=policy)
    with torch.cuda.device(0):
        found = [results_of(c, c.arguments(), gradient_of(c)) for c in (case, replace(case, device="cuda:1"))]
        assert torch.cuda.current_device() == 0
    assert {x.device.index for x in found[1]} == {1}
    assert torch.equal(found[1][0].cpu(), found[0][0].cpu())
    for got, expected in zip(*found, strict=True):  # PyTorch's products may be others there
        atol = 16 * torch.finfo(torch.float16).eps * float(expected.abs().max())
        torch.testing.assert_close(got.cpu(), expected.cpu(), rtol=0, atol=atol)


@pytest.mark.parametrize("policy", ["fma", "mma", "two-pass"])
@NORMS
def test_a_captured_graph_replays_with_new_values_of_every_input(norms: tuple[str, str], policy: str) -> None:
    case = replace(LARGE, norms=norms, dtype=torch.bfloat16, policy=policy)
    arguments, gradient = case.arguments(), gradient_of(case)
    graph, results = captured(lambda: results_of(case, arguments, gradient))
    graph.replay()
    before = [x.clone() for x in results]
    for seed in (1, 2):
        torch._foreach_copy_(tensors_of(arguments, gradient), tensors_of(case.arguments(seed), gradient_of(case, seed)))
        graph.replay()
        replayed = [x.clone() for x in results]
        assert all(map(torch.equal, replayed, results_of(case, arguments, gradient)))
        assert not any(map(torch.equal, replayed, before))


def bytes_of_branch(case: Trained) -> int:
    """What a branch's dq, ẑ and dz take."""
    height, width = case.sizes[0]
    return case.batch * height * width * (2 * sum(case.channels) + case.outputs) * case.dtype.itemsize


@pytest.mark.parametrize("norms", BOTH_SIDES[:2], ids="-".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_the_gradients_keep_is_bounded(dtype: torch.dtype, norms: tuple[str, str]) -> None:
    """By the levels in the first one's size, their gradients, and as many branches as the workspace holds, or one."""
    case = replace(LARGE, norms=norms, dtype=dtype, batch=8, sizes=((128, 128), (64, 64), (32, 32)))
    every, branch = backward_arguments(case), bytes_of_branch(case)
    first = case.batch * 128 * 128 * dtype.itemsize
    resized, gradients = sum(case.channels[1:]) * first, sum(case.channels) * first
    for branches, workspace in ((1, 1), (1, branch), (1, 2 * branch - 1), (2, 2 * branch), (4, 5 * branch)):
        peak, left = requested_bytes(lambda w=workspace: ops.trained_pyramid_backward(*every, w))
        assert left == 0
        # Weights, and what sums are made of, are small beside a branch's pixels.
        assert peak <= resized + gradients + (branches + 0.25) * branch, (branches, peak)
        assert peak >= branches * branch


def test_nothing_stays_allocated() -> None:
    for case in (LARGE, replace(LARGE, dtype=torch.bfloat16, policy="two-pass", norms=("group", "group"))):
        arguments, gradient = case.arguments(), gradient_of(case)
        assert requested_bytes(lambda c=case, a=arguments, g=gradient: results_of(c, a, g))[1] == 0


# --- reach ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norms", [("batch", "batch"), ("group", "group"), ("fixed", "group")], ids="-".join)
def test_more_images_than_a_grid_has_rows(norms: tuple[str, str]) -> None:
    check_in_float64(Trained(70_000, (4, 4), 4, ((2, 2), (1, 1)), (1, 2), norms, device=DEVICE))


HEIGHT, WIDTH = 2**14, 2**13 + 16  # of 16 channels: a little more than 2^31 elements


class Columns:
    """Images whose columns are all alike, and taps that look up and down alone.

    So statistics, output and gradients of levels are those of a single column, in float64.
    """

    def __init__(self, channels: int, outputs: int, dilations: tuple[int, ...], norms: tuple[str, str]) -> None:
        self.case = Trained(
            1, (channels,), outputs, ((HEIGHT, 1),), dilations, norms, torch.float16, "contiguous", device=DEVICE
        )
        self.arguments = self.case.arguments()
        for weight in self.arguments[3]:
            weight[..., 0] = weight[..., 2] = 0
        self.exact = changed(self.arguments, lambda x: x.double())

    def wide(self, column: Tensor) -> Tensor:
        shape = (*column.shape[:3], WIDTH)
        return column.expand(shape).to(torch.float16).contiguous(memory_format=torch.channels_last)

    def full(self) -> list[Any]:
        return [[self.wide(level) for level in self.arguments[0]], *self.arguments[1:]]

    def gradient(self) -> Tensor:
        """Of a column: 0 where the output is near 0, where rounding would decide what passes the ReLU."""
        return gradient_of(self.case) * (reference(*self.exact) > 0.3)


def assert_columns(image: Tensor, column: Tensor) -> None:
    limit = 8 * torch.finfo(torch.float16).eps * float(column.abs().max())
    for c in range(image.shape[1]):  # one by one, for the memory's sake
        worst = float((image[:, c].float() - column[:, c].float()).abs().max())
        assert worst <= limit, (c, worst, limit)


REACH = pytest.mark.parametrize(
    ("channels", "outputs", "dilations"), [(8, 8, (3, 16)), (16, 8, (3,))], ids=["q", "rows of a branch"]
)


@one_at_a_time
@pytest.mark.parametrize("policy", ["fma", "mma", "two-pass"])
@REACH
def test_outputs_of_more_than_2_to_31_elements(
    channels: int, outputs: int, dilations: tuple[int, ...], policy: str
) -> None:
    needs_memory(24)
    columns = Columns(channels, outputs, dilations, ("batch", "batch"))
    with torch.no_grad():
        out, q, *_ = by_kernels(replace(columns.case, policy=policy), columns.full())
        assert max(q.numel(), channels * HEIGHT * WIDTH) > 2**31
        del q
        assert_columns(out, reference(*columns.exact))


@one_at_a_time
@REACH
def test_gradients_of_levels_of_more_than_2_to_31_elements(
    channels: int, outputs: int, dilations: tuple[int, ...]
) -> None:
    needs_memory(40)
    columns = Columns(channels, outputs, dilations, ("fixed", "batch"))
    column = columns.gradient()
    expected = differentiated(columns.case, columns.exact, column.double(), kernels=False)[1]
    arguments = columns.full()
    out = by_kernels(columns.case, [[arguments[0][0].requires_grad_()], *arguments[1:]])[0]
    (found,) = torch.autograd.grad(out, arguments[0], columns.wide(column))
    assert_columns(found, expected)


@one_at_a_time
@REACH
def test_gradients_of_weights_from_the_last_pixels_of_more_than_2_to_31_elements(
    channels: int, outputs: int, dilations: tuple[int, ...]
) -> None:
    """All but the last three pixels of the last output count for nothing."""
    needs_memory(40)
    columns = Columns(channels, outputs, dilations, ("fixed", "fixed"))
    case, arguments = columns.case, columns.full()
    columns.exact[7][-1] += 20  # so that they pass the ReLU
    arguments[7][-1] = columns.exact[7][-1].float()
    column = torch.zeros(1, len(dilations) * outputs, HEIGHT, 1, device=DEVICE, dtype=torch.float64)
    column[:, -1, -1] = 3
    expected = differentiated(case, columns.exact, column, kernels=False)
    weights = [x.requires_grad_() for part in (3, 4, 6, 7) for x in arguments[part]]
    out = by_kernels(case, arguments)[0]
    assert bool(out[:, -1, -1].all())
    gradient = torch.zeros_like(out)
    gradient[:, -1, -1, -3:] = 1
    found = torch.autograd.grad(out, weights, gradient)
    for got, right in zip(found, expected[2:], strict=True):
        if got.dim() == 4 and got.shape[-1] == 3:  # to the left is the same; to the right the image has ended
            right[..., 0] = right[..., 1]
        atol = 8 * torch.finfo(torch.float16).eps * float(right.abs().max())
        torch.testing.assert_close(got.double(), right, rtol=0, atol=atol)


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "index", "name"), [(0, 1, "levels"), (3, 1, "depthwise"), (4, 0, "pointwise"), (6, 4, "weight")]
)
def test_a_mix_of_devices_is_refused(part: int, index: int, name: str) -> None:
    arguments = PLAIN.arguments()
    arguments[part][index] = arguments[part][index].cpu()
    with pytest.raises((RuntimeError, ValueError), match=rf"{name}.*device"):
        by_kernels(PLAIN, arguments)
    assert by_kernels(PLAIN, PLAIN.arguments())[0].is_cuda
