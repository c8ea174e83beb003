"""The kernels of separable_pyramid and upsample_fold on a GPU, and the modules they serve: what no CPU can show."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from folds import Fold, check_gradients, check_terms, fold
from helpers import assert_no_worse, pyramid, randomise
from pyramids import (
    CASES,
    DTYPES,
    Pyramid,
    by_kernels,
    check_backward,
    check_forward,
    gradients_by_kernels,
    tensors_of,
)
from strategies import needs_host
from torch import Tensor, nn

from jpu_cuda import JPU, explain, functional, host, mmseg, use_backend

pytestmark = pytest.mark.gpu

ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=str)
GIB = 2**30
CHANNELS = (8, 16, 32)
# Several tiles, chunks and vectors; what the tests of streams, graphs and repeated runs use.
LARGE = Pyramid(2, (32, 24, 16), 72, (30, 33), (1, 2, 4, 8), torch.float32, "channels_last", device="cuda")


@pytest.fixture(autouse=True)
def _on_cuda() -> Iterator[None]:
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # a baseline without it
    with use_backend("cuda"):  # raises where the binary is missing: a GPU without kernels is no success
        yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32


def results_of(case: Pyramid, arguments: dict[str, Any], gradient: Tensor) -> list[Tensor]:
    out, gradients = gradients_by_kernels(case, arguments, gradient)
    return [out, *gradients]


# --- values ---------------------------------------------------------------------------------------------


@ALL_DTYPES
@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward(name: str, dtype: torch.dtype) -> None:
    case = replace(CASES[name], dtype=dtype, device="cuda")
    check_forward(case)
    check_backward(case)


@ALL_DTYPES
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_size_that_models_have(layout: str, dtype: torch.dtype) -> None:
    case = Pyramid(2, (128, 128, 128), 128, (60, 60), (1, 2, 4, 8), dtype, layout, device="cuda")
    check_forward(case)
    check_backward(case)


@ALL_DTYPES
@pytest.mark.parametrize("wide", [True, False])
def test_norms_are_folded(dtype: torch.dtype, wide: bool) -> None:
    for case in (Fold(), Fold(8, (1536, 512), without=("weight",)), Fold(3, (300, 5), batch=0)):
        case = replace(case, dtype=dtype, wide=wide, device="cuda")
        check_terms(case)
        check_gradients(case)


@needs_host
@ALL_DTYPES
@pytest.mark.parametrize("name", CASES)
def test_the_gpu_and_host_execution_agree_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    """All arithmetic of the kernels is explicit, so what holds for one holds for the other."""
    host.load()
    pairs = []
    for device in ("cpu", "cuda"):
        case = replace(CASES[name], dtype=dtype, device=device)
        pairs.append([x.cpu() for x in results_of(case, case.arguments(), case.gradient())])
    for on_host, on_gpu in zip(*pairs, strict=True):
        assert torch.equal(on_host, on_gpu)


@ALL_DTYPES
def test_results_are_bit_for_bit_the_same_on_every_run(dtype: torch.dtype) -> None:
    case = replace(LARGE, dtype=dtype)
    arguments, gradient = case.arguments(), case.gradient()
    expected = results_of(case, arguments, gradient)
    for _ in range(20):
        assert all(map(torch.equal, results_of(case, arguments, gradient), expected))


def test_groups_of_images_give_the_same_gradients() -> None:
    case = replace(LARGE, batch=3)
    a = case.arguments()
    every = (a["levels"], a["depthwise"], a["pointwise"], list(case.dilations), *a["terms"])
    every = (*every, case.gradient(), by_kernels(case, a), [1] * 9)
    together = torch.ops.jpu_cuda.separable_pyramid_backward(*every)
    one_by_one = torch.ops.jpu_cuda.separable_pyramid_backward(*every, 1)
    assert all(map(torch.equal, together, one_by_one))


def test_opcheck() -> None:
    case = Pyramid(1, (8, 3), 5, (6, 7), (1, 2), device="cuda")
    a = case.arguments()
    lists = [[t.requires_grad_() for t in a[name]] for name in ("levels", "depthwise", "pointwise")]
    torch.library.opcheck(torch.ops.jpu_cuda.separable_pyramid, (*lists, [1, 2], *a["terms"], True))
    torch.library.opcheck(torch.ops.jpu_cuda.upsample_fold, Fold(device="cuda").arguments())


# --- streams, devices, graphs, memory -------------------------------------------------------------------


def test_kernels_run_on_the_current_stream() -> None:
    """The producer of all inputs is late, on a side stream: kernels on another stream would read its zeros."""
    values, wanted = LARGE.arguments(), LARGE.gradient()
    expected = results_of(LARGE, values, wanted)
    late = {name: [torch.zeros_like(t) for t in tensors] for name, tensors in values.items()}
    gradient = torch.zeros_like(wanted)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # cycles: about a tenth of a second
        for name, tensors in values.items():
            for empty, value in zip(late[name], tensors, strict=True):
                empty.copy_(value)
        gradient.copy_(wanted)
        results = results_of(LARGE, late, gradient)
    side.synchronize()
    assert all(map(torch.equal, results, expected))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_of_another_device_than_the_current_one_are_served_there() -> None:
    expected = results_of(LARGE, LARGE.arguments(), LARGE.gradient())
    other = replace(LARGE, device="cuda:1")
    with torch.cuda.device(0):
        results = results_of(other, other.arguments(), other.gradient())
        assert torch.cuda.current_device() == 0
    assert {x.device.index for x in results} == {1}
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(results, expected, strict=True))


def test_memory_is_given_back() -> None:
    arguments, gradient = LARGE.arguments(), LARGE.gradient()
    results_of(LARGE, arguments, gradient)
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        results_of(LARGE, arguments, gradient)
    assert torch.cuda.memory_allocated() == before


def captured(step: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        step()
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


def test_a_captured_graph_replays_with_new_values_of_everything() -> None:
    """Inputs, weights and statistics are written in place between replays, which run no code on the CPU."""
    jpu = module_of("JPU", torch.float32)
    levels = [x.requires_grad_() for x in pyramid(CHANNELS, dtype=torch.float32, device="cuda")]
    tensors = [*jpu.parameters(), *levels]

    def step() -> list[Tensor]:
        out = jpu(*levels)[-1]
        return [out.detach(), *torch.autograd.grad(out.square().sum(), tensors)]

    graph, results = captured(step)
    for seed in (1, 2):
        other = randomise(copy.deepcopy(jpu), seed)
        with torch.no_grad():
            for mine, theirs in zip(
                (*jpu.parameters(), *jpu.buffers()), (*other.parameters(), *other.buffers()), strict=True
            ):
                mine.copy_(theirs)
            for level in levels:
                level.normal_()
        graph.replay()
        replayed = [x.clone() for x in results]
        assert all(map(torch.equal, replayed, step()))


# --- modules --------------------------------------------------------------------------------------------


def module_of(name: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    module = JPU(CHANNELS, width=16) if name == "JPU" else mmseg.JPU(CHANNELS, 16, dilations=(1, 3))
    return randomise(module).to("cuda", dtype).eval()


def results_of_module(module: nn.Module, levels: list[Tensor], backend: str, passes: Tensor | None) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in levels]
    with use_backend(backend):
        out = (module(inputs) if isinstance(module, mmseg.JPU) else module(*inputs))[-1]
    gradient = torch.linspace(-1, 1, out.numel(), device="cuda").to(out.dtype).view_as(out)
    gradient = gradient * (out > 0.1 if passes is None else passes)  # rounding does not decide what passes the ReLU
    return [out.detach(), *torch.autograd.grad(out, [*inputs, *module.parameters()], gradient)]


@pytest.mark.parametrize("frozen", [False, True], ids=["eval", "frozen"])
@pytest.mark.parametrize("name", ["JPU", "mmseg.JPU"])
def test_modules_agree_with_pytorch_in_float64(name: str, frozen: bool) -> None:
    module = module_of(name, torch.float64).train(frozen)
    for i in range(module.num_branches):
        module.branch(i).eval()
    levels = pyramid(CHANNELS, device="cuda")
    expected = results_of_module(module, levels, "reference", None)
    for served, right in zip(results_of_module(module, levels, "cuda", None), expected, strict=True):
        torch.testing.assert_close(served, right, rtol=1e-9, atol=1e-10)
    assert "all branches in one launch" in explain(module, *([levels] if name == "mmseg.JPU" else levels)).reason


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_outputs_are_no_worse_than_pytorchs(dtype: torch.dtype) -> None:
    module = module_of("JPU", dtype)
    levels = pyramid(CHANNELS, dtype=dtype, device="cuda")
    with torch.no_grad():
        with use_backend("reference"):
            truth = copy.deepcopy(module).double()(*(x.double() for x in levels))[-1]
            baseline = module(*levels)[-1]
        assert_no_worse(module(*levels)[-1], baseline, truth)
        with torch.autocast("cuda", dtype):
            assert module.float()(*(x.float() for x in levels))[-1].dtype == dtype


@pytest.mark.parametrize("training", [False, True])
def test_compiled_by_inductor_equals_eager(training: bool) -> None:
    torch._dynamo.reset()
    module = module_of("JPU", torch.float32).requires_grad_(training)
    levels = [x.requires_grad_(training) for x in pyramid(CHANNELS, dtype=torch.float32, device="cuda")]
    out, expected = torch.compile(module, fullgraph=True)(*levels)[-1], module(*levels)[-1]
    # Inductor may take another algorithm of cuDNN's for the stages.
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    if training:
        gradients = [torch.autograd.grad(x.sum(), levels) for x in (out, expected)]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


# --- reach ----------------------------------------------------------------------------------------------


def needs_memory(gib: int) -> None:
    if torch.cuda.mem_get_info()[0] < gib * GIB:
        pytest.skip(f"needs {gib} GiB of free GPU memory")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_outputs_and_gradients_of_more_than_2_to_31_elements(memory_format: torch.memory_format) -> None:
    """Rows of one value, and a centre tap alone: every entry is known to the bit."""
    needs_memory(30)
    height, width = 2**14, 2**13 + 16
    level = torch.empty(1, 8, height, width, dtype=torch.float16, device="cuda", memory_format=memory_format)
    level.copy_((torch.arange(height, device="cuda") % 61).half().view(1, 1, -1, 1))
    taps = torch.zeros(8, 1, 3, 3, dtype=torch.float16, device="cuda")
    taps[..., 1, 1] = 1
    weights = [torch.full((8, 8, 1, 1), value, dtype=torch.float16, device="cuda") for value in (0.125, 0.25)]
    every = ([level], [taps, taps], weights, [1, 16], None, None, None, None)
    out = torch.ops.jpu_cuda.separable_pyramid(*every, True)
    assert out.numel() > 2**31
    for c in range(16):
        assert bool((out[:, c] == level[:, 0] * (1 if c < 8 else 2)).all())
    (found,) = torch.ops.jpu_cuda.separable_pyramid_backward(*every, out, None, [1, *[0] * 6])
    for c in range(8):  # eight outputs of each branch, weighed by 1/8 and by 1/4 of twice as much
        assert bool((found[:, c] == level[:, 0] * 5).all())


def test_levels_may_be_spread_over_more_than_2_to_31_elements() -> None:
    needs_memory(10)
    case = Pyramid(2, (8,), 8, (6, 8), (1, 2), torch.float16, "channels_last", device="cuda")
    compact = case.arguments()
    (value,) = compact["levels"]
    buffer = torch.empty(2**31 + 16 + value[0].numel(), device="cuda", dtype=torch.float16)
    spread = buffer.as_strided(value.shape, (2**31 + 16, *value.stride()[1:])).copy_(value)
    gradient = case.gradient()
    results = [results_of(case, {**compact, "levels": [x]}, gradient) for x in (value, spread)]
    assert all(map(torch.equal, *results))


def test_a_mix_of_devices_is_refused() -> None:
    case = Pyramid(1, (3, 2), 4, (5, 6), (1,), device="cuda")
    arguments = case.arguments()
    arguments["levels"][1] = arguments["levels"][1].cpu()
    with pytest.raises(RuntimeError, match=r"levels\[1\]: expected the device of levels\[0\]"):
        by_kernels(case, arguments)
    with pytest.raises(ValueError, match=r"levels\[1\]: expected device cuda:0 as levels\[0\], got cpu"):
        functional.upsample_concat(arguments["levels"], True)
    assert all(t.is_cuda for t in tensors_of(case.arguments()) if t is not None)
    assert fold(Fold(device="cuda").arguments())[-1].is_cuda
