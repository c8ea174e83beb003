"""The reach of separable_pyramid: offsets past 2³¹, most levels, branches and dilations, and what lies beyond."""

import ctypes
from dataclasses import replace

import pytest
import torch
from pyramids import Pyramid, by_kernels, check_backward, check_forward
from strategies import needs_host
from torch import Tensor

from jpu_cuda import BackendUnavailableError, functional, host, use_backend
from jpu_cuda.backend import Explanation

pytestmark = needs_host

FAR = 2**31 + 24  # a multiple of 8, so that vectors stay aligned


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    host.load()


def spread(tensor: Tensor, axis: int) -> Tensor:
    """The same values, from one index of ``axis`` to the next more than 2³¹ elements apart.

    The memory between them is reserved and never touched.
    """
    strides = [*tensor.stride()]
    strides[axis] = FAR
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    return torch.empty(reach, dtype=tensor.dtype).as_strided(tensor.shape, strides).copy_(tensor)


AXES = pytest.mark.parametrize("axis", [0, 1, 2, 3], ids=["images", "channels", "rows", "columns"])
LAYOUTS = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])


def assert_the_same_far_apart(case: Pyramid, axis: int) -> None:
    """Output and all gradients, with levels, gradient and output spread out, are those of compact ones to the bit."""
    a, gradient = case.arguments(), case.gradient()
    between = a["depthwise"], a["pointwise"], list(case.dilations), *a["terms"]
    near = by_kernels(case, a)
    far = [spread(level, axis) for level in a["levels"]]
    out = torch.ops.jpu_cuda.separable_pyramid(far, *between, case.relu)
    assert torch.equal(out, near)
    needed = [1] * (len(far) + 6)
    expected = torch.ops.jpu_cuda.separable_pyramid_backward(a["levels"], *between, gradient, near, needed)
    spread_out = spread(gradient, axis), spread(near, axis)
    results = torch.ops.jpu_cuda.separable_pyramid_backward(far, *between, *spread_out, needed)
    assert all(map(torch.equal, results, expected))


@LAYOUTS
@AXES
def test_levels_and_gradients_may_reach_past_2_to_31_elements(axis: int, layout: str) -> None:
    assert_the_same_far_apart(Pyramid(2, (2,), 2, (2, 3), (1, 2), torch.float16, layout), axis)


@pytest.mark.parametrize("axis", [0, 2, 3], ids=["images", "rows", "columns"])
def test_so_may_those_of_vectors(axis: int) -> None:
    """Several chunks, the last not full; each branch's outputs are vectors too."""
    case = Pyramid(2, (40, 8), 8, (2, 3), (1, 2), torch.float16, "channels_last")
    with host.record() as launches:
        assert_the_same_far_apart(case, axis)
    by_vectors = {launch.kernel for launch in launches if 16 in launch.counters["global_reads"]}
    assert by_vectors == {launch.kernel for launch in launches} - {"separable_pyramid reduce"}


@pytest.mark.parametrize("policy", ["mma", "two-pass"])
@LAYOUTS
@AXES
def test_tensor_cores_read_as_far(axis: int, layout: str, policy: str) -> None:
    channels = (2,) if axis == 1 else (40, 8)  # that many channels so far apart would be 160 GiB
    case = Pyramid(2, channels, 8, (2, 3), (1, 2), torch.float16, layout, policy=policy)
    a = case.arguments()
    near = by_kernels(case, a)
    assert torch.equal(by_kernels(case, {**a, "levels": [spread(level, axis) for level in a["levels"]]}), near)


@LAYOUTS
@AXES
def test_an_offset_cut_to_32_bits_would_be_caught(axis: int, layout: str) -> None:
    """Such offsets address nothing of the spread tensor, and host execution faults outside of it."""
    (level,) = Pyramid(2, (2,), 2, (2, 3), (1,), torch.float16, layout).arguments()["levels"]
    far = spread(level, axis)
    index = torch.cartesian_prod(*map(torch.arange, far.shape))
    offsets = {int(o) for o in (index * torch.tensor(far.stride())).sum(1)}
    cut = {ctypes.c_int32(o).value for o in offsets if o >= 2**31}
    assert len(cut) >= level.numel() // level.shape[axis]
    assert not cut & offsets


