"""jpu_cuda.functional against explicit loops and against compositions of PyTorch's operators."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_no_worse, assert_within, pyramid
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jpu_cuda import functional, mmseg
from jpu_cuda.reference import loops

DOUBLE = loops.Arithmetic.of(torch.float64)
HALVES = [torch.float16, torch.bfloat16]

side = st.integers(1, 9)


@given(
    sizes=st.lists(st.tuples(side, side), min_size=1, max_size=4),
    align_corners=st.booleans(),
    reverse=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
)
def test_upsample_concat(sizes: list[tuple[int, int]], align_corners: bool, reverse: bool, dtype: torch.dtype) -> None:
    levels = pyramid(range(1, len(sizes) + 1), sizes, dtype=dtype)
    arithmetic = loops.Arithmetic.of(dtype)
    expected = [loops.resize(loops.Bounded.exact(x), sizes[0], align_corners, arithmetic) for x in levels]
    out = functional.upsample_concat(levels, align_corners, reverse)
    assert_within(out, loops._concat(expected[::-1] if reverse else expected))


def test_upsample_passes_the_first_level_through() -> None:
    levels = pyramid()
    resized = functional.upsample(levels, align_corners=True)
    assert resized[0] is levels[0]
    assert torch.equal(torch.cat(resized, 1), functional.upsample_concat(levels, align_corners=True))


def test_upsample_concat_gradcheck() -> None:
    levels = pyramid((2, 1, 3), ((4, 5), (2, 3), (7, 1)), requires_grad=True)
    for align_corners in (False, True):
        assert torch.autograd.gradcheck(
            lambda *x, a=align_corners: functional.upsample_concat(x, a, reverse=True), tuple(levels)
        )


def arguments(dtype: torch.dtype = torch.float64, per_sample: bool = False) -> dict[str, Any]:
    """Two levels of 3 and 2 channels, three dilations, four outputs."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    affine = (2, 3, 5) if per_sample else (3, 5)
    return {
        "levels": pyramid((3, 2), ((6, 7), (6, 7)), dtype=dtype),
        "depthwise_weight": random(3, 5, 3, 3),
        "pointwise_weight": random(3, 4, 5),
        "dilations": (1, 2, 5),
        "scale": random(*affine),
        "shift": random(*affine),
        "out_scale": random(3, 4),
        "out_shift": random(3, 4),
    }


def by_loops(a: dict[str, Any], relu: bool, dtype: torch.dtype) -> loops.Bounded:
    arithmetic = loops.Arithmetic.of(dtype)
    u = loops._concat([loops.Bounded.exact(x) for x in a["levels"]])
    a = {k: v.double().numpy() for k, v in a.items() if isinstance(v, Tensor)} | {"dilations": a["dilations"]}
    outputs = []
    for d, dilation in enumerate(a["dilations"]):
        z = loops.conv2d(u, loops.Conv(a["depthwise_weight"][d][:, None], None, dilation, 5), arithmetic)
        h = affine(z, a["scale"][..., d, :], a["shift"][..., d, :], arithmetic)
        q = loops.conv2d(h, loops.Conv(a["pointwise_weight"][d][:, :, None, None]), arithmetic)
        outputs.append(affine(q, a["out_scale"][d], a["out_shift"][d], arithmetic))
    out = loops._concat(outputs)
    return loops._relu(out) if relu else out


def affine(x: loops.Bounded, scale: Any, shift: Any, arithmetic: loops.Arithmetic) -> loops.Bounded:
    scale, shift = scale[..., None, None], shift[..., None, None]
    value = scale * x.value + shift
    error = abs(scale) * x.error + arithmetic.gamma(2) * (abs(scale * x.value) + abs(shift))
    return loops._stored(value, error, arithmetic)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_separable_pyramid(dtype: torch.dtype, per_sample: bool, relu: bool) -> None:
    a = arguments(dtype, per_sample)
    out = functional.separable_pyramid(**a, relu=relu)
    assert out.dtype == dtype
    assert_within(out, by_loops(a, relu, dtype))


def test_separable_pyramid_without_affine_terms() -> None:
    a = arguments()
    for name in ("scale", "shift", "out_scale", "out_shift"):
        del a[name]
    u = torch.cat(a["levels"], 1)
    expected = [
        F.conv2d(F.conv2d(u, w[:, None], padding=d, dilation=d, groups=5), p[:, :, None, None]).relu()
        for w, p, d in zip(a["depthwise_weight"], a["pointwise_weight"], a["dilations"], strict=True)
    ]
    assert torch.equal(functional.separable_pyramid(**a), torch.cat(expected, 1))


