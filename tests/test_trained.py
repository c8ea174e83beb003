"""JPUs in training by the kernels, on host execution: outputs, gradients, running statistics."""

from collections.abc import Callable

import pytest
import torch
from helpers import pyramid
from strategies import needs_host
from torch import nn
from trained import CHANNELS, MODULES, assert_alike, levels_for, made, results

from jpu_cuda import JPU, host

pytestmark = needs_host

# --- what is served -------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODULES)
def test_every_family_is_trained_by_the_kernels(name: str, training: bool) -> None:
    module = made(name).train(training)
    kernels = assert_alike(module, levels_for(module, requires_grad=True))
    times = 2 if name == "JPU_X" else 1
    assert kernels.count("separable_pyramid forward with moments") == times
    assert kernels.count("norm_relu output") == times
    assert (kernels.count("separable_pyramid training moments") == times) == (
        training or "GroupNorm" in name or times == 2
    )


def _momentum(jpu: JPU) -> None:
    for module in jpu.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3
    jpu.dilation2[0].bn.momentum = 0.7
    jpu.dilation1[1].momentum = 0.0


def _cumulative(jpu: JPU) -> None:
    jpu.dilation1[0].bn.momentum = None
    jpu.dilation4[1].momentum = None
    jpu.dilation4[1].num_batches_tracked += 3


def _eps(jpu: JPU) -> None:
    jpu.dilation1[0].bn.eps = 0.25
    jpu.dilation3[1].eps = 0.5


def _plain(jpu: JPU) -> None:
    width = 8
    jpu.dilation1[0].bn = nn.BatchNorm2d(3 * width, affine=False).double()
    jpu.dilation2[1] = nn.BatchNorm2d(width, affine=False).double()


def _untracked(jpu: JPU) -> None:
    width = 8
    jpu.dilation1[0].bn = nn.BatchNorm2d(3 * width, track_running_stats=False).double()
    jpu.dilation3[1] = nn.BatchNorm2d(width, track_running_stats=False).double().eval()
    jpu.dilation2[0].bn.track_running_stats = False
    jpu.dilation4[0].bn.num_batches_tracked = None


def _inner_frozen(jpu: JPU) -> None:
    for i in range(4):
        jpu.branch(i)[0].bn.eval()


def _outer_frozen(jpu: JPU) -> None:
    for i in range(4):
        jpu.branch(i)[1].eval()


def _some_frozen(jpu: JPU) -> None:
    jpu.dilation1[0].bn.eval()
    jpu.dilation2[1].eval()
    jpu.dilation4.eval()


def _one_frozen(jpu: JPU) -> None:
    """As torchvision has it."""
    from torchvision.ops import FrozenBatchNorm2d

    frozen = FrozenBatchNorm2d(8).double()
    for name, buffer in frozen.named_buffers():
        buffer.copy_(torch.linspace(0.5, 1.5, 8) if name in ("weight", "running_var") else torch.linspace(-1, 1, 8))
    jpu.dilation2[1] = frozen


CHANGES: dict[str, Callable[[JPU], None]] = {
    change.__name__[1:]: change
    for change in (
        _momentum,
        _cumulative,
        _eps,
        _plain,
        _untracked,
        _inner_frozen,
        _outer_frozen,
        _some_frozen,
        _one_frozen,
    )
}


@pytest.mark.parametrize("change", CHANGES)
def test_norms_of_any_settings_and_mixtures(change: str) -> None:
    jpu = made("JPU").train()
    CHANGES[change](jpu)
    kernels = assert_alike(jpu, levels_for(jpu, requires_grad=True))
    assert "separable_pyramid forward with moments" in kernels


def test_running_statistics_of_many_steps_and_without_gradients() -> None:
    """As norms are calibrated."""
    jpu = made("JPU").train()
    for seed in range(3):
        with torch.no_grad():
            kernels = assert_alike(jpu, levels_for(jpu, seed=seed))
            jpu(*levels_for(jpu, seed=seed))
    assert "separable_pyramid forward with moments" in kernels
    assert not any("gradient" in kernel for kernel in kernels)


NEEDED: dict[str, Callable[[str], bool]] = {
    "levels": lambda name: False,
    "depthwise": lambda name: name.endswith("conv1.weight"),
    "pointwise": lambda name: name.endswith("pointwise.weight"),
    "inner weights": lambda name: name.endswith("bn.weight"),
    "inner biases": lambda name: name.endswith("bn.bias"),
    "outer weights": lambda name: name.endswith("1.weight") and "conv" not in name,
    "outer biases": lambda name: name.endswith("1.bias"),
    "one branch": lambda name: name.startswith("dilation3"),
}


@pytest.mark.parametrize("frozen", [False, True], ids=["batch", "frozen"])
@pytest.mark.parametrize("needed", NEEDED)
def test_only_what_is_asked_for_is_computed(needed: str, frozen: bool) -> None:
    jpu = made("JPU").train(not frozen)
    jpu.conv3, jpu.conv4, jpu.conv5 = (nn.Sequential(nn.Identity()) for _ in range(3))
    for name, parameter in jpu.named_parameters():
        parameter.requires_grad_(NEEDED[needed](name))
    levels = pyramid((8, 8, 8), requires_grad=needed == "levels")
    jpu.level_channels = (8, 8, 8)
    kernels = assert_alike(jpu, levels)
    has = {kernel: kernel in kernels for kernel in set(kernels)}
    assert has.get("upsample_concat backward", False) == (needed == "levels")
    assert has.get("separable_pyramid training level gradient", False) == (needed == "levels")
    products = needed in ("pointwise", "inner weights", "inner biases", "one branch")
    products |= not frozen and needed in ("levels", "depthwise")
    assert has.get("norm_statistics pointwise gradient", False) == products


# --- what PyTorch keeps ---------------------------------------------------------------------------------


def test_a_single_value_has_no_variance() -> None:
    jpu = JPU(CHANNELS, width=8).train()
    levels = pyramid(CHANNELS, ((1, 1),) * 3, batch=1, dtype=torch.float32)
    for stage in (jpu.conv3, jpu.conv4, jpu.conv5):
        stage.eval()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        results(jpu, levels, "host")


def test_a_shared_norm_is_pytorchs() -> None:
    """Its statistics move twice."""
    jpu = made("JPU").train()
    jpu.dilation2[1] = jpu.dilation1[1]
    kernels = assert_alike(jpu, levels_for(jpu, requires_grad=True))
    assert set(kernels) == {"upsample_concat forward", "upsample_concat backward"}


@pytest.mark.parametrize("seed", [1, 2])
def test_any_schedule_gives_the_same_bits(seed: int) -> None:
    jpu = made("JPU").float().train()
    levels = levels_for(jpu, dtype=torch.float32, requires_grad=True)
    expected, _ = results(jpu, levels, "host")
    with host.schedule(seed):
        found, _ = results(jpu, levels, "host")
    for name, right in expected.items():
        assert (right is None and found[name] is None) or torch.equal(found[name], right), name