def test_all_limits_at_once() -> None:
    """8 levels, 8 branches, dilation 16, on an image that it reaches over."""
    case = Pyramid(1, (1, 2, 1, 1, 3, 1, 1, 2), 3, (3, 18), (16, 1, 1, 2, 1, 3, 1, 5), torch.float64)
    check_forward(case)
    check_backward(case)
    more = replace(case, channels=(*case.channels, 1))
    with pytest.raises(RuntimeError, match="levels: expected 1 to 8, got 9"):
        by_kernels(more, more.arguments())


@pytest.mark.parametrize(("size", "dilation"), [((1, 40), 16), ((40, 1), 16), ((2, 2), 16), ((1, 1), 1)], ids=str)
def test_images_smaller_than_the_dilation(size: tuple[int, int], dilation: int) -> None:
    case = Pyramid(2, (3,), 2, size, (dilation,), torch.float64)
    check_forward(case)
    check_backward(case)


# Of levels whose elements share memory, and of batches, whose outputs are reserved and never touched.
@pytest.mark.parametrize(
    ("policy", "shape", "message"),
    [
        ("fma", (1, 1, 2**16, 2**15), r"levels: expected 1 to 2147483647 pixels, got \[1, 1, 65536, 32768\]"),
        ("fma", (1, 1, 0, 3), r"levels: expected 1 to 2147483647 pixels, got \[1, 1, 0, 3\]"),
        ("fma", (1, 1, 2**30 + 1, 1), r"at most 1073741824 pixels a side, got \[1, 1, 1073741825, 1\]"),
        ("fma", (2**31, 1, 1, 1), r"levels: expected at most 2147483647 samples of .* got \[2147483648, 1, 1, 1\]"),
        ("fma", (2**30, 1, 1, 1), "forward: expected at most 2147483647 blocks, got 2147483648"),
        ("mma", (2**30, 1, 1, 1), "mma: expected at most 2147483647 blocks, got 2147483648"),
        ("two-pass", (2**30, 1, 1, 1), "normalise: expected at most 2147483647 tiles, got 2147483648"),
    ],
    ids=["pixels", "none", "a side", "samples", "blocks", "blocks of tensor cores", "tiles"],
)
def test_more_than_indices_hold_is_refused(policy: str, shape: tuple[int, ...], message: str) -> None:
    level = torch.empty(1, dtype=torch.float16).expand(shape)
    lists = [level], [torch.zeros(1, 1, 3, 3).half()] * 2, [torch.zeros(1, 1, 1, 1).half()] * 2
    with pytest.raises(RuntimeError, match=message):
        torch.ops.jpu_cuda.separable_pyramid(*lists, [1, 2], *[None] * 4, True, False, 80, policy)


@pytest.mark.parametrize("wide", ["levels", "outputs"])
def test_too_many_channels_are_refused(wide: str) -> None:
    inputs, outputs = (2**28 + 1, 1) if wide == "levels" else (1, 2**28 + 1)
    element = torch.empty(1, dtype=torch.float16)
    level, taps = element.expand(1, inputs, 1, 1), element.expand(inputs, 1, 3, 3)
    weight = element.expand(outputs, inputs, 1, 1)
    message = f"channels: expected 1 to 268435456 of inputs and outputs, got {inputs} and {outputs}"
    with pytest.raises(RuntimeError, match=message):
        torch.ops.jpu_cuda.separable_pyramid([level], [taps], [weight], [1], *[None] * 4, True)


@pytest.mark.parametrize("arguments", [{"levels": 9}, {"dilations": (17,)}, {"dilations": (1,) * 9}], ids=str)
def test_beyond_the_limits_the_function_is_the_references_or_says_so(
    arguments: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    count, dilations = arguments.get("levels", 1), arguments.get("dilations", (1,))
    levels = [torch.randn(1, 1, 3, 4) for _ in range(count)]
    weights = torch.randn(len(dilations), count, 3, 3), torch.randn(len(dilations), 2, count)
    with use_backend("reference"):
        expected = functional.separable_pyramid(levels, *weights, dilations)
    with use_backend("host"), pytest.raises(BackendUnavailableError, match="expected at most 8 levels and 8 dilations"):
        functional.separable_pyramid(levels, *weights, dilations)
    # As where "auto" chooses the kernels, which on the CPU it never does.
    monkeypatch.setattr(functional, "choose", lambda level: Explanation("cuda", "fma", ""))
    with host.record() as launches:
        assert torch.equal(functional.separable_pyramid(levels, *weights, dilations), expected)
    assert launches == []
