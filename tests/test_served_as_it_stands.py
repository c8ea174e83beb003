"""Branches that are more than the kernels know: they run as they stand, and explain names the reason."""

import copy
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from foreign import FastFCNNeck
from helpers import randomise
from served import CHANNELS, FUSED, INFERENCE, TRAINED, jpu_of, levels_of, run
from strategies import needs_host
from test_served_norms import frozen
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

from jpu_cuda import JPU, explain, mmseg, replace_jpu, use_backend
from jpu_cuda.modules import fastfcn

pytestmark = needs_host


def _set(path: str, part: nn.Module) -> Callable[[JPU], None]:
    parent, _, name = path.rpartition(".")
    return lambda jpu: jpu.get_submodule(parent).register_module(name, part)


def _train(jpu: JPU) -> None:
    jpu.dilation3[0].bn.train()


def _twice(jpu: JPU) -> None:
    jpu.dilation1.append(jpu.dilation1[1])


def _patch_convolution(jpu: JPU) -> None:
    conv = jpu.dilation1[0].conv1
    conv._conv_forward = lambda x, weight, bias: F.conv2d(2 * x, weight, bias, 1, 1, 1, 24)


def _set_dilation(jpu: JPU) -> None:
    jpu.dilation1[0].conv1.dilation = 1  # which F.conv2d takes


def _narrow(jpu: JPU) -> None:
    jpu.dilation4[0].pointwise = nn.Conv2d(24, 3, 1, bias=False).double()
    jpu.dilation4[1] = nn.BatchNorm2d(3).double().eval()


