"""Who may serve a benchmark: the list, who is refused and why, and that each computes what it says."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks import providers, verify, workloads
from benchmarks.folding import fold_norms
from benchmarks.providers import DEFAULT, PROVIDERS, Provider, serve, why_not
from benchmarks.workloads import Workload
from jpu_cuda import JPU, use_backend
from jpu_cuda.backend import BackendUnavailableError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = Workload("branches", 6, 5, 2, "float32", channels=16)
PLAIN = PROVIDERS["reference"]


def test_every_way_that_a_user_would_try_is_there():
    eager = [f"{base}{cudnn}" for base in ("depthwise", "folded") for cudnn in ("-cudnn", "-native")]
    ours = ["cuda", "cuda-fma", "cuda-mma", "cuda-two-pass"]
    launched = ["reference", "folded", *eager, *ours]
    graphed = [f"{name}-graph" for name in launched]
    others = ["gemm", "gemm-slices", "compiled-jpu", "compiled-jpu-graph", "compiled", "compiled-frozen"]
    assert sorted(DEFAULT) == sorted([*launched, *graphed, *others])
    assert set(PROVIDERS) - set(DEFAULT) == {"host"}


def test_what_is_compiled_comes_last_and_the_yardstick_first():
    assert DEFAULT[0] == "gemm"
    assert DEFAULT[-2:] == ("compiled", "compiled-frozen")
    assert DEFAULT.index("cuda") < DEFAULT.index("folded") < DEFAULT.index("cuda-two-pass")


def test_every_policy_is_there():
    from jpu_cuda.backend import POLICIES

    ours = {provider.policy for provider in PROVIDERS.values() if provider.backend == "cuda"}
    assert ours == set(POLICIES)


@pytest.mark.parametrize("name", DEFAULT)
def test_on_a_cpu_exactly_what_needs_a_gpu_is_refused(name):
    reason = why_not(PROVIDERS[name], CPU)
    if name.endswith("-graph"):
        assert reason == "CUDA graphs need a CUDA device, got cpu"
    elif name.startswith("cuda"):
        assert reason == "backend 'cuda' needs tensors on cuda, got cpu"
    elif name.endswith(("-cudnn", "-native")):
        assert reason == "cuDNN needs a CUDA device, got cpu"
    else:
        assert reason is None


def test_the_host_is_refused_on_a_gpu():
    assert why_not(PROVIDERS["host"], CUDA) == "backend 'host' needs tensors on cpu, got cuda"


def test_a_torch_without_the_setting_is_named(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    module = torch.backends.cudnn
    if hasattr(module, "depthwise_kernel"):
        monkeypatch.delattr(type(module), "depthwise_kernel")
    expected = "torch 2.11.0 has no torch.backends.cudnn.depthwise_kernel"
    assert why_not(PROVIDERS["depthwise-native"], CUDA) == expected
    assert why_not(PLAIN, CUDA) is None
    with providers.settings(False, "auto"):  # nothing to set, and no error
        pass


def test_missing_kernels_are_named(monkeypatch):
    monkeypatch.setattr("jpu_cuda.backend._unavailable", lambda name: "no kernels")
    assert why_not(PROVIDERS["cuda"], CUDA) == "backend 'cuda' is not available: no kernels"


def test_settings_hold_within_and_are_restored():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

    def found():
        return cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32, getattr(cudnn, "depthwise_kernel", None)

    before = found()
    depthwise = "native" if hasattr(cudnn, "depthwise_kernel") else None
    for tf32 in (True, False):
        with providers.settings(tf32, "native"):
            assert found() == (True, tf32, tf32, depthwise)
    with providers.settings():
        assert found()[1:3] == before[1:3]
    assert found() == before


def _precisions():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    switches = cudnn, cudnn.conv, cudnn.rnn, matmul, torch.backends.mkldnn.matmul
    return [switch.fp32_precision for switch in switches]


@pytest.fixture
def newer_switches():
    cudnn = torch.backends.cudnn
    if not hasattr(cudnn, "conv"):
        pytest.skip(f"torch {torch.__version__} has the older switches only")
    before = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    yield
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("tf32", [True, False])
def test_newer_switches_of_tf32_hold_and_are_restored(newer_switches, tf32):
    before = _precisions()
    with providers.settings(tf32):
        assert _precisions()[:4] == ["tf32" if tf32 else "ieee"] * 4
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    assert _precisions() == before
    assert torch.get_float32_matmul_precision() == "highest"


def test_switches_that_the_older_names_may_not_be_asked_for_are_restored(newer_switches):
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with pytest.raises(RuntimeError):
        _ = torch.backends.cudnn.allow_tf32
    before = _precisions()
    for tf32 in (None, True, False):
        with providers.settings(tf32):
            assert tf32 is None or torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32
        assert _precisions() == before


@pytest.fixture(scope="module")
def prepared():
    return workloads.prepare(SMALL, PLAIN, CPU)


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["reference", "folded", "host", "compiled"])
def test_each_computes_the_branches(prepared, name, memory_format):
    model, inputs = prepared.in_format(memory_format)
    assert all(x.is_contiguous(memory_format=workloads.FORMATS[memory_format]) for x in inputs)
    with serve(PROVIDERS[name], model, inputs) as call:
        result = call()
    assert result.shape == (2, 4 * 16, 6, 5)
    # Not its error, which for folded weights may be larger: that it computes the same at all.
    assert (prepared.compared(result).double() - prepared.truth.value).abs().max() < 1e-4


def test_the_host_is_served_by_kernels_and_the_reference_by_none(prepared, monkeypatch):
    calls = []
    monkeypatch.setattr(providers, "_demand_kernels", lambda provider, *_: calls.append(provider.backend))
    for name in ("reference", "host"):
        with serve(PROVIDERS[name], *prepared.in_format("channels_last")):
            pass
    assert calls == ["host"]


def test_a_jpu_that_kernels_do_not_take_is_not_timed_as_theirs(prepared):
    model = copy.deepcopy(prepared.model)
    model.jpu.dilation2.register_forward_hook(lambda *_: None)
    with (
        pytest.raises(RuntimeError, match="expected kernels to serve the JPU's branches, PyTorch did"),
        serve(PROVIDERS["host"], model, prepared.inputs),
    ):
        pass


@pytest.mark.parametrize(("name", "part"), [("conv3", "stages"), ("conv5", "stages"), ("dilation2", "branches")])
def test_a_whole_jpu_of_which_kernels_take_a_part_is_not_timed_as_theirs(name, part):
    prepared = workloads.prepare(Workload("jpu", 6, 5, 1, "float32", channels=16), PLAIN, CPU)
    with serve(PROVIDERS["host"], prepared.model, prepared.inputs) as call:
        assert (prepared.compared(call()).double() - prepared.truth.value).abs().max() < 1e-4
    model = copy.deepcopy(prepared.model)
    getattr(model.jpu, name).register_forward_hook(lambda *_: None)
    with (
        pytest.raises(RuntimeError, match=f"expected kernels to serve the JPU's {part}, PyTorch did"),
        serve(PROVIDERS["host"], model, prepared.inputs),
    ):
        pass


@pytest.mark.parametrize("policy", ["mma", "two-pass"])
def test_a_policy_that_another_serves_is_not_timed_as_itself(prepared, policy):
    message = f"policy '{policy}' does not take this, 'fma' does: float32 keeps its precision"
    provider = Provider("host", policy=policy, arch=80)
    with (
        pytest.raises(BackendUnavailableError, match=message),
        serve(provider, prepared.model, prepared.inputs, tf32=False),
    ):
        pass


@pytest.mark.parametrize("policy", ["fma", "mma", "two-pass"])
def test_a_policy_that_serves_is_no_worse_than_pytorch(policy):
    prepared = workloads.prepare(Workload("branches", 6, 5, 1, "bfloat16", channels=64), PLAIN, CPU)
    with serve(Provider("host", policy=policy, arch=80), *prepared.in_format("channels_last")) as call:
        verify.assert_no_worse(prepared.compared(call()), prepared.truth)


def test_tf32_is_held_to_tf32_and_no_other_dtype_is():
    tf32, float32 = (Workload("branches", 6, 5, 1, name, channels=64) for name in ("tf32", "float32"))
    prepared = workloads.prepare(tf32, PLAIN, CPU)
    with serve(Provider("host", policy="mma", arch=80), *prepared.in_format("channels_last"), tf32=True) as call:
        result = prepared.compared(call())
    verify.assert_no_worse(result, prepared.truth)
    precise = workloads.prepare(float32, PLAIN, CPU).truth
    assert precise.value.equal(prepared.truth.value)
    assert precise.error < prepared.truth.error / 100
    with pytest.raises(verify.WrongResultError):
        verify.assert_no_worse(result, precise)


def test_the_compiler_is_told_whether_weights_are_constants(prepared, monkeypatch):
    found = []

    def compile(model, mode, dynamic):
        found.append((mode, dynamic, torch._inductor.config.freezing))
        return lambda *inputs: [getattr(x, "_dynamo_static_input_type", None) for x in inputs]

    monkeypatch.setattr(torch, "compile", compile)
    for name in ("compiled", "compiled-frozen"):
        with serve(PROVIDERS[name], prepared.model, prepared.inputs) as call:
            # Replayed without copies of the inputs, as graphs of other providers are.
            assert call() == ["unguarded"] * 3
    assert not any(hasattr(x, "_dynamo_static_input_type") for x in prepared.inputs)
    assert found == [("max-autotune", False, False), ("max-autotune", False, True)]
    assert not torch._inductor.config.freezing


@pytest.mark.parametrize("name", ["gemm", "gemm-slices"])
def test_products_are_those_of_the_branches(name):
    prepared = workloads.prepare(SMALL, PROVIDERS[name], CPU)
    pixels, channels = 6 * 5, 3 * 16
    assert prepared.flops == 2 * 2 * pixels * 4 * channels * 16
    (operand,), weight = prepared.inputs, prepared.model.weight
    assert operand.shape == (4, 2 * pixels, channels)
    assert not operand[0].equal(operand[1])  # distinct matrices, as branches have
    with serve(PROVIDERS[name], prepared.model, prepared.inputs) as call:
        result = call()
    expected = operand.double() @ weight.double()
    verify.assert_no_worse(prepared.compared(result), prepared.truth)
    assert (prepared.compared(result) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["gemm", "gemm-slices", "reference"])
def test_the_first_and_the_last_image_are_compared(name):
    prepared = workloads.prepare(replace(SMALL, batch=3), PROVIDERS[name], CPU)
    pixels = 6 * 5
    with serve(PROVIDERS[name], prepared.model, prepared.inputs) as call:
        result = call().clone()
    for image, is_compared in enumerate([True, False, True]):
        wrong = result.clone()
        if name == "reference":
            wrong[image] += 1
        else:
            wrong[..., image * pixels : (image + 1) * pixels, :] += 1
        with pytest.raises(verify.WrongResultError) if is_compared else nullcontext():
            verify.assert_no_worse(prepared.compared(wrong), prepared.truth)


# --- folding ---------------------------------------------------------------------------------------------


class _Net(nn.Module):
    """Norms that may be folded, and some that may not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.activated = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(4))
        self.shared, self.norms = nn.Conv2d(4, 4, 1), nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))

    def forward(self, x):
        x = self.activated(self.first(x))
        return self.norms[1](self.shared(self.norms[0](self.shared(x))))


