"""Modules that the kernels serve, on host execution: outputs, gradients, what explain says."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from helpers import pyramid, randomise
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from jpu_cuda import JPU, explain, host, use_backend

CHANNELS = (8, 16, 32)
FORWARD = ["upsample_concat forward", "separable_pyramid forward"]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    with use_backend("auto"):
        yield


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("policy", "kernels"),
    [("fma", ["forward"]), ("mma", ["mma"]), ("two-pass", ["normalise", "product"])],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_half_precision_modules_are_served(policy: str, kernels: list[str], dtype: torch.dtype) -> None:
    jpu = randomise(JPU(CHANNELS, width=40)).to(dtype).eval()
    levels = pyramid(dtype=dtype)
    truth = copy.deepcopy(jpu).double()(*(x.double() for x in levels))[-1]
    reference = jpu(*levels)[-1]
    with use_backend("host", arch=80, policy=policy), host.record() as launches, torch.no_grad():
        served = jpu(*levels)[-1]
    assert [launch.kernel for launch in launches][-len(kernels) :] == [f"separable_pyramid {k}" for k in kernels]
    error, allowed = ((x.double() - truth).abs().max() for x in (served, reference))
    assert served.dtype == dtype
    assert error <= 1.25 * allowed + torch.finfo(dtype).eps / 2 * truth.abs().max()


def test_channels_last_stays_channels_last() -> None:
    jpu = JPU(CHANNELS, width=8).to(memory_format=torch.channels_last)
    levels = [x.to(memory_format=torch.channels_last) for x in pyramid(dtype=torch.float32)]
    with use_backend("host"):
        out = jpu(*levels)[-1]
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_in_another_mode_pytorch_resizes(training: bool) -> None:
    jpu = randomise(JPU(CHANNELS, width=8, up_kwargs={"mode": "nearest"})).double().train(training)
    levels = pyramid()
    with use_backend("reference"):
        expected = jpu(*levels)[-1]
    with use_backend("host"), host.record() as launches, torch.no_grad():
        out = jpu(*levels)[-1]
        answer = explain(jpu, *levels)
    # The first launch folds the norms alone.
    assert ([launch.kernel for launch in launches][-2:] == FORWARD) == (not training)
    assert answer.backend == "host"
    assert "got up_kwargs {'mode': 'nearest'}" in answer.reason
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_explain_names_the_backend_and_what_it_serves() -> None:
    jpu = JPU(CHANNELS, width=8).eval()
    with use_backend("host"), torch.no_grad():
        fixed = explain(jpu, *pyramid(dtype=torch.float32))
    assert (fixed.backend, fixed.policy) == ("host", "fma")
    assert "all branches in one launch (a device without tensor cores was asked for); PyTorch" in fixed.reason
    wide = JPU(CHANNELS, width=64).eval()
    for policy, served in (
        ("auto", "one launch (one launch of tensor cores"),
        ("two-pass", "two launches at a time ("),
    ):
        with use_backend("host", arch=80, policy=policy), torch.no_grad():
            answer = explain(wide, *pyramid(dtype=torch.float32))
        assert answer.policy == ("mma" if policy == "auto" else policy)
        assert f"then all branches in {served}" in answer.reason


class _Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class _Twice(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _hook(jpu: JPU) -> None:
    jpu.dilation1[0].register_forward_hook(lambda module, args, out: 2 * out)


def _forward_of_its_own(jpu: JPU) -> None:
    old = jpu.dilation2.forward
    jpu.dilation2.forward = lambda x: 2 * old(x)


def _parametrise(jpu: JPU) -> None:
    parametrize.register_parametrization(jpu.dilation3[0].conv1, "weight", _Doubled())


def _prune(jpu: JPU) -> None:
    prune.l1_unstructured(jpu.dilation2[0].pointwise, "weight", 0.5)


def _replace(jpu: JPU) -> None:
    jpu.dilation4[2] = _Doubled()


def _wrap(jpu: JPU) -> None:
    jpu.dilation4 = _Twice(*jpu.dilation4)


def _add(jpu: JPU) -> None:
    jpu.dilation1.append(_Doubled())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_hook, "dilation1.0 has hooks"),
        (_parametrise, "dilation3.0.conv1 is parametrised"),
        (_forward_of_its_own, "dilation2 has a forward of its own"),
        (_prune, "dilation2.0.pointwise has hooks"),
        (_replace, "dilation4.2 is a test_served._Doubled"),
        (_wrap, "dilation4 is a test_served._Twice"),
        (_add, "expected dilation1 to be convolution, norm, convolution, norm and ReLU, got Conv2d, "),
    ],
    ids=["hook", "parametrisation", "own forward", "pruning", "foreign class", "container", "addition"],
)
def test_a_changed_submodule_acts_and_is_named(change: Callable[[JPU], None], named: str) -> None:
    jpu = randomise(JPU(CHANNELS, width=8)).double().eval()
    levels = pyramid()
    before = jpu(*levels)[-1]
    change(jpu)
    with use_backend("reference"):
        expected = jpu(*levels)[-1]
    with use_backend("host"):
        out = jpu(*levels)[-1]
        reason = explain(jpu, *levels).reason
    assert not torch.allclose(out, before)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert f"PyTorch serves the branches ({named}" in reason


def test_a_changed_stage_acts_beside_the_kernels() -> None:
    jpu = randomise(JPU(CHANNELS, width=8)).double().eval()
    levels = pyramid()
    jpu.conv3[2] = _Doubled()
    jpu.conv4.register_forward_hook(lambda module, args, out: -out)
    with use_backend("reference"):
        expected = jpu(*levels)[-1]
    with use_backend("host"), host.record() as launches, torch.no_grad():
        out = jpu(*levels)[-1]
    assert [launch.kernel for launch in launches] == FORWARD
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_autocast_is_served_in_its_dtype() -> None:
    jpu = JPU(CHANNELS, width=8).eval()
    levels = pyramid(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        reference = jpu(*levels)[-1]
        with use_backend("host"), host.record() as launches, torch.no_grad():
            out = jpu(*levels)[-1]
            assert "torch.bfloat16" in explain(jpu, *levels).reason
    assert [launch.kernel for launch in launches][-2:] == FORWARD
    assert out.dtype == reference.dtype
    truth = copy.deepcopy(jpu).double()(*(x.double() for x in levels))[-1]
    error, allowed = ((x.double() - truth).abs().max() for x in (out, reference))
    assert error <= 1.25 * allowed + torch.finfo(out.dtype).eps / 2 * truth.abs().max()


def test_gradcheck_of_a_whole_module() -> None:
    jpu = randomise(JPU((2, 2, 2), width=1)).double().eval()
    levels = pyramid((2, 2, 2), ((4, 5), (2, 3), (1, 2)), batch=1, requires_grad=True)
    with use_backend("host"):
        assert torch.autograd.gradcheck(lambda *x: jpu(*x)[-1], levels)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_compiled_module_is_served_in_one_graph(training: bool) -> None:
    jpu = randomise(JPU(CHANNELS, width=8)).double().train(training)
    levels = pyramid()
    with use_backend("host"), torch.no_grad():
        expected = copy.deepcopy(jpu)(*levels)[-1]
        with host.record() as launches:
            out = torch.compile(jpu, fullgraph=True, backend="aot_eager")(*levels)[-1]
    assert ([launch.kernel for launch in launches] == FORWARD) == (not training)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