OTHERS: dict[str, tuple[Callable[[JPU], None], str]] = {
    "GroupNorm among others": (
        _set("dilation2.1", nn.GroupNorm(2, 8)),
        "dilation1.1 and its like have groups of different kinds, 0 and 2",
    ),
    "InstanceNorm": (_set("dilation1.1", nn.InstanceNorm2d(8)), "dilation1.1 is a InstanceNorm2d"),
    "no norm": (_set("dilation1.1", nn.Identity()), "dilation1.1 is a Identity"),
    "bias": (_set("dilation1.0.pointwise", nn.Conv2d(24, 8, 1)), "dilation1.0.pointwise has a bias"),
    "another activation": (_set("dilation4.2", nn.ReLU6()), "dilation4.2 is a ReLU6"),
    "other padding": (
        _set("dilation1.0.conv1", nn.Conv2d(24, 24, 3, padding=1, padding_mode="reflect", groups=24, bias=False)),
        "dilation1.0.conv1 is no depthwise",
    ),
    "a full convolution": (
        _set("dilation1.0.conv1", nn.Conv2d(24, 24, 3, padding=1, bias=False)),
        "dilation1.0.conv1 is no depthwise",
    ),
    "a norm in two places": (_twice, "expected dilation1 to be convolution, norm, convolution, norm and ReLU, got"),
    "a convolution's own forward": (_patch_convolution, "dilation1.0.conv1 has a forward of its own"),
    "a dilation that is no pair": (_set_dilation, "dilation1.0.conv1 is no depthwise"),
    "other widths": (_narrow, "branches have different widths"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_anything_else_runs_as_it_stands_and_is_named(name: str) -> None:
    change, reason = OTHERS[name]
    jpu, levels = jpu_of(), levels_of()
    change(jpu)
    jpu.double()
    expected, _ = run(copy.deepcopy(jpu), levels, "reference")
    with use_backend("host"):
        assert f"PyTorch serves the branches ({reason}" in explain(jpu, *levels).reason
    out, kernels = run(jpu, levels, "host")
    assert kernels == FUSED[:1]
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_a_jpu_of_group_norms_says_so() -> None:
    neck = mmseg.JPU(CHANNELS, 8, norm_cfg={"type": "GN", "num_groups": 2}).eval()
    with use_backend("host"):
        reason = explain(neck, levels_of(dtype=torch.float32)).reason
    assert "one launch resizes, then the norms' statistics, all branches in one launch" in reason
    assert "PyTorch serves the stages (conv_layers.0.0.gn is a GroupNorm)" in reason


def test_hooks_of_all_modules_are_called() -> None:
    jpu, levels, called = jpu_of(), levels_of(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: called.append(module))
    try:
        _, kernels = run(jpu, levels, "host")
    finally:
        handle.remove()
    assert jpu.dilation1[0].bn in called
    assert kernels == FUSED[:1]


# --- of foreign packages --------------------------------------------------------------------------------


class _Flagged(nn.Sequential):
    """Has an activation more where a flag says so."""

    extra = False

    def forward(self, x: Tensor) -> Tensor:
        depthwise, norm, pointwise = self
        x = norm(depthwise(x))
        return pointwise(x.relu() if self.extra else x)


class _Dropping(nn.Sequential):
    """Drops out under training."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.9, self.training)


class _Between(nn.Sequential):
    """A foreign separable convolution with an activation that its structure does not show."""

    def forward(self, x: Tensor) -> Tensor:
        depthwise, norm, pointwise = self
        return pointwise(norm(depthwise(x)).relu())


class _Raising(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64 and x.shape[0] == 2:
            raise RuntimeError("expected anything else")
        return super().forward(x)


def foreign_neck(kind: type[nn.Sequential]) -> FastFCNNeck:
    neck = randomise(FastFCNNeck(CHANNELS, 8, {"mode": "bilinear", "align_corners": True})).double().eval()
    for i in (1, 2, 3, 4):
        branch = neck.get_submodule(f"dilation{i}")
        branch[0] = kind(OrderedDict(branch[0].named_children())).eval()
    return neck


@pytest.mark.parametrize("kind", [_Between, _Raising, _Dropping])
def test_a_foreign_forward_that_does_more_is_left_to_pytorch(kind: type[nn.Sequential]) -> None:
    neck = foreign_neck(kind)
    levels = [level[:1] for level in levels_of()]
    expected = neck(*levels)[-1]
    replace_jpu(neck)
    out, kernels = run(neck, levels, "host")
    assert kernels == FUSED[:1]
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    with use_backend("host"):
        assert f"dilation1.0 is a test_served_as_it_stands.{kind.__name__}" in explain(neck, *levels).reason


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_foreign_setting_acts(when: str) -> None:
    neck, levels = foreign_neck(_Flagged), levels_of()
    before = neck(*levels)[-1]
    if when == "after":
        replace_jpu(neck)
        assert run(neck, levels, "host")[1] == TRAINED
    neck.dilation2[0].extra = True
    replace_jpu(neck)
    out, kernels = run(neck, levels, "host")
    assert kernels == FUSED[:1]
    assert not torch.allclose(out, before)
    torch.testing.assert_close(out, run(neck, levels, "reference")[0], rtol=1e-12, atol=1e-12)


# --- changed under the module's feet --------------------------------------------------------------------


@pytest.mark.parametrize("kind", [fastfcn.SeparableConv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d])
def test_a_patched_class_acts(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    jpu, levels = jpu_of(), levels_of()
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: forward(self, x) + 1)
    out, kernels = run(jpu, levels, "host")
    assert kernels == FUSED[:1]
    torch.testing.assert_close(out, run(jpu, levels, "reference")[0], rtol=1e-12, atol=1e-12)


def test_a_patched_method_of_convolutions_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    jpu, levels = jpu_of(), levels_of()
    method = nn.Conv2d._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda self, x, weight, bias: method(self, x, 2 * weight, bias))
    out, kernels = run(jpu, levels, "host")
    assert kernels == FUSED[:1]
    torch.testing.assert_close(out, run(jpu, levels, "reference")[0], rtol=1e-12, atol=1e-12)


def test_statistics_that_need_a_gradient_get_one() -> None:
    jpu, levels = jpu_of(FrozenBatchNorm2d), levels_of()
    mean = jpu.dilation1[1].running_mean.requires_grad_()
    out, kernels = run(jpu, levels, "host")
    assert kernels == FUSED[:1]
    assert torch.autograd.grad(out.sum(), mean)[0].any()
    with torch.no_grad():
        assert run(jpu, levels, "host")[1] == INFERENCE


class _Widened(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def test_stages_that_leave_autocasts_dtype_are_served_as_they_are() -> None:
    jpu = jpu_of().bfloat16()
    for stage in (jpu.conv3, jpu.conv4, jpu.conv5):
        stage.append(_Widened())
    with torch.autocast("cpu", torch.bfloat16):
        out, kernels = run(jpu, levels_of(dtype=torch.float32), "host")
    assert kernels == FUSED[:1]
    assert out.isfinite().all()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_compute_the_same_gradients(reentrant: bool) -> None:
    jpu = frozen(nn.BatchNorm2d)
    for stage in (jpu.conv3, jpu.conv4, jpu.conv5):
        stage.eval()
    results = []
    for checkpointed in (False, True):
        levels = levels_of(requires_grad=True)
        jpu.zero_grad()
        with use_backend("host"):
            if checkpointed:
                out = checkpoint(lambda *x: jpu(*x)[-1], *levels, use_reentrant=reentrant)
            else:
                out = jpu(*levels)[-1]
            out.square().sum().backward()
        results.append([x.grad for x in (*levels, *jpu.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_an_exported_program_takes_levels_of_one_size_too() -> None:
    jpu, levels = jpu_of(), tuple(levels_of())
    sizes = tuple({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO} for _ in levels)
    with use_backend("host"):
        program = torch.export.export(jpu, levels, dynamic_shapes=(sizes,))
    other = tuple(torch.randn(2, c, 5, 6, dtype=torch.float64) for c in CHANNELS)
    for inputs in (levels, other):
        torch.testing.assert_close(program.module()(*inputs)[-1], run(jpu, list(inputs), "reference")[0])
    assert "jpu_cuda.separable_pyramid.default" in {str(node.target) for node in program.graph.nodes}