@pytest.fixture
def net():
    from benchmarks.equivalence import randomise_norms

    net = _Net().eval()
    randomise_norms(net)
    return net


def test_norms_right_after_a_convolution_are_folded_and_no_others(net):
    x = torch.randn(2, 3, 8, 8)
    folded, count = fold_norms(net, [x])
    assert count == 1
    kinds = [type(module) for module in folded.modules() if isinstance(module, (nn.BatchNorm2d, nn.Identity))]
    assert kinds == [nn.Identity, nn.BatchNorm2d, nn.BatchNorm2d, nn.BatchNorm2d]
    torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-4)
    assert type(net.first[1]) is nn.BatchNorm2d
    assert not net.first[0]._forward_hooks


def test_all_norms_of_a_jpu_are_folded():
    jpu = JPU((4, 8, 16), width=8).eval()
    levels = [torch.randn(1, c, s, s) for c, s in zip((4, 8, 16), (8, 4, 2), strict=True)]
    with use_backend("reference"):
        _, count = fold_norms(jpu, levels)
    assert count == 3 + 2 * 4


def test_norms_of_batch_statistics_are_not_folded(net):
    net.first[1].train()
    assert fold_norms(net, [torch.randn(2, 3, 8, 8)])[1] == 0


def test_folded_weights_are_rounded_once_and_stay_where_they_lie(net):
    half = net.bfloat16().to(memory_format=torch.channels_last)
    folded, _ = fold_norms(half, [torch.randn(1, 3, 8, 8).bfloat16()])
    conv, norm = half.first[0], half.first[1]
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    expected = (conv.weight.double() * factor[:, None, None, None]).bfloat16()
    assert folded.first[0].weight.equal(expected)
    assert folded.first[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_model_without_norms_to_fold_is_refused():
    net = nn.Conv2d(3, 4, 1).eval()
    with (
        pytest.raises(RuntimeError, match="expected norms after convolutions, got none"),
        serve(PROVIDERS["folded"], net, [torch.randn(1, 3, 4, 4)]),
    ):
        pass
