"""jpu_cuda.JPU_X: FastFCN's contract, and its values against explicit loops."""

import pytest
import torch
from helpers import assert_within, pyramid, randomise
from torch import Tensor

from jpu_cuda import JPU_X
from jpu_cuda.reference import loops

CHANNELS = (8, 128, 16)
LEVELS = (5, *CHANNELS)
SIZES = ((14, 18), (5, 7), (3, 4), (2, 2))


def make(train: bool = False) -> JPU_X:
    return randomise(JPU_X(CHANNELS, width=64)).double().train(train)  # type: ignore[return-value]


def by_loops(jpu: JPU_X, levels: list[Tensor]) -> loops.Bounded:
    """Both joint upsamplings by the loops: the branches, and what a JUM puts before them."""

    def jum(module: torch.nn.Module, low: Tensor, high: Tensor) -> loops.Bounded:
        branches = loops.evaluate(module, (high, low), torch.float64)  # type: ignore[arg-type]
        arithmetic = loops.Arithmetic.of(torch.float64)
        state = {k: v.double().numpy() for k, v in module.state_dict().items()}
        norm = loops.Norm(
            state["conv_l.1.weight"], state["conv_l.1.bias"], 1e-5,
            *((None, None) if module.training else (state["conv_l.1.running_mean"], state["conv_l.1.running_var"])),
        )  # fmt: skip
        x = loops.normalise(
            loops.conv2d(loops.Bounded.exact(low), loops.Conv(state["conv_l.0.weight"]), arithmetic),
            norm,
            arithmetic,
        )
        x = loops.resize(loops.Bounded(x.value.clip(0), x.error), tuple(high.shape[2:]), True, arithmetic)  # type: ignore[arg-type]
        return loops._concat((x, branches))

    first = jum(jpu.jum_1, levels[2], levels[1])
    # The second step's input carries the first one's error, which its bound does not know: hand it the
    # module's own first step, held against `first` by the caller.
    middle = jpu.jum_1(levels[2], levels[1]).detach()
    assert_within(middle, first)
    return jum(jpu.jum_2, levels[3], middle)


def test_state_dict_is_fastfcns() -> None:
    keys = set(make().state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = set()
    for jum in ("jum_1", "jum_2"):
        for conv in ("conv_l", "conv_h"):
            expected |= {f"{jum}.{conv}.0.weight", *(f"{jum}.{conv}.1.{n}" for n in norm)}
        for i in (1, 2, 3):
            branch = f"{jum}.dilation{i}"
            expected |= {f"{branch}.0.conv1.weight", f"{branch}.0.pointwise.weight"}
            expected |= {f"{branch}.{n}.{p}" for n in ("0.bn", "1") for p in ("weight", "bias")}
    assert keys == expected


def test_shapes_and_dilations_are_fastfcns() -> None:
    jpu = make()
    assert jpu.jum_1.conv_l[0].weight.shape == (32, 128, 3, 3)
    assert jpu.jum_1.conv_h[0].weight.shape == (32, 8, 3, 3)
    assert jpu.jum_2.conv_l[0].weight.shape == (64, 16, 3, 3)
    assert jpu.jum_2.conv_h[0].weight.shape == (64, 128, 3, 3)
    for jum, dilations in ((jpu.jum_1, (1, 2, 4)), (jpu.jum_2, (2, 4, 8))):
        convs = [jum.branch(i)[0].conv1 for i in range(3)]  # type: ignore[index]
        assert tuple(c.dilation[0] for c in convs) == dilations
        assert jum.branch(0)[1].num_groups == 32  # type: ignore[index]


@pytest.mark.parametrize("train", [False, True])
def test_values(train: bool) -> None:
    jpu, levels = make(train), pyramid(LEVELS, SIZES)
    outputs = jpu(*levels)
    assert [o is i for o, i in zip(outputs, levels[:3], strict=False)] == [True, True, True]
    assert outputs[3].shape == (2, 256, 5, 7)
    assert_within(outputs[3], by_loops(jpu, levels))


def test_gradients_reach_every_input_and_parameter() -> None:
    jpu, levels = make(train=True), pyramid(LEVELS, SIZES, requires_grad=True)
    jpu(*levels)[-1].square().sum().backward()
    assert levels[0].grad is None  # only passed through
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in levels[1:])
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in jpu.parameters())


@pytest.mark.parametrize(
    ("in_channels", "width", "message"),
    [
        ((8, 128), 64, "in_channels: expected 3 levels, got 2"),
        ((8, 192, 16), 96, "width: expected a multiple of 64, got 96"),
        ((8, 64, 16), 64, r"in_channels\[1\]: expected 2·width = 128, got 64"),
    ],
)
def test_wrong_arguments(in_channels: tuple[int, ...], width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JPU_X(in_channels, width=width)


def test_wrong_inputs() -> None:
    jpu, levels = make(), pyramid(LEVELS, SIZES)
    with pytest.raises(ValueError, match="expected at least 4 levels, got 3"):
        jpu(*levels[:3])
    with pytest.raises(ValueError, match=r"inputs\[1:4\]\[1\]: expected 128 channels, got 16"):
        jpu(levels[0], levels[1], levels[3], levels[3])
    with pytest.raises(ValueError, match=r"\(x_h, x_l\)\[1\]: expected 128 channels, got 16"):
        jpu.jum_1(levels[3], levels[1])
