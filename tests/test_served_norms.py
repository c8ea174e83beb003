"""Norms of fixed statistics, which the kernels fold anew in every call: what is served, and that nothing is kept."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign import FastFCNNeck
from helpers import pyramid, randomise
from served import (
    CHANNELS,
    FUSED,
    INFERENCE,
    TRAINED,
    check_lower_precision,
    jpu_of,
    levels_of,
    run,
    swap_data,
    train_a_step,
    write_data,
)
from strategies import needs_host
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from jpu_cuda import JPU, host, mmseg, models, replace_jpu, use_backend

pytestmark = needs_host


def assert_fused(module: nn.Module, levels: list[Tensor]) -> Tensor:
    out, kernels = run(module, levels, "host")
    # A single level is not resized.
    trained = TRAINED if len(levels) > 1 else TRAINED[1:]
    assert kernels == (trained if torch.is_grad_enabled() else INFERENCE)
    torch.testing.assert_close(out, run(module, levels, "reference")[0], rtol=1e-12, atol=1e-12)
    return out


def frozen(norm: Callable[[int], nn.Module]) -> JPU:
    """In training mode, the norms of the branches in eval mode."""
    jpu = jpu_of(norm).train()
    for i in range(4):
        jpu.branch(i).eval()
    return jpu


# --- what is served -------------------------------------------------------------------------------------


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BatchNorm2d": nn.BatchNorm2d,
    "SyncBatchNorm": nn.SyncBatchNorm,
    "FrozenBatchNorm2d": FrozenBatchNorm2d,
    "no weights": lambda channels: nn.BatchNorm2d(channels, affine=False),
    "another eps": lambda channels: nn.BatchNorm2d(channels, eps=0.25),
}


@pytest.mark.parametrize("norm", NORMS)
def test_frozen_norms_are_served_under_training_with_all_gradients(norm: str) -> None:
    jpu = frozen(NORMS[norm])
    statistics = {name: buffer.clone() for name, buffer in jpu.named_buffers() if name.startswith("dilation")}
    found = []
    for backend in ("reference", "host"):
        levels = levels_of(requires_grad=True)
        # SyncBatchNorm takes batch statistics on a GPU only, so the stages, which are not asked about, keep theirs.
        for stage in (jpu.conv3, jpu.conv4, jpu.conv5):
            stage.train(norm != "SyncBatchNorm")
        jpu.zero_grad()
        out, kernels = run(jpu, levels, backend)
        out.square().sum().backward()
        assert kernels == (TRAINED if backend == "host" else [])
        gradients = [p.grad for p in jpu.parameters()] + [level.grad for level in levels]
        assert all(gradient is not None for gradient in gradients)
        found.append([out, *gradients])
    for reference, served in zip(*found, strict=True):
        torch.testing.assert_close(served, reference, rtol=1e-9, atol=1e-10)
    for name, before in statistics.items():
        assert torch.equal(jpu.get_buffer(name), before)


@pytest.mark.parametrize("frozen_part", ["weights", "norms", "levels"])
def test_what_needs_no_gradient_gets_none(frozen_part: str) -> None:
    jpu, levels = jpu_of(), levels_of(requires_grad=frozen_part != "levels")
    for name, parameter in jpu.named_parameters():
        if frozen_part != "levels":
            parameter.requires_grad_((parameter.dim() == 1) == (frozen_part == "weights"))
        else:
            parameter.requires_grad_(name.startswith("dilation2"))
    expected = torch.autograd.grad(run(jpu, levels, "reference")[0].square().sum(), needing(jpu, levels))
    found = torch.autograd.grad(run(jpu, levels, "host")[0].square().sum(), needing(jpu, levels))
    assert len(found) == {"weights": 22 + 3, "norms": 11 + 3, "levels": 6}[frozen_part]
    for served, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(served, reference, rtol=1e-9, atol=1e-10)


def needing(jpu: nn.Module, levels: list[Tensor]) -> list[Tensor]:
    return [tensor for tensor in (*jpu.parameters(), *levels) if tensor.requires_grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wide_norms", [False, True], ids=["norms alike", "norms in float32"])
def test_lower_precision_is_no_worse_than_pytorchs(dtype: torch.dtype, wide_norms: bool) -> None:
    check_lower_precision(dtype, wide_norms)


def test_a_replaced_foreign_jpu_is_served() -> None:
    neck = randomise(FastFCNNeck(CHANNELS, 8, {"mode": "bilinear", "align_corners": True})).double().eval()
    levels = levels_of()
    expected = neck(*levels)[-1]
    assert replace_jpu(neck) == [("", "fastfcn")]
    for module in (neck, copy.deepcopy(neck), pickle.loads(pickle.dumps(neck))):
        out, kernels = run(module, levels, "host")
        assert kernels == TRAINED
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "reads"),
    [
        ({"in_channels": (4,), "dilations": (3,)}, 1),
        ({"in_channels": (4, 8, 16, 2, 3), "dilations": (1, 2, 5, 6, 7, 16)}, 5),
        ({"in_channels": (4, 8, 16), "start_level": 1, "align_corners": True}, 3),
    ],
    ids=["one level", "five levels", "from the second"],
)
def test_mmsegs_are_served_for_any_levels_and_dilations(arguments: dict[str, Any], reads: int) -> None:
    neck = randomise(mmseg.JPU(mid_channels=8, **arguments)).double().eval()
    sizes = [(9, 8), (5, 4), (3, 2), (2, 2), (1, 1)][:reads]
    assert_fused(neck, pyramid(arguments["in_channels"], sizes))


def test_levels_of_one_size_and_empty_batches_are_served() -> None:
    jpu = jpu_of()
    same = pyramid(CHANNELS, ((4, 5), (4, 5), (2, 3)))
    assert_fused(jpu, same)
    out, kernels = run(jpu, [level[:0] for level in same], "host")
    assert (out.shape, kernels) == ((0, 32, 4, 5), FUSED[:1])


# --- nothing is kept ------------------------------------------------------------------------------------


def _assign(jpu: JPU, other: JPU) -> None:
    jpu.load_state_dict(other.state_dict(), assign=True)


def _replace_norms(jpu: JPU, other: JPU) -> None:
    for i in range(4):
        jpu.branch(i)[1] = other.branch(i)[1]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("change", [write_data, _assign, swap_data, train_a_step, _replace_norms])
def test_what_changes_between_calls_acts(change: Callable[[JPU, JPU], None], compiled: bool) -> None:
    jpu, levels = jpu_of(), levels_of()
    module = torch.compile(jpu, backend="aot_eager") if compiled else jpu
    before = run(module, levels, "host")[0]
    change(jpu, jpu_of(seed=1))
    expected = run(jpu, levels, "reference")[0]
    out, kernels = run(module, levels, "host")
    assert kernels == TRAINED
    assert not torch.allclose(before, expected, rtol=1e-3)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_under_an_average_of_weights() -> None:
    jpu = jpu_of()
    average = torch.optim.swa_utils.AveragedModel(jpu, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    for seed in (1, 2):
        average.update_parameters(jpu_of(seed=seed))
        out = assert_fused(average.module.eval(), levels_of())
    assert not torch.allclose(out, run(jpu, levels_of(), "host")[0])


def test_inference_tensors_are_served() -> None:
    with torch.inference_mode():
        jpu, levels = jpu_of(), levels_of()
        assert jpu.dilation1[0].bn.running_mean.is_inference()
        assert_fused(jpu, levels)
    with torch.no_grad():
        assert_fused(jpu, levels)
    outside = jpu_of()
    with torch.inference_mode():
        assert_fused(outside, levels)


# --- whole models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "frozen"])
def test_a_whole_resnet_50_fastfcn_agrees_in_float64(training: bool) -> None:
    """FastFCN's two forms, this package's JPU in both, logits and the gradients of every parameter and the image."""
    model = randomise(models.fastfcn("resnet50", "jpu", "fcn", num_classes=5, width=32)).double().eval()
    if training:
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.Dropout2d):
                module.eval()
    found = []
    for backend in ("reference", "host"):
        image = torch.rand(1, 3, 33, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        image.requires_grad_()
        model.zero_grad()
        with use_backend(backend), host.record() as launches:
            logits = model(image)
            logits = logits if isinstance(logits, Tensor) else logits[0]
        assert [launch.kernel for launch in launches] == (TRAINED if backend == "host" else [])
        logits.square().mean().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append({"logits": logits, "image": image.grad, **gradients})
    reference, served = found
    assert served.keys() == reference.keys()
    assert len(served) > 150
    for name, expected in reference.items():
        # Some hundred layers, each of which may add its own rounding.
        error = float((served[name] - expected).detach().norm())
        assert error <= 1e-11 * float(expected.detach().norm()), (name, error)
