"""JPUs in training by the kernels on a GPU: what host execution cannot show."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from gpu import captured, on_a_late_stream, on_cuda, requested_bytes
from helpers import assert_relative_l2, pyramid
from torch import Tensor, nn
from trained import (
    CHANNELS,
    MODULES,
    amplified,
    assert_alike,
    bare,
    call,
    check_amplified,
    check_checkpointed,
    check_saved_bytes,
    inputs_of,
    learned,
    levels_for,
    made,
    results,
)

from jpu_cuda import JPU, explain, use_backend

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
BACKEND = "cuda"
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
LOWER = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
EVERY_MODULE = pytest.mark.parametrize("name", MODULES)
NORMS = pytest.mark.parametrize("name", ["JPU", "mmseg.JPU with GroupNorm"])
SERVED = "the norms' statistics, all branches in "


@pytest.fixture(autouse=True)
def _on_cuda() -> Iterator[None]:
    with on_cuda():
        yield


def module_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return made(name).to(DEVICE, dtype).train()


def levels_of(module: nn.Module, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    return levels_for(module, dtype=dtype, seed=seed, device=DEVICE, requires_grad=True)


def is_served(module: nn.Module, levels: list[Tensor]) -> bool:
    return SERVED in explain(module, *inputs_of(module, levels)).reason


def step_of(module: nn.Module, levels: list[Tensor]) -> list[Tensor]:
    """The output, and the gradients of all levels and parameters; moves the running statistics."""
    out = call(module, levels)
    return [out.detach(), *torch.autograd.grad(out, [*levels, *module.parameters()], out.detach())]


def state_of(module: nn.Module) -> list[Tensor]:
    return [x.detach() for x in (*module.parameters(), *module.buffers())]


# --- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@EVERY_MODULE
def test_every_family_is_trained_by_the_kernels(name: str, training: bool) -> None:
    module = module_of(name, torch.float64).train(training)
    levels = levels_of(module, torch.float64)
    assert is_served(module, levels)
    assert_alike(module, levels)


@pytest.mark.parametrize("policy", ["fma", "mma", "two-pass"])
@HALVES
@NORMS
def test_every_policy_trains_a_whole_module(name: str, dtype: torch.dtype, policy: str) -> None:
    module = module_of(name, dtype)
    levels = levels_of(module, dtype)
    exact = copy.deepcopy(module).double()
    truth, _ = results(exact, [x.detach().double().requires_grad_() for x in levels], "reference")
    with use_backend(BACKEND, policy=policy):
        assert explain(module, *inputs_of(module, levels)).policy == policy
    found, _ = results(module, levels, BACKEND, policy=policy)
    assert_relative_l2(found["out"], truth["out"], roundings=10)  # conv, norm, resize, depthwise, norm, pointwise, norm
    assert all((found[key] is None) == (right is None) for key, right in truth.items())
    assert all(bool(x.isfinite().all()) for x in found.values() if x is not None)


@LOWER
@NORMS
def test_steps_are_bit_for_bit_the_same_on_every_run(name: str, dtype: torch.dtype) -> None:
    module = module_of(name, dtype)
    levels = levels_of(module, dtype)
    expected, _ = results(module, levels, BACKEND)
    for _ in range(10):
        found, _ = results(module, levels, BACKEND)
        for key, right in expected.items():
            assert (right is None and found[key] is None) or torch.equal(found[key], right), key


def test_threads_that_train_side_by_side_do_not_disturb_each_other() -> None:
    """Each on a stream of its own."""
    modules = [module_of("JPU") for _ in range(3)]
    levels = [levels_of(modules[0], seed=seed) for seed in range(3)]
    expected = [results(m, x, BACKEND)[0] for m, x in zip(modules, levels, strict=True)]
    torch.cuda.synchronize()
    found: list[list[dict[str, Tensor | None]]] = [[], [], []]

    def train(i: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(10):
                found[i].append(results(modules[i], levels[i], BACKEND)[0])
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=train, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for steps, right in zip(found, expected, strict=True):
        assert len(steps) == 10
        assert all(torch.equal(step[key], x) for step in steps for key, x in right.items() if x is not None)


def test_a_whole_fastfcn_learns_alike() -> None:
    expected, served = (learned(backend, torch.float64, steps=5, device=DEVICE) for backend in ("reference", BACKEND))
    assert expected[-1] < expected[0]
    assert served == pytest.approx(expected, rel=1e-8)


# --- what PyTorch keeps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["JPU", "mmseg.JPU"])
def test_an_empty_batch_is_pytorchs(name: str) -> None:
    module = module_of(name, torch.float64)
    levels = [x.detach()[:0].requires_grad_() for x in levels_of(module, torch.float64)]
    found = []
    for backend in ("reference", BACKEND):
        try:
            found.append(results(module, levels, backend)[0])
        except (RuntimeError, ValueError) as error:  # which a PyTorch may refuse
            found.append({"error": str(error)})
    expected, served = found
    assert served.keys() == expected.keys()
    assert served.get("error") == expected.get("error")
    for key, right in expected.items():
        if isinstance(right, Tensor):
            torch.testing.assert_close(served[key], right, equal_nan=True)


def test_a_single_value_has_no_variance() -> None:
    jpu = JPU(CHANNELS, width=8).to(DEVICE).train()
    for stage in (jpu.conv3, jpu.conv4, jpu.conv5):
        stage.eval()
    levels = pyramid(CHANNELS, ((1, 1),) * 3, batch=1, dtype=torch.float32, device=DEVICE)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        results(jpu, levels, BACKEND)
    assert call(jpu, [x.expand(2, -1, -1, -1) for x in levels]).isfinite().all()


# --- autocast, formats, checkpoints ---------------------------------------------------------------------


@HALVES
def test_autocast_with_a_gradient_scaler(dtype: torch.dtype) -> None:
    check_amplified(dtype, DEVICE)


def test_gradients_that_overflow_are_found() -> None:
    """All steps are left out, and the scale is halved each time."""
    for backend in ("reference", BACKEND):
        _, scale = amplified(torch.float16, backend, DEVICE, 2.0**40)
        assert scale == 2.0**36


@HALVES
def test_group_norms_under_autocast_give_float32_as_pytorchs_do(dtype: torch.dtype) -> None:
    module = module_of("mmseg.JPU with GroupNorm")
    levels = levels_of(module)
    truth, _ = results(copy.deepcopy(module).double(), [x.detach().double() for x in levels], "reference")
    outputs = []
    for backend in ("reference", BACKEND):
        with use_backend(backend), torch.autocast(DEVICE, dtype):
            assert backend == "reference" or is_served(module, levels)
            out = call(module, levels)
        assert out.dtype == torch.float32
        gradients = torch.autograd.grad(out.square().mean(), [*levels, *module.parameters()])
        assert {g.dtype for g in gradients} == {torch.float32}
        assert all(bool(g.isfinite().all() and g.any()) for g in gradients)
        outputs.append(out.detach())
    for out in outputs:  # conv, norm, resize, depthwise, norm, pointwise, norm, of rounded levels and weights
        assert_relative_l2(out.to(dtype), truth["out"], roundings=10)


@HALVES
def test_group_norms_in_float32_of_half_precision(dtype: torch.dtype) -> None:
    """Without autocast, PyTorch's GroupNorm has no such thing on a GPU."""
    torch.manual_seed(0)
    jpu = bare(JPU((8,) * 3, width=8, norm_layer=lambda channels: nn.GroupNorm(4, channels))).to(DEVICE, dtype).train()
    for norm in (m for m in jpu.modules() if isinstance(m, nn.GroupNorm)):
        norm.float()
    levels = pyramid((8, 8, 8), dtype=dtype, device=DEVICE, requires_grad=True)
    out = jpu.pyramid(levels)
    truth = copy.deepcopy(jpu).double()
    with use_backend("reference"):
        assert_relative_l2(out, truth.pyramid([x.double() for x in levels]), roundings=6)
    gradients = torch.autograd.grad(out.float().square().mean(), [*levels, *jpu.branch(0).parameters()])
    assert all(bool(g.isfinite().all() and g.any()) for g in gradients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_both_formats_give_the_same_bits(dtype: torch.dtype) -> None:
    found = []
    for memory_format in (torch.channels_last, torch.contiguous_format):
        jpu = bare(module_of("JPU", dtype)).to(memory_format=memory_format)
        levels = pyramid((8, 8, 8), dtype=dtype, device=DEVICE)
        levels = [x.contiguous(memory_format=memory_format).requires_grad_() for x in levels]
        out = jpu.pyramid(levels)
        assert out.is_contiguous(memory_format=memory_format)
        weights = [p for i in range(4) for p in jpu.branch(i).parameters()]
        gradient = torch.linspace(-1, 2, out.numel(), device=DEVICE).to(dtype).view(out.shape)
        found.append([out.detach(), *torch.autograd.grad(out, [*levels, *weights], gradient), *jpu.buffers()])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("reentrant", [False, True], ids=["without reentry", "with reentry"])
def test_checkpointing_is_like_pytorchs(reentrant: bool) -> None:
    check_checkpointed(reentrant, DEVICE)


# --- compilers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps_compiled_by_inductor_equal_eager_ones(dtype: torch.dtype, mode: str) -> None:
    """Of branches alone, since Inductor may have other algorithms for stages; the other mode captures graphs too."""
    found: list[list[Tensor]] = []
    for compiled in (False, True):
        torch._dynamo.reset()
        jpu = bare(module_of("JPU", dtype))
        for norm in (m for m in jpu.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.float()
        forward = torch.compile(jpu.pyramid, fullgraph=True, mode=mode) if compiled else jpu.pyramid
        rows: list[Tensor] = []
        for seed in range(4):
            levels = pyramid((8, 8, 8), dtype=dtype, seed=seed, device=DEVICE, requires_grad=True)
            torch.compiler.cudagraph_mark_step_begin()
            out = forward(levels)
            gradient = torch.linspace(-1, 2, out.numel(), device=DEVICE).to(dtype).view(out.shape)
            needing = [p for i in range(4) for p in jpu.branch(i).parameters()]
            rows += [
                out.detach().clone(),
                *(g.clone() for g in torch.autograd.grad(out, [*levels, *needing], gradient)),
            ]
        found.append([*rows, *jpu.buffers()])
    torch._dynamo.reset()
    for served, expected in zip(found[1], found[0], strict=True):
        # Casts and running statistics are Inductor's, which may contract a product and a sum.
        torch.testing.assert_close(served, expected, rtol=1e-5, atol=1e-6)


# --- streams, devices, graphs ---------------------------------------------------------------------------


@EVERY_MODULE
def test_kernels_run_on_the_current_stream(name: str) -> None:
    module = module_of(name)
    levels = levels_of(module)
    twin = copy.deepcopy(module)
    expected = [*step_of(twin, levels), *twin.buffers()]
    late = [x for x in (*state_of(module), *(x.detach() for x in levels)) if x.is_floating_point()]
    values = [x.clone() for x in late]
    torch._foreach_mul_(late, 0.5)
    found = on_a_late_stream(
        lambda: torch._foreach_copy_(late, values), lambda: [*step_of(module, levels), *module.buffers()]
    )
    assert all(map(torch.equal, found, expected))


@NORMS
def test_a_step_waits_for_nothing(name: str) -> None:
    module = module_of(name)
    levels = levels_of(module)
    step_of(module, levels)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step_of(module, levels)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@EVERY_MODULE
def test_a_module_on_another_device_than_the_current_one_is_trained_there(name: str) -> None:
    module = module_of(name, torch.float64)
    levels = levels_of(module, torch.float64)
    expected, _ = results(module, levels, BACKEND)
    with torch.cuda.device(0):
        moved = [x.detach().to("cuda:1").requires_grad_() for x in levels]
        found, _ = results(module.to("cuda:1"), moved, BACKEND)
        assert torch.cuda.current_device() == 0
    scale = max(float(x.abs().max()) for x in expected.values() if x is not None)
    for key, right in expected.items():
        assert right is None or found[key].device.index == 1
        if right is not None:
            torch.testing.assert_close(found[key].cpu(), right.cpu(), rtol=1e-9, atol=1e-12 * scale)


def _learn(module: nn.Module, levels: list[Tensor]) -> Callable[[], list[Tensor]]:
    """A whole step, of plain gradient descent."""
    parameters = list(module.parameters())

    def step() -> list[Tensor]:
        loss = (call(module, levels).float() - 1).square().mean()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-0.05)
        return [loss.detach(), *gradients]

    return step


@pytest.mark.parametrize("low", [None, torch.float16, torch.bfloat16], ids=str)
@EVERY_MODULE
def test_a_captured_step_is_replayed(name: str, low: torch.dtype | None) -> None:
    """Parameters, running statistics and their counters move as in as many eager steps with the same levels."""
    module = module_of(name)
    twin = copy.deepcopy(module)
    levels = [x.detach() for x in levels_of(module)]
    with torch.autocast(DEVICE, low, enabled=low is not None, cache_enabled=False):
        eager = _learn(twin, levels)
        graph, found = captured(_learn(module, levels))
        eager()  # as the graph's warm-up
        assert all(map(torch.equal, state_of(module), state_of(twin)))
        for seed in (1, 2, 3):
            torch._foreach_copy_(levels, [x.detach() for x in levels_of(module, seed=seed)])
            before = [x.clone() for x in module.buffers()]
            graph.replay()
            expected = eager()
            assert all(map(torch.equal, found, expected))
            assert all(map(torch.equal, state_of(module), state_of(twin)))
            assert not any(map(torch.equal, module.buffers(), before))


class _Last(nn.Module):
    def __init__(self, jpu: nn.Module) -> None:
        super().__init__()
        self.jpu = jpu

    def forward(self, *levels: Tensor) -> Tensor:
        return call(self.jpu, list(levels))


@NORMS
def test_graphed_callables_train(name: str) -> None:
    module = _Last(module_of(name))
    twin = copy.deepcopy(module)
    graphed = torch.cuda.make_graphed_callables(module, tuple(levels_of(module.jpu)))
    twin.load_state_dict(module.state_dict())  # the warm-up moved statistics
    for seed in (1, 2):
        rows = []
        for run in (graphed, twin):
            levels = levels_of(twin.jpu, seed=seed)
            run.zero_grad()
            out = run(*levels)
            out.backward(torch.linspace(-1, 2, out.numel(), device=DEVICE).view(out.shape))
            rows.append([out.detach().clone(), *(x.grad for x in levels), *(p.grad.clone() for p in run.parameters())])
        assert all(map(torch.equal, *rows))
        assert all(map(torch.equal, state_of(module), state_of(twin)))


# --- memory ---------------------------------------------------------------------------------------------


def test_a_sixth_of_eagers_activations_is_kept() -> None:
    check_saved_bytes(512, ((60, 60), (30, 30), (15, 15)), torch.bfloat16, DEVICE)


@LOWER
@EVERY_MODULE
def test_nothing_stays_allocated(name: str, dtype: torch.dtype) -> None:
    module = module_of(name, dtype)
    levels = levels_of(module, dtype)
    assert requested_bytes(lambda: step_of(module, levels))[1] == 0


def test_a_step_peaks_below_eagers() -> None:
    """By half: of branches of models' width, whose intermediates are most of what there is."""
    jpu = bare(JPU((512,) * 3, width=512), 512).to(DEVICE, torch.bfloat16).train()
    sizes = ((60, 60), (30, 30), (15, 15))
    levels = pyramid((512,) * 3, sizes, batch=8, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    levels = [x.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for x in levels]
    needing = [*levels, *(p for i in range(4) for p in jpu.branch(i).parameters())]

    def step() -> None:
        out = jpu.pyramid(levels)
        torch.autograd.grad(out, needing, out.detach())

    ours, _ = requested_bytes(step)
    with use_backend("reference"):
        eager, _ = requested_bytes(step)
    assert eager >= 1.5 * ours