def test_separable_pyramid_gradcheck() -> None:
    a = arguments(per_sample=True)
    names = ["depthwise_weight", "pointwise_weight", "scale", "shift", "out_scale", "out_shift"]
    tensors = [x.requires_grad_() for x in (*a["levels"], *(a[n] for n in names))]

    def run(*x: Tensor) -> Tensor:
        return functional.separable_pyramid(x[:2], dilations=a["dilations"], **dict(zip(names, x[2:], strict=True)))

    assert torch.autograd.gradcheck(run, tuple(tensors))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_folded_norms_lose_nothing_against_the_module(dtype: torch.dtype) -> None:
    """A JPU's branches with their norms as float32 scale and shift: as exact as PyTorch's own path."""
    torch.manual_seed(0)
    jpu = mmseg.JPU((8, 16, 32), 16).to(dtype).eval()
    for name, buffer in jpu.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 3)  # |μ|/σ around 3, where folding into the weights would cost precision
    features = pyramid((16, 16, 16), ((9, 9),) * 3, dtype=dtype)
    u = torch.cat(features, 1)
    baseline = torch.cat([jpu.branch(i)(u) for i in range(4)], 1)
    truth = torch.cat([jpu.double().branch(i)(u.double()) for i in range(4)], 1)
    jpu.to(dtype)

    def folded(norm: Any) -> tuple[Tensor, Tensor]:
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        return scale.float(), (norm.bias.double() - scale * norm.running_mean.double()).float()

    branches = [jpu.branch(i)[0] for i in range(4)]  # type: ignore[index]
    scale, shift = zip(*(folded(b.depthwise_conv.bn) for b in branches), strict=True)
    out_scale, out_shift = zip(*(folded(b.pointwise_conv.bn) for b in branches), strict=True)
    out = functional.separable_pyramid(
        features,
        torch.stack([b.depthwise_conv.conv.weight[:, 0] for b in branches]),
        torch.stack([b.pointwise_conv.conv.weight[:, :, 0, 0] for b in branches]),
        (1, 2, 4, 8),
        scale=torch.stack(scale),
        shift=torch.stack(shift),
        out_scale=torch.stack(out_scale),
        out_shift=torch.stack(out_shift),
    )
    assert_no_worse(out, baseline, truth)


@pytest.mark.parametrize(
    ("levels", "error", "message"),
    [
        ([], ValueError, "levels: expected at least one level, got none"),
        ([torch.zeros(3, 4)], ValueError, r"levels\[0\]: expected 4 dimensions"),
        (
            [torch.zeros(1, 1, 2, 2), torch.zeros(2, 1, 2, 2)],
            ValueError,
            r"levels\[1\]: expected batch size 1",
        ),
    ],
)
def test_wrong_levels(levels: list[Tensor], error: type[Exception], message: str) -> None:
    for op in (functional.upsample, functional.upsample_concat):
        with pytest.raises(error, match=message):
            op(levels, align_corners=True)


def test_flags_are_bools_and_levels_strided() -> None:
    level = torch.zeros(1, 1, 2, 2)
    for op in (functional.upsample, functional.upsample_concat):
        with pytest.raises(TypeError, match="align_corners: expected a bool, got None"):
            op([level], None)
        with pytest.raises(TypeError, match=r"levels\[1\]: expected a strided tensor, got layout torch.sparse_coo"):
            op([level, level.to_sparse()], True)
    with pytest.raises(TypeError, match="reverse: expected a bool, got 'first'"):
        functional.upsample_concat([level], True, "first")


def test_a_level_without_channels_takes_no_part() -> None:
    level = torch.randn(1, 2, 3, 3)
    out = functional.upsample_concat([level, torch.zeros(1, 0, 2, 2)], align_corners=True)
    assert torch.equal(out, level)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"levels": pyramid((3, 2), ((6, 7), (3, 4)))},
            r"levels\[1\]: expected size \(6, 7\) .* got \(3, 4\)",
        ),
        ({"dilations": ()}, "dilations: expected one or more integers >= 1"),
        ({"dilations": (1, 2, 0)}, "dilations: expected one or more integers >= 1"),
        ({"dilations": (1, 2)}, r"depthwise_weight: expected shape \(2, 5, 3, 3\), got \(3, 5, 3, 3\)"),
        ({"depthwise_weight": torch.zeros(3, 4, 3, 3).double()}, r"depthwise_weight: expected shape \(3, 5, 3, 3\)"),
        ({"pointwise_weight": torch.zeros(3, 4, 6).double()}, r"pointwise_weight: expected shape \(3, 4, 5\)"),
        (
            {"pointwise_weight": torch.zeros(4, 5).double()},
            r"pointwise_weight: expected shape \(3, any, 5\), got \(4, 5\)",
        ),
        ({"scale": torch.zeros(1, 5)}, r"scale: expected shape \(3, 5\) or \(2, 3, 5\), got \(1, 5\)"),
        ({"out_shift": torch.zeros(2, 3, 4)}, r"out_shift: expected shape \(3, 4\), got \(2, 3, 4\)"),
    ],
)
def test_wrong_arguments_of_separable_pyramid(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        functional.separable_pyramid(**{**arguments(), **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"depthwise_weight": torch.zeros(3, 5, 3, 3)}, ValueError, "expected dtype torch.float64 as the levels, got"),
        ({"pointwise_weight": [1.0]}, TypeError, "pointwise_weight: expected a Tensor, got list"),
        ({"scale": torch.zeros(3, 5, device="meta")}, ValueError, "scale: expected device cpu as the levels, got meta"),
        ({"levels": None}, TypeError, "levels: expected a sequence of tensors, got NoneType"),
    ],
)
def test_wrong_kinds_of_separable_pyramids_arguments(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        functional.separable_pyramid(**{**arguments(), **change})
