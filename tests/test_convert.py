"""convert_state_dict: keys, block permutation, and what it refuses."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import foreign
import pytest
import torch
from helpers import pyramid, randomise
from torch import Tensor, nn

from jpu_cuda import JPU, JPU_X, convert_state_dict, mmseg
from jpu_cuda.modules.sssegmentation import SSSegmentationJPU

CHANNELS, WIDTH = (8, 16, 32), 8


def fastfcn() -> nn.Module:
    return foreign.FastFCNNeck(CHANNELS, WIDTH, {"mode": "bilinear", "align_corners": True})


# A JPU of each family with align_corners=True, so that all compute the same from converted weights.
FAMILIES = {
    "fastfcn": fastfcn,
    "tramac": partial(foreign.TramacNeck, CHANNELS, WIDTH),
    "mmseg": partial(mmseg.JPU, CHANNELS, WIDTH, align_corners=True),
    "sssegmentation": partial(foreign.SSSegNeck, CHANNELS, WIDTH, align_corners=True),
}
PREFIXES = {"fastfcn": "jpu.", "tramac": "jpu.", "mmseg": "neck.", "sssegmentation": "jpu_neck."}


def run(module: nn.Module, levels: Sequence[Tensor]) -> Tensor:
    one_sequence = isinstance(module, mmseg.JPU | foreign.SSSegNeck)
    return (module(levels) if one_sequence else module(*levels))[-1]  # type: ignore[no-any-return]


def prefixed(sd: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in sd.items()}


@pytest.mark.parametrize("target", FAMILIES)
@pytest.mark.parametrize("source", FAMILIES)
def test_converted_weights_compute_the_same(source: str, target: str) -> None:
    old, new = randomise(FAMILIES[source]()).double().eval(), FAMILIES[target]().double().eval()
    new.load_state_dict(convert_state_dict(old.state_dict(), source=source, target=target), strict=True)
    levels = pyramid()
    # The order of summation over the channels differs: 24 terms, and 9 before them.
    torch.testing.assert_close(run(new, levels), run(old, levels), rtol=0, atol=1e-13)


@pytest.mark.parametrize("target", FAMILIES)
@pytest.mark.parametrize("source", FAMILIES)
def test_there_and_back_is_exact_to_the_last_bit(source: str, target: str) -> None:
    before = randomise(FAMILIES[source]()).state_dict()
    there = convert_state_dict(before, source=source, target=target)
    back = convert_state_dict(there, source=target, target=source)
    assert list(back) == list(before)
    assert all(torch.equal(back[key], before[key]) for key in before)


def test_blocks_are_reversed_where_the_order_of_concatenation_differs() -> None:
    before = randomise(fastfcn()).state_dict()
    after = convert_state_dict(before, source="fastfcn", target="mmseg")
    for new, old, dim in (
        ("depthwise_conv.conv.weight", "0.conv1.weight", 0),
        ("depthwise_conv.bn.weight", "0.bn.weight", 0),
        ("depthwise_conv.bn.bias", "0.bn.bias", 0),
        ("depthwise_conv.bn.running_mean", "0.bn.running_mean", 0),
        ("depthwise_conv.bn.running_var", "0.bn.running_var", 0),
        ("pointwise_conv.conv.weight", "0.pointwise.weight", 1),
    ):
        c5, c4, c3 = before[f"dilation2.{old}"].split(WIDTH, dim)
        assert torch.equal(after[f"dilation_layers.1.0.{new}"], torch.cat((c3, c4, c5), dim))
    assert after["dilation_layers.1.0.pointwise_conv.bn.bias"] is before["dilation2.1.bias"]


@pytest.mark.parametrize("target", FAMILIES)
@pytest.mark.parametrize("source", FAMILIES)
@pytest.mark.parametrize("wrapper", ["", "module.", "student.net."])
def test_prefixes_follow_the_family(source: str, target: str, wrapper: str) -> None:
    sd = prefixed(FAMILIES[source]().state_dict(), wrapper + PREFIXES[source])
    after = convert_state_dict(sd, source=source, target=target)
    assert {key.startswith(wrapper + PREFIXES[target]) for key in after} == {True}


@pytest.mark.parametrize("prefix", ["", "decoder.up."])
def test_other_prefixes_stay(prefix: str) -> None:
    sd = prefixed(fastfcn().state_dict(), prefix)
    after = convert_state_dict(sd, source="fastfcn", target="mmseg")
    assert set(after) == set(prefixed(FAMILIES["mmseg"]().state_dict(), prefix))


def test_other_entries_pass_unchanged_and_in_place() -> None:
    other = torch.rand(3)
    sd = {
        "pretrained.conv3.0.weight": other,
        **prefixed(fastfcn().state_dict(), "jpu."),
        "head.conv5.0.weight": other,
    }
    after = convert_state_dict(sd, source="fastfcn", target="mmseg")
    assert len(after) == len(sd)
    assert next(iter(after)) == "pretrained.conv3.0.weight"
    assert next(reversed(after)) == "head.conv5.0.weight"
    assert after["head.conv5.0.weight"] is other


def test_every_jpu_in_the_dict_is_converted() -> None:
    sd = {**prefixed(fastfcn().state_dict(), "left.jpu."), **prefixed(fastfcn().state_dict(), "right.jpu.")}
    after = convert_state_dict(sd, source="fastfcn", target="mmseg")
    assert {key.split(".")[0] + "." + key.split(".")[1] for key in after} == {"left.neck", "right.neck"}


def test_the_input_is_left_as_it_was() -> None:
    sd = fastfcn().state_dict()
    copy = OrderedDict((key, value.clone()) for key, value in sd.items())
    convert_state_dict(sd, source="fastfcn", target="mmseg")
    assert list(sd) == list(copy)
    assert all(torch.equal(sd[key], copy[key]) for key in sd)


def test_levels_dilations_and_group_norms_of_mmsegmentation() -> None:
    config: dict[str, Any] = {"norm_cfg": {"type": "GN", "num_groups": 4}, "dilations": (1, 3)}
    old = randomise(mmseg.JPU((8, 16), 8, **config))
    after = convert_state_dict(old.state_dict(), source="mmseg", target="sssegmentation")
    new = SSSegmentationJPU((8, 16), 8, dilations=(1, 3), norm_layer=partial(nn.GroupNorm, 4))
    new.load_state_dict(after, strict=True)
    back = convert_state_dict(after, source="sssegmentation", target="mmseg")
    assert list(back) == list(old.state_dict())


def test_group_norms_outside_the_separable_convolutions() -> None:
    old = randomise(JPU(CHANNELS, 8, norm_layer=partial(nn.GroupNorm, 4)))
    after = convert_state_dict(old.state_dict(), source="fastfcn", target="tramac")
    assert "conv3.1.weight" in after
    assert "conv3.1.running_mean" not in after
    with pytest.raises(ValueError, match="expected one kind of norm throughout, as mmseg"):
        convert_state_dict(old.state_dict(), source="fastfcn", target="mmseg")


def mmseg_dict(**config: Any) -> dict[str, Tensor]:
    return mmseg.JPU(**{"in_channels": CHANNELS, "mid_channels": 8, **config}).state_dict()


@pytest.mark.parametrize(
    ("sd", "source", "target", "message"),
    [
        (
            mmseg_dict(),
            "fastfcn",
            "mmseg",
            "expected a fastfcn JPU .*'dilation1.0.conv1.weight'.* got a mmseg JPU",
        ),
        (prefixed(fastfcn().state_dict(), "jpu."), "tramac", "mmseg", "got a fastfcn JPU .* under 'jpu.'"),
        (
            {"fc.weight": torch.zeros(1)},
            "mmseg",
            "fastfcn",
            "got 1 entries with no JPU .* \\('fc.weight', …\\)",
        ),
        ({}, "mmseg", "fastfcn", "got 0 entries with no JPU"),
        ({"state_dict": fastfcn().state_dict()}, "fastfcn", "mmseg", r"pass sd\['state_dict'\]"),
        (JPU_X((8, 128, 16), width=64).state_dict(), "fastfcn", "mmseg", "got FastFCN's JPU_X under ''"),
        (
            prefixed(JPU_X((8, 128, 16), width=64).state_dict(), "module.jpu."),
            "fastfcn",
            "tramac",
            "got FastFCN's JPU_X under 'module.jpu.'",
        ),
        (
            mmseg_dict(dilations=(1, 2)),
            "mmseg",
            "fastfcn",
            "expected 3 levels and 4 dilations .* got 3 and 2",
        ),
        (
            mmseg_dict(in_channels=(8, 16)),
            "mmseg",
            "fastfcn",
            "expected 3 levels and 4 dilations .* got 2 and 4",
        ),
        (
            mmseg_dict(norm_cfg={"type": "GN", "num_groups": 2}),
            "mmseg",
            "fastfcn",
            "expected batch norms .* a norm w",
        ),
        (
            mmseg_dict(norm_cfg=None),
            "mmseg",
            "fastfcn",
            "expected batch norms with running statistics .* got none",
        ),
        (mmseg_dict(norm_cfg=None), "mmseg", "sssegmentation", "expected convolutions without bias"),
        (
            {**fastfcn().state_dict(), "conv3.7.weight": torch.zeros(1)},
            "fastfcn",
            "mmseg",
            "got 'conv3.7.weight'",
        ),
        (
            {**prefixed(fastfcn().state_dict(), "jpu."), "neck.conv_layers.0.0.conv.weight": torch.zeros(1)},
            "fastfcn",
            "mmseg",
            "expected 'neck.conv_layers.0.0.conv.weight' to be free",
        ),
        (fastfcn().state_dict(), "paddle", "mmseg", "source: expected one of fastfcn, .* got 'paddle'"),
        (fastfcn().state_dict(), "fastfcn", "x", "target: expected one of fastfcn, .* got 'x'"),
    ],
)
def test_refuses(sd: dict[str, Any], source: str, target: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_state_dict(sd, source=source, target=target)


@pytest.mark.parametrize("sd", [None, [("a", 1)], {1: torch.zeros(1)}])
def test_refuses_what_is_no_state_dict(sd: Any) -> None:
    with pytest.raises(TypeError, match="sd: expected a mapping from names to tensors, got"):
        convert_state_dict(sd, source="fastfcn", target="mmseg")


def _without(prefix: str) -> dict[str, Tensor]:
    return {key: value for key, value in fastfcn().state_dict().items() if not key.startswith(prefix)}


def _resized(key: str, *shape: int) -> dict[str, Tensor]:
    return {**fastfcn().state_dict(), key: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("sd", "message"),
    [
        (_without("conv5."), "expected 3 levels and 4 dilations in a fastfcn JPU, got the convolutions of 2 and 4"),
        (_without("conv4."), "got the convolutions of 1 and 4"),
        (_without("dilation3.0.conv1"), "got the convolutions of 3 and 2"),
        (_without("dilation2.0.pointwise"), "expected 'dilation2.0.pointwise.weight' as in .* other parts, got none"),
        (_without("dilation4.0.bn.bias"), "expected 'dilation4.0.bn.bias' as in .* other parts, got none"),
        (_without("conv3.1.running_var"), "expected 'conv3.1.running_var'"),
        (
            _resized("dilation1.0.conv1.weight", 33, 1, 3, 3),
            r"expected shape \(24, 1, 3, 3\) of 'dilation1.0.conv1.weight' at width 8, got \(33, 1, 3, 3\)",
        ),
        (_resized("dilation1.0.bn.weight", 8), r"expected shape \(24\) of 'dilation1.0.bn.weight'"),
        (_resized("conv4.0.weight", 9, 16, 3, 3), r"expected shape \(8, any, 3, 3\) of 'conv4.0.weight'"),
    ],
)
def test_a_damaged_jpu_is_refused_rather_than_scrambled(sd: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_state_dict(sd, source="fastfcn", target="mmseg")


def test_an_entry_that_is_no_tensor() -> None:
    sd: dict[str, Any] = {**fastfcn().state_dict(), "conv3.1.bias": None}
    with pytest.raises(TypeError, match="expected a tensor as 'conv3.1.bias', got NoneType"):
        convert_state_dict(sd, source="fastfcn", target="mmseg")
