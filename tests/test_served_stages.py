"""Stages whose norms and ReLUs one launch does, on host execution: when, with what values, and that nothing is kept."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from foreign import FastFCNNeck
from helpers import pyramid, randomise
from served import (
    CHANNELS,
    FUSED,
    INFERENCE,
    MEASURED,
    TRAINED,
    jpu_of,
    levels_of,
    run,
    swap_data,
    train_a_step,
    write_data,
)
from strategies import needs_host
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize, prune
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import FrozenBatchNorm2d

from jpu_cuda import JPU, JPU_X, explain, host, mmseg, replace_jpu, use_backend
from jpu_cuda.modules.sssegmentation import SSSegmentationJPU

pytestmark = needs_host


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.no_grad():
        yield


def assert_served(module: nn.Module, levels: list[Tensor], kernels: list[str] = INFERENCE) -> Tensor:
    out, launched = run(module, levels, "host")
    assert launched == kernels
    torch.testing.assert_close(out, run(module, levels, "reference")[0], rtol=1e-12, atol=1e-12)
    return out


def reason_for(module: nn.Module, levels: list[Tensor]) -> str:
    with use_backend("host"):
        return explain(module, *((levels,) if isinstance(module, mmseg.JPU) else levels)).reason


# --- what is served -------------------------------------------------------------------------------------


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BatchNorm2d": nn.BatchNorm2d,
    "SyncBatchNorm": nn.SyncBatchNorm,
    "FrozenBatchNorm2d": FrozenBatchNorm2d,
    "no weights": lambda channels: nn.BatchNorm2d(channels, affine=False),
    "another eps": lambda channels: nn.BatchNorm2d(channels, eps=0.25),
}


@pytest.mark.parametrize("norm", NORMS)
def test_norms_of_fixed_statistics_are_served(norm: str) -> None:
    jpu, levels = jpu_of(NORMS[norm]), levels_of()
    assert_served(jpu, levels)
    reason = reason_for(jpu, levels)
    assert "; PyTorch convolves in the stages, and one launch does all their norms and ReLUs" in reason


def test_mmsegs_stages_are_served() -> None:
    assert_served(randomise(mmseg.JPU(CHANNELS, 8)).double().eval(), levels_of())
    levels = pyramid((4, 8, 16, 2, 3), [(9, 8), (5, 4), (3, 2), (2, 2), (1, 1)])
    assert_served(randomise(mmseg.JPU((4, 8, 16, 2, 3), 8)).double().eval(), levels)


def test_sssegmentations_stages_are_served() -> None:
    jpu, levels = randomise(SSSegmentationJPU(CHANNELS, 8)).double().eval(), levels_of()
    with use_backend("reference"):
        expected = jpu(levels)[-1]
    with use_backend("host"), host.record() as launches:
        out = jpu(levels)[-1]
    assert [launch.kernel for launch in launches] == INFERENCE
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_so_are_those_of_both_halves_of_a_jpu_x() -> None:
    jpu = randomise(JPU_X((8, 128, 16), width=64)).double().eval()
    levels = pyramid((8, 128, 16), batch=1)
    inputs = [levels[0], *levels]
    with use_backend("reference"):
        expected = jpu(*inputs)[-1]
    with use_backend("host"), host.record() as launches:
        out = jpu(*inputs)[-1]
        reason = explain(jpu, *inputs).reason
    # Each puts its upsampled coarsest level before its branches.
    each = ["norm_relu forward", *MEASURED, "upsample_concat forward"]
    assert [launch.kernel for launch in launches] == each * 2
    assert "the norms' statistics, all branches in one launch" in reason
    assert "; PyTorch convolves in the stages, and one launch does all their norms and ReLUs" in reason
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_a_replaced_foreign_jpu_is_served() -> None:
    neck = randomise(FastFCNNeck(CHANNELS, 8, {"mode": "bilinear", "align_corners": True})).double().eval()
    replace_jpu(neck)
    assert_served(neck, levels_of())


class _InOrder(nn.Sequential):
    """Foreign, and runs its layers in order."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


