"""What training code does with a model, beside a forward and a backward pass: kernels on host execution."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import FastFCNNeck, Separable
from helpers import pyramid
from strategies import needs_host
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from trained import (
    CHANNELS,
    MOMENTS,
    X_CHANNELS,
    assert_alike,
    bare,
    call,
    check_amplified,
    check_checkpointed,
    check_saved_bytes,
    learned,
    levels_for,
    made,
    results,
)

from jpu_cuda import JPU, JPU_X, explain, host, replace_jpu, use_backend

pytestmark = needs_host

# --- what is kept for the gradient ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sixth_of_eagers_activations_is_kept(dtype: torch.dtype) -> None:
    check_saved_bytes(32, ((32, 32), (16, 16), (8, 8)), dtype)


# --- gradients, precision, memory -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [JPU, JPU_X])
def test_gradcheck_of_a_whole_module_in_training_mode(kind: type) -> None:
    if kind is JPU:
        module: nn.Module = JPU((2, 2, 2), width=2).double()
        levels = pyramid((2, 2, 2), ((4, 3), (2, 2), (1, 2)), requires_grad=True)
        inputs: list[Tensor] = [*levels, *module.parameters()]
    else:
        module = JPU_X(X_CHANNELS, width=64).double()
        levels = pyramid(X_CHANNELS, ((2, 2), (2, 1), (1, 1)))
        inputs = [module.jum_2.dilation1[1].weight, module.jum_1.dilation2[0].bn.bias]
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.0  # a check calls the module often

    def function(*given: Tensor) -> Tensor:
        with use_backend("host"):
            return call(module, list(given[:3]) if kind is JPU else levels)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_with_a_gradient_scaler(dtype: torch.dtype) -> None:
    with host.record() as launches:
        check_amplified(dtype)
    assert [launch.kernel for launch in launches].count(MOMENTS) == 4


def test_channels_last_in_and_out() -> None:
    jpu = made("JPU").float().to(memory_format=torch.channels_last).train()
    levels = [x.to(memory_format=torch.channels_last) for x in levels_for(jpu, dtype=torch.float32)]
    levels = [x.requires_grad_() for x in levels]
    with use_backend("host"):
        out = jpu(*levels)[-1]
    assert out.is_contiguous(memory_format=torch.channels_last)
    jpu.to(memory_format=torch.contiguous_format)
    with use_backend("host"):
        contiguous = jpu(*(x.detach().contiguous() for x in levels))[-1]
    assert contiguous.is_contiguous()


@pytest.mark.parametrize("reentrant", [False, True], ids=["without reentry", "with reentry"])
def test_checkpointing_is_like_pytorchs(reentrant: bool) -> None:
    check_checkpointed(reentrant)


def test_a_checkpoint_that_ends_with_the_jpu_moves_its_running_statistics_once() -> None:
    """PyTorch stops to compute anew once it has all that was kept, which is before the statistics are moved."""
    plain, kept = made("JPU").train(), made("JPU").train()
    levels = levels_for(plain, requires_grad=True)
    with use_backend("host"):
        plain(*levels)
        checkpoint(lambda *x: kept(*x)[-1], *levels, use_reentrant=False).sum().backward()
    for name, buffer in plain.named_buffers():
        if name.startswith("dilation"):
            torch.testing.assert_close(kept.get_buffer(name), buffer)


def test_gradients_accumulate() -> None:
    found = []
    for backend in ("reference", "host"):
        jpu = made("JPU").train()
        with use_backend(backend):
            for seed in range(3):
                (jpu(*levels_for(jpu, seed=seed))[-1].square().mean() / 3).backward()
        found.append([p.grad for p in jpu.parameters()])
    for expected, served in zip(*found, strict=True):
        torch.testing.assert_close(served, expected, rtol=1e-9, atol=1e-12)


def test_a_gradient_twice_and_after_a_change() -> None:
    jpu = bare(made("JPU")).train()
    levels = pyramid((8, 8, 8), requires_grad=True)
    with use_backend("host"):
        out = jpu.pyramid(levels)
    first = torch.autograd.grad(out.sum(), levels, retain_graph=True)
    again = torch.autograd.grad(out.sum(), levels, retain_graph=True)
    assert all(map(torch.equal, first, again))
    with torch.no_grad():
        jpu.dilation1[0].pointwise.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(out.sum(), levels)


def test_the_output_may_be_written_into() -> None:
    """It is not kept: q is."""
    jpu = bare(made("JPU")).train()
    levels = pyramid((8, 8, 8), requires_grad=True)
    found = []
    for backend in ("reference", "host"):
        with use_backend(backend):
            out = jpu.pyramid(levels)
            found.append(torch.autograd.grad(out.mul_(2).sum(), levels))
    for expected, served in zip(*found, strict=True):
        torch.testing.assert_close(served, expected, rtol=1e-9, atol=1e-12)


# --- copies and compilers -------------------------------------------------------------------------------


def test_copies_are_trained_alike() -> None:
    jpu = made("JPU").train()
    levels = levels_for(jpu, requires_grad=True)
    expected, _ = results(jpu, levels, "host")
    average = torch.optim.swa_utils.AveragedModel(jpu, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    average.update_parameters(jpu)
    for twin in (copy.deepcopy(jpu), pickle.loads(pickle.dumps(jpu)), average.module):
        found, kernels = results(twin, levels, "host")
        assert MOMENTS in kernels
        for name, right in expected.items():
            if right is not None:
                torch.testing.assert_close(found[name], right, rtol=1e-12, atol=1e-12)


def _step(jpu: JPU, optimizer: torch.optim.Optimizer, levels: list[Tensor]) -> Tensor:
    optimizer.zero_grad()
    loss = (jpu(*levels)[-1] - 1).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("norms", ["batch", "frozen"])
def test_a_compiled_step_is_served(norms: str) -> None:
    found: list[list[Any]] = []
    for compiled in (False, True):
        jpu = made("JPU").train()
        if norms == "frozen":
            for i in range(4):
                jpu.branch(i).eval()
        optimizer = torch.optim.SGD(jpu.parameters(), lr=0.1)
        step = torch.compile(_step, backend="aot_eager") if compiled else _step
        with use_backend("host"), host.record() as launches:
            losses = [step(jpu, optimizer, levels_for(jpu, seed=seed)) for seed in range(2)]
        kernels = [launch.kernel for launch in launches]
        assert kernels.count(MOMENTS) == 2
        assert kernels.count("separable_pyramid training level gradient") == 2
        found.append([*losses, *jpu.parameters(), *jpu.buffers()])
    torch._dynamo.reset()
    for expected, served in zip(*found, strict=True):
        torch.testing.assert_close(served, expected, rtol=1e-9, atol=1e-12)


def test_a_compiled_module_is_one_graph() -> None:
    jpu = made("JPU").train()
    levels = levels_for(jpu)
    expected, _ = results(jpu, levels, "host")
    with use_backend("host"):
        out = torch.compile(jpu, fullgraph=True, backend="aot_eager")(*levels)[-1]
    torch._dynamo.reset()
    torch.testing.assert_close(out.detach(), expected["out"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_an_exported_program_is_loaded_and_run(training: bool, tmp_path: Path) -> None:
    jpu = made("JPU").train(training)
    levels = levels_for(jpu)
    with use_backend("host"):
        program = torch.export.export(jpu, tuple(levels))
        torch.export.save(program, tmp_path / "jpu.pt2")
        loaded = torch.export.load(tmp_path / "jpu.pt2").module()
        found = loaded(*levels)[-1]
    expected, _ = results(jpu, levels, "reference")
    torch.testing.assert_close(found.detach(), expected["out"], rtol=1e-9, atol=1e-12)
    for name, buffer in loaded.named_buffers():
        torch.testing.assert_close(buffer, expected[name], rtol=1e-9, atol=1e-12)


# --- what PyTorch's norms allow -------------------------------------------------------------------------


def test_statistics_may_move_between_a_pass_and_its_gradient() -> None:
    """As a pass in training mode moves them, after one in eval mode: the gradient is that of the first pass."""
    levels = pyramid((8, 8, 8), requires_grad=True)
    found = []
    for together in (False, True):
        jpu = bare(made("JPU"))
        with use_backend("host"):
            first = jpu.eval().pyramid(levels).sum()
            gradients = None if together else torch.autograd.grad(first, levels)
            jpu.train().pyramid(levels)
        found.append(gradients or torch.autograd.grad(first, levels))
    assert all(map(torch.equal, *found))


def _infinite(jpu: JPU) -> None:
    jpu.dilation1[1].running_var.fill_(torch.inf)
    jpu.dilation2[0].bn.running_mean.fill_(-torch.inf)


def _counted_alone(jpu: JPU) -> None:
    jpu.dilation1[1].running_mean = jpu.dilation1[1].running_var = None


@pytest.mark.parametrize("change", [_infinite, _counted_alone])
def test_odd_running_statistics(change: Callable[[JPU], None]) -> None:
    jpu = made("JPU").train()
    change(jpu)
    assert MOMENTS in assert_alike(jpu, levels_for(jpu))


def test_gradients_have_the_strides_of_their_parameters() -> None:
    """Of a 1×1 or depthwise convolution in channels_last, whose formats differ in name only: DDP would warn."""
    jpu = bare(made("JPU")).to(memory_format=torch.channels_last).train()
    with use_backend("host"):
        jpu.pyramid(pyramid((8, 8, 8))).sum().backward()
    assert {(p.grad.stride(), p.stride()) for p in jpu.parameters()} == {(p.stride(),) * 2 for p in jpu.parameters()}


class _Detached(Separable):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def test_a_foreign_branch_that_cuts_the_gradient_is_left_alone() -> None:
    neck = FastFCNNeck(CHANNELS, 8, {"mode": "bilinear", "align_corners": True})
    neck.dilation2[0] = _Detached("conv1", 24, 8, 2)
    neck.double()
    assert replace_jpu(neck) == [("", "fastfcn")]
    with use_backend("host"):
        assert (
            "PyTorch serves the branches (dilation2.0 is a test_trained_use._Detached"
            in explain(neck, *pyramid(CHANNELS)).reason
        )


# --- what explain says ----------------------------------------------------------------------------------


def test_explain_says_how_training_is_served() -> None:
    jpu = made("JPU").float().train()
    levels = levels_for(jpu, dtype=torch.float32)
    with use_backend("host"):
        training = explain(jpu, *levels)
        with torch.no_grad():
            calibrating = explain(jpu, *levels)
            fixed = explain(jpu.eval(), *levels)
        with torch.autocast("cpu", torch.bfloat16):
            cast = explain(jpu.train(), *levels)
    assert "torch.bfloat16" in cast.reason
    for answer in (training, calibrating, cast):
        assert (answer.backend, answer.policy) == ("host", "fma")
        assert "one launch resizes, then the norms' statistics, all branches in one launch" in answer.reason
    assert "one launch resizes and folds the norms, then all branches in one launch" in fixed.reason


def test_modules_of_several_kinds_of_groups_are_pytorchs() -> None:
    jpu = made("JPU").train()
    jpu.dilation1[1] = nn.GroupNorm(2, 8).double()
    with use_backend("host"):
        reason = explain(jpu, *levels_for(jpu)).reason
    assert "dilation1.1 and its like have groups of different kinds, 0 and 2" in reason
    assert assert_alike(jpu, levels_for(jpu, requires_grad=True)) == [
        "upsample_concat forward",
        "upsample_concat backward",
    ]


# --- whole models ---------------------------------------------------------------------------------------


def test_a_whole_fastfcn_learns_alike() -> None:
    """In float64 its losses are PyTorch's but for rounding, which a step of a batch's statistics magnifies."""
    expected, served = (learned(backend, torch.float64, steps=4) for backend in ("reference", "host"))
    assert expected[-1] < expected[0]
    assert served == pytest.approx(expected, rel=1e-8)