class _Doubling(nn.Sequential):
    """Foreign, and does more than that."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(("kind", "served"), [(_InOrder, True), (_Doubling, False)])
def test_a_foreign_stage_is_tried_out(kind: type[nn.Sequential], served: bool) -> None:
    neck = randomise(FastFCNNeck(CHANNELS, 8, {"mode": "bilinear", "align_corners": True})).double().eval()
    neck.conv4 = kind(*neck.conv4)
    levels = levels_of()
    expected = neck(*levels)[-1]
    replace_jpu(neck)
    out = assert_served(neck, levels, INFERENCE if served else FUSED)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert served or f"PyTorch serves the stages (conv4 is a test_served_stages.{kind.__name__})" in reason_for(
        neck, levels
    )


def test_any_convolution_is_run_as_the_module_it_is() -> None:
    jpu, levels = jpu_of(), levels_of()
    jpu.conv3[0] = nn.Conv2d(4, 8, 5, padding=4, dilation=2, groups=2, padding_mode="reflect").double()
    out = assert_served(jpu, levels)
    jpu.conv3[0].bias.data.add_(1)
    assert not torch.allclose(out, assert_served(jpu, levels))


def test_in_another_mode_pytorch_resizes_what_was_served() -> None:
    jpu, levels = randomise(JPU(CHANNELS, 8, up_kwargs={"mode": "nearest"})).double().eval(), levels_of()
    assert_served(jpu, levels)
    jpu.dilation1[0].register_forward_hook(lambda module, args, out: None)
    assert_served(jpu, levels, ["norm_relu forward"])
    with use_backend("host"):
        answer = explain(jpu, *levels)
    assert answer.backend == "host"
    assert "PyTorch serves the branches (dilation1.0 has hooks); PyTorch convolves in the stages" in answer.reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_features_are_no_worse_than_pytorchs_and_keep_their_format(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    jpu = jpu_of().to(dtype).to(memory_format=layout)
    levels = [x.contiguous(memory_format=layout) for x in pyramid(CHANNELS, dtype=dtype)]
    with use_backend("reference"):
        expected = jpu._features(levels)
        truths = copy.deepcopy(jpu).double()._features([x.double() for x in levels])
    with use_backend("host"), host.record() as launches:
        features = jpu._features(levels)
    assert [launch.kernel for launch in launches] == ["norm_relu forward"]
    for got, torchs, truth in zip(features, expected, truths, strict=True):
        assert (got.dtype, got.stride()) == (torchs.dtype, torchs.stride())
        errors = [float((x.double() - truth).abs().max()) for x in (got, torchs)]
        assert errors[0] <= 1.25 * errors[1] + torch.finfo(dtype).eps / 2 * float(truth.abs().max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norms", [torch.float32, None], ids=["norms in float32", "norms alike"])
def test_under_autocast_features_have_its_dtype(dtype: torch.dtype, norms: torch.dtype | None) -> None:
    jpu, levels = jpu_of().float(), levels_of(dtype=torch.float32)
    for stage in (jpu.conv3, jpu.conv4, jpu.conv5):
        stage[1].to(norms or dtype)
    with torch.autocast("cpu", dtype):
        with use_backend("reference"):
            expected = jpu._features(levels)
        with use_backend("host"), host.record() as launches:
            features = jpu._features(levels)
            reason = explain(jpu, *levels).reason
    assert [launch.kernel for launch in launches] == ["norm_relu forward"]
    assert "one launch does all their norms and ReLUs" in reason
    assert [x.dtype for x in features] == [x.dtype for x in expected] == [dtype] * 3
    for got, torchs in zip(features, expected, strict=True):
        torch.testing.assert_close(got, torchs, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_empty_batches_are_served() -> None:
    out, kernels = run(jpu_of(), [level[:0] for level in levels_of()], "host")
    assert out.shape == (0, 32, 7, 9)
    assert "norm_relu forward" not in kernels


def test_convolutions_are_counted_as_before() -> None:
    jpu, levels = jpu_of(), levels_of()
    counts = []
    for backend in ("reference", "host"):
        with use_backend(backend), FlopCounterMode(display=False) as counter:
            jpu._features(levels)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


# --- what runs as it stands -----------------------------------------------------------------------------


class _Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def _hook(path: str) -> Callable[[JPU], Any]:
    return lambda jpu: jpu.get_submodule(path).register_forward_hook(lambda module, args, out: 2 * out)


def _set(path: str, part: nn.Module) -> Callable[[JPU], Any]:
    parent, _, name = path.rpartition(".")
    return lambda jpu: jpu.get_submodule(parent).register_module(name, part)


def _own_forward(jpu: JPU) -> None:
    old = jpu.conv4[1].forward
    jpu.conv4[1].forward = lambda x: 2 * old(x)


def _patched_convolution(jpu: JPU) -> None:
    conv = jpu.conv4[0]
    conv._conv_forward = lambda x, weight, bias: 2 * nn.functional.conv2d(x, weight, bias, padding=1)


def _strided_weight(jpu: JPU) -> None:
    jpu.conv5[1].weight = nn.Parameter(torch.rand(16, dtype=torch.float64)[::2])


OTHERS: dict[str, tuple[Callable[[JPU], Any], str]] = {
    "a hook of a stage": (_hook("conv3"), "conv3 has hooks"),
    "a hook of a convolution": (_hook("conv3.0"), "conv3.0 has hooks"),
    "a hook of a norm": (_hook("conv4.1"), "conv4.1 has hooks"),
    "a hook of a ReLU": (_hook("conv5.2"), "conv5.2 has hooks"),
    "a forward of its own": (_own_forward, "conv4.1 has a forward of its own"),
    "a convolution's own forward": (_patched_convolution, "conv4.0 has a forward of its own"),
    "GroupNorm": (_set("conv5.1", nn.GroupNorm(2, 8)), "conv5.1 is a GroupNorm"),
    "batch statistics": (lambda jpu: jpu.conv3[1].train(), "conv3.1 takes batch statistics"),
    "no statistics": (
        _set("conv3.1", nn.BatchNorm2d(8, track_running_stats=False).eval()),
        "conv3.1 takes batch statistics",
    ),
    "another activation": (_set("conv4.2", nn.ReLU6()), "conv4.2 is a ReLU6"),
    "a foreign layer": (_set("conv4.2", _Doubled()), "conv4.2 is a test_served_stages._Doubled"),
    "no norm": (
        lambda jpu: jpu.conv3.__delitem__(1),
        "expected conv3 to be convolution, norm and ReLU, got",
    ),
    "one layer more": (lambda jpu: jpu.conv3.append(nn.ReLU()), "expected conv3 to be convolution, norm and ReLU, got"),
    "no convolution": (_set("conv5.0", nn.ConvTranspose2d(16, 8, 3, padding=1)), "conv5.0 is a ConvTranspose2d"),
    "parametrisation": (
        lambda jpu: parametrize.register_parametrization(jpu.conv3[0], "weight", _Doubled()),
        "conv3.0 is parametrised",
    ),
    "pruning": (lambda jpu: prune.l1_unstructured(jpu.conv4[0], "weight", 0.5), "conv4.0 has hooks"),
    "values apart": (_strided_weight, "a weight is not contiguous"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_anything_else_runs_as_it_stands_and_is_named(name: str) -> None:
    change, reason = OTHERS[name]
    jpu, levels = jpu_of(), levels_of()
    change(jpu)
    jpu.double()
    assert f"PyTorch serves the stages ({reason}" in reason_for(jpu, levels)
    expected, _ = run(copy.deepcopy(jpu), levels, "reference")
    out, kernels = run(jpu, levels, "host")
    assert kernels == FUSED
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_norms_of_several_dtypes_are_pytorchs() -> None:
    jpu, levels = jpu_of().bfloat16(), levels_of(dtype=torch.bfloat16)
    jpu.conv4[1].float()
    assert "(norms have torch.bfloat16 and torch.float32, their input torch.bfloat16)" in reason_for(jpu, levels)
    assert run(jpu, levels, "host")[1] == FUSED


@pytest.mark.parametrize("path", ["conv3.0", "conv4.1"])
def test_tensors_of_their_own_kind_are_left_to_their_operators(path: str) -> None:
    jpu, levels = jpu_of(), levels_of()
    weight = jpu.get_submodule(path).weight.detach()
    jpu.get_submodule(path).weight = nn.Parameter(TwoTensor(weight, weight))
    assert "PyTorch serves the stages (a tensor is a TwoTensor)" in reason_for(jpu, levels)


def test_a_jpu_of_group_norms_runs_as_it_stands() -> None:
    neck = mmseg.JPU(CHANNELS, 8, norm_cfg={"type": "GN", "num_groups": 2}).double().eval()
    assert_served(neck, levels_of(), MEASURED)
    assert "PyTorch serves the stages (conv_layers.0.0.gn is a GroupNorm)" in reason_for(neck, levels_of())


def test_a_jpu_in_training_mode_runs_as_it_stands() -> None:
    jpu, levels = jpu_of().train(), levels_of()
    before = jpu.conv3[1].running_mean.clone()
    assert run(jpu, levels, "host")[1] == MEASURED
    assert not torch.equal(jpu.conv3[1].running_mean, before)
    assert "PyTorch serves the stages (conv3.1 takes batch statistics)" in reason_for(jpu, levels)


def test_hooks_of_all_modules_are_called() -> None:
    jpu, levels, called = jpu_of(), levels_of(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: called.append(module))
    try:
        assert run(jpu, levels, "host")[1] == FUSED[:1]
    finally:
        handle.remove()
    assert {jpu.conv3[1], jpu.conv3[2]} <= set(called)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.ReLU, nn.Conv2d])
def test_a_patched_class_acts(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    jpu, levels = jpu_of(), levels_of()
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: forward(self, x) + 1)
    assert_served(jpu, levels, FUSED[:1])


# --- gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("needing", ["level", "convolution", "weight", "bias"])
def test_what_needs_a_gradient_gets_it(needing: str) -> None:
    jpu, levels = jpu_of().requires_grad_(False), levels_of()
    stage = jpu.conv4
    tensor = {"level": levels[1], "convolution": stage[0].weight, "weight": stage[1].weight, "bias": stage[1].bias}[
        needing
    ]
    with torch.enable_grad():
        assert_served(jpu, levels)
        tensor.requires_grad_()
        assert "PyTorch serves the stages (gradients are PyTorch's)" in reason_for(jpu, levels)
        found = []
        for backend in ("reference", "host"):
            out, kernels = run(jpu, levels, backend)
            assert kernels == (TRAINED if backend == "host" else [])
            found.append(torch.autograd.grad(out.square().sum(), tensor)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-10)
    assert_served(jpu, levels)  # without grad mode, whatever needs one


def test_forward_mode_is_pytorchs() -> None:
    jpu, levels = jpu_of(), levels_of()
    tangents = tuple(map(torch.ones_like, levels))
    found = []
    for backend in ("reference", "host"):
        with use_backend(backend):
            found.append(torch.func.jvp(lambda *x: jpu(*x)[-1], tuple(levels), tangents))
    for served, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(served, expected, rtol=1e-9, atol=1e-10)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(levels[0], tangents[0])
        assert "PyTorch serves the stages (forward-mode derivatives are PyTorch's)" in reason_for(
            jpu, [dual, *levels[1:]]
        )
        assert "norm_relu forward" not in run(jpu, [dual, *levels[1:]], "host")[1]


# --- compilers ------------------------------------------------------------------------------------------


def test_compilers_and_exporters_get_the_layers_themselves() -> None:
    jpu, levels = jpu_of(), levels_of()
    expected, _ = run(jpu, levels, "reference")
    out, kernels = run(torch.compile(jpu, fullgraph=True, backend="aot_eager"), levels, "host")
    assert kernels == FUSED
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    with use_backend("host"):
        program = torch.export.export(jpu, tuple(levels))
    assert "jpu_cuda.norm_relu.default" not in {str(node.target) for node in program.graph.nodes}
    torch.testing.assert_close(program.module()(*levels)[-1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_tracing_gets_the_layers_themselves(mode: Callable[[], Any]) -> None:
    jpu, levels = jpu_of().requires_grad_(False), tuple(levels_of())
    expected, _ = run(jpu, levels, "reference")
    with mode(), use_backend("host"):
        traced = torch.jit.trace(Last(jpu), levels, check_trace=False)
    torch.testing.assert_close(traced(*levels), expected, rtol=1e-12, atol=1e-12)


class Last(nn.Module):
    def __init__(self, jpu: JPU) -> None:
        super().__init__()
        self.jpu = jpu

    def forward(self, *levels: Tensor) -> Tensor:
        return self.jpu(*levels)[-1]


def test_a_graph_recorded_without_gradients_runs_with_them() -> None:
    jpu, levels = jpu_of(), levels_of()
    with use_backend("host"):
        with torch.no_grad():
            graph = make_fx(lambda *x: jpu._features(x))(*levels)
        assert any("norm_relu" in str(node.target) for node in graph.graph.nodes)
        found = graph(*levels)  # its parameters need a gradient
    for x, y in zip(found, [jpu.stage(i)(level) for i, level in enumerate(levels)], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_frozen_norms_that_promote_are_pytorchs() -> None:
    """Torchvision's is plain arithmetic: of bfloat16 and buffers of float32 it makes float32."""
    jpu = jpu_of(FrozenBatchNorm2d).bfloat16()
    for module in jpu.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.float()
    levels = levels_of(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = run(jpu, levels, "reference")
        out, kernels = run(jpu, levels, "host")
        reason = reason_for(jpu, levels)
    assert kernels == ["upsample_concat forward"]
    assert out.dtype == expected.dtype == torch.float32
    assert "PyTorch serves the stages (conv3.1 would make torch.float32 of torch.bfloat16)" in reason
    assert "PyTorch serves the branches (" in reason
    torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-2)


# --- nothing is kept ------------------------------------------------------------------------------------


def _replace_norms(jpu: JPU, other: JPU) -> None:
    for i in range(3):
        jpu.stage(i)[1] = other.stage(i)[1]


def _another_eps(jpu: JPU, other: JPU) -> None:
    jpu.conv5[1].eps = 0.5


@pytest.mark.parametrize("change", [write_data, swap_data, train_a_step, _replace_norms, _another_eps])
def test_what_changes_between_calls_acts(change: Callable[[JPU, JPU], None]) -> None:
    jpu, levels = jpu_of(), levels_of()
    before = assert_served(jpu, levels)
    change(jpu, jpu_of(seed=1))
    assert not torch.allclose(before, assert_served(jpu, levels), rtol=1e-3)


@pytest.mark.parametrize("part", ["running_mean", "running_var", "weight", "bias"])
@pytest.mark.parametrize("level", range(3))
def test_each_part_of_each_norm_is_read_in_every_call(level: int, part: str) -> None:
    jpu, levels = jpu_of(), levels_of()
    before = assert_served(jpu, levels)
    getattr(jpu.stage(level)[1], part).data.add_(0.5)
    assert not torch.equal(before, assert_served(jpu, levels))
